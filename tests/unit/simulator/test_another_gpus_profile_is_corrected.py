"""Whatever profile a decision starts with, it learns what a replica of any other can do; and what is taken for the truth is one."""

from __future__ import annotations

import numpy as np
import pytest
from bench.gpu import correct

from reasonscale.profiles.library import load, shipped
from reasonscale.profiles.prior import prior_of
from reasonscale.scaling.capacity import AIM, Steps, fit, observe
from reasonscale.scaling.types import BENDS_AT, Objectives, Policy, ReplicaCounts
from reasonscale.simulator import run, workload
from reasonscale.simulator.engine import BATCH, KV, PREFILL
from reasonscale.simulator.tables import tables_of

CONTEXT = 850.0


def mean_times(true: str) -> np.ndarray:
    """Return a step's mean seconds by mean requests in the batch, which come and go within a tick."""
    tables, near = tables_of(load(true)), np.random.default_rng(2).normal(0.0, 8.0, 4000)
    counts = np.arange(257)
    times = tables.base[counts] + tables.slope[counts] * counts * CONTEXT
    return np.array([times[np.clip(np.round(n + near), 1, 256).astype(int)].mean() for n in range(250)])


def learnt(
    true: str,
    prior: str | None,
    times: np.ndarray,
    capacity: int,
    ticks: int = 120,
    least: float = 0.3,
    most: float = 1.0,
) -> float:
    """Return the requests at which the decision takes a step to be at its aim, which `capacity` are, after loads of a share of them."""
    aim = float(times[capacity])
    policy = Policy(
        objectives=Objectives(tpot_s=aim / AIM), kv_capacity_tokens=float(load(true).kv_tokens),
        step_time=prior_of(load(prior)) if prior else None,
    )  # fmt: skip
    rng, memory = np.random.default_rng(1), Steps()
    for _ in range(ticks):
        seen = [int(rng.uniform(least, most) * capacity) for _ in range(2)]
        told = [
            ReplicaCounts(
                str(r), steps=400, step_seconds=400 * times[n], step_batch=400 * n, step_kv_tokens=400 * n * CONTEXT
            )
            for r, n in enumerate(seen)
        ]
        memory = observe(memory, told, 0.0, 5.0)
    step, counts = fit(memory, policy), np.arange(400.0)
    said = step.a + step.b * counts + step.bend * np.maximum(0.0, counts - BENDS_AT) + step.c * counts * CONTEXT
    return float(np.interp(aim, said, counts))


@pytest.mark.parametrize("capacity", [100, 125, 150, 180, 220])
@pytest.mark.parametrize("true", shipped())
def test_ten_minutes_of_load_correct_any_shipped_profile_or_none_to_a_tenth(true: str, capacity: int) -> None:
    times = mean_times(true)  # with a stair each 64 requests: no fit comes closer everywhere
    for prior in (None, *shipped()):
        assert learnt(true, prior, times, capacity) == pytest.approx(capacity, rel=0.105), prior


def test_half_a_minute_of_a_low_load_tells_a_model_that_is_three_times_as_slow_as_its_profile() -> None:
    true, prior = "qwen2-32b-h200", "qwen2-7b-h100"
    times = mean_times(true)
    assert learnt(true, prior, times, 110, ticks=0) > 3.0 * 110
    assert learnt(true, prior, times, 110, ticks=6, least=0.1, most=0.5) == pytest.approx(110, rel=0.2)


def test_requests_in_flight_hold_what_the_mix_says_and_not_what_those_that_come_bring() -> None:
    rng = np.random.default_rng(1)
    n = 4000
    lengths = rng.choice([50, 1500], n, p=[0.8, 0.2])
    work = workload.make(
        "two", np.sort(rng.uniform(0.0, 800.0, n)), np.full(n, 100), lengths, np.ones(n, dtype=np.int64)
    )
    options = run.Options(min_replicas=1, max_replicas=1, objectives=Objectives(tpot_s=0.050))
    alone = correct.Told(run.setting_of(work, load("qwen2-7b-h100"), options), None)
    run.run(work, load("qwen2-7b-h100"), alone, options)
    sums = sum(s for now, s in alone.counts if 100.0 < now < 800.0)
    context, prompts = correct.mix(work)
    assert sums[1 + KV] / sums[1 + BATCH] == pytest.approx(context, rel=0.05)
    assert sums[1 + PREFILL] / sums[1 + BATCH] == pytest.approx(prompts, rel=0.05)
    assert context > 1.5 * float((work.prompt_tokens + work.output_tokens / 2).mean())
