"""Seats kept free of classes that use more than their share, so that the others start at once. Pure.

Whoever's turn it is waits for a seat to come free all the same, and where chains last minutes that is seconds. Trunk
reservation, as in telephone networks: the last few free seats are given to classes below their share alone. It idles
seats, so it is at most a twentieth of them, and none unless a class below its share has asked of late.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log
from typing import Final

MOST_SHARE: Final = 0.05
WAIT_ODDS: Final = 0.03  # of the requests below their share that find no seat
MEMORY_S: Final = 30.0


@dataclass(slots=True)
class Rate:
    """Events per second of late."""

    _sum: float = 0.0
    _at_s: float | None = None

    def note(self, now: float, n: float = 1.0) -> None:
        self._sum = self._decayed(now) + n
        self._at_s = now

    def per_s(self, now: float) -> float:
        return self._decayed(now) / MEMORY_S

    def _decayed(self, now: float) -> float:
        return 0.0 if self._at_s is None else self._sum * exp(-max(0.0, now - self._at_s) / MEMORY_S)


def most_kept(seats: int) -> int:
    """Return how many of the seats are kept free at most."""
    return int(MOST_SHARE * seats)


def reserved(seats: int, arrivals_per_s: float, ends_per_s: float) -> int:
    """Return the seats to keep free for requests that come at a rate while seats come free at another.

    With r kept, a request finds none with odds of about (arrivals / ends)^r: a birth and death chain.
    """
    most = most_kept(seats)
    if most < 1 or arrivals_per_s < 1e-3:
        return 0
    if arrivals_per_s >= 0.99 * ends_per_s:
        return most
    return min(most, max(1, ceil(log(WAIT_ODDS) / log(arrivals_per_s / ends_per_s))))
