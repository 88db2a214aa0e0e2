"""Scrapes and views by hand, for rules that are worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np

from reasonscale.api.constants import TOKEN_BINS
from reasonscale.profiles.profile import Profile
from reasonscale.scaling.types import Objectives
from reasonscale.simulator.ledger import Scrape
from reasonscale.simulator.policies.base import Setting, View

CAPACITY = 1000.0
# A step takes 10 ms + 0.1 ms a request + 10 us a KV token; a prompt token 1 ms.
PROFILE = Profile(
    name="by-hand", model="none", kv_tokens=1000, block_tokens=10, max_num_seqs=8, max_num_batched_tokens=100,
    gpus_per_replica=1, decode=((1, 10.1, 0.01), (8, 10.8, 0.01)), prefill=((1, 10.0), (101, 110.0)),
    prefill_overhead_ms=0.0, attention_ms_per_pair=0.0,
)  # fmt: skip
SETTING = Setting(PROFILE, Objectives(ttft_s=2.0, tpot_s=0.05), 1, 100, 60.0, ("default",), 8, 100)


def scrape(time: float, running: list[int], **given: Any) -> Scrape:
    """Return what the metrics say of replicas with so many running requests."""
    n = len(running)
    by_class, by_bin = np.zeros((6, 1)), np.zeros((5, 1, len(TOKEN_BINS)))
    by_class[2, 0], by_class[3, 0] = given.get("arrivals", 0), given.get("prompt_tokens", 0)
    window = given.get("window_s", 5.0)
    steps = np.array(given.get("steps", [100] * n), dtype=np.int64)
    step_ms = np.array(given.get("step_ms", [20.0] * n))
    sums = np.zeros((n, 4))
    sums[:, 0], sums[:, 1] = steps * step_ms / 1e3, steps * np.array(running)
    return Scrape(
        time=time,
        window_s=window,
        by_class=by_class,
        by_bin=by_bin,
        replicas=np.arange(n),
        running=np.array(running, dtype=np.int64),
        waiting=np.array(given.get("waiting", [0] * n), dtype=np.int64),
        kv_used=np.array(given.get("kv", [0.0] * n), dtype=np.float64) * CAPACITY,
        kv_capacity=CAPACITY,
        prompts_left=np.array(given.get("prompts_left", [0.0] * n), dtype=np.float64),
        preemptions=np.zeros(n, dtype=np.int64),
        steps=steps,
        sums=sums,
        held=given.get("held", 0),
        at_gate=0,
        ttft_s=np.array(given.get("ttft_s", []), dtype=np.float64),
        tpot_s=np.array(given.get("tpot_s", []), dtype=np.float64),
        input_tokens=np.array(given.get("inputs", []), dtype=np.float64),
        output_tokens=np.array(given.get("outputs", []), dtype=np.float64),
    )


def view(history: list[Scrape], target: int, ready: int | None = None, starting: tuple[float, ...] = ()) -> View:
    """Return a view right after the last scrape."""
    return View(history[-1].time, history, target, target if ready is None else ready, starting, 0)


def steady(until: float, every: float, running: list[int], **given: Any) -> list[Scrape]:
    """Return equal scrapes up to `until`."""
    times = np.arange(every, until + every / 2, every)
    return [scrape(float(t), running, window_s=every, **given) for t in times]
