"""How many requests and KV tokens there will be: survivors of those running, those waiting, and those to come."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, nan, sqrt

from reasonscale.scaling.arrivals import Rate
from reasonscale.scaling.curve import EDGES, Curve
from reasonscale.scaling.types import N_BINS

# Lengths drift while one looks ahead: part of the hazard that is passed on the way is unknown, for all alike.
DRIFT = 0.06
DRAIN_STEPS = 200
FIRST_PROMPT_TOKENS = 256.0  # until a prompt has been seen
BLOCK_ROUNDING_TOKENS = 8.0  # half a KV block of 16


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """What one class has in the system now, and what is known of it."""

    curve: Curve
    running: Sequence[tuple[float, float, float]]  # (tokens made, requests, mean prompt tokens)
    waiting: float
    waiting_prompt_tokens: float
    rate: Rate


@dataclass(frozen=True, slots=True)
class Point:
    """The forecast at one moment: means and high quantiles."""

    after_s: float
    inflight: float
    inflight_high: float
    kv_tokens: float
    kv_high_tokens: float


@dataclass(slots=True)
class _Sum:
    """Means, independent variances and common (fully correlated) deviations, being added up."""

    inflight: float = 0.0
    inflight_var: float = 0.0
    inflight_common: float = 0.0
    kv: float = 0.0
    kv_var: float = 0.0
    kv_common: float = 0.0


_Cell = tuple[int, float]  # bin, tokens into it
_Grid = dict[float, list[_Cell]]


def _cells(made: float, progress: Sequence[float]) -> list[_Cell]:
    """Return where a request that has made so many tokens is in the bins, now and after each progress."""
    cells = []
    for g in (made, *[made + p for p in progress]):
        j = bisect_right(EDGES, g, 0, N_BINS) - 1
        cells.append((j, g - EDGES[j]))
    return cells


def _running(load: ClassLoad, progress: Sequence[float], sums: Sequence[_Sum], grid: _Grid, spread_to: float) -> None:
    """Add those running. `grid` holds the cells that all classes share: this is the inner loop of a decision.

    Beyond a progress of `spread_to` tokens only means are added.
    """
    curve, rows = load.curve, []
    hazard, rates, doubt, doubt_rates, limit = curve.hazard, curve.rates, curve.doubt, curve.doubt_rates, curve.limit
    for made, count, prompt in load.running:
        cells = grid.get(made)
        if cells is None:
            cells = grid[made] = _cells(made, progress)
        j, u = cells[0]
        start, start_doubt = hazard[j] + rates[j] * u, doubt[j] + doubt_rates[j] * u
        rows.append((count, prompt + made + BLOCK_ROUNDING_TOKENS, limit - made, cells, start, start_doubt))
    for i, (p, total) in enumerate(zip(progress, sums, strict=True), start=1):
        if p <= 0.0:
            total.inflight += sum([row[0] for row in rows])
            total.kv += sum([row[0] * row[1] for row in rows])
            continue
        inflight = inflight_var = inflight_common = kv = kv_var = kv_common = 0.0
        if p > spread_to:
            for count, held, left, cells, start, _ in rows:
                if p < left:
                    j, u = cells[i]
                    survivors = count * exp(start - hazard[j] - rates[j] * u)
                    inflight += survivors
                    kv += survivors * (held + p)
            total.inflight += inflight
            total.kv += kv
            continue
        for count, held, left, cells, start, start_doubt in rows:
            if p >= left:
                continue
            j, u = cells[i]
            passed = hazard[j] + rates[j] * u - start
            unknown = doubt[j] + doubt_rates[j] * u - start_doubt
            alive = exp(-passed)
            survivors, size = count * alive, held + p
            spread = survivors * (1.0 - alive)
            drift = DRIFT * passed
            common = survivors * (sqrt(unknown + drift * drift) if unknown > 0.0 else drift)
            inflight += survivors
            inflight_var += spread
            inflight_common += common
            kv += survivors * size
            kv_var += spread * size * size
            kv_common += common * size
        total.inflight += inflight
        total.inflight_var += inflight_var
        total.inflight_common += inflight_common
        total.kv += kv
        total.kv_var += kv_var
        total.kv_common += kv_common


_At = tuple[float, float, float]  # of a curve: S, its integral, that of u S(u)


def _waiting(
    load: ClassLoad, progress: Sequence[float], at: Sequence[_At], sums: Sequence[_Sum], seated: float
) -> None:
    """Add those waiting: the share `seated` starts now, the others may still be whole when the time comes."""
    if load.waiting <= 0.0:
        return
    prompt = load.waiting_prompt_tokens / max(1.0, load.waiting) + BLOCK_ROUNDING_TOKENS
    for p, (s, _, _), total in zip(progress, at, sums, strict=True):
        free, stuck = load.waiting * seated, load.waiting * (1.0 - seated)
        half = max(prompt + 0.5 * min(p, load.curve.mean), s * (prompt + p))
        total.inflight += free * s + stuck
        total.inflight_var += free * s * (1.0 - s) + 0.25 * stuck
        total.kv += free * s * (prompt + p) + stuck * half
        total.kv_var += (free * s * (1.0 - s) + 0.25 * stuck) * (prompt + p) ** 2


def _coming(load: ClassLoad, progress: Sequence[float], at: Sequence[_At], sums: Sequence[_Sum], tpot_s: float) -> None:
    rate = load.rate
    if rate.per_s <= 0.0:
        return
    prompt = (FIRST_PROMPT_TOKENS if rate.prompt_tokens is None else rate.prompt_tokens) + BLOCK_ROUNDING_TOKENS
    for p, (_, area, moment), total in zip(progress, at, sums, strict=True):
        deviation = rate.deviation(p * tpot_s)
        there = tpot_s * area  # in flight for each request per second
        held = tpot_s * (prompt * area + moment)
        size = held / there if there > 0.0 else prompt
        total.inflight += rate.per_s * there
        total.inflight_var += rate.per_s * there * rate.fano
        total.inflight_common += deviation * there
        total.kv += rate.per_s * held
        total.kv_var += rate.per_s * there * rate.fano * 1.5 * size * size  # sizes differ: E[x^2] over E[x]^2
        total.kv_common += deviation * held


def forecast(
    loads: Sequence[ClassLoad], times_s: Sequence[float], tpot_s: float, z: float, seated: float,
    quantiles_to_s: float = inf,
) -> list[Point]:  # fmt: skip
    """Return the forecast at each of `times_s`, with `tpot_s` seconds a token and quantiles z deviations up.

    Later than `quantiles_to_s` quantiles are nan: those that nobody looks at took a twentieth of a decision.
    """
    progress = [t / tpot_s for t in times_s]
    sums = [_Sum() for _ in times_s]
    grid: _Grid = {}
    for load in loads:
        _running(load, progress, sums, grid, quantiles_to_s / tpot_s)
        at = [load.curve.at(p) for p in progress]
        _waiting(load, progress, at, sums, seated)
        _coming(load, progress, at, sums, tpot_s)
    return [
        Point(
            after_s=t,
            inflight=s.inflight,
            inflight_high=s.inflight + z * sqrt(s.inflight_var + s.inflight_common**2) if t <= quantiles_to_s else nan,
            kv_tokens=s.kv,
            kv_high_tokens=s.kv + z * sqrt(s.kv_var + s.kv_common**2) if t <= quantiles_to_s else nan,
        )
        for t, s in zip(times_s, sums, strict=True)
    ]


def owed_tokens(loads: Sequence[ClassLoad]) -> tuple[float, float]:
    """Return the tokens that running and that waiting requests are expected to make yet."""
    running = sum([load.curve.owed(load.running) for load in loads])
    queued = sum([load.waiting * load.curve.mean for load in loads])
    return running, queued


def drain_time_s(loads: Sequence[ClassLoad], tpot_s: float) -> float:
    """Return the expected time until the last of the requests ends: the integral of the chance that one still runs.

    The waiting ones start at once. A mean of what is left would be far too short: the last of 24 like chains takes four
    times as long as their mean where lengths are exponential.
    """
    groups = [
        (load.curve, made, count)
        for load in loads
        for made, count in [*((made, count) for made, count, _ in load.running), (0.0, load.waiting)]
        if count > 0.0
    ]
    longest = max((curve.limit - made for curve, made, _ in groups), default=0.0)
    if longest <= 0.0:
        return 0.0
    steps = [longest * (i / DRAIN_STEPS) ** 2 for i in range(DRAIN_STEPS + 1)]  # finer where most chains end
    running = []
    for p in steps:
        all_over = 1.0
        for curve, made, count in groups:
            ends = 1.0 if made + p >= curve.limit else 1.0 - exp(curve.to_end(made)[0] - curve.to_end(made + p)[0])
            all_over *= max(0.0, ends) ** count
        running.append(1.0 - all_over)
    area = sum(0.5 * (running[i] + running[i + 1]) * (steps[i + 1] - steps[i]) for i in range(DRAIN_STEPS))
    return area * tpot_s


def owed_forecast(loads: Sequence[ClassLoad], after_s: float, tpot_s: float, z: float) -> tuple[float, float]:
    """Return the tokens owed `after_s` from now, mean and high quantile; every waiting request starts at once."""
    p = after_s / tpot_s
    mean = variance = common = 0.0
    for load in loads:
        curve = load.curve
        groups = [*((made, count) for made, count, _ in load.running), (0.0, load.waiting)]
        for made, count in groups:
            if count <= 0.0 or made + p >= curve.limit:
                continue
            start, start_doubt = curve.to_end(made)
            end, end_doubt = curve.to_end(made + p)
            s = exp(start - end)
            remaining, square = curve.remaining(made + p), curve.remaining_squared(made + p)
            mean += count * s * remaining
            variance += count * (s * square - (s * remaining) ** 2)
            # Beyond the moment looked at, the curve's own doubt makes the remaining tokens uncertain too.
            ahead = curve.to_end(min(made + p + remaining, curve.limit))[1] - end_doubt
            common += count * s * remaining * sqrt(max(0.0, end_doubt - start_doubt) + max(0.0, ahead) + DRIFT**2)
        if load.rate.per_s > 0.0 and p > 0.0:
            owed, squares = _owed_by_coming(curve, p, tpot_s)
            mean += load.rate.per_s * owed
            variance += load.rate.per_s * squares * load.rate.fano
            common += (load.rate.deviation(after_s) + DRIFT * load.rate.per_s) * owed
    return mean, mean + z * sqrt(variance + common**2)


def _owed_by_coming(curve: Curve, p: float, tpot_s: float) -> tuple[float, float]:
    """Return the integrals of S R and of S E[remaining^2] over 0..p tokens, in seconds: Simpson on 16 intervals."""
    owed = squares = 0.0
    steps = 16
    for i in range(steps + 1):
        g = p * i / steps
        _, area, moment = curve.at(g)
        weight = 1.0 if i in (0, steps) else 4.0 if i % 2 else 2.0
        owed += weight * (curve.mean - area)
        squares += weight * 2.0 * max(0.0, (curve.mean_moment - moment) - g * (curve.mean - area))
    scale = p / steps / 3.0 * tpot_s
    return owed * scale, squares * scale
