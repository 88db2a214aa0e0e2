"""From what the ledger counts to the hazard of each token bin: a life table with two memories.

A request leaves bin j by ending in it or by reaching the next one, so with D ended and P passed the share that ends is
D / (D + P + I/2), where the I still inside count half: they have survived half the bin on average. Dividing ended by
reached instead would be wrong whenever load changes, since a request reaches a bin long before it ends in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import erfc, exp, log, log1p, sqrt

from reasonscale.scaling.curve import EDGES, Curve, curve_from
from reasonscale.scaling.types import N_BINS, NO_BINS, ClassCounts

SHORT_HALF_LIFE_S = 300.0
LONG_HALF_LIFE_S = 3600.0
PRIOR_SIGMA = 1.0  # spread of log length within a class; R1's whole day has 1.3, its single clients 0.6 to 1.1
POOLED_PRIOR_EVENTS = 2.0  # pseudo-counts
CLASS_PRIOR_REQUESTS = 6.0
RATIO_BOUND = 20.0
# Half the neighbourhood in which the short memory is tested against the long one. One bin alone has too few events
# to contradict anything; all bins together would miss a shift that only long chains show.
NEIGHBOURS = 2


@dataclass(frozen=True, slots=True)
class Lengths:
    """Decayed counts of one class: requests that ended in a bin, and that passed it, in two memories."""

    ended_short: tuple[float, ...] = NO_BINS
    passed_short: tuple[float, ...] = NO_BINS
    ended_long: tuple[float, ...] = NO_BINS
    passed_long: tuple[float, ...] = NO_BINS
    inflight: tuple[float, ...] = NO_BINS  # at the last observation


def remember(lengths: Lengths, counts: ClassCounts | None, dt_s: float) -> Lengths:
    """Return the memory `dt_s` seconds later, with the increments of `counts` added."""
    short, long = 0.5 ** (dt_s / SHORT_HALF_LIFE_S), 0.5 ** (dt_s / LONG_HALF_LIFE_S)
    if counts is None:
        return Lengths(
            ended_short=tuple(x * short for x in lengths.ended_short),
            passed_short=tuple(x * short for x in lengths.passed_short),
            ended_long=tuple(x * long for x in lengths.ended_long),
            passed_long=tuple(x * long for x in lengths.passed_long),
        )
    ended = counts.ended
    passed = (*counts.reached[1:], 0.0)
    return Lengths(
        ended_short=tuple(x * short + e for x, e in zip(lengths.ended_short, ended, strict=True)),
        passed_short=tuple(x * short + p for x, p in zip(lengths.passed_short, passed, strict=True)),
        ended_long=tuple(x * long + e for x, e in zip(lengths.ended_long, ended, strict=True)),
        passed_long=tuple(x * long + p for x, p in zip(lengths.passed_long, passed, strict=True)),
        inflight=tuple(r + a for r, a in zip(counts.reasoning, counts.answering, strict=True)),
    )


def evidence(lengths: Lengths) -> tuple[list[float], list[float]]:
    """Return, for each bin, the requests that ended in it and those at risk in it, old ones trusted while they fit."""
    ended, risk, surprise, spread = [], [], [0.0], [0.0]
    olds = []
    for j in range(N_BINS):
        d, old_d = lengths.ended_short[j], lengths.ended_long[j]
        n = d + lengths.passed_short[j] + 0.5 * lengths.inflight[j]
        old_d = max(0.0, old_d - d)
        old_n = old_d + max(0.0, lengths.passed_long[j] - lengths.passed_short[j])
        ended.append(d)
        risk.append(n)
        olds.append((old_d, old_n))
        if n > 0.0 and old_n > 0.0:
            q = (old_d + 0.5) / (old_n + 1.0)
            surprise.append(surprise[-1] + d - n * q)
            # The old share is an estimate itself: its own variance counts too.
            spread.append(spread[-1] + n * q * (1.0 - q) * (1.0 + n / (old_n + 1.0)))
        else:
            surprise.append(surprise[-1])
            spread.append(spread[-1])
    for j, (old_d, old_n) in enumerate(olds):
        if old_n > 0.0:
            low, high = max(0, j - NEIGHBOURS), min(N_BINS, j + NEIGHBOURS + 1)
            gap = surprise[high] - surprise[low]
            z2 = gap * gap / (spread[high] - spread[low] + 1.0)
            trust = 1.0 if z2 <= 4.0 else exp((4.0 - z2) / 4.0)
            ended[j] += trust * old_d
            risk[j] += trust * old_n
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
    far go on doing so.
    """
    out, carried = [], 1.0
    for j in range(N_BINS):
        seen = expected = 0.0
        for name, (ended, risk) in found.items():
            d, n = ended[j], risk[j]
            if n > 0.0:
                seen += d
                expected += (n - 0.5 * d) * priors[name][j]
        ratio = (seen + POOLED_PRIOR_EVENTS * carried) / (expected + POOLED_PRIOR_EVENTS)
        ratio = min(RATIO_BOUND, max(1.0 / RATIO_BOUND, ratio))
        out.append(ratio)
        carried = ratio**0.7
    return out


def curve_of(
    found: tuple[list[float], list[float]], prior: tuple[float, ...], ratio: Sequence[float], limit: float
) -> Curve:
    """Return a class's curve: its own counts, drawn to the prior as all classes together have corrected it."""
    hazards, doubts = [], []
    ended, risk = found
    for j in range(N_BINS):
        q0 = 1.0 - exp(-min(5.0, prior[j] * ratio[j]))
        d = ended[j] + CLASS_PRIOR_REQUESTS * q0
        n = risk[j] + CLASS_PRIOR_REQUESTS
        q = min(d / n, 0.995)
        h = -log1p(-q)
        hazards.append(h)
        # Delta method on -log(1 - q) with q of variance q (1 - q) / n.
        doubts.append(q / ((1.0 - q) * n))
    return curve_from(hazards, doubts, limit)
