"""Ours: the very `scaling.decide` of the product over what a scrape says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from reasonscale.profiles.prior import prior_of
from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State
from reasonscale.scaling.types import ClassCounts, Decision, Fleet, Freshness, Observation, Rates, ReplicaCounts
from reasonscale.scaling.types import Policy as ScalingPolicy
from reasonscale.simulator import ledger as cl
from reasonscale.simulator.engine import BATCH, KV, PREFILL, SECONDS
from reasonscale.simulator.ledger import Scrape
from reasonscale.simulator.policies.base import Policy, Setting, View


def observation(
    view: View, scrape: Scrape, classes: tuple[str, ...], stale_s: float = 90.0, *, rests: bool = False
) -> Observation:
    """Return a scrape as the product's signals would put it. `rests`: replicas can be emptied and sleep, each on a node of its own."""
    age = view.now - scrape.time
    counts = {}
    for i, name in enumerate(classes):
        waiting, prompt, came, came_prompt, thought, answered = (float(v) for v in scrape.by_class[:, i])
        rows = [tuple(float(v) for v in scrape.by_bin[row, i]) for row in range(5)]
        counts[name] = ClassCounts(
            waiting=waiting,
            waiting_prompt_tokens=prompt,
            reasoning=rows[cl.B_REASONING],
            answering=rows[cl.B_ANSWERING],
            inflight_prompt_tokens=rows[cl.B_PROMPT],
            reached=rows[cl.B_REACHED],
            ended=rows[cl.B_ENDED],
            arrivals=came,
            prompt_tokens=came_prompt,
            reasoning_tokens=thought,
            answer_tokens=answered,
        )
    replicas = tuple(
        ReplicaCounts(
            id=str(k),
            kv_capacity_tokens=scrape.kv_capacity,
            kv_used_tokens=float(scrape.kv_used[j]),
            running=float(scrape.running[j]),
            waiting=float(scrape.waiting[j]),
            preemptions=float(scrape.preemptions[j]),
            steps=float(scrape.steps[j]),
            step_seconds=float(scrape.sums[j, SECONDS]),
            step_batch=float(scrape.sums[j, BATCH]),
            step_kv_tokens=float(scrape.sums[j, KV]),
            step_prefill_tokens=float(scrape.sums[j, PREFILL]),
            replica=scrape.names[j] if rests else None,
            node=scrape.names[j] if rests else None,
            since_s=scrape.since_s[j] if rests else None,
            asleep=rests and scrape.asleep[j],
        )
        for j, k in enumerate(scrape.replicas)
    )
    return Observation(
        time=view.now,
        window_s=scrape.window_s,
        freshness=Freshness.FRESH if age <= stale_s else Freshness.STALE,
        age_s=age,
        fleet=Fleet(
            view.target, view.ready, view.starting_s, view.draining, view.emptied if rests else None, view.asleep
        ),
        classes=counts,
        replicas=replicas,
        held_requests=float(scrape.held),
        ingress_requests=float(scrape.held + scrape.at_gate + scrape.running.sum() + scrape.waiting.sum()),
    )


class Reasonscale(Policy):
    """The product's decision, with the defaults of its resource; nothing in it is tuned to a trace."""

    name = "reasonscale"
    router = "gated"
    period_s = 5.0
    defaults: ClassVar[Mapping[str, Any]] = {
        "down_stable_s": Rates().down_stable_s,
        "down_interval_s": Rates().down_interval_s,
        "down_max_step": 0,  # 0: as the resource has it, a quarter of those that are spare
        "mean_output_tokens": 1500.0,
        "zero_after_s": 900.0,  # with minReplicas 0
    }

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        p = self.p
        rates = Rates(
            down_stable_s=float(p["down_stable_s"]), down_interval_s=float(p["down_interval_s"]),
            down_max_step=int(p["down_max_step"]) or None,
        )  # fmt: skip
        self.policy = ScalingPolicy(
            min_replicas=setting.min_replicas,
            max_replicas=setting.max_replicas,
            zero_after_s=float(p["zero_after_s"]) if setting.min_replicas == 0 else None,
            objectives=setting.objectives,
            rates=rates,
            kv_capacity_tokens=float(setting.profile.kv_tokens),
            max_num_seqs=setting.max_num_seqs,
            max_num_batched_tokens=setting.max_num_batched_tokens,
            step_time=prior_of(setting.profile),
            start_prior_s=setting.cold_start_s,
            asleep=setting.asleep,
            length_prior=dict.fromkeys(setting.classes, float(p["mean_output_tokens"])),
        )
        self.state = State.new()
        self._seen = -np.inf
        self._target: int | None = None
        self.reasons: list[tuple[float, int, str, str]] = []

    def decide(self, view: View) -> int:
        """Decide on each new scrape; between scrapes the last decision stands."""
        scrape = view.last
        if scrape.time <= self._seen:
            return view.target
        missed = [s for s in view.history if self._seen < s.time < scrape.time]
        self._seen = scrape.time
        rests = self.policy.asleep > 0
        for old in missed:  # only at the start, before the first look
            _, self.state = decide(observation(view, old, self.setting.classes, rests=rests), self.policy, self.state)
        decision, self.state = decide(
            observation(view, scrape, self.setting.classes, rests=rests), self.policy, self.state
        )
        self._note(view, decision)
        if decision.target != decision.current:
            self.reasons.append((view.now, decision.target, decision.reason, decision.message))
        self.rests = decision.emptied, decision.asleep
        return decision.target + len(decision.emptied)

    def _note(self, view: View, decision: Decision) -> None:
        """Be told of every decision; for what compares them with recorded ones."""
