"""Autoscalers that count requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar

from reasonscale.simulator.policies.base import HpaDamping, Policy, Setting, View, ongoing, running, waiting


class RayServe(Policy):
    """Ray Serve: ongoing requests over a target, held for a delay each way."""

    name = "ray-serve"
    router = "two-choices"
    period_s = 10.0
    defaults: ClassVar[Mapping[str, Any]] = {
        "target": 2.0, "upscale_delay_s": 30.0, "downscale_delay_s": 600.0, "look_back_s": 30.0,
        "upscaling_factor": 1.0, "downscaling_factor": 1.0,
    }  # fmt: skip

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._counter = 0

    def decide(self, view: View) -> int:
        """Return the number after the delays."""
        p, current = self.p, max(1, view.target)
        ratio = view.mean(ongoing, p["look_back_s"]) / current / p["target"]
        factor = p["upscaling_factor"] if ratio > 1 else p["downscaling_factor"]
        desired: int = ceil(current * (1.0 + (ratio - 1.0) * factor) - 1e-9)
        desired = max(self.setting.min_replicas, min(self.setting.max_replicas, desired))
        if desired > current:
            self._counter = max(0, self._counter) + 1
            if self._counter > p["upscale_delay_s"] / self.period_s:
                self._counter = 0
                return desired
        elif desired < current:
            self._counter = min(0, self._counter) - 1
            if -self._counter > p["downscale_delay_s"] / self.period_s:
                self._counter = 0
                return desired
        else:
            self._counter = 0
        return current


class Hpa(Policy):
    """A HorizontalPodAutoscaler on requests in flight per replica."""

    name = "hpa"
    router = "two-choices"
    defaults: ClassVar[Mapping[str, Any]] = {"target": 32.0, "tolerance": 0.1, "down_window_s": 300.0}

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._hpa = HpaDamping(tolerance=self.p["tolerance"], down_window_s=self.p["down_window_s"])

    def decide(self, view: View) -> int:
        """Return ceil(n x metric / target), damped."""
        ready = max(1, view.ready)
        desired = self._hpa.ratio(ready, ongoing(view.last) / ready / self.p["target"])
        desired = view.target if desired == ready else desired
        return self._hpa.apply(view.now, view.target, desired)


class _Sum(Policy):
    """KEDA's external metric with an average value: the sum over a target, through an HPA."""

    router = "two-choices"

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._hpa = HpaDamping(down_window_s=self.p["down_window_s"])
        self._polled: tuple[float, float] | None = None

    @abstractmethod
    def metric(self, view: View) -> float:
        """Return the sum that is divided by the target."""

    def decide(self, view: View) -> int:
        """Return ceil(sum / target), polled every `poll_s`."""
        if self._polled is None or view.now - self._polled[0] >= self.p["poll_s"]:
            self._polled = (view.now, self.metric(view))
        current = max(1, view.target)
        desired = ceil(self._polled[1] / self.p["target"] - 1e-9)
        if abs(self._polled[1] / self.p["target"] / current - 1.0) <= self._hpa.tolerance:
            desired = current
        return self._hpa.apply(view.now, current, max(1, desired))


class ProductionStack(_Sum):
    """vLLM production-stack: waiting requests over 5, by KEDA."""

    name = "production-stack"
    defaults: ClassVar[Mapping[str, Any]] = {"target": 5.0, "poll_s": 30.0, "down_window_s": 300.0}

    def metric(self, view: View) -> float:
        """Return the requests that wait."""
        return waiting(view.last)


class KserveKeda(_Sum):
    """KServe with KEDA: running requests, two a replica."""

    name = "kserve-keda"
    defaults: ClassVar[Mapping[str, Any]] = {"target": 2.0, "poll_s": 30.0, "down_window_s": 300.0}

    def metric(self, view: View) -> float:
        """Return the requests that run."""
        return running(view.last)


class KnativeKpa(Policy):
    """Knative's pod autoscaler: concurrency over 70 % of a target, with a panic window."""

    name = "knative-kpa"
    router = "two-choices"
    period_s = 2.0
    defaults: ClassVar[Mapping[str, Any]] = {
        "target": 100.0, "utilization": 0.7, "stable_s": 60.0, "panic_s": 6.0, "panic_threshold": 2.0,
        "up_rate": 1000.0, "down_rate": 2.0,
    }  # fmt: skip

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._panic_since: float | None = None
        self._panic_most = 0

    def decide(self, view: View) -> int:
        """Return the stable or the panicking number."""
        p, ready = self.p, max(1, view.ready)
        per = p["target"] * p["utilization"]

        def wanted(window_s: float) -> int:
            n = ceil(view.mean(ongoing, window_s) / per - 1e-9)
            return int(max(min(n, ceil(ready * p["up_rate"])), ready // p["down_rate"], 1))

        stable, panic = wanted(p["stable_s"]), wanted(p["panic_s"])
        if panic / ready >= p["panic_threshold"]:
            self._panic_since = view.now
        elif self._panic_since is not None and view.now - self._panic_since > p["stable_s"]:
            self._panic_since, self._panic_most = None, 0
        if self._panic_since is not None:
            self._panic_most = max(self._panic_most, panic, stable)
            return max(view.target, self._panic_most)
        return stable


class KubeAi(Policy):
    """KubeAI: the mean of active requests over ten minutes, 100 a replica."""

    name = "kubeai"
    router = "two-choices"
    period_s = 10.0
    defaults: ClassVar[Mapping[str, Any]] = {"target": 100.0, "window_s": 600.0, "down_delay_s": 30.0}

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(setting, params)
        self._lower = 0

    def decide(self, view: View) -> int:
        """Return the number; down only after it was lower for a while."""
        desired: int = max(1, ceil(view.mean(ongoing, self.p["window_s"]) / self.p["target"] - 1e-9))
        if desired >= view.target:
            self._lower = 0
            return desired
        self._lower += 1
        return desired if self._lower > self.p["down_delay_s"] / self.period_s else view.target
