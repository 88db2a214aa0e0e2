"""The rate of arrivals: three memories, each older one trusted while the newer ones do not contradict it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt

FRESH_HALF_LIFE_S = 8.0  # two or three ticks: a crowd that comes within a minute is seen while it comes
FRESH_SURE = 4.0  # squared deviations within which it is chance
FAST_HALF_LIFE_S = 40.0  # a time constant of a minute
SLOW_HALF_LIFE_S = 420.0  # of ten minutes
# As if so long had been watched without an arrival: the first tick proves nothing. Gone when two minutes are known.
SHRINK_S = 15.0
YOUNG_S = 120.0
# No arrival for a gap g has probability exp(-r g): a rate above 3/g would be a 5 % surprise. Without this bound the
# slow memory keeps a young system's burst alive: 22 requests in the first minute still read 0.12/s three minutes on.
GAP_EVENTS = 3.0
FANO_LIMIT = 4.0
# A rate wanders like a random walk: by this share in two minutes, as a day of DeepSeek-R1 did (bench/forecast.py).
DRIFT = 0.16
DRIFT_S = 120.0
WALK_S = 180.0  # to here it was seen to stay so; a replica that takes seven minutes must fear twice of it


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Decayed counts of arrivals and of the time they were watched, and of prompt tokens."""

    fresh_n: float = 0.0
    fresh_s: float = 0.0
    fast_n: float = 0.0
    fast_s: float = 0.0
    slow_n: float = 0.0
    slow_s: float = 0.0
    quiet_s: float = 0.0  # since the last arrival
    prompt_n: float = 0.0
    prompt_tokens: float = 0.0
    prompt_squares: float = 0.0  # squared deviations of a tick's prompt tokens from the expected: rate x E[prompt^2]
    excess: float = 0.0  # squared deviations of counts from the rate
    expected: float = 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second, how sure that is, and how bursty they come (variance over mean of counts)."""

    per_s: float
    variance: float
    fano: float
    prompt_tokens: float | None  # mean of a request; None: none has come yet
    prompt_squares: float = 0.0  # of all that come in a second

    def deviation(self, after_s: float) -> float:
        """Return the standard deviation of the rate so far ahead: of its estimate, and of its wandering until then."""
        return sqrt(self.variance + (DRIFT * self.per_s) ** 2 * max(min(1.0, after_s / DRIFT_S), after_s / WALK_S))


def add(memory: Arrivals, arrivals: float, prompt_tokens: float, dt_s: float) -> Arrivals:
    """Return the memory `dt_s` seconds later, in which `arrivals` requests came."""
    fresh, fast, slow = (0.5 ** (dt_s / h) for h in (FRESH_HALF_LIFE_S, FAST_HALF_LIFE_S, SLOW_HALF_LIFE_S))
    rate = rate_of(memory)
    expected = rate.per_s * dt_s
    more = prompt_tokens - expected * (rate.prompt_tokens or 0.0)
    return Arrivals(
        fresh_n=memory.fresh_n * fresh + arrivals,
        fresh_s=memory.fresh_s * fresh + dt_s,
        fast_n=memory.fast_n * fast + arrivals,
        fast_s=memory.fast_s * fast + dt_s,
        slow_n=memory.slow_n * slow + arrivals,
        slow_s=memory.slow_s * slow + dt_s,
        quiet_s=0.0 if arrivals > 0 else memory.quiet_s + dt_s,
        prompt_n=memory.prompt_n * slow + arrivals,
        prompt_tokens=memory.prompt_tokens * slow + prompt_tokens,
        prompt_squares=memory.prompt_squares * slow + (more * more if rate.prompt_tokens is not None else 0.0),
        excess=memory.excess * slow + (arrivals - expected) ** 2,
        expected=memory.expected * slow + expected,
    )


def _with_older(
    n: float, s: float, all_n: float, all_s: float, fano: float, sure: float
) -> tuple[float, float]:  # fmt: skip
    """Return a newer memory's arrivals and time with what an older one has beyond it, as far as they agree."""
    old_n, old_s = max(0.0, all_n - n), max(0.0, all_s - s)
    trust = 1.0
    if old_s > 0.0 and s > 0.0:
        expected = old_n / old_s * s
        z2 = (n - expected) ** 2 / (fano * (expected + 1.0))
        trust = 1.0 if z2 <= sure else exp((sure - z2) / 2.0)
    return n + trust * old_n, s + trust * old_s


def rate_of(memory: Arrivals) -> Rate:
    """Return the rate that the memories speak for."""
    fano = min(FANO_LIMIT, max(1.0, (memory.excess + 5.0) / (memory.expected + 5.0)))
    n, s = memory.fresh_n, memory.fresh_s
    n, s = _with_older(n, s, memory.fast_n, memory.fast_s, fano, FRESH_SURE)
    n, s = _with_older(n, s, n + memory.slow_n - memory.fast_n, s + memory.slow_s - memory.fast_s, fano, 1.0)
    shrink = SHRINK_S * max(0.0, 1.0 - memory.slow_s / YOUNG_S)
    s += shrink
    if s <= 0.0:
        return Rate(0.0, 0.0, fano, None)
    per_s = n / s
    if memory.quiet_s > 0.0:
        per_s = min(per_s, GAP_EVENTS / memory.quiet_s)
    prompt = memory.prompt_tokens / memory.prompt_n if memory.prompt_n > 0.01 else None
    squares = memory.prompt_squares / memory.slow_s if memory.slow_s > 0.0 else 0.0
    return Rate(per_s, per_s * fano / s, fano, prompt, squares)
