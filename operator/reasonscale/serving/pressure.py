"""Shrinks the default thinking budget under pressure, in steps, and gives it back. Pure."""

from __future__ import annotations

from typing import Final

HIGH: Final = 0.5  # of the longest queue: from here on a step tighter ...
UP_S: Final = 2.0  # ... each so many seconds
LOW: Final = 0.25  # below this a step looser ...
DOWN_S: Final = 10.0  # ... each so many seconds


class Pressure:
    """How many steps the default budget is shrunk by now."""

    def __init__(self) -> None:
        self.step = 0
        self._since_s: float | None = None  # so long the queue has been on the side where it is
        self._side = 0

    def see(self, now: float, queue: float, steps: int) -> None:
        """Take the queue, as a share of the longest that is let in; `steps` 0: never shrink."""
        side = 1 if queue >= HIGH else -1 if queue < LOW else 0
        if side != self._side or self._since_s is None:
            self._side, self._since_s = side, now
        if steps <= 0:
            self.step = 0
        elif side > 0 and now - self._since_s >= UP_S:
            self.step, self._since_s = min(steps, self.step + 1), now
        elif side < 0 and now - self._since_s >= DOWN_S:
            self.step, self._since_s = max(0, self.step - 1), now


def shrunk(default: int, floor: int, step: int, steps: int) -> int:
    """Return the default budget after so many steps down: equal ratios from the whole to the floor."""
    if step <= 0 or steps <= 0 or floor >= default:
        return default
    if step >= steps or floor <= 0:
        return floor
    return max(floor, round(default * float((floor / default) ** (step / steps))))
