"""The demo's load, played in virtual time through the real ledger and the real decisions, passes whatever the seed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tests.unit.demo.rehearsal import rehearse

from reasonscale.demo.report import COT_REASONS, Run, build, rates
from reasonscale.demo.run import LOAD_S, RATE, SEED
from reasonscale.load.trace import SHIFT_BACK, SHIFT_FROM, warm_up, workload

START_S = (40.0, 75.0)  # an engine on two free cores, and on two busy ones
SEEDS = (1, SEED, 3, 4, 5)


@cache
def played(seed: int, start_s: float) -> Run:
    return rehearse(workload("cot-shift", RATE, LOAD_S, seed), LOAD_S, start_s, warm_up(seed))


def ups(run: Run) -> list[dict[str, Any]]:
    return [e for e in build(run)["scale_events"] if e["to"] > e["from"]]


@pytest.mark.parametrize("start_s", START_S)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_demo_passes_whatever_the_seed(seed: int, start_s: float) -> None:
    assert build(played(seed, start_s))["missing"] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_scale_up_rests_on_thought_to_come_before_a_queue_has_grown(seed: int) -> None:
    first = ups(played(seed, START_S[0]))[0]
    assert first["reason"] in COT_REASONS
    assert first["waiting"] <= 1
    assert SHIFT_FROM * LOAD_S < first["t"] < SHIFT_BACK * LOAD_S


def test_the_request_rate_tells_nothing_of_the_load() -> None:
    run = played(SEED, START_S[0])
    seen = [rate for _, rate in rates(run)]
    assert max(seen) - min(seen) < 0.2 * RATE
    tokens = [
        sum(o.reasoning_tokens for o in run.outcomes if low * LOAD_S <= o.t < high * LOAD_S) / ((high - low) * LOAD_S)
        for low, high in ((0.0, SHIFT_FROM), (SHIFT_BACK - 0.15, SHIFT_BACK))
    ]
    assert tokens[1] > 4 * tokens[0]


def test_one_replica_alone_would_let_requests_wait() -> None:
    plans = workload("cot-shift", RATE, LOAD_S, SEED)
    alone = build(rehearse(plans, LOAD_S, 1e9, warm_up(SEED)))
    scaled = build(played(SEED, START_S[0]))
    assert scaled["ttft_s"]["p95"] < alone["ttft_s"]["p95"] / 4
