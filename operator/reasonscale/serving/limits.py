"""How many requests an ingress holds at once, and when one that is refused should come back. Pure."""

from __future__ import annotations

from collections import deque

_REMEMBERED = 64  # ends that the rate is taken over
NO_RATE_S = 5


class InFlight:
    """Requests of one model that this ingress holds: running, waiting in an engine, or waiting for one to start."""

    def __init__(self) -> None:
        self.held = 0
        self._ends_s: deque[float] = deque(maxlen=_REMEMBERED)

    def take(self, most: int) -> bool:
        """Count a request in; False where there is no room for it."""
        if self.held >= most:
            return False
        self.held += 1
        return True

    def give(self, now: float) -> None:
        """Count a request out."""
        self.held -= 1
        self._ends_s.append(now)

    def retry_after_s(self, now: float) -> int:
        """Return when half of what is held should have ended at the rate of late, between 1 and 60 s."""
        if len(self._ends_s) < 2 or now <= self._ends_s[0]:
            return NO_RATE_S
        rate = len(self._ends_s) / (now - self._ends_s[0])
        return max(1, min(60, round(self.held / 2 / rate)))
