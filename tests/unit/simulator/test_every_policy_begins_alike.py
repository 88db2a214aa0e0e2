"""The number that every policy begins with is what the first ten minutes need, and follows from nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reasonscale.profiles.library import load
from reasonscale.simulator import policies, traces, workload
from reasonscale.simulator.run import Options, first_replicas, run, setting_of

PROFILE = load("qwen2-32b-h200")


def attained(work, replicas):
    options = Options(router="expected-load")
    return run(
        work, PROFILE, policies.make(f"static:{replicas}", setting_of(work, PROFILE, options)), options
    ).attainment


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_long_prompts_begin_with_the_least_that_serves_them(seed):
    # By their rate alone six or seven replicas would do, with which half of them miss.
    work = traces.load("rag", seed=seed)
    n, minutes = first_replicas(work, PROFILE, Options()), workload.between(work, 0.0, 600.0)
    assert attained(minutes, n) >= 0.99 > attained(minutes, n - 1)


def test_who_follows_an_answer_is_counted():
    # 75 users come in the first ten minutes, with 12 requests each: by the first ones alone a single replica would do.
    work = traces.load("agents")
    assert first_replicas(work, PROFILE, Options()) > 1


def test_the_batch_that_fills_up_later_counts():
    # Chains of 8,000 tokens take more than five minutes, so that ten minutes from an empty fleet are served by fewer.
    work = traces.load("math-heavy")
    n = first_replicas(work, PROFILE, Options())
    assert attained(workload.between(work, 0.0, 600.0), n - 3) >= 0.99
    assert n > 10


def test_it_depends_on_the_first_ten_minutes_and_not_on_the_start_or_the_router():
    work = traces.load("rag")
    n = first_replicas(work, PROFILE, Options())
    late = np.where(work.arrival_s < 600.0, work.prompt_tokens, 9)
    assert first_replicas(replace(work, prompt_tokens=late), PROFILE, Options()) == n
    assert first_replicas(work, PROFILE, Options(cold_start_s=900.0, router="two-choices")) == n


def test_where_no_number_meets_the_objectives_the_rate_says_it():
    work = traces.load("cot-shift")
    hopeless = replace(Options().objectives, ttft_s=1e-4, ttft_per_prompt_token_s=0.0)
    options = Options()
    assert first_replicas(work, PROFILE, replace(options, objectives=hopeless)) == first_replicas(
        work, PROFILE, options
    )


@pytest.mark.parametrize("policy", ["reasonscale", "ray-serve"])
def test_every_policy_begins_with_it(policy):
    work = workload.between(traces.load("rag"), 0.0, 600.0)
    found = run(
        work, PROFILE, policies.make(policy, setting_of(work, PROFILE, Options())), Options(cold_start_s=10_000.0)
    )
    assert found.fleet[0][2] == first_replicas(work, PROFILE, Options())
