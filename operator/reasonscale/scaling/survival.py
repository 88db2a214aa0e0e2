"""From what the ledger counts to the hazard of each token bin: a life table with three memories.

Of the E requests that entered bin j, D ended in it and P passed on to the next. One that is still inside, or was cut
there, has been at risk over half the bin on average, so each entry counts half and so does each exit:
D / ((E + D + P) / 2) is the share that ends, whether load is steady, rises or falls. D / E alone would be wrong
whenever load changes, since a request reaches a bin long before it ends in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import erfc, exp, log, log1p, sqrt

from reasonscale.scaling.curve import EDGES, Curve, curve_from
from reasonscale.scaling.types import N_BINS, NO_BINS, ClassCounts

FRESH_HALF_LIFE_S = 45.0
SHORT_HALF_LIFE_S = 400.0
LONG_HALF_LIFE_S = 1800.0
PRIOR_SIGMA = 1.0  # spread of log length within a class; R1's whole day has 1.3, its single clients 0.6 to 1.1
POOLED_PRIOR_EVENTS = 2.0  # pseudo-counts
CLASS_PRIOR_REQUESTS = 2.0
RATIO_BOUND = 20.0
# Half the neighbourhood in which the short memory is tested against the long one. One bin alone has too few events
# to contradict anything; all bins together would miss a shift that only long chains show.
NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class Lengths:
    """Decayed counts of one class: requests that were at risk in a bin, and that ended in it, in three memories."""

    risk_fresh: tuple[float, ...] = NO_BINS
    ended_fresh: tuple[float, ...] = NO_BINS
    risk_short: tuple[float, ...] = NO_BINS
    ended_short: tuple[float, ...] = NO_BINS
    risk_long: tuple[float, ...] = NO_BINS
    ended_long: tuple[float, ...] = NO_BINS


def remember(lengths: Lengths, counts: ClassCounts | None, dt_s: float) -> Lengths:
    """Return the memory `dt_s` seconds later, with the increments of `counts` added."""
    fresh = 0.5 ** (dt_s / FRESH_HALF_LIFE_S)
    short, long = 0.5 ** (dt_s / SHORT_HALF_LIFE_S), 0.5 ** (dt_s / LONG_HALF_LIFE_S)
    risk, ended = (_at_risk(counts.reached, counts.ended), counts.ended) if counts else (NO_BINS, NO_BINS)
    return Lengths(
        risk_fresh=_faded(lengths.risk_fresh, fresh, risk),
        ended_fresh=_faded(lengths.ended_fresh, fresh, ended),
        risk_short=_faded(lengths.risk_short, short, risk),
        ended_short=_faded(lengths.ended_short, short, ended),
        risk_long=_faded(lengths.risk_long, long, risk),
        ended_long=_faded(lengths.ended_long, long, ended),
    )


def _faded(counts: tuple[float, ...], keep: float, more: Sequence[float]) -> tuple[float, ...]:
    return tuple([x * keep + m for x, m in zip(counts, more, strict=True)])


def _at_risk(reached: Sequence[float], ended: Sequence[float]) -> list[float]:
    beyond = (*reached[1:], 0.0)
    return [0.5 * (r + d + p) for r, d, p in zip(reached, ended, beyond, strict=True)]


_AROUND = tuple((max(0, j - NEIGHBOURS), min(N_BINS, j + NEIGHBOURS + 1)) for j in range(N_BINS))


def _add_older(
    ended: list[float], risk: list[float], older_ended: Sequence[float], older_risk: Sequence[float]
) -> None:
    """Add to the newer counts what the older ones have beyond them, each bin as far as its neighbourhood agrees."""
    at, wide = 0.0, 0.0
    surprise, spread = [at], [wide]
    for d, n, old_d, old_n in zip(ended, risk, older_ended, older_risk, strict=True):
        if n > 0.0 and old_n > 0.0:
            q = (old_d + 0.5) / (old_n + 1.0)
            at = at + d - n * q
            # The old share is an estimate itself: its own variance counts too.
            wide += n * q * (1.0 - q) * (1.0 + n / (old_n + 1.0))
        surprise.append(at)
        spread.append(wide)
    for j, ((low, high), old_d, old_n) in enumerate(zip(_AROUND, older_ended, older_risk, strict=True)):
        if old_n > 0.0:
            gap, wide = surprise[high] - surprise[low], spread[high] - spread[low] + 1.0
            trust = 1.0 if gap * gap <= 4.0 * wide else exp((4.0 - gap * gap / wide) / 3.0)
            ended[j] += trust * old_d
            risk[j] += trust * old_n


def evidence(lengths: Lengths) -> tuple[list[float], list[float]]:
    """Return, for each bin, the requests that ended in it and those at risk in it, old ones trusted while they fit."""
    newer_ended, newer_risk = lengths.ended_fresh, lengths.risk_fresh
    ended, risk = list(newer_ended), list(newer_risk)
    for risk_all, ended_all in ((lengths.risk_short, lengths.ended_short), (lengths.risk_long, lengths.ended_long)):
        older_ended = [a - b if a > b else 0.0 for a, b in zip(ended_all, newer_ended, strict=True)]
        older_risk = [a - b if a - b > d else d for d, a, b in zip(older_ended, risk_all, newer_risk, strict=True)]
        _add_older(ended, risk, older_ended, older_risk)
        newer_ended, newer_risk = ended_all, risk_all
    return ended, risk


@lru_cache(maxsize=256)
def prior_hazards(mean_tokens: float) -> tuple[float, ...]:
    """Return the cumulative hazard over each bin of a log-normal length with this mean."""
    mu = log(max(mean_tokens, 1.0)) - PRIOR_SIGMA**2 / 2
    tail = [1.0 if edge <= 0 else 0.5 * erfc((log(edge) - mu) / (PRIOR_SIGMA * sqrt(2.0))) for edge in EDGES]
    # Deep in the tail the numbers run out; 5 over a bin (99 % end in it) is as good as certain.
    return tuple(min(5.0, log(a / b)) if b > 1e-300 and a > b else (5.0 if b <= 1e-300 else 1e-9)
                 for a, b in itertools.pairwise(tail))  # fmt: skip


def ratios(
    found: Mapping[str, tuple[list[float], list[float]]], priors: Mapping[str, tuple[float, ...]]
) -> list[float]:
    """Return for each bin how the hazard over all classes compares to what their priors say.

    A bin that nobody has come to takes it, weakened, from the bin below: chains that proved longer than expected so
    far go on doing so. At most a factor of two is passed on: between the modes of a bimodal length hardly anyone ends,
    which says nothing of the second mode.
    """
    out, carried = [], 1.0
    for j in range(N_BINS):
        seen = expected = 0.0
        for name, (ended, risk) in found.items():
            d, n = ended[j], risk[j]
            if n > 0.0:
                seen += d
                expected += (n - 0.5 * d if n > 0.5 * d else 0.0) * priors[name][j]
        ratio = (seen + POOLED_PRIOR_EVENTS * carried) / (expected + POOLED_PRIOR_EVENTS)
        ratio = min(RATIO_BOUND, max(1.0 / RATIO_BOUND, ratio))
        out.append(ratio)
        carried = min(2.0, max(0.5, sqrt(ratio)))
    return out


def curve_of(
    found: tuple[list[float], list[float]], prior: tuple[float, ...], ratio: Sequence[float], limit: float
) -> Curve:
    """Return a class's curve: its own counts, drawn to the prior as all classes together have corrected it."""
    hazards, doubts = [], []
    for ended, risk, expected, times in zip(*found, prior, ratio, strict=True):
        hazard = expected * times
        q0 = 1.0 - exp(-hazard if hazard < 5.0 else -5.0)
        n = risk + CLASS_PRIOR_REQUESTS
        q = (ended + CLASS_PRIOR_REQUESTS * q0) / n
        q = q if q < 0.995 else 0.995
        hazards.append(-log1p(-q))
        # Delta method on -log(1 - q) with q of variance q (1 - q) / n.
        doubts.append(q / ((1.0 - q) * n))
    return curve_from(hazards, doubts, limit)
