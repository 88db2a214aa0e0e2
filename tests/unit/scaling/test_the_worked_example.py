"""docs/concepts.md works one example; this computes it and looks for each number in the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.scaling.worlds import bins, counts

from reasonscale.scaling.decide import decide
from reasonscale.scaling.outlook import curves_of, loads_of
from reasonscale.scaling.state import State, learn
from reasonscale.scaling.types import Fleet, Freshness, Objectives, Observation, Policy, StepTime

PAGE = Path(__file__).parents[3] / "docs" / "concepts.md"
POLICY = Policy(
    min_replicas=1,
    max_replicas=4,
    objectives=Objectives(ttft_s=4.0, tpot_s=0.050, attainment=0.95),
    kv_headroom=0.10,
    kv_capacity_tokens=30_000.0,
    max_num_seqs=64,
    step_time=StepTime(0.020, 0.0002, 1.0e-7, 1.0e-4),
    start_prior_s=40.0,
    length_prior={"medium": 1500.0},
    length_limit={"medium": 16_384.0},
)
# What has ended so far: of 1,000 requests 300 ended between 256 and 384 tokens, 400 at 1,024 to 1,536, the rest at
# 4,096 to 6,144.
REACHED = bins(
    dict.fromkeys((0, 16, 32, 48, 64, 96, 128, 192, 256), 1000.0)
    | dict.fromkeys((384, 512, 768, 1024), 700.0)
    | dict.fromkeys((1536, 2048, 3072, 4096), 300.0)
)
ENDED = bins({256: 300.0, 1024: 400.0, 4096: 300.0})
NOW = {100: 6.0, 2500: 8.0}


def observation(time: float, running: dict[int, float], **more) -> Observation:
    return Observation(time, 5.0, Freshness.FRESH, 1.0, Fleet(1, 1), {"medium": counts(running, **more)})


@pytest.fixture
def page() -> str:
    return PAGE.read_text()


def states() -> tuple[State, Observation]:
    """Return the state after two ticks and the observation of the third, at which the example decides."""
    state = State.new()
    _, state = decide(observation(5.0, {}, reached=REACHED, ended=ENDED), POLICY, state)
    _, state = decide(observation(10.0, NOW, arrivals=2.0), POLICY, state)
    return state, observation(15.0, NOW, arrivals=2.0)


def test_the_page_s_curve_is_the_computed_one(page):
    state, seen = states()
    curve = curves_of(learn(state, seen, POLICY), POLICY)["medium"]
    for made in (0, 500, 2500):
        assert f"| {made:,} | {curve.at(made)[0]:.2f} | {curve.remaining(made):,.0f} |" in page


def test_the_page_s_owed_tokens_are_the_computed_ones(page):
    state, seen = states()
    (load,) = loads_of(seen, learn(state, seen, POLICY), POLICY)
    parts = [f"{count:.0f} x {load.curve.remaining(made):,.0f}" for made, count, _ in load.running]
    total = sum(count * load.curve.remaining(made) for made, count, _ in load.running)
    assert f"{' + '.join(parts)} = {total:,.0f} tokens" in page


def test_the_page_s_decision_is_the_computed_one(page):
    state, seen = states()
    decision, _ = decide(seen, POLICY, state)
    n = decision.numbers
    assert f"`{decision.message}`" in page
    assert decision.target > decision.current
    assert n.kv_full_in_s is None or f"{n.kv_full_in_s:.0f} s" in page
    for text in (
        f"horizon is {n.horizon_s:.0f} s",
        f"{n.arrival_rate:.2f} requests/s",
        f"up to {n.inflight_at_horizon:.0f} requests",
        f"up to {n.kv_at_horizon_tokens:,.0f} KV tokens",
        f"{n.need_concurrency:.2f} replicas for decoding",
        f"{n.need_kv:.2f} for the KV cache",
    ):
        assert text in page, text


def test_the_page_s_ablation_is_right_that_a_mean_length_would_have_held(page):
    state, seen = states()
    # A scaler that took every running request for a fresh one of mean length.
    young = replace(seen, classes={"medium": counts({0: 14.0}, arrivals=2.0)})
    decision, _ = decide(young, POLICY, state)
    assert f"`{decision.message}`" in page
    assert decision.target == decision.current
