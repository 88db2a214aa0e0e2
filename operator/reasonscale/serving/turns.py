"""Who goes on next when an engine was lost, and whether anybody does: pure but for the loop's own clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Protocol

TURN_S: Final = 5.0  # the next request is not kept waiting for longer
MANY_DEATHS, DEATHS_WITHIN_S, OFF_S = 8, 600.0, 600.0


class Gone(Exception):
    """Who waited for a turn waits no more."""


class TurnTaking(Protocol):
    """Who goes on next."""

    def holds(self, who: Hashable) -> bool:
        """Tell whether it is somebody's turn."""

    async def take(self, who: Hashable, arrived_s: float) -> None:
        """Wait for one's turn; it ends with `give`, or after TURN_S."""

    def give(self, who: Hashable) -> None:
        """End a turn; nothing where it was another's."""


class Losses(Protocol):
    """Engines of one model that were lost of late, and who goes on after them."""

    @property
    def turns(self) -> TurnTaking:
        """Who goes on next."""

    def note(self, replica: str | None) -> None:
        """Note that a replica was lost; each counts once."""

    @property
    def off(self) -> bool:
        """Whether so many were lost that requests are not handed on for now."""


class Turns:
    """One at a time; the oldest that waits comes first."""

    def __init__(self) -> None:
        self._held: Hashable | None = None
        self._ends: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[float, int, asyncio.Future[None], Hashable]] = []
        self._order = itertools.count()

    def holds(self, who: Hashable) -> bool:
        """Tell whether it is somebody's turn."""
        return self._held == who

    async def take(self, who: Hashable, arrived_s: float) -> None:
        """Wait for one's turn; it ends with `give`, or after TURN_S. One whose turn it is begins it again."""
        if self._held is None or self._held == who:
            self._begin(who)
            return
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (arrived_s, next(self._order), there, who))
        try:
            await there
        except asyncio.CancelledError:
            if there.done() and not there.cancelled():
                self.give(who)
            raise

    def give(self, who: Hashable) -> None:
        """End a turn; nothing where it was another's."""
        if self._held != who:
            return
        self._held = None
        while self._waiting:
            _, _, there, after = heapq.heappop(self._waiting)
            if not there.done():
                self._begin(after)
                there.set_result(None)
                return

    def leave(self, who: Hashable) -> None:
        """End a turn, and every wait for one: who waited elsewhere has gone."""
        for _, _, there, waits in self._waiting:
            if waits == who and not there.done():
                there.set_exception(Gone())
        self.give(who)

    def _begin(self, who: Hashable) -> None:
        if self._ends is not None:
            self._ends.cancel()
        self._held = who
        self._ends = asyncio.get_running_loop().call_later(TURN_S, self.give, who)


class Deaths:
    """Engines of one model that were lost of late, as one process saw it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, str]] = deque(maxlen=64)
        self._off_until = 0.0
        self.turns = Turns()

    def note(self, replica: str | None) -> None:
        """Note that a replica was lost; each counts once."""
        now = self._clock()
        if replica is None or any(replica == name for _, name in self._seen):
            return
        self._seen.append((now, replica))
        if sum(1 for when, _ in self._seen if now - when <= DEATHS_WITHIN_S) >= MANY_DEATHS:
            self._off_until = now + OFF_S

    @property
    def off(self) -> bool:
        """Whether so many were lost that requests are not handed on for now."""
        return self.off_for_s > 0

    @property
    def off_for_s(self) -> float:
        """For how long they are not handed on yet."""
        return max(0.0, self._off_until - self._clock())

    def turn_off(self, for_s: float) -> None:
        """Hand nothing on for so long at least: somebody else saw too many."""
        self._off_until = max(self._off_until, self._clock() + for_s)
