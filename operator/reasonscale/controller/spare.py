"""One replica more than asked for, that a rollout in place runs with where GPUs are free for it. Pure but for what it remembers.

Serve stops a replica before it starts its successor. With one more, none is missing meanwhile: no outage with a single replica.
"""

from __future__ import annotations

from collections.abc import Mapping

from reasonscale.render.context import GPUS_PER_POD, Subject

SAID = "one replica more starts on free GPUs first, so that none is missing while engines restart"


def room_for_one(subject: Subject, free: Mapping[str, float] | None) -> bool:
    """Tell whether one replica more can be had, where any runs, on GPUs that are free by node (None: nobody knows)."""
    if not subject.gpus or free is None or not subject.context.replicas:
        return False
    each = min(subject.gpus, GPUS_PER_POD)
    return sum(int(gpus // each) for gpus in free.values()) >= subject.pods_per_replica


class Spare:
    """The replica more, from before a rollout begins until Serve has replaced the engines."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._without: str | None = None  # the rendering for which it did not come in time

    @property
    def number(self) -> int:
        """Return how many replicas more are asked for."""
        return int(self._since is not None)

    def resume(self, now: float) -> None:
        """Take over one that was asked for by an operator before us."""
        self._since = now

    def waits(self, rendering: str, *, room: bool, there: bool, most_s: float, now: float) -> bool:
        """Tell whether a rollout to a rendering waits for the replica; asks for it where there is room, for `most_s` seconds."""
        if self._since is None:
            if not room or self._without == rendering:
                return False
            self._since = now
        if there:
            return False
        if now - self._since < most_s:
            return True
        self._since, self._without = None, rendering
        return False

    def rest(self) -> None:
        """Let it go: nothing is rolled out, or to be rolled out."""
        self._since = self._without = None
