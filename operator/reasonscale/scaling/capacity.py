"""What a replica can do: step time a + b B + c K, corrected online, and how many replicas a demand needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reasonscale.scaling.types import Policy, ReplicaCounts, StepTime

MEMORY_HALF_LIFE_S = 1800.0
TPOT_HALF_LIFE_S = 20.0
AIM = 0.8  # of the objective for time per output token: its tail, not its mean, is what the objective asks for
MOST_PREFILL = 0.5  # steps that spend more of their time on prompts say nothing of decoding
NOISE = 0.1  # relative, of the mean step time over one tick


@dataclass(frozen=True, slots=True)
class Steps:
    """Decayed normal equations of step seconds on (1, B, K), and the recent time per token."""

    n: float = 0.0
    b: float = 0.0
    k: float = 0.0
    bb: float = 0.0
    bk: float = 0.0
    kk: float = 0.0
    y: float = 0.0
    yb: float = 0.0
    yk: float = 0.0
    tpot_steps: float = 0.0
    tpot_seconds: float = 0.0


def observe(memory: Steps, replicas: Iterable[ReplicaCounts], prior: StepTime | None, dt_s: float) -> Steps:
    """Return the memory `dt_s` seconds later with the steps that `replicas` report."""
    keep = 0.5 ** (dt_s / MEMORY_HALF_LIFE_S)
    per_prompt = prior.d if prior else 0.0
    n = b = k = bb = bk = kk = y = yb = yk = steps = seconds = 0.0
    for replica in replicas:
        count = replica.steps
        if count <= 0.0:
            continue
        steps += count
        seconds += replica.step_seconds
        prefill = per_prompt * replica.step_prefill_tokens
        if count < 5.0 or prefill > MOST_PREFILL * replica.step_seconds:
            continue
        if per_prompt == 0.0 and replica.step_prefill_tokens > replica.step_batch:
            continue
        t = (replica.step_seconds - prefill) / count
        B, K = replica.step_batch / count, replica.step_kv_tokens / count
        n += 1.0
        b += B
        k += K
        bb += B * B
        bk += B * K
        kk += K * K
        y += t
        yb += t * B
        yk += t * K
    recent = 0.5 ** (dt_s / TPOT_HALF_LIFE_S)
    return Steps(
        n=memory.n * keep + n,
        b=memory.b * keep + b,
        k=memory.k * keep + k,
        bb=memory.bb * keep + bb,
        bk=memory.bk * keep + bk,
        kk=memory.kk * keep + kk,
        y=memory.y * keep + y,
        yb=memory.yb * keep + yb,
        yk=memory.yk * keep + yk,
        tpot_steps=memory.tpot_steps * recent + steps,
        tpot_seconds=memory.tpot_seconds * recent + seconds,
    )


def _prior(policy: Policy) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return a, b, c to start from and how far each may plausibly be off."""
    if policy.step_time is not None:
        a, b, c = policy.step_time.a, policy.step_time.b, policy.step_time.c
        return (a, b, c), (0.3 * a + 1e-5, 0.5 * b + 1e-7, 0.5 * c + 1e-11)
    tpot, seqs = policy.objectives.tpot_s, policy.max_num_seqs
    kv = policy.kv_capacity_tokens or 1e5
    return (0.3 * tpot, 0.1 * tpot / seqs, 0.0), (tpot, tpot / seqs, 0.1 * tpot / kv)


def fit(memory: Steps, policy: Policy) -> StepTime:
    """Return the step time that the steps speak for, drawn to the prior where they say little; never negative."""
    (a0, b0, c0), (sa, sb, sc) = _prior(policy)
    d = policy.step_time.d if policy.step_time else 0.0
    if memory.n < 0.5:
        return StepTime(a0, b0, c0, d)
    # In units of the prior's spreads, so that the ridge term is 1 on each diagonal element.
    w = 1.0 / (NOISE * max(memory.y / memory.n, 1e-6)) ** 2
    m00, m01, m02 = w * memory.n * sa * sa + 1, w * memory.b * sa * sb, w * memory.k * sa * sc
    m11, m12, m22 = w * memory.bb * sb * sb + 1, w * memory.bk * sb * sc, w * memory.kk * sc * sc + 1
    r0 = w * sa * (memory.y - a0 * memory.n - b0 * memory.b - c0 * memory.k)
    r1 = w * sb * (memory.yb - a0 * memory.b - b0 * memory.bb - c0 * memory.bk)
    r2 = w * sc * (memory.yk - a0 * memory.k - b0 * memory.bk - c0 * memory.kk)
    # Cholesky of the 3 x 3 system.
    l00 = m00**0.5
    l10, l20 = m01 / l00, m02 / l00
    l11 = max(m11 - l10 * l10, 1e-12) ** 0.5
    l21 = (m12 - l20 * l10) / l11
    l22 = max(m22 - l20 * l20 - l21 * l21, 1e-12) ** 0.5
    z0 = r0 / l00
    z1 = (r1 - l10 * z0) / l11
    z2 = (r2 - l20 * z0 - l21 * z1) / l22
    x2 = z2 / l22
    x1 = (z1 - l21 * x2) / l11
    x0 = (z0 - l10 * x1 - l20 * x2) / l00
    return StepTime(max(1e-5, a0 + sa * x0), max(0.0, b0 + sb * x1), max(0.0, c0 + sc * x2), d)


def token_time(memory: Steps, step: StepTime, policy: Policy) -> float:
    """Return the seconds that a running request takes for a token now: observed where there is traffic."""
    aim = AIM * policy.objectives.tpot_s
    guess = step.a + 0.5 * max(0.0, aim - step.a)
    return (memory.tpot_seconds + 5.0 * guess) / (memory.tpot_steps + 5.0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """One replica: its step time, seats and usable KV tokens (None: unknown)."""

    step: StepTime
    aim_s: float
    seats: float
    kv_tokens: float | None  # all of it
    kv_usable_tokens: float | None  # less the headroom

    def concurrency_need(self, inflight: float, kv_tokens: float, prefill_share: float) -> float:
        """Return the replicas that keep the time per token at the aim and give everyone a seat.

        From t = a + (b B + c K) / n, stretched by the share rho / n of time that prefill takes:
        n = (b B + c K + aim rho) / (aim - a).
        """
        work = self.step.b * inflight + self.step.c * kv_tokens + self.aim_s * prefill_share
        return max(work / (self.aim_s - self.step.a), inflight / self.seats)

    def prefill_need(self, prefill_share: float) -> float:
        """Return the replicas that prefill alone asks for."""
        return self.aim_s * prefill_share / (self.aim_s - self.step.a)

    def kv_need(self, kv_tokens: float) -> float:
        """Return the replicas whose KV caches hold so many tokens; 0 where no capacity is known."""
        return kv_tokens / self.kv_usable_tokens if self.kv_usable_tokens else 0.0


def capacity_of(step: StepTime, policy: Policy, reported: Iterable[ReplicaCounts]) -> Capacity:
    """Return what one replica can do; the smallest KV cache that any reports counts for all."""
    known = [r.kv_capacity_tokens for r in reported if r.kv_capacity_tokens]
    kv = min(known) if known else policy.kv_capacity_tokens
    # An engine whose empty step is slower than the objective can't meet it with any number of replicas: then aim at
    # what it can do, so that the need stays finite.
    aim = max(AIM * policy.objectives.tpot_s, 1.3 * step.a)
    return Capacity(step, aim, float(policy.max_num_seqs), kv, kv * (1.0 - policy.kv_headroom) if kv else None)
