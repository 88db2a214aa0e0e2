"""Autoscalers that look at KV usage, tokens, or latency."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar

import numpy as np

from reasonscale.simulator.policies.base import HpaDamping, Policy, Setting, View, usage


class AibrixApa(Policy):
    """AIBrix APA: an HPA ratio on KV usage with its own tolerances, a panic window and a cooldown down."""

    name = "aibrix-apa"
    defaults: ClassVar[Mapping[str, Any]] = {
        "target": 0.5, "tolerance": 0.1, "window_s": 180.0, "panic_s": 60.0, "panic_threshold": 2.0,
        "down_cooldown_s": 300.0, "most_factor": 2.0,
    }  # fmt: skip

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._lower_since: float | None = None

    def decide(self, view: View) -> int:
        """Return ceil(n x usage / target) outside the tolerance."""
        p, ready = self.p, max(1, view.ready)
        stable, panic = view.mean(usage, p["window_s"]), view.mean(usage, p["panic_s"])
        value = max(stable, panic) if panic / p["target"] >= p["panic_threshold"] else stable
        ratio = value / p["target"]
        if 1.0 - p["tolerance"] <= ratio <= 1.0 + p["tolerance"]:
            self._lower_since = None
            return view.target
        desired: int = max(1, ceil(ready * max(1.0 / p["most_factor"], min(p["most_factor"], ratio)) - 1e-9))
        if desired > view.target:
            self._lower_since = None
            return desired
        if ratio > 1.0 or desired == view.target:
            return view.target
        self._lower_since = view.now if self._lower_since is None else self._lower_since
        if view.now - self._lower_since < p["down_cooldown_s"]:
            return view.target
        self._lower_since = None
        return desired


class WvaV1(Policy):
    """llm-d's workload variant autoscaler, version 1: spare KV and spare queue of replicas that are not saturated."""

    name = "llm-d-wva-v1"
    period_s = 60.0
    defaults: ClassVar[Mapping[str, Any]] = {
        "kv_saturated": 0.80, "queue_saturated": 5.0, "kv_spare": 0.10, "queue_spare": 3.0, "window_s": 60.0,
    }  # fmt: skip

    def decide(self, view: View) -> int:
        """Return one more, one less or as many."""
        p = self.p
        rows: dict[int, tuple[float, float]] = {}
        for scrape in view.recent(p["window_s"]):
            for k, kv, queue in zip(scrape.replicas, scrape.kv_used / scrape.kv_capacity, scrape.waiting, strict=True):
                was = rows.get(int(k), (0.0, 0.0))
                rows[int(k)] = (max(was[0], float(kv)), max(was[1], float(queue)))
        live = [rows[int(k)] for k in view.last.replicas if int(k) in rows]
        free = [(kv, q) for kv, q in live if kv < p["kv_saturated"] and q < p["queue_saturated"]]
        if view.starting_s:
            return view.target
        if not free:
            return view.target + 1
        spare_kv = float(np.mean([p["kv_saturated"] - kv for kv, _ in free]))
        spare_queue = float(np.mean([p["queue_saturated"] - q for _, q in free]))
        if spare_kv < p["kv_spare"] or spare_queue < p["queue_spare"]:
            return view.target + 1
        n = len(free)
        if n < 2:
            return view.target
        kv, queue = (sum(row[i] for row in free) / (n - 1) for i in (0, 1))
        if p["kv_saturated"] - kv >= p["kv_spare"] and p["queue_saturated"] - queue >= p["queue_spare"]:
            return max(1, view.target - 1)
        return view.target


class WvaV2(Policy):
    """llm-d's workload variant autoscaler, version 2: tokens in use and waiting against tokens of capacity."""

    name = "llm-d-wva-v2"
    period_s = 60.0
    defaults: ClassVar[Mapping[str, Any]] = {
        "kv_share": 0.8, "up_threshold": 0.85, "down_boundary": 0.70, "window_s": 60.0,
    }  # fmt: skip

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._input = 0.0

    def decide(self, view: View) -> int:
        """Return the replicas that hold the demand at the threshold; down where it fits below the boundary."""
        p, recent = self.p, view.recent(self.p["window_s"])
        inputs = np.concatenate([s.input_tokens for s in recent])
        if len(inputs):
            self._input = float(inputs.mean())
        demand = max(float(s.kv_used.sum()) + float(s.waiting.sum() + s.held) * self._input for s in recent)
        step, profile = self.setting.step, self.setting.profile
        # The compute bound: what the KV cache holds when a step takes the objective.
        bound = max(1.0, (self.setting.objectives.tpot_s - step.a) / max(step.c, 1e-12))
        capacity = min(profile.kv_tokens * p["kv_share"], bound)
        need: int = ceil(demand / capacity / p["up_threshold"] - 1e-9)
        if need > view.target:
            return need
        less = max(1, ceil(demand / capacity / p["down_boundary"] - 1e-9))
        return max(less, view.target - 1) if less < view.target and not view.starting_s else view.target


class TokenAware(Policy):
    """llm-d's token-aware rule: prompt tokens in flight over the prefill rate, and KV in use over 80 %."""

    name = "llm-d-token-aware"
    defaults: ClassVar[Mapping[str, Any]] = {
        "prefill_s": 1.5, "kv_share": 0.8, "up_period_s": 180.0, "down_period_s": 300.0, "down_window_s": 300.0,
    }  # fmt: skip

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._hpa = HpaDamping(
            up_percent=0.0, up_pods=1.0, up_period_s=self.p["up_period_s"], down_percent=0.0, down_pods=1.0,
            down_period_s=self.p["down_period_s"], down_window_s=self.p["down_window_s"],
        )  # fmt: skip

    def decide(self, view: View) -> int:
        """Return the larger of the two, one at a time."""
        s = view.last
        prefill = float(s.prompts_left.sum()) * max(self.setting.step.d, 1e-9) / self.p["prefill_s"]
        kv = float(s.kv_used.sum()) / s.kv_capacity / self.p["kv_share"]
        desired: int = max(1, ceil(prefill - 1e-9), ceil(kv - 1e-9))
        return self._hpa.apply(view.now, view.target, desired)


class SloAware(Policy):
    """llm-d's SLO-aware rule: the worse of p90 TTFT and p90 TPOT against their objectives."""

    name = "llm-d-slo-aware"
    defaults: ClassVar[Mapping[str, Any]] = {
        "high": 0.55, "low": 0.40, "mean_s": 45.0, "cap": 2.0, "up_period_s": 60.0, "up_window_s": 30.0,
        "down_period_s": 120.0, "down_window_s": 180.0,
    }  # fmt: skip

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        p = self.p
        self._hpa = HpaDamping(
            tolerance=0.0, up_percent=100.0, up_pods=4.0, up_period_s=p["up_period_s"], up_window_s=p["up_window_s"],
            down_percent=0.0, down_pods=1.0, down_period_s=p["down_period_s"], down_window_s=p["down_window_s"],
        )  # fmt: skip

    def decide(self, view: View) -> int:
        """Return n moved by how far the score is from its band."""
        p, objectives, recent = self.p, self.setting.objectives, view.recent(self.p["mean_s"])
        ttft, tpot = (np.concatenate([getattr(s, f) for s in recent]) for f in ("ttft_s", "tpot_s"))
        score = max(
            float(np.quantile(ttft, 0.9)) / objectives.ttft_s if len(ttft) else 0.0,
            float(np.quantile(tpot, 0.9)) / objectives.tpot_s if len(tpot) else 0.0,
        )
        score, n = min(score, p["cap"]), max(1, view.target)
        share = view.ready / n
        desired = n
        if score > p["high"]:
            desired = n + ceil(max(0.0, n * (score * share / p["high"] - 1.0)) - 1e-9)
        elif score < p["low"]:
            desired = max(1, n - int(n * (1.0 - score / p["low"])))
        return self._hpa.apply(view.now, n, desired)
