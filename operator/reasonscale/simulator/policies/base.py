"""What every policy is given, and what several of them share. Sources of the rules: docs/benchmark.md."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, ClassVar

import numpy as np

from reasonscale.profiles.prior import plane_of
from reasonscale.profiles.profile import Profile
from reasonscale.scaling.types import Objectives, StepTime
from reasonscale.simulator.ledger import C_ARRIVALS, C_PROMPT, Scrape

_DIVISORS = frozenset({
    "target", "utilization", "down_rate", "most_factor", "kv_share", "up_threshold", "down_boundary", "prefill_s", "high",
    "busy_share", "busy_at",
})  # fmt: skip


_WORDS = {"predictor": ("constant", "linear")}


class BadPolicy(ValueError):
    """A policy or parameter that does not exist; the message lists what does."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What an operator of the system knows before it runs."""

    profile: Profile
    objectives: Objectives
    min_replicas: int
    max_replicas: int
    cold_start_s: float
    classes: tuple[str, ...]
    max_num_seqs: int
    max_num_batched_tokens: int
    asleep: int = 0  # replicas that may sleep instead of being stopped

    @property
    def step(self) -> StepTime:
        """Return the profile's step time."""
        return plane_of(self.profile)


@dataclass(frozen=True, slots=True)
class View:
    """What is visible at one moment: scrapes older than the lag, and the fleet."""

    now: float
    history: list[Scrape]  # newest last; never empty
    target: int
    ready: int
    starting_s: tuple[float, ...]
    draining: int
    emptied: tuple[str, ...] = ()  # as the policy has said last
    asleep: tuple[str, ...] = ()

    @property
    def last(self) -> Scrape:
        """Return the newest scrape."""
        return self.history[-1]

    def recent(self, window_s: float) -> list[Scrape]:
        """Return the scrapes of the last `window_s` seconds, the newest at least."""
        since = self.now - window_s
        i = len(self.history) - 1
        while i > 0 and self.history[i - 1].time > since:
            i -= 1
        return self.history[i:]

    def mean(self, value: Callable[[Scrape], float], window_s: float) -> float:
        """Return the mean of a value over the last `window_s` seconds."""
        return float(np.mean([value(s) for s in self.recent(window_s)]))


class Policy(ABC):
    """A rule for the number of replicas. `decide` is called every `period_s` seconds."""

    name: ClassVar[str]
    router: ClassVar[str] = "least-kv"
    period_s: float = 15.0
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, setting: Setting, params: Mapping[str, Any] | None = None) -> None:
        unknown = sorted(set(params or {}) - set(self.defaults))
        if unknown:
            there = ", ".join(self.defaults) or "none"
            raise BadPolicy(f"policy {self.name}: has no parameter {', '.join(unknown)}; there are {there}")
        for key, value in (params or {}).items():
            if isinstance(self.defaults[key], str):
                good, right = value in _WORDS[key], " or ".join(_WORDS[key])
            else:
                good = isinstance(value, int | float) and not isinstance(value, bool)
                good = good and (value > 0 if key in _DIVISORS else value >= 0) and value < inf
                least = "greater than 0" if key in _DIVISORS else "0 or more"
                right = f"a number, {least}, such as {self.defaults[key]:g}"
            if not good:
                raise BadPolicy(f"policy {self.name}: {key} was {value!r}; it must be {right}")
        self.rests: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # replicas to send nothing to; those that sleep
        self.setting = setting
        self.p: dict[str, Any] = {**self.defaults, **(params or {})}

    def shown(self, cluster: Any) -> None:
        """Be shown the fleet itself before it runs. Only an oracle looks."""
        return

    @abstractmethod
    def decide(self, view: View) -> int:
        """Return the number of replicas to ask for; the caller keeps it within the bounds."""


class Static(Policy):
    """A constant number."""

    name = "static"
    defaults: ClassVar[Mapping[str, Any]] = {"replicas": 1}
    period_s = 3600.0

    def decide(self, view: View) -> int:
        """Return the number."""
        return int(self.p["replicas"])


def running(s: Scrape) -> float:
    """Return the requests in engines' batches."""
    return float(s.running.sum())


def waiting(s: Scrape) -> float:
    """Return the requests that wait, at engines or before them."""
    return float(s.waiting.sum() + s.held)


def ongoing(s: Scrape) -> float:
    """Return all requests that have not ended."""
    return running(s) + waiting(s)


def arrivals(s: Scrape) -> float:
    """Return the requests that came since the scrape before."""
    return float(s.by_class[C_ARRIVALS].sum())


def rates(recent: list[Scrape]) -> tuple[float, float]:
    """Return the requests and the prompt tokens that came per second."""
    seconds = max(1e-9, sum(s.window_s for s in recent))
    return sum(arrivals(s) for s in recent) / seconds, sum(float(s.by_class[C_PROMPT].sum()) for s in recent) / seconds


def usage(s: Scrape) -> float:
    """Return the mean KV usage of the replicas, 0..1."""
    return float((s.kv_used / s.kv_capacity).mean()) if len(s.kv_used) else 0.0


class DownDelay:
    """Lets a number fall only when it has been lower for so long; it stays ready to fall until it rises again."""

    def __init__(self) -> None:
        self._lower_since: float | None = None

    def apply(self, now: float, current: int, desired: int, delay_s: float) -> int:
        """Return what to ask for."""
        if desired >= current:
            self._lower_since = None
            return desired
        self._lower_since = now if self._lower_since is None else self._lower_since
        return desired if now - self._lower_since >= delay_s else current


class HpaDamping:
    """Kubernetes' HorizontalPodAutoscaler after the ratio: tolerance, rates up and down, stabilization window."""

    def __init__(
        self, *, tolerance: float = 0.1, up_percent: float = 100.0, up_pods: float = 4.0, up_period_s: float = 15.0,
        up_window_s: float = 0.0, down_percent: float = 100.0, down_pods: float = 0.0, down_period_s: float = 15.0,
        down_window_s: float = 300.0,
    ) -> None:  # fmt: skip
        self.tolerance = tolerance
        self._up, self._up_window_s = (up_percent, up_pods, up_period_s), up_window_s
        self._down, self._down_window_s = (down_percent, down_pods, down_period_s), down_window_s
        self._wanted: list[tuple[float, int]] = []
        self._was: list[tuple[float, int]] = []

    def ratio(self, current: int, ratio: float) -> int:
        """Return ceil(current x ratio), or current within the tolerance."""
        return current if abs(ratio - 1.0) <= self.tolerance + 1e-9 else ceil(current * ratio - 1e-9)

    def apply(self, now: float, current: int, desired: int) -> int:
        """Return what the HPA would set."""
        self._wanted = [(t, n) for t, n in self._wanted if t > now - 3600.0] + [(now, desired)]
        if desired > current:
            desired = max(current, min(n for t, n in self._wanted if t >= now - self._up_window_s))
        elif desired < current:
            desired = min(current, max(n for t, n in self._wanted if t >= now - self._down_window_s))
        self._was = [(t, n) for t, n in self._was if t > now - 3600.0] + [(now, current)]
        if desired > current:
            percent, pods, period = self._up
            base = min(n for t, n in self._was if t > now - period)
            desired = min(desired, max(ceil(base * (1 + percent / 100)), int(base + pods)))
        elif desired < current:
            percent, pods, period = self._down
            base = max(n for t, n in self._was if t > now - period)
            least = min(int(base * (1 - percent / 100)), int(base - pods)) if pods else int(base * (1 - percent / 100))
            desired = max(desired, least, 0)
        return max(desired, 1) if desired != current else current
