"""One workload under one policy: the loop of scrapes and decisions, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Final

import numpy as np

from reasonscale.profiles.prior import plane_of
from reasonscale.profiles.profile import Profile
from reasonscale.scaling.types import Objectives
from reasonscale.simulator.cluster import Cluster
from reasonscale.simulator.engine import Floats
from reasonscale.simulator.policies.base import Policy, Setting, Static, View
from reasonscale.simulator.tables import too_long
from reasonscale.simulator.workload import NOBODY, Workload, between

START_AIM: Final = 0.78  # of the objective for time per token, for the number that every policy begins with
START_MET: Final = 0.99  # of its requests within every objective, for the same
START_WINDOW_S: Final = 600.0
LAG_S: Final = 1.0  # from the scrape to where a policy can read it
MOST_AFTER_S: Final = 3600.0  # after the last arrival; what runs then is cut and counts as missed
COLD_SPREAD: Final = 0.1  # standard deviation of a start, as a share of its mean
HISTORY_S: Final = 3600.0
STREAM_SLACK_S: Final = 1.0
STRETCH: Final = 1.2


@dataclass(frozen=True, slots=True)
class Options:
    """How the fleet is run. Times are seconds."""

    cold_start_s: float = 120.0
    scrape_s: float = 5.0
    min_replicas: int = 1
    max_replicas: int = 256
    seed: int = 1
    router: str | None = None  # None: the one that the policy's system ships
    objectives: Objectives = field(default_factory=Objectives)
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    asleep: int = 0  # replicas that sleep instead of being stopped: they cost as any other
    wake_s: float = 10.0
    first_replicas: int | None = None  # None: what the first ten minutes need


@dataclass(slots=True)
class Outcome:
    """What came of it: one value for each request, and the fleet over time."""

    workload: str
    policy: str
    options: Options
    gpus_per_replica: int
    met: dict[str, Any]  # ttft, tpot, ttfat, e2e, joint -> array of bool
    ttft_s: Floats
    tpot_s: Floats
    ttfat_s: Floats
    e2e_s: Floats
    answer_tokens: int
    good_tokens: int
    preempted: int
    preemptions: int
    refused: int  # by the gate, or longer than a replica's KV cache
    too_long: int  # of those
    unfinished: int
    replica_s: float
    asleep_s: float  # of it, in which they slept
    wakes: int
    peak: int
    ups: int
    downs: int
    span_s: float  # from the first arrival to the end
    wall_s: float
    fleet: list[tuple[float, int, int, int, float, float]] = field(default_factory=list)
    reasons: list[tuple[float, int, str, str]] = field(default_factory=list)
    owed_at_stop: list[tuple[int, int]] = field(default_factory=list)

    @property
    def attainment(self) -> float:
        """Return the share of requests that met every objective."""
        return float(self.met["joint"].mean())

    @property
    def gpu_hours(self) -> float:
        """Return what the fleet cost, loading and draining counted."""
        return self.replica_s * self.gpus_per_replica / 3600.0

    def to_json(self, gpu_price: float | None = None) -> dict[str, Any]:
        """Return the figures; all but `wall_s` are the same for the same seed."""
        out: dict[str, Any] = {
            "workload": self.workload,
            "policy": self.policy,
            "cold_start_s": self.options.cold_start_s,
            "scrape_s": self.options.scrape_s,
            "seed": self.options.seed,
            "requests": len(self.e2e_s),
            "attainment": round(self.attainment, 6),
            **{f"attainment_{k}": round(float(self.met[k].mean()), 6) for k in ("ttft", "tpot", "ttfat", "e2e")},
            "gpu_hours": round(self.gpu_hours, 4),
            "peak_replicas": self.peak,
            "preempted": self.preempted,
            "preempted_per_1000": round(1000.0 * self.preempted / len(self.e2e_s), 4),
            "preemptions": self.preemptions,
            "refused": self.refused,
            "refused_too_long": self.too_long,
            "unfinished": self.unfinished,
            "scale_ups": self.ups,
            "scale_downs": self.downs,
            "scale_events_per_hour": round((self.ups + self.downs) / max(1.0, self.span_s) * 3600.0, 3),
            "goodput_tokens_per_gpu_hour": round(self.good_tokens / max(1e-9, self.gpu_hours), 1),
            "ttft_s": _quantiles(self.ttft_s),
            "tpot_ms": _quantiles(self.tpot_s * 1e3),
            "ttfat_s": _quantiles(self.ttfat_s),
            "e2e_s": _quantiles(self.e2e_s),
            "wall_s": round(self.wall_s, 3),
        }
        if self.options.asleep:
            out["asleep_gpu_hours"] = round(self.asleep_s * self.gpus_per_replica / 3600.0, 4)
            out["wakes"] = self.wakes
        if gpu_price is not None:
            out["cost_per_million_answer_tokens"] = round(
                gpu_price * self.gpu_hours / max(1, self.answer_tokens) * 1e6, 4
            )
        return out


def _quantiles(values: Floats) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"p50": None, "p95": None, "p99": None}
    return {f"p{q}": round(float(np.quantile(known, q / 100)), 4) for q in (50, 95, 99)}


def first_replicas(work: Workload, profile: Profile, options: Options) -> int:
    """Return the number that every policy begins with: what the first ten minutes need, whoever scales later.

    That is what they need at a steady rate, or more where a constant number misses objectives with it when they are played: on
    prompts of 8k to 64k tokens the rate alone says 7, and 15 are needed, since one prompt slows all who decode beside it.
    """
    if options.first_replicas is not None:
        return options.first_replicas
    steady = _steady(work, profile, options)
    if not ((work.arrival_s >= 0.0) & (work.arrival_s < START_WINDOW_S)).any():
        return steady
    alone = replace(options, router="expected-load", min_replicas=max(1, steady), asleep=0, scrape_s=60.0)
    if alone.min_replicas >= options.max_replicas:
        return steady
    played, found = static_peak(between(work, 0.0, START_WINDOW_S), profile, alone, START_MET)
    return played if found.attainment >= START_MET else steady  # where no number will do, many are no start either


def _steady(work: Workload, profile: Profile, options: Options) -> int:
    """Return what the first ten minutes need at a steady rate.

    From n = (b B + c K + tau rho) / (tau - a), tau a little under the objective; never fewer than minReplicas.
    """
    step, tau = plane_of(profile), START_AIM * options.objectives.tpot_s
    rows = (work.arrival_s >= 0.0) & (work.arrival_s < START_WINDOW_S)
    output, prompt = work.output_tokens[rows].astype(np.float64), work.prompt_tokens[rows].astype(np.float64)
    tau = max(tau, 1.3 * step.a)
    inflight = float(output.sum()) * tau / START_WINDOW_S
    kv = float((output * (prompt + output / 2.0)).sum()) * tau / START_WINDOW_S
    rho = float(prompt.sum()) * step.d / START_WINDOW_S
    seats = options.max_num_seqs or profile.max_num_seqs
    need = max(
        (step.b * inflight + step.c * kv + tau * rho) / (tau - step.a), kv / (0.9 * profile.kv_tokens), inflight / seats
    )
    return max(options.min_replicas, min(options.max_replicas, ceil(need)))


def setting_of(work: Workload, profile: Profile, options: Options) -> Setting:
    """Return what a policy is told before it runs."""
    return Setting(
        profile=profile,
        objectives=options.objectives,
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        cold_start_s=options.cold_start_s,
        asleep=options.asleep,
        classes=work.classes,
        max_num_seqs=options.max_num_seqs or profile.max_num_seqs,
        max_num_batched_tokens=min(
            options.max_num_batched_tokens or profile.max_num_batched_tokens, profile.max_num_batched_tokens
        ),
    )


def _cold(options: Options) -> Callable[[], float]:
    rng = np.random.default_rng([options.seed, 77])
    return lambda: float(max(0.2, rng.normal(1.0, COLD_SPREAD)) * options.cold_start_s)


def run(
    work: Workload, profile: Profile, policy: Policy, options: Options,
    progress: Callable[[float, float], None] | None = None,
) -> Outcome:  # fmt: skip
    """Run a workload under a policy until its last request has ended."""
    began = time.perf_counter()
    cluster = Cluster(
        profile, work, router=options.router or policy.router, cold_start_s=_cold(options), seed=options.seed, objectives=options.objectives,
        wake_s=options.wake_s,
        replicas=int(policy.p["replicas"]) if policy.name == "static" else first_replicas(work, profile, options),
        max_num_seqs=options.max_num_seqs, max_num_batched_tokens=options.max_num_batched_tokens,
    )  # fmt: skip
    policy.shown(cluster)
    last = float(work.arrival_s.max())
    visible: list[Any] = []
    pending: list[Any] = []
    fleet: list[tuple[float, int, int, int, float, float]] = []
    next_scrape, next_decision, peak = options.scrape_s, policy.period_s, cluster.target
    while not cluster.done and cluster.time < last + MOST_AFTER_S:
        now = ceil(min(next_scrape, next_decision, pending[0].time + LAG_S if pending else np.inf) - 1e-9)
        cluster.advance(max(now, cluster.time + 1.0))
        now = cluster.time
        if now >= next_scrape:
            pending.append(cluster.scrape())
            next_scrape += options.scrape_s
            s, (target, ready, starting, draining) = pending[-1], cluster.fleet()
            alive = ready + len(starting) + draining
            peak = max(peak, alive)
            fleet.append(
                (
                    now,
                    target,
                    ready,
                    alive,
                    float(s.running.sum() + s.waiting.sum() + s.at_gate),
                    float(s.kv_used.sum()),
                )
            )
            if progress is not None:
                progress(now, last)
        while pending and pending[0].time + LAG_S <= now:
            visible.append(pending.pop(0))
            while len(visible) > 2 and visible[0].time < now - HISTORY_S:
                del visible[0]
        if now >= next_decision:
            next_decision += policy.period_s
            if visible:
                target, ready, starting, draining = cluster.fleet()
                wanted = policy.decide(View(now, visible, target, ready, starting, draining, *policy.rests))
                if policy.name != "static":
                    wanted = max(options.min_replicas, min(options.max_replicas, wanted))
                if wanted < target:  # one that is stopped gets nothing in between
                    cluster.scale(wanted)
                cluster.rest(*policy.rests)
                cluster.scale(wanted)
    cluster.close()
    return _outcome(work, profile, policy, options, cluster, fleet, peak, time.perf_counter() - began)


def static_peak(work: Workload, profile: Profile, options: Options, aim: float = 0.99) -> tuple[int, Outcome]:
    """Return the smallest constant number of replicas that meets `aim` over the whole trace, and its run.

    Where even `max_replicas` does not, that number.
    """
    runs: dict[int, Outcome] = {}
    setting = setting_of(work, profile, options)

    def at(n: int) -> Outcome:
        if n not in runs:
            runs[n] = run(work, profile, Static(setting, {"replicas": n}), options)
        return runs[n]

    low, high = options.min_replicas - 1, min(options.max_replicas, max(options.min_replicas, 8))
    while high < options.max_replicas and at(high).attainment < aim:
        low, high = high, min(options.max_replicas, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).attainment >= aim else (middle, high)
    return high, at(high)


def _outcome(
    work: Workload, profile: Profile, policy: Policy, options: Options, cluster: Cluster,
    fleet: list[tuple[float, int, int, int, float, float]], peak: int, wall_s: float,
) -> Outcome:  # fmt: skip
    o = options.objectives
    came = cluster.arrival_s >= 0.0
    arrival, first, last = cluster.arrival_s[came], cluster.first_s[came], cluster.last_s[came]
    prompt, output = work.prompt_tokens[came], work.output_tokens[came]
    reasoning = work.reasoning_tokens[came]
    ttft, decode, e2e = first - arrival, last - first, last - arrival
    # Tokens come at an even pace between the first and the last.
    ttfat = ttft + decode * np.minimum(reasoning, output - 1) / np.maximum(1, output - 1)
    allowed = o.ttft_s + o.ttft_per_prompt_token_s * prompt
    with np.errstate(invalid="ignore"):
        met = {
            "ttft": ttft <= allowed,
            "tpot": decode <= o.tpot_s * (output - 1) + STREAM_SLACK_S,
            "ttfat": ttfat <= allowed + STRETCH * o.tpot_s * reasoning,
            "e2e": e2e <= allowed + STRETCH * o.tpot_s * output,
        }
    met["joint"] = met["ttft"] & met["tpot"] & met["ttfat"] & met["e2e"]
    never = int((work.follower != NOBODY).sum() and (~came).sum())
    refused = cluster.refused[came]
    return Outcome(
        workload=work.name,
        policy=policy.name if policy.name != "static" else f"static:{policy.p['replicas']}",
        options=options,
        gpus_per_replica=profile.gpus_per_replica,
        met=met,
        ttft_s=ttft,
        tpot_s=np.where(output > 1, decode / np.maximum(1, output - 1), np.nan),
        ttfat_s=ttfat,
        e2e_s=e2e,
        answer_tokens=int(work.answer_tokens[came][~np.isnan(last)].sum()),
        good_tokens=int(output[met["joint"]].sum()),
        preempted=int((cluster.preempted[came] > 0).sum()),
        preemptions=int(cluster.preempted.sum()),
        refused=int(refused.sum()),
        too_long=int(too_long(profile, prompt, output).sum()),
        unfinished=int((np.isnan(last) & ~refused).sum()) + never,
        asleep_s=cluster.asleep_s,
        wakes=cluster.wakes,
        replica_s=sum(s.gone - s.ordered for s in cluster.spans),
        peak=peak,
        ups=cluster.ups,
        downs=cluster.downs,
        span_s=float(cluster.time),
        wall_s=wall_s,
        fleet=fleet,
        reasons=list(getattr(policy, "reasons", [])),
        owed_at_stop=cluster.owed_at_stop,
    )
