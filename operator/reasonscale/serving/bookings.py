"""Places in the line for requests that were refused, so that the time they are told to come back at is true. Pure.

Under a lasting overload whoever comes back meets as many new requests as before, and would be refused as often. So each refusal
books the room that it is told of: it is kept from new requests, as far as refused ones do come back, and he who comes back is
known by his key or by what he asks (`reading.known_by`). One who comes too early keeps his place.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Final

MOST: Final = 20_000
GRACE_S: Final = 5.0  # or half of what was told: clients round, sleep and connect
EARLY_S: Final = 1.0
# All come back until it is known better: too long a time told costs one client patience, too short a one a second refusal.
COMING_PRIOR, COMING_WEIGHT, COMING_KEEP = 1.0, 8.0, 0.98


@dataclass(slots=True, eq=False)
class Booking:
    """One refused request's place."""

    cls: str
    key: str
    tokens: float
    due_s: float
    until_s: float
    open: bool = True


class Bookings:
    """What one ingress told those that it refused."""

    def __init__(self) -> None:
        self._by_key: dict[str, deque[Booking]] = {}
        self._until: list[tuple[float, int, Booking]] = []
        self._made = self._open = 0
        self._tokens: dict[str, float] = {}
        self._by_second: dict[str, dict[int, float]] = {}
        self._came, self._of = COMING_PRIOR * COMING_WEIGHT, COMING_WEIGHT

    def __len__(self) -> int:
        return self._open

    @property
    def coming(self) -> float:
        """The share of refused requests that come back, of late."""
        return self._came / self._of

    def add(self, cls: str, key: str, tokens: float, now: float, after_s: float) -> None:
        """Book a place for a request that is told to come back."""
        if len(self._until) >= MOST:
            return
        booking = Booking(cls, key, tokens, now + after_s, now + after_s + max(GRACE_S, 0.5 * after_s))
        self._by_key.setdefault(key, deque()).append(booking)
        self._made += 1
        self._open += 1
        heapq.heappush(self._until, (booking.until_s, self._made, booking))
        self._count(booking, booking.tokens)

    def find(self, key: str) -> Booking | None:
        """Return the first place that a request has by what it asks; None where it has none."""
        found = self._by_key.get(key)
        return found[0] if found else None

    def take(self, booking: Booking) -> None:
        """End a booking whose request was let in."""
        self._close(booking)
        self._learn(1.0)

    def expire(self, now: float) -> None:
        """Drop the places of those that did not come."""
        while self._until and (self._until[0][0] <= now or not self._until[0][2].open):
            booking = heapq.heappop(self._until)[2]
            if booking.open:
                self._close(booking)
                self._learn(0.0)

    def due(self, now: float, within_s: float) -> dict[str, float]:
        """Return the tokens that are expected back within a time, by class; those that are late among them."""
        last, coming = ceil(now + within_s), self.coming
        return {
            cls: coming * sum(tokens for second, tokens in seconds.items() if second <= last)
            for cls, seconds in self._by_second.items()
        }

    def all(self) -> dict[str, float]:
        """Return the tokens that are expected back at all, by class."""
        coming = self.coming
        return {cls: coming * tokens for cls, tokens in self._tokens.items()}

    def _learn(self, came: float) -> None:
        self._came, self._of = COMING_KEEP * self._came + came, COMING_KEEP * self._of + 1.0

    def _count(self, booking: Booking, tokens: float) -> None:
        self._tokens[booking.cls] = self._tokens.get(booking.cls, 0.0) + tokens
        seconds, at = self._by_second.setdefault(booking.cls, {}), int(booking.due_s)
        seconds[at] = seconds.get(at, 0.0) + tokens
        if seconds[at] <= 1e-6:
            del seconds[at]

    def _close(self, booking: Booking) -> None:
        booking.open = False
        self._open -= 1
        found = self._by_key[booking.key]
        found.remove(booking)
        if not found:
            del self._by_key[booking.key]
        self._count(booking, -booking.tokens)
