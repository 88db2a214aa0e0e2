"""The survival curve of output lengths, and the integrals that a forecast reads off it.

The hazard is constant within a token bin, so that survival is piecewise exponential and every integral has a closed
form: `S(g)` the share of requests that make more than g tokens, `area(g)` its integral from 0 (the mean of the length
cut at g), `moment(g)` the integral of u S(u). With the mean length M = area(limit), S(g) R(g) = M - area(g) gives the
mean remaining tokens R(g) of a request that has made g.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp

from reasonscale.api.constants import TOKEN_BINS

# Lengths beyond this are cut: twice the last edge, above every context length in use.
LONGEST_TOKENS = 131_072
EDGES: tuple[float, ...] = (*(float(edge) for edge in TOKEN_BINS), float(LONGEST_TOKENS))
WIDTHS: tuple[float, ...] = tuple(b - a for a, b in itertools.pairwise(EDGES))
MIDDLES: tuple[float, ...] = tuple((a + b) / 2 for a, b in itertools.pairwise(EDGES))


def _phi(rate: float, u: float) -> tuple[float, float, float]:
    """Return exp(-rate u) and the integrals from 0 to u of exp(-rate x) and x exp(-rate x)."""
    x = rate * u
    if x < 1e-4:  # the closed form loses its digits here
        return 1.0 - x, u * (1.0 - x / 2), u * u * (0.5 - x / 3)
    decay = exp(-x)
    first = (1.0 - decay) / rate
    return decay, first, (first - u * decay) / rate


@dataclass(frozen=True, slots=True)
class Curve:
    """Survival of one class's lengths, tabulated at the bins' edges up to `limit` tokens."""

    limit: float
    rates: tuple[float, ...]  # hazard per token in each bin
    hazard: tuple[float, ...]  # cumulative hazard at the lower edge of each bin
    survival: tuple[float, ...]
    areas: tuple[float, ...]
    moments: tuple[float, ...]
    doubt: tuple[float, ...]  # variance of the cumulative hazard at each edge
    doubt_rates: tuple[float, ...]  # what it grows by a token in each bin
    mean: float  # tokens
    mean_moment: float

    def at(self, g: float) -> tuple[float, float, float]:
        """Return S(g), the integral of S from 0 to g, and that of u S(u)."""
        g = min(g, self.limit)
        j = min(bisect_right(EDGES, g) - 1, len(self.rates) - 1)
        decay, first, second = _phi(self.rates[j], g - EDGES[j])
        s = self.survival[j]
        return (
            s * decay if g < self.limit else 0.0,
            self.areas[j] + s * first,
            self.moments[j] + s * (EDGES[j] * first + second),
        )

    def to_end(self, g: float) -> tuple[float, float]:
        """Return the cumulative hazard at g and the variance of its estimate."""
        j = min(bisect_right(EDGES, g) - 1, len(self.rates) - 1)
        u = g - EDGES[j]
        return self.hazard[j] + self.rates[j] * u, self.doubt[j] + self.doubt_rates[j] * u

    def remaining(self, g: float) -> float:
        """Return the mean number of tokens that a request which has made g has still to make."""
        s, area, _ = self.at(g)
        return (self.mean - area) / s if s > 1e-12 else 0.0

    def owed(self, running: Iterable[tuple[float, float, float]]) -> float:
        """Return the tokens that requests have still to make: (tokens made, requests, whatever) each."""
        # `remaining` without the moment, written out: a decision asks this of every bin of every class.
        rates, survival, areas, mean, limit = self.rates, self.survival, self.areas, self.mean, self.limit
        total = 0.0
        for made, count, _ in running:
            if made >= limit:
                continue
            j = bisect_right(EDGES, made, 0, len(rates)) - 1
            rate, u, s = rates[j], made - EDGES[j], survival[j]
            x = rate * u
            if x < 1e-4:
                decay, first = 1.0 - x, u * (1.0 - x / 2)
            else:
                decay = exp(-x)
                first = (1.0 - decay) / rate
            if s * decay > 1e-12:
                total += count * (mean - areas[j] - s * first) / (s * decay)
        return total

    def remaining_squared(self, g: float) -> float:
        """Return the mean square of the remaining tokens at g."""
        s, area, moment = self.at(g)
        return 2.0 * max(0.0, (self.mean_moment - moment) - g * (self.mean - area)) / s if s > 1e-12 else 0.0


def curve_from(hazards: Sequence[float], doubts: Sequence[float], limit: float) -> Curve:
    """Return the curve with cumulative hazard `hazards[j]` over bin j, variance `doubts[j]`, cut at `limit` tokens."""
    limit = min(max(limit, 1.0), float(LONGEST_TOKENS))
    rates = tuple([h / width for h, width in zip(hazards, WIDTHS, strict=True)])
    survival, areas, moments = [1.0], [0.0], [0.0]
    s, area, moment = 1.0, 0.0, 0.0
    for low, width, rate in zip(EDGES, WIDTHS, rates, strict=False):
        decay, first, second = _phi(rate, width)
        area += s * first
        moment += s * (low * first + second)
        s *= decay
        survival.append(s)
        areas.append(area)
        moments.append(moment)
    last = bisect_left(EDGES, limit) - 1
    _, first, second = _phi(rates[last], limit - EDGES[last])
    return Curve(
        limit=limit,
        rates=rates,
        hazard=(0.0, *itertools.accumulate(hazards)),
        survival=tuple(survival),
        areas=tuple(areas),
        moments=tuple(moments),
        doubt=(0.0, *itertools.accumulate(doubts)),
        doubt_rates=tuple([doubt / width for doubt, width in zip(doubts, WIDTHS, strict=True)]),
        mean=areas[last] + survival[last] * first,
        mean_moment=moments[last] + survival[last] * (EDGES[last] * first + second),
    )
