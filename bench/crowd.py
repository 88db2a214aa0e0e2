"""A crowd of requests that all generate at one speed, counted as the ledger counts: the truth to hold estimates against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reasonscale.api.constants import TOKEN_BINS
from reasonscale.scaling.types import N_BINS, ClassCounts

Floats = npt.NDArray[np.float64]
_EDGES = np.asarray(TOKEN_BINS, dtype=np.float64)


def _bins(tokens: Floats) -> npt.NDArray[np.int64]:
    return np.searchsorted(_EDGES, tokens, side="right") - 1


class Crowd:
    """One class of requests; every one starts when it arrives and makes `tokens_per_s`."""

    def __init__(
        self, starts_s: Floats, lengths: Floats, tokens_per_s: float, censored_at: Floats | None = None
    ) -> None:
        order = np.argsort(starts_s, kind="stable")
        self.starts, self.lengths, self.speed = starts_s[order], lengths[order], tokens_per_s
        # A request that is cut leaves at so many tokens, without having ended of itself.
        self.leaves = self.lengths if censored_at is None else np.minimum(self.lengths, censored_at[order])
        self.ends = self.starts + self.leaves / tokens_per_s
        self._open = np.zeros(0, dtype=np.int64)  # in flight at the last step, by index
        self._next = 0
        self.now = 0.0

    def step(self, now: float, prompt_tokens: float = 100.0) -> ClassCounts:
        """Return the counts at `now`, with increments since the step before."""
        last = self._next
        self._next = int(np.searchsorted(self.starts, now, side="right"))
        fresh = np.arange(last, self._next)
        there = np.concatenate([self._open, fresh])
        before = np.concatenate([_bins((self.now - self.starts[self._open]) * self.speed), np.full(len(fresh), -1)])
        made = np.minimum((now - self.starts[there]) * self.speed, self.leaves[there])
        after = _bins(made)
        # Bins before + 1 .. after were reached: +1 where that run begins, -1 past its end.
        change = np.bincount(before + 1, minlength=N_BINS + 1) - np.bincount(after + 1, minlength=N_BINS + 1)
        reached = np.cumsum(change)[:N_BINS]
        gone = self.ends[there] <= now
        natural = gone & (self.leaves[there] >= self.lengths[there])
        ended = np.bincount(after[natural], minlength=N_BINS)
        self._open, self.now = there[~gone], now
        inflight = np.bincount(after[~gone], minlength=N_BINS).astype(np.float64)
        return ClassCounts(
            reasoning=tuple(inflight.tolist()),
            inflight_prompt_tokens=tuple((inflight * prompt_tokens).tolist()),
            reached=tuple(reached.astype(float).tolist()),
            ended=tuple(ended.astype(float).tolist()),
            arrivals=float(len(fresh)),
            prompt_tokens=prompt_tokens * len(fresh),
        )

    def owed(self, when: float) -> float:
        """Return the tokens that requests in flight at `when` have still to make: the truth."""
        there = (self.starts <= when) & (self.ends > when)
        return float(np.sum(self.leaves[there] - (when - self.starts[there]) * self.speed))

    def inflight(self, when: float) -> int:
        """Return the requests in flight at `when`."""
        return int(np.sum((self.starts <= when) & (self.ends > when)))
