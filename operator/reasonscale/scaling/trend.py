"""Whether the forecast has been falling behind, and how far: growth that it does not know of, carried on to the horizon.

Each forecast is held against what came half a minute later. A curve learnt from yesterday's chains shows itself there
first: more requests are in flight than could have been expected, more than chance explains, and not because more of them
came (the rate of arrivals is followed by itself). That excess is a speed, and goes on while the next replica starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOOK_S = 30.0  # how far ahead a forecast is checked
WINDOW_S = 30.0  # over how long checks are averaged
LATE_S = 45.0  # a check that nobody looked at in time says nothing
SURE = 1.0  # standard deviations of a count that are put down to chance
MOST_LOOKS = 5.0  # an excess is carried on for so many times LOOK_S
MOST_GROWTH = 2.0
YOUNG_S = 240.0  # so long after the first look nothing is known well enough for a miss to mean anything
BIAS_HALF_LIFE_S = 900.0  # what is missed all the time is the model's fault, and no growth


@dataclass(frozen=True, slots=True)
class Check:
    """What was forecast for a moment: requests in flight, at a time per token and a rate of arrivals."""

    due: float
    inflight: float
    tpot_s: float
    rate: float  # requests/s
    came: float  # requests that had come when it was made


@dataclass(frozen=True, slots=True)
class Miss:
    """How a forecast came out: the excess as a share of it, and the share that chance explains."""

    time: float
    excess: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The forecasts under way, and how the last ones came out."""

    checks: tuple[Check, ...] = ()
    misses: tuple[Miss, ...] = ()
    came: float = 0.0  # requests, since the first look
    bias: float = 0.0
    judged: float | None = None
    since: float | None = None

    def growth(self) -> float:
        """Return the share by which the load outgrows its forecast in `LOOK_S`; never negative."""
        if not self.misses:
            return 0.0
        n = len(self.misses)
        excess = sum(m.excess for m in self.misses) / n
        chance = sum(m.deviation for m in self.misses) / n
        return max(0.0, excess - max(0.0, self.bias) - SURE * chance)

    def factor(self, after_s: float) -> float:
        """Return what a forecast so far ahead is multiplied by; 1 while forecasts come true."""
        return 1.0 + min(MOST_GROWTH, self.growth() * min(after_s / LOOK_S, MOST_LOOKS))


def judge(trend: Trend, now: float, inflight: float, tpot_s: float, arrivals: float) -> Trend:
    """Return the trend after `inflight` requests were seen and `arrivals` came.

    Time per token cancels out, since slow engines are no growth; and so do more arrivals than were forecast.
    """
    came = trend.came + arrivals
    since = now if trend.since is None else trend.since
    misses, bias = [m for m in trend.misses if m.time > now - WINDOW_S], trend.bias
    keep = 1.0 if trend.judged is None else 0.5 ** (max(0.0, now - trend.judged) / BIAS_HALF_LIFE_S)
    for check in trend.checks:
        if now - LATE_S < check.due <= now and since <= now - YOUNG_S:
            more = max(0.0, came - check.came - check.rate * (now - check.due + LOOK_S))
            expected = (max(1.0, check.inflight) + more) * max(1.0, tpot_s / check.tpot_s)
            deviation = (check.inflight + 1.0) ** 0.5
            excess = inflight / expected - 1.0
            misses.append(Miss(now, excess, deviation / expected))
            bias = keep * bias + (1.0 - keep) * min(excess, MOST_GROWTH)
    return Trend(tuple(c for c in trend.checks if c.due > now), tuple(misses), came, bias, now, since)


def expect(trend: Trend, due: float, inflight: float, tpot_s: float, rate: float) -> Trend:
    """Return the trend with one more forecast under way."""
    return replace(trend, checks=(*trend.checks, Check(due, inflight, tpot_s, rate, trend.came)))
