"""Observations for tests of decisions: small builders, and a fleet that obeys."""

from __future__ import annotations

from reasonscale.api.constants import bin_of
from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State
from reasonscale.scaling.types import (
    N_BINS,
    ClassCounts,
    Decision,
    Fleet,
    Freshness,
    Objectives,
    Observation,
    Policy,
    Rates,
    ReplicaCounts,
    StepTime,
)

POLICY = Policy(
    min_replicas=1,
    max_replicas=8,
    objectives=Objectives(ttft_s=4.0, tpot_s=0.12, attainment=0.95),
    rates=Rates(down_stable_s=30.0, down_interval_s=15.0),
    kv_capacity_tokens=5120.0,
    max_num_seqs=8,
    step_time=StepTime(0.03, 0.001, 1e-7, 1e-4),
    start_prior_s=40.0,
    length_prior={"medium": 400.0},
    length_limit={"medium": 2048.0},
)


def bins(requests: dict[int, float]) -> tuple[float, ...]:
    """Return counts by bin from {tokens made: requests}."""
    out = [0.0] * N_BINS
    for tokens, count in requests.items():
        out[bin_of(tokens)] += count
    return tuple(out)


def counts(running: dict[int, float] | None = None, waiting: float = 0.0, arrivals: float = 0.0, **more) -> ClassCounts:
    inflight = bins(running or {})
    return ClassCounts(
        waiting=waiting,
        waiting_prompt_tokens=30.0 * waiting,
        reasoning=inflight,
        inflight_prompt_tokens=tuple(30.0 * x for x in inflight),
        arrivals=arrivals,
        prompt_tokens=30.0 * arrivals,
        **more,
    )


def observe(
    time: float, fleet: Fleet, freshness=Freshness.FRESH, preemptions: float = 0.0, kv_used: float = 0.0, **classes
) -> Observation:
    replicas = tuple(
        ReplicaCounts(str(i), kv_capacity_tokens=5120.0, kv_used_tokens=kv_used, preemptions=preemptions)
        for i in range(fleet.ready)
    )
    age = {Freshness.FRESH: 1.0, Freshness.STALE: 60.0, Freshness.ABSENT: None}[freshness]
    return Observation(time, 5.0, freshness, age, fleet, classes, replicas)


class World:
    """Feeds observations through `decide`, and obeys: replicas are ready `start_s` after they were asked for."""

    def __init__(self, policy: Policy = POLICY, ready: int = 1, start_s: float = 0.0) -> None:
        self.policy, self.state, self.time, self.start_s = policy, State.new(), 0.0, start_s
        self.target, self.ready, self.orders = ready, ready, []
        self.decisions: list[Decision] = []

    def fleet(self) -> Fleet:
        self.ready += sum(1 for at in self.orders if self.time - at >= self.start_s)
        self.orders = [at for at in self.orders if self.time - at < self.start_s]
        return Fleet(self.target, self.ready, tuple(self.time - at for at in self.orders))

    def tick(self, freshness=Freshness.FRESH, preemptions: float = 0.0, kv_used: float = 0.0, **classes) -> Decision:
        self.time += 5.0
        seen = observe(self.time, self.fleet(), freshness, preemptions, kv_used, **classes)
        decision, self.state = decide(seen, self.policy, self.state)
        if decision.act:
            more = decision.target - self.target
            self.orders += [self.time] * max(0, more)
            while more < 0 and self.orders:
                self.orders.pop()
                more += 1
            self.ready += min(0, more)
            self.target = decision.target
        self.decisions.append(decision)
        return decision
