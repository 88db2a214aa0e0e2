"""What an observation means: the load now, at the horizon and beyond, and the replicas that it needs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isnan, sqrt
from statistics import NormalDist

from reasonscale.scaling.arrivals import rate_of
from reasonscale.scaling.capacity import Capacity, Prompts, capacity_of, fit, token_time
from reasonscale.scaling.curve import LONGEST_TOKENS, MIDDLES, Curve
from reasonscale.scaling.forecast import ClassLoad, Point, drain_time_s, forecast, owed_tokens
from reasonscale.scaling.state import State, start_time_s, wake_time_s
from reasonscale.scaling.survival import curve_of, evidence, prior_hazards, ratios
from reasonscale.scaling.trend import LOOK_S, Trend, expect, judge
from reasonscale.scaling.types import ClassCounts, Numbers, Observation, Policy, StepTime

MEAN_PRIOR_TOKENS = 1000.0
LONGEST_DRAIN_S = 600.0
# Two things must be bad together for one request in a hundred to miss its pace: the load and the prompts beside it.
PROMPTS_QUANTILE = 0.55  # of the load's, in standard deviations
CAUTIOUS_S = 1800.0  # after a preemption
NEAR_FULL = (
    0.95  # of the KV caches: from there to the first preemption it took seconds (0.9 to 1.0 in 4.3 s on an H100)
)


@dataclass(frozen=True, slots=True)
class Outlook:
    """Replicas needed, unrounded, and the numbers behind them."""

    numbers: Numbers
    need: float  # at the horizon
    need_throughout: float  # the most from now on: what may not be given up
    drain_s: float  # until the present queue is gone with the ready replicas; 0 where nobody waits for a seat
    ttft_allowed_s: float
    queue_over_objective: bool
    excess: float  # requests waiting for a seat
    young: bool  # no forecast for the horizon has come due yet
    kv_near_full: bool  # now
    trend: Trend  # for the next look
    # The same where replicas sleep: when one could be awake that is woken now, and the most until and from then on.
    wake_need: float = 0.0
    wake_need_throughout: float = 0.0


def curves_of(state: State, policy: Policy) -> dict[str, Curve]:
    """Return the length curve of each class that the state knows."""
    fallback = (
        sum(policy.length_prior.values()) / len(policy.length_prior) if policy.length_prior else MEAN_PRIOR_TOKENS
    )
    found = {name: evidence(memory.lengths) for name, memory in state.classes.items()}
    priors = {name: prior_hazards(policy.length_prior.get(name, fallback)) for name in found}
    ratio = ratios(found, priors)
    limits = policy.length_limit
    return {
        name: curve_of(found[name], priors[name], ratio, limits.get(name, LONGEST_TOKENS)) for name in sorted(found)
    }


@lru_cache(maxsize=256)
def _made(limit: float) -> tuple[float, ...]:
    """Return the tokens that a request of each bin is taken to have made."""
    return tuple(min(middle, 0.5 * (middle + limit)) if middle < limit else limit - 1.0 for middle in MIDDLES)


def loads_of(seen: Observation, state: State, policy: Policy) -> list[ClassLoad]:
    """Return each class's load; `state` has learnt `seen`."""
    curves = curves_of(state, policy)
    nothing = ClassCounts()
    loads = []
    for name, curve in curves.items():
        counts = seen.classes.get(name, nothing)
        running = [
            (made, r + a, prompts / (r + a))
            for made, r, a, prompts in zip(
                _made(curve.limit), counts.reasoning, counts.answering, counts.inflight_prompt_tokens, strict=True
            )
            if r + a > 0.0
        ]
        rate = rate_of(state.classes[name].arrivals)
        loads.append(ClassLoad(curve, running, counts.waiting, counts.waiting_prompt_tokens, rate))
    return loads


def _seats_free(seen: Observation, capacity: Capacity, waiting: float, waiting_prompt: float, kv_now: float) -> float:
    """Return the requests that can start now, by seats and by KV cache."""
    running = sum(sum(c.reasoning) + sum(c.answering) for c in seen.classes.values())
    free = max(0.0, seen.fleet.ready * capacity.seats - running)
    if capacity.kv_tokens and waiting > 0.0:
        room = max(0.0, seen.fleet.ready * capacity.kv_tokens - kv_now)
        free = min(free, room / max(16.0, waiting_prompt / waiting))
    return free


def _queue_drain_s(
    running: float, left: float, excess: float, prompt_tokens: float, capacity: Capacity, ready: int, tpot_s: float
) -> float:
    """Return how long the present queue takes to start: seats come free as the `running` make the tokens `left`."""
    prefill = prompt_tokens * capacity.step.d / max(ready, 1)
    if excess <= 0.0:
        return prefill
    if ready == 0:
        return float("inf")  # what still runs then runs on replicas that go: their seats are not given again
    if running <= 0.0 or left <= 0.0:
        return prefill + excess / (ready * capacity.seats) * tpot_s
    return prefill + excess * (left / running) * tpot_s / running


def _kv_full_in_s(points: Sequence[Point], room: float | None) -> float | None:
    """Return when the mean forecast of KV tokens meets `room`; None where it does not within the forecast."""
    if not room:
        return None
    for before, after in itertools.pairwise(points):
        if before.kv_tokens >= room:
            return before.after_s
        if after.kv_tokens >= room:
            share = (room - before.kv_tokens) / (after.kv_tokens - before.kv_tokens)
            return before.after_s + share * (after.after_s - before.after_s)
    return None


def _near_full(seen: Observation, used: float) -> bool:
    """Tell whether the KV caches, `used` tokens of them, are nearly full, as the engines report it."""
    room = sum([r.kv_capacity_tokens or 0.0 for r in seen.replicas])
    return room > 0.0 and used >= NEAR_FULL * room


@dataclass(frozen=True, slots=True)
class _Waits:
    drain_s: float
    allowed_s: float
    need: float  # replicas; 0 where the queue starts within the objective


def _waits(
    seen: Observation, policy: Policy, loads: Sequence[ClassLoad], capacity: Capacity,
    crowd: tuple[float, float, float], tpot_s: float, start_s: float,
) -> _Waits:  # fmt: skip
    """Return how the queue stands to its objective; `crowd`: running, tokens they owe, waiting in excess of seats.

    A queue that will not start in time needs seats and KV for all who are here now, and its prompts computed in time.
    """
    running, left, excess = crowd
    waiting = sum(load.waiting for load in loads) + (seen.held_requests or 0.0)
    prompts = sum(load.waiting_prompt_tokens for load in loads)
    allowed = policy.objectives.ttft_s
    if waiting > 0.0:
        allowed += policy.objectives.ttft_per_prompt_token_s * prompts / max(1.0, waiting)
    drain_s = _queue_drain_s(running, left, excess, prompts, capacity, seen.fleet.ready, tpot_s)
    if waiting <= 0.0 or drain_s <= allowed:
        return _Waits(drain_s, allowed, 0.0)
    held = sum(count * (made + prompt) for load in loads for made, count, prompt in load.running) + prompts
    seats = (running + waiting) / capacity.seats
    # A replica that is ordered now computes none of them before it is ready.
    within = allowed + start_s
    return _Waits(drain_s, allowed, max(seats, capacity.kv_need(held), prompts * capacity.step.d / within))


def _prompts(loads: Sequence[ClassLoad], step: StepTime, tpot_s: float) -> Prompts:
    """Return what prompts take of the replicas' time.

    Those that come to one of n replicas during a request's life of T seconds take T rho / n of it in the mean, with the
    variance of a compound Poisson process, T d^2 E[prompt^2] rate / n: long prompts are few, and hit whom they hit.
    """
    rate = sum(load.rate.per_s for load in loads)
    share = sum(load.rate.per_s * (load.rate.prompt_tokens or 0.0) for load in loads) * step.d
    squares = sum(load.rate.prompt_squares for load in loads) * step.d * step.d
    life_s = tpot_s * sum(load.rate.per_s * load.curve.mean for load in loads) / rate if rate > 0.0 else 0.0
    return Prompts(share, sqrt(squares / life_s) if life_s > 0.0 else 0.0)


def look(seen: Observation, policy: Policy, state: State) -> Outlook:
    """Return the outlook of a fresh observation, which `state` has already learnt."""
    step = fit(state.steps, policy)
    capacity = capacity_of(step, policy, seen.replicas)
    tpot_s = token_time(state.steps, step, policy)
    start_s = start_time_s(state, policy)
    horizon = start_s + policy.tick_s
    loads = loads_of(seen, state, policy)
    left, queued = owed_tokens(loads)
    owed = left + queued
    running = sum([count for load in loads for _, count, _ in load.running])
    waiting = sum(load.waiting for load in loads) + (seen.held_requests or 0.0)
    waiting_prompt = sum(load.waiting_prompt_tokens for load in loads)
    held = sum([count * (made + prompt) for load in loads for made, count, prompt in load.running])
    used = sum([r.kv_used_tokens for r in seen.replicas])
    kv_now = max(held, used)
    free = _seats_free(seen, capacity, waiting, waiting_prompt, kv_now)
    excess = max(0.0, waiting - free)
    seated = min(1.0, free / waiting) if waiting > 0.0 else 1.0

    mean_left = owed / (running + waiting) if running + waiting > 0.0 else 0.0
    far = horizon + min(LONGEST_DRAIN_S, mean_left * tpot_s)
    wake_s = wake_time_s(state, policy) + policy.tick_s if policy.asleep else horizon
    times = sorted({0.0, LOOK_S, 0.5 * horizon, horizon, 2.0 * horizon, far, wake_s})
    z = NormalDist().inv_cdf(min(0.999, max(0.5, policy.objectives.attainment)))
    points = forecast(loads, times, tpot_s, z, seated, max(horizon, wake_s))
    soon = points[times.index(LOOK_S)]
    rate = sum(load.rate.per_s for load in loads)
    arrived = sum(counts.arrivals for counts in seen.classes.values())
    trend = judge(state.trend, seen.time, running + waiting, tpot_s, arrived)
    if trend.growth() > 0.0:
        points = [_outgrown(point, trend.factor(point.after_s)) for point in points]
    trend = expect(trend, seen.time + LOOK_S, soon.inflight, tpot_s, rate)
    at = points[times.index(horizon)]
    prompts = _prompts(loads, step, tpot_s)
    prefill = capacity.prefill_need(prompts.share)

    def pace_need(point: Point) -> float:
        mean = capacity.concurrency_need(point.inflight, point.kv_tokens, prompts, PROMPTS_QUANTILE * z)
        return max(mean, capacity.concurrency_need(point.inflight_high, point.kv_high_tokens, prompts), prefill)

    # Replicas are not filled alike: how far from full they preempt is seen when they do.
    cautious = state.preempted_at is not None and seen.time - state.preempted_at < CAUTIOUS_S

    def kv_need(point: Point) -> float:
        return max(capacity.kv_need(point.kv_tokens), capacity.kv_high_need(point.kv_high_tokens, cautious))

    def need_at(point: Point) -> float:
        if isnan(point.inflight_high):  # `max` would pass over it
            raise ValueError(f"no quantile is known {point.after_s:g} s ahead")
        return max(pace_need(point), kv_need(point))

    def mean_need(point: Point) -> float:
        pace = capacity.concurrency_need(point.inflight, point.kv_tokens, prompts, PROMPTS_QUANTILE * z)
        return max(pace, prefill, capacity.kv_need(point.kv_tokens))

    going = loads_of(replace(seen, classes=seen.draining), state, policy) if seen.draining else []
    waits = _waits(seen, policy, loads, capacity, (running, left, excess), tpot_s, start_s)
    numbers = Numbers(
        owed_tokens=owed,
        queued_tokens=queued,
        inflight_now=running,
        inflight_at_horizon=at.inflight_high,
        kv_now_tokens=kv_now,
        kv_at_horizon_tokens=at.kv_high_tokens,
        kv_full_in_s=_kv_full_in_s(points, (capacity.kv_tokens or 0.0) * seen.fleet.ready),
        horizon_s=horizon,
        arrival_rate=rate,
        need_concurrency=pace_need(at),
        need_kv=kv_need(at),
        need_prefill=prefill,
        need_queue=waits.need,
        need_awake=need_at(points[times.index(wake_s)]) if policy.asleep else 0.0,
        wake_horizon_s=wake_s if policy.asleep else 0.0,
        waiting=waiting,
        preemption_rate=state.preemptions_per_s,
        drain_owed_tokens=sum(owed_tokens(going)),
        drain_expected_s=drain_time_s(going, tpot_s) if going else None,
    )

    def need_throughout(within_s: float) -> float:
        # Until a replacement could be there nothing may be missed. Later it could: then what is probable counts, since
        # one that goes and is wanted again costs a drain and a start.
        return max(need_at(point) if point.after_s <= within_s else mean_need(point) for point in points)

    return Outlook(
        numbers=numbers,
        need=need_at(at),
        need_throughout=need_throughout(horizon),
        drain_s=waits.drain_s,
        ttft_allowed_s=waits.allowed_s,
        queue_over_objective=waits.need > 0.0,
        excess=excess,
        young=trend.since is None or seen.time - trend.since < horizon,
        kv_near_full=_near_full(seen, used),
        trend=trend,
        wake_need=numbers.need_awake,
        wake_need_throughout=need_throughout(wake_s) if policy.asleep else 0.0,
    )


def _outgrown(point: Point, factor: float) -> Point:
    return replace(
        point,
        inflight=point.inflight * factor,
        inflight_high=point.inflight_high * factor,
        kv_tokens=point.kv_tokens * factor,
        kv_high_tokens=point.kv_high_tokens * factor,
    )
