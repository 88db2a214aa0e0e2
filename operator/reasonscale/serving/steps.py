"""Sums over an engine's steps, from which a step's time is learned. Pure but for vLLM's base class at the edge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StepSums:
    """Counters over all steps of one engine; `kv_usage` is a gauge, 0..1."""

    steps: int = 0
    seconds: float = 0.0
    batch: float = 0.0
    kv_tokens: float = 0.0
    prefill_tokens: float = 0.0
    preemptions: int = 0
    kv_usage: float = 0.0
    running: int = 0
    waiting: int = 0
    told: int = 0  # looks at the engine's scheduler, busy or not
    _last_s: float | None = None

    def step(
        self, now: float, running: int, waiting: int, kv_usage: float, capacity: float, prefill: int, preempted: int
    ) -> None:
        """Note one step; the time since the step before counts only where the engine was busy in between."""
        if self._last_s is not None and self.running > 0 and now > self._last_s:
            self.steps += 1
            self.seconds += now - self._last_s
            self.batch += self.running
            self.kv_tokens += self.kv_usage * capacity
            self.prefill_tokens += prefill
        self.told += 1
        self.preemptions += preempted
        self.kv_usage, self.running, self.waiting, self._last_s = kv_usage, running, waiting, now

    def idle(self) -> None:
        """Note that no request is there: an engine whose last one was aborted may never tell of a step after it."""
        self.kv_usage, self.running, self.waiting = 0.0, 0, 0
