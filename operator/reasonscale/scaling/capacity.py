"""What a replica can do: step time a + b B + c K with a bend in B, corrected online, and how many replicas a demand needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from reasonscale.scaling.types import BEND, BENDS_AT, Policy, ReplicaCounts, StepTime

MEMORY_HALF_LIFE_S = 1800.0
TPOT_HALF_LIFE_S = 20.0
# Of the objective for time per output token. What a forecast may miss and what prompts take are counted by themselves;
# the rest is for replicas that are not loaded alike.
AIM = 0.90
PREFILL_BUSY = 0.7  # of the time, with prompts: beyond it they queue for longer than they take
LEAST_STEPS = 5.0  # of a replica in one tick
FRESH_S = (
    15.0  # an engine compiles at first use: the first on a new H200 took 25 and 16 ms a step in its first looks, then 6
)
NOISE = 0.1  # relative, of the mean step time over one tick
MOST_SHARE = 4.0  # of b, that a profile's bend is tied to it by: 1.0 to 1.7 in those measured
GAIN = 4.0  # 1 / variance of the factor by which a profile's whole curve may be off: half as much again


TERMS = 5  # one, requests in the batch, KV tokens, prompt tokens, requests beyond the bend: a, b, c, d, bend


@dataclass(frozen=True, slots=True)
class Steps:
    """Decayed normal equations of step seconds on (1, B, K, P, B beyond the bend), relative to them, and the recent time per token.

    Relative: else a tick of long prompts (180 ms a step) counts 60 times one of decoding (22 ms), and what it costs
    beyond the line, since attention grows with the square, is taken from the constant. It came out as 0 of 20 ms.
    """

    n: float = 0.0
    products: tuple[float, ...] = (0.0,) * (TERMS * (TERMS + 1) // 2)  # of the terms, the lower triangle by rows
    seconds: tuple[float, ...] = (0.0,) * TERMS  # of the terms with the seconds
    tpot_steps: float = 0.0
    tpot_seconds: float = 0.0


def observe(memory: Steps, replicas: Iterable[ReplicaCounts], now_s: float, dt_s: float) -> Steps:
    """Return the memory at `now_s`, `dt_s` seconds later, with the steps that `replicas` report; those of a fresh engine are not learnt from."""
    keep = 0.5 ** (dt_s / MEMORY_HALF_LIFE_S)
    n, steps, seconds = memory.n * keep, 0.0, 0.0
    # Written out: with 200 replicas, loops over the terms took a third of a whole decision.
    oo, bo, bb, ko, kb, kk, po, pb, pk, pp, eo, eb, ek, ep, ee = (x * keep for x in memory.products)
    ys, bs, ks, ps, es = (x * keep for x in memory.seconds)
    for replica in replicas:
        count, took = replica.steps, replica.step_seconds
        steps += count
        seconds += took
        if count < LEAST_STEPS or took <= 0.0:
            continue
        if replica.since_s is not None and now_s - replica.since_s < FRESH_S:
            continue
        # Each term over the step's seconds.
        one, batch = count / took, replica.step_batch / took
        kv, prompt = replica.step_kv_tokens / took, replica.step_prefill_tokens / took
        n += 1.0
        oo += one * one
        bo += batch * one
        bb += batch * batch
        ko += kv * one
        kb += kv * batch
        kk += kv * kv
        po += prompt * one
        pb += prompt * batch
        pk += prompt * kv
        pp += prompt * prompt
        ys += one
        bs += batch
        ks += kv
        ps += prompt
        beyond = batch - BENDS_AT * one
        if beyond > 0.0:
            eo += beyond * one
            eb += beyond * batch
            ek += beyond * kv
            ep += beyond * prompt
            ee += beyond * beyond
            es += beyond
    recent = 0.5 ** (dt_s / TPOT_HALF_LIFE_S)
    return Steps(
        n=n,
        products=(oo, bo, bb, ko, kb, kk, po, pb, pk, pp, eo, eb, ek, ep, ee),
        seconds=(ys, bs, ks, ps, es),
        tpot_steps=memory.tpot_steps * recent + steps,
        tpot_seconds=memory.tpot_seconds * recent + seconds,
    )


def _prior(policy: Policy) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Return a, b, c, d to start from and how far each may plausibly be off, and the bend as a share of b.

    Last among them is what the bend has beyond that share, none: another GPU's curve is higher or steeper, and it bends
    where its profile's does until more than that has been seen. Only of a profile that is all but flat below the bend it
    has something: times so large a share, b's least correction would make the bend anything.
    """
    if policy.step_time is not None:
        a, b, c, d = policy.step_time.a, policy.step_time.b, policy.step_time.c, policy.step_time.d
        spread_b = b + 1e-7
        bend = policy.step_time.bend
        share = min(bend / b, MOST_SHARE) if b > 0.0 else 0.0
        more = max(0.0, bend - share * b)
        return (a, b, c, d, more), (0.5 * a + 1e-5, spread_b, c + 1e-11, d + 1e-8, b + spread_b + more), share
    tpot, seqs = policy.objectives.tpot_s, policy.max_num_seqs
    kv = policy.kv_capacity_tokens or 1e5
    spread_d = 4.0 * tpot / policy.max_num_batched_tokens
    spreads = (tpot, tpot / seqs, 0.1 * tpot / kv, spread_d, tpot / seqs)
    return (0.3 * tpot, 0.1 * tpot / seqs, 0.0, 0.0, 0.0), spreads, BEND


def fit(memory: Steps, policy: Policy) -> StepTime:
    """Return the step time that the steps speak for, drawn to the prior where they say little; never negative."""
    prior, spread, share = _prior(policy)
    if memory.n < 0.5:
        return _step_time(prior, share)
    if memory.seconds[-1] <= 0.0:  # who has seen nothing beyond the bend says nothing of it
        return _step_time(_fitted(memory, policy, prior, spread, share, TERMS - 1), share)
    found = _fitted(memory, policy, prior, spread, share, TERMS)
    if share * found[1] + found[-1] < 0.0:  # steps that rise more slowly beyond: the best plane, not this one cut off
        return _step_time([*_fitted(memory, policy, prior, spread, 0.0, TERMS - 1)[:-1], 0.0], 0.0)
    return _step_time(found, share)


def _fitted(
    memory: Steps, policy: Policy, prior: Sequence[float], spread: Sequence[float], share: float, terms: int
) -> list[float]:
    """Return a, b, c, d and what the bend has beyond its share of b, which is the prior's with `terms` of all but the last."""
    m = [[0.0] * terms for _ in range(terms)]
    at = 0
    for i in range(terms):
        for j in range(i + 1):
            m[i][j] = m[j][i] = memory.products[at]
            at += 1
    seconds = list(memory.seconds[:terms])
    if terms == TERMS:
        # b counts the requests and, by `share`, those beyond the bend once more.
        for row in m:
            row[1] += share * row[-1]
        m[1] = [x + share * y for x, y in zip(m[1], m[-1], strict=True)]
        seconds[1] += share * seconds[-1]
    w = 1.0 / NOISE**2
    said = tuple([sum(prior[j] * m[i][j] for j in range(terms)) for i in range(terms)])
    if policy.step_time is not None:
        # Another GPU's or model's curve is first of all higher or lower as a whole: by the factor that fits best.
        fits, own = (sum(p * y for p, y in zip(prior, ys, strict=False)) for ys in (seconds, said))
        gain = (fits + GAIN / w) / (own + GAIN / w)
        prior, spread, said = (tuple([gain * x for x in xs]) for xs in (prior, spread, said))
    # In units of the prior's spreads, so that the ridge term is 1 on each diagonal element.
    right = [w * spread[i] * (seconds[i] - said[i]) for i in range(terms)]
    left = [[w * spread[i] * spread[j] * m[i][j] + (i == j) for j in range(terms)] for i in range(terms)]
    x = [*_solve(left, right), 0.0]
    return [p + s * v for p, s, v in zip(prior, spread, x, strict=False)]


def _step_time(found: Sequence[float], share: float) -> StepTime:
    a, b, c, d, more = found
    b = max(0.0, b)
    return StepTime(max(1e-5, a), b, max(0.0, c), max(0.0, d), max(0.0, share * b + more))


def _solve(left: list[list[float]], right: list[float]) -> list[float]:
    """Return the solution of a symmetric positive definite system, by Cholesky."""
    n = len(right)
    lower = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            rest = left[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = max(rest, 1e-12) ** 0.5 if i == j else rest / lower[j][j]
    half = [0.0] * n
    for i in range(n):
        half[i] = (right[i] - sum(lower[i][k] * half[k] for k in range(i))) / lower[i][i]
    out = [0.0] * n
    for i in reversed(range(n)):
        out[i] = (half[i] - sum(lower[k][i] * out[k] for k in range(i + 1, n))) / lower[i][i]
    return out


def token_time(memory: Steps, step: StepTime, policy: Policy) -> float:
    """Return the seconds that a running request takes for a token now: observed where there is traffic."""
    aim = AIM * policy.objectives.tpot_s
    guess = step.a + 0.5 * max(0.0, aim - step.a)
    return (memory.tpot_seconds + 5.0 * guess) / (memory.tpot_steps + 5.0)


@dataclass(frozen=True, slots=True)
class Prompts:
    """What prompts take of a replica's time, were there one: in the mean, and how it varies over a request's life."""

    share: float
    spread: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """One replica: its step time, seats and usable KV tokens (None: unknown)."""

    step: StepTime
    aim_s: float  # time per token
    seats: float
    chunk_tokens: float  # prompt tokens that a step takes at most
    kv_tokens: float | None  # all of it
    kv_usable_tokens: float | None  # less the headroom

    def concurrency_need(
        self, inflight: float, kv_tokens: float, prompts: Prompts, z: float = 0.0
    ) -> float:  # fmt: skip
        """Return the replicas that keep the time per token at the aim and give everyone a seat.

        The step time is the higher of two planes, the one below the bend and the one beyond: so is the need.
        """
        step = self.step
        work = step.b * inflight + step.c * kv_tokens
        need = self._need_on(step.a, work, prompts, z)
        if step.bend > 0.0 and inflight > BENDS_AT * need:
            beyond = self._need_on(step.a - step.bend * BENDS_AT, work + step.bend * inflight, prompts, z)
            need = max(need, beyond)
        return max(need, inflight / self.seats)

    def _need_on(self, a: float, work: float, prompts: Prompts, z: float) -> float:
        """Return the replicas n of which each takes a + work / n for a step without prompts.

        With n replicas a token takes t = (a + (b B + c K) / n) / (1 - s), s the share of time that prompts take on a
        request's replica while it lives: rho / n in the mean, and z times spread / sqrt(n) more for one in a hundred.
        Set t to the aim; with x = 1 / sqrt(n) that is a quadratic in x.
        """
        room, whole, tail = self.aim_s - a, work + self.aim_s * prompts.share, self.aim_s * z * prompts.spread
        need = ((tail + sqrt(tail * tail + 4.0 * whole * room)) / (2.0 * room)) ** 2
        # Steps are no longer than a chunk makes them, however many prompts there are.
        beside = self.aim_s - a - self.step.d * self.chunk_tokens
        return min(need, work / beside) if beside > 0.0 else need

    def prefill_need(self, prefill_share: float) -> float:
        """Return the replicas that compute the prompts as they come, in chunks whose steps take `a` besides."""
        if self.step.d <= 0.0:
            return 0.0
        return prefill_share * (1.0 + self.step.a / (self.chunk_tokens * self.step.d)) / PREFILL_BUSY

    def kv_need(self, kv_tokens: float) -> float:
        """Return the replicas whose KV caches hold so many tokens, headroom kept; 0 where no capacity is known."""
        return kv_tokens / self.kv_usable_tokens if self.kv_usable_tokens else 0.0

    def kv_high_need(self, kv_tokens: float, cautious: bool) -> float:
        """Return the replicas that hold a high quantile of KV tokens: what the headroom is for, unless `cautious`."""
        if cautious or not self.kv_tokens:
            return self.kv_need(kv_tokens)
        return kv_tokens / self.kv_tokens


def capacity_of(step: StepTime, policy: Policy, reported: Iterable[ReplicaCounts]) -> Capacity:
    """Return what one replica can do; the smallest KV cache that any reports counts for all."""
    known = [r.kv_capacity_tokens for r in reported if r.kv_capacity_tokens]
    kv = min(known) if known else policy.kv_capacity_tokens
    # An engine whose empty step is slower than the objective can't meet it with any number of replicas: then aim at
    # what it can do, so that the need stays finite.
    aim = max(AIM * policy.objectives.tpot_s, 1.3 * step.a)
    chunk = float(policy.max_num_batched_tokens)
    return Capacity(step, aim, float(policy.max_num_seqs), chunk, kv, kv * (1.0 - policy.kv_headroom) if kv else None)
