"""Autoscalers with a model of the engine or of the demand: NVIDIA Dynamo's three, and four of the literature."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar

import numpy as np

from reasonscale.simulator.engine import BATCH, SECONDS
from reasonscale.simulator.ledger import C_PROMPT
from reasonscale.simulator.policies.base import DownDelay, Policy, Setting, View, arrivals, rates


def seats_at(setting: Setting, context: float, tpot_s: float) -> float:
    """Return the requests of `context` tokens that one replica decodes within `tpot_s` a token, and holds."""
    step = setting.step
    by_time = (tpot_s - step.a) / max(step.b + step.c * context, 1e-12)
    by_kv = setting.profile.kv_tokens / max(1.0, context)
    return max(1.0, min(by_time, by_kv, float(setting.max_num_seqs)))


def request_rate(setting: Setting, prompt: float, output: float, tpot_s: float) -> float:
    """Return requests/s of one replica at the objective, decode context prompt + output / 2, prefill in between."""
    seats = seats_at(setting, prompt + output / 2.0, tpot_s)
    return 1.0 / (max(1.0, output) * tpot_s / seats + prompt * setting.step.d)


def learnt(lengths: list[float], view: View, seen: float) -> list[float]:
    """Return the output lengths of the last 2,000 requests that ended, with those since the scrape at `seen`."""
    new = [float(n) for s in view.history if s.time > seen for n in s.output_tokens]
    return (lengths + new)[-2000:]


class DynamoThroughput(Policy):
    """Dynamo's planner by throughput: predicted request rate over an engine's rate at the objective."""

    name = "dynamo-throughput"
    period_s = 180.0
    defaults: ClassVar[Mapping[str, Any]] = {"interval_s": 180.0, "predictor": "constant", "tpot_share": 1.0}

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self.period_s = float(self.p["interval_s"])
        self._rates: list[float] = []
        self._lengths = (0.0, 0.0)

    def decide(self, view: View) -> int:
        """Return the replicas for the next interval."""
        recent = view.recent(self.period_s)
        self._rates.append(sum(arrivals(s) for s in recent) / max(1e-9, sum(s.window_s for s in recent)))
        prompt, output = (np.concatenate([getattr(s, f) for s in recent]) for f in ("input_tokens", "output_tokens"))
        if len(output):
            self._lengths = (float(prompt.mean()), float(output.mean()))
        if self._lengths[1] == 0.0:
            return view.target
        rate = self._rates[-1]
        if self.p["predictor"] == "linear" and len(self._rates) >= 3:
            slope, level = np.polyfit(np.arange(3.0), np.array(self._rates[-3:]), 1)
            rate = max(0.0, float(level + 3 * slope))
        per = request_rate(self.setting, *self._lengths, self.setting.objectives.tpot_s * self.p["tpot_share"])
        return max(1, ceil(rate / per - 1e-9))


class DynamoLoad(Policy):
    """Dynamo's planner by load: latency of each replica predicted from a regression on its load."""

    name = "dynamo-load"
    period_s = 5.0
    defaults: ClassVar[Mapping[str, Any]] = {"down_share": 0.8, "kv_max": 0.9}

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._points: list[tuple[float, float]] = []
        self._seen = -np.inf

    def decide(self, view: View) -> int:
        """Return one more where all replicas miss, one less where all would still meet; nothing while it scales."""
        p, s, objectives = self.p, view.last, self.setting.objectives
        busy = (s.steps > 0) & (s.time > self._seen)
        self._seen = s.time
        self._points += [
            (float(k), float(row[SECONDS] / n))
            for k, row, n in zip(s.kv_used[busy], s.sums[busy], s.steps[busy], strict=True)
        ]
        self._points = self._points[-500:]
        if view.starting_s or view.draining or not len(s.replicas) or len(self._points) < 20:
            return view.target
        held, took = np.array(self._points).T
        spread = float(held.var())
        slope = max(0.0, float(np.cov(held, took, bias=True)[0, 1]) / spread) if spread > 0.0 else 0.0
        level = float(took.mean()) - slope * float(held.mean())
        itl = level + slope * s.kv_used
        ttft = s.prompts_left * self.setting.step.d
        if (itl > objectives.tpot_s).all() or (ttft > objectives.ttft_s).all():
            return view.target + 1
        n = len(s.replicas)
        if n < 2:
            return view.target
        more = n / (n - 1)
        calm = (level + slope * s.kv_used * more < p["down_share"] * objectives.tpot_s).all()
        calm = calm and (ttft * more < p["down_share"] * objectives.ttft_s).all()
        calm = calm and (s.kv_used * more < p["kv_max"] * s.kv_capacity).all()
        return view.target - 1 if calm else view.target


class DynamoEasy(Policy):
    """Dynamo's planner in easy mode: scheduled and queued KV over the cache."""

    name = "dynamo-easy"
    period_s = 5.0
    defaults: ClassVar[Mapping[str, Any]] = {"up": 1.0, "down": 0.6}

    def decide(self, view: View) -> int:
        """Return one more where any replica is over, one less where all are under; nothing while it scales."""
        s = view.last
        if view.starting_s or view.draining or not len(s.replicas):
            return view.target
        load = (s.kv_used + s.prompts_left) / s.kv_capacity
        if (load > self.p["up"]).any():
            return view.target + 1
        return max(1, view.target - 1) if (load < self.p["down"]).all() else view.target


class TokenScale(Policy):
    """TokenScale: prefill and decode velocities; the decode one by buckets of predicted length."""

    name = "tokenscale"
    period_s = 5.0
    defaults: ClassVar[Mapping[str, Any]] = {"window_s": 60.0, "down_delay_s": 60.0, "headroom": 1.0}
    _EDGES = np.array([0.0, 256.0, 1024.0, 4096.0, np.inf])

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._lengths: list[float] = []
        self._seen = -np.inf
        self._down = DownDelay()

    def decide(self, view: View) -> int:
        """Return prefill need + decode need, the lengths of who comes predicted from those who ended."""
        s, step = view.last, self.setting.step
        self._lengths = learnt(self._lengths, view, self._seen)
        self._seen = s.time
        recent = view.recent(self.p["window_s"])
        rate, prompt_rate = rates(recent)
        if not self._lengths:
            return view.target
        lengths, need = np.array(self._lengths), prompt_rate * step.d
        prompt = prompt_rate / rate if rate > 0 else 0.0
        for low, high in zip(self._EDGES[:-1], self._EDGES[1:], strict=True):
            mine = lengths[(lengths > low) & (lengths <= high)]
            if len(mine):
                tokens = rate * len(mine) / len(lengths) * float(mine.mean())
                tpot = self.setting.objectives.tpot_s
                need += tokens * tpot / seats_at(self.setting, prompt + float(mine.mean()) / 2.0, tpot)
        desired: int = max(1, ceil(need * self.p["headroom"] - 1e-9))
        return self._down.apply(view.now, view.target, desired, float(self.p["down_delay_s"]))


class Chiron(Policy):
    """Chiron: the share of busy instances is kept near a set point; a queue adds by its estimated wait."""

    name = "chiron"
    period_s = 10.0
    defaults: ClassVar[Mapping[str, Any]] = {"busy_share": 0.333, "busy_at": 0.5, "band": 0.1, "down_delay_s": 120.0}

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._down = DownDelay()

    def decide(self, view: View) -> int:
        """Return the number at which a third of the instances would be busy."""
        s = view.last
        if not len(s.replicas):
            return view.target
        seats = np.where(s.steps > 0, s.sums[:, BATCH] / np.maximum(1, s.steps), 0.0) / self.setting.max_num_seqs
        load = np.maximum(s.kv_used / s.kv_capacity, seats)
        busy = float(np.minimum(1.0, load / self.p["busy_at"]).sum())
        desired: int = max(1, ceil(busy / self.p["busy_share"] * self.p["busy_at"] - 1e-9))
        queue_s = float(s.prompts_left.sum()) * self.setting.step.d / len(s.replicas)
        if queue_s > self.setting.objectives.ttft_s:
            desired = max(desired, ceil(view.ready * min(2.0, queue_s / self.setting.objectives.ttft_s)))
        if abs(desired / max(1, view.target) - 1.0) <= self.p["band"]:
            desired = view.target
        return self._down.apply(view.now, view.target, desired, float(self.p["down_delay_s"]))


class SageServe(Policy):
    """SageServe: an hourly plan from a token forecast, and a reactive rule on memory below it."""

    name = "sageserve"
    period_s = 60.0
    defaults: ClassVar[Mapping[str, Any]] = {"up": 0.70, "down": 0.30, "tpot_share": 0.8}

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._plan, self._planned = 1, -np.inf

    def decide(self, view: View) -> int:
        """Return the plan, or what memory asks for where it is far from it."""
        if view.now - self._planned >= 3600.0:
            self._planned = view.now
            recent = view.recent(3600.0)
            half = len(recent) // 2
            rates = [
                sum(arrivals(s) for s in part) / max(1e-9, sum(s.window_s for s in part))
                for part in (recent[:half], recent[half:])
                if part
            ]
            rate = max(0.0, rates[-1] + (rates[-1] - rates[0]))
            prompt, output = (
                np.concatenate([getattr(s, f) for s in recent]) for f in ("input_tokens", "output_tokens")
            )
            self._plan = view.target
            if len(output):
                tpot = self.setting.objectives.tpot_s * self.p["tpot_share"]
                per = request_rate(self.setting, float(prompt.mean()), float(output.mean()), tpot)
                self._plan = max(1, ceil(rate / per - 1e-9))
        s = view.last
        used = float((s.kv_used / s.kv_capacity).mean()) if len(s.replicas) else 0.0
        if used > self.p["up"]:
            return max(self._plan, view.target + (0 if view.starting_s else max(1, view.target // 10)))
        if used < self.p["down"]:
            return max(1, min(view.target, self._plan) if self._plan < view.target else view.target - 1)
        return max(self._plan, view.target) if self._plan > view.target else view.target


class PreServe(Policy):
    """PreServe: a forecast of token density and a length predictor give the KV each replica will hold."""

    name = "preserve"
    period_s = 10.0
    defaults: ClassVar[Mapping[str, Any]] = {
        "window_s": 300.0, "kv_share": 0.8, "down_delay_s": 120.0, "predictor_error": 0.0,
    }  # fmt: skip

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._lengths: list[float] = []
        self._seen = -np.inf
        self._down = DownDelay()

    def decide(self, view: View) -> int:
        """Return the replicas that hold the anticipated KV: in use, growing by what runs, and who comes."""
        s, step = view.last, self.setting.step
        self._lengths = learnt(self._lengths, view, self._seen)
        self._seen = s.time
        if not self._lengths:
            return view.target
        mean = float(np.mean(self._lengths)) * (1.0 + self.p["predictor_error"])
        recent = view.recent(self.p["window_s"])
        seconds = max(1e-9, sum(x.window_s for x in recent))
        rate = sum(arrivals(x) for x in recent) / seconds
        prompt = sum(float(x.by_class[C_PROMPT].sum()) for x in recent) / max(1.0, sum(arrivals(x) for x in recent))
        tpot = max(step.a, self.setting.objectives.tpot_s * 0.8)
        # Little's law: who comes stays for mean x tpot, and holds its prompt and half its output in the mean.
        coming = rate * mean * tpot * (prompt + mean / 2.0)
        anticipated = max(float(s.kv_used.sum()) + float(s.prompts_left.sum()), coming)
        seats = rate * mean * tpot / seats_at(self.setting, prompt + mean / 2.0, self.setting.objectives.tpot_s)
        need = max(anticipated / (s.kv_capacity * self.p["kv_share"]), seats + rate * prompt * step.d)
        desired: int = max(1, ceil(need - 1e-9))
        return self._down.apply(view.now, view.target, desired, float(self.p["down_delay_s"]))
