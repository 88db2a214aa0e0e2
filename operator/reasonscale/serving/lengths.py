"""What a request is expected to make, by class, and what one that runs is expected to make yet. Pure.

The ingress sees ends alone at once, and short chains end first: after a burst the first hundred ends say too little. So
what running requests have made beyond the mean counts too, as it does in an estimate from censored lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

PRIOR_WEIGHT: Final = 4.0  # requests that the prior counts for
KEPT: Final = 4096
NEWEST: Final = 256  # that say how lengths scatter
LEAST_LOOKED_AT: Final = 64
UNKNOWN_TOKENS: Final = 500.0


class Lengths:
    """Mean output tokens by class."""

    def __init__(self, prior: Mapping[str, float] | None = None) -> None:
        self.prior: Mapping[str, float] = prior or {}
        self._ended: dict[str, deque[float]] = {}
        self._means: dict[str, float] = {}

    def ended(self, cls: str, tokens: float) -> None:
        """Note a request that came to its end."""
        self._ended.setdefault(cls, deque(maxlen=KEPT)).append(tokens)

    def seen(self, cls: str) -> Sequence[float]:
        """Return the lengths of a class that ended of late, the newest last."""
        ended = self._ended.get(cls, ())
        return list(islice(ended, max(0, len(ended) - NEWEST), None))

    def mean(self, cls: str, most: float | None = None) -> float:
        """Return the tokens that a request of a class is expected to make, at most `most`."""
        mean = self._means.get(cls) or self.prior.get(cls, UNKNOWN_TOKENS)
        return mean if most is None else min(mean, most)

    def learn(self, running: Iterable[tuple[str, float]]) -> None:
        """Renew the means; `running`: class and tokens so far of each request that runs."""
        now: dict[str, list[float]] = {}
        for cls, tokens in running:
            now.setdefault(cls, []).append(tokens)
        for cls in {*self._ended, *now}:
            made = now.get(cls, [])
            seen = self._ended.get(cls, deque())
            looked_at = min(len(seen), max(LEAST_LOOKED_AT, 4 * len(made)))
            last = list(islice(reversed(seen), looked_at))
            prior = self.prior.get(cls, UNKNOWN_TOKENS)
            total, n = PRIOR_WEIGHT * prior + sum(last), PRIOR_WEIGHT + len(last)
            beyond = sum(max(0.0, tokens - total / n) for tokens in made)
            self._means[cls] = (total + beyond) / n
