"""The simulated fleet under the arrivals of loops that ran on real engines, a demo's and a GPU's: what they saw, decided and gave."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from bench import fidelity

from reasonscale.profiles.library import load
from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State

DATA = Path(__file__).parents[2] / "data"
DEMO, OWN_PACE, WARMED = DATA / "demo", DATA / "gpu-fleet", DATA / "gpu-fleet-h100"


# Before, two replicas came and went that the real loop asked for: a fresh engine's steps were slow (serving/warm.py).
WARM_S = 95.0


# Each with the second from which it is compared.
RECORDED = {
    "a demo on a CPU": (DEMO, 0.0),
    "three engines on a GPU": (DATA / "gpu-loop", 0.0),
    "a GPU for each engine": (OWN_PACE, WARM_S),
    "the same from engines that were warm": (WARMED, 0.0),
}
NAMES = tuple(RECORDED)


@cache
def compared(which: str) -> dict[str, Any]:
    """Return the comparison of one recording, with its own profile where it has one."""
    folder, after_s = RECORDED[which]
    profile = folder / "profile.json"
    return fidelity.compare(fidelity.of(folder), load(str(profile)) if profile.exists() else None, after_s)


@pytest.fixture(params=NAMES)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return compared(request.param)


def test_replicas_and_attainment_are_within_a_tenth(found: dict[str, Any]) -> None:
    assert abs(found["gpu_seconds"]["off_percent"]) <= 10
    for share in found["attainment"].values():
        assert abs(share["real"] - share["simulated"]) <= 0.1


@pytest.mark.parametrize("what", ["owed_tokens", "kv_tokens"])
def test_what_the_decision_looks_at_is_within_fifteen_hundredths(found: dict[str, Any], what: str) -> None:
    assert abs(found[what]["off_percent"]) <= 15


@pytest.mark.parametrize("which", NAMES[:3])
def test_the_same_changes_are_decided_in_the_same_order(which: str) -> None:
    found = compared(which)
    first, span = found["after_s"], found["span_s"]
    real, simulated = (
        [d["to"] for d in found["decisions"][side] if first <= d["t"] <= span] for side in ("real", "simulated")
    )
    assert real == simulated


def test_the_number_is_mostly_the_same_where_the_real_one_dips_once_more() -> None:
    """The load is worth 2.2 replicas, and the real loop decided for two a second time, for 55 s."""
    real, simulated = compared(NAMES[3])["plot"]["replicas"]
    assert sum(a == b for a, b in zip(real, simulated, strict=True)) >= 0.85 * len(real)


@pytest.mark.parametrize("which", NAMES[2:])
def test_a_profile_that_was_measured_first_says_what_steps_take_under_load(which: str) -> None:
    off = compared(which)["steps_of_the_profile"]
    assert off["looks"] > 100
    assert off["mean_absolute_percent"] <= 5


def test_another_machines_profile_does_not() -> None:
    off = fidelity.steps_against(fidelity.of_gpu(OWN_PACE), load("qwen2-7b-h100"))
    assert off["mean_absolute_percent"] > 20


def test_a_new_engines_first_steps_order_no_replicas() -> None:
    """The recorded loop learnt from them: it ordered two at its second look under load."""
    real, state = fidelity.of_gpu(OWN_PACE), State()
    early = [r for r in real.records if r.observation.time < real.begin + 12.0]
    assert max(r.decision.target for r in early) == 3
    for record in early:
        decision, state = decide(record.observation, record.policy, state)
        assert decision.target == 1


def calm(folder: Path, until_s: float) -> tuple[float, set[int]]:
    """Return how slow the slowest of a load's first three looks was against the middle one of the rest, and what was decided for."""
    real = fidelity.of_gpu(folder)
    looks = [r for r in real.records if 0.0 < r.observation.time - real.begin < until_s]
    steps = [x.step_seconds / x.steps for r in looks for x in r.observation.replicas if x.steps > 50]
    return max(steps[:3]) / median(steps[3:]), {r.decision.target for r in looks}


def test_an_engine_that_ran_requests_of_its_own_had_no_slow_steps_and_ordered_none() -> None:
    slower, targets = calm(WARMED, 150.0)
    assert slower <= 1.1
    assert targets == {1}


def test_one_that_had_not_did() -> None:
    slower, targets = calm(OWN_PACE, 90.0)
    assert slower > 2.0
    assert max(targets) == 3


def asked_for_three(*, who_came: bool) -> float:
    """Return when the decision asks for a third replica, by the recorded arrivals or by those that really came."""
    real, state = fidelity.of_gpu(WARMED), State()
    at, before = [a.at for a in real.asked], 0.0
    for record in real.records:
        seen, now = record.observation, record.observation.time - real.begin
        if who_came and now > 0.0:
            came = float(sum(before < t <= now for t in at))
            classes = {name: replace(counts, arrivals=came) for name, counts in seen.classes.items()}
            seen, before = replace(seen, classes=classes), now
        decision, state = decide(seen, record.policy, state)
        if decision.target == 3:
            return now
    return inf


def test_told_who_really_came_it_asks_for_the_third_replica_half_a_minute_sooner() -> None:
    """The loop had missed who was on his way to a new replica, and who asked what a refused one had asked."""
    assert asked_for_three(who_came=True) <= asked_for_three(who_came=False) - 25.0


def test_a_loop_that_served_worse_than_it_could_shows() -> None:
    slow = fidelity.of_logs(DEMO)
    asked = tuple(fidelity.replace(a, ttft_s=a.ttft_s + 20.0, e2e_s=a.e2e_s + 20.0) for a in slow.asked)
    worse = fidelity.compare(fidelity.replace(slow, asked=asked))
    assert worse["attainment"]["ttft"]["simulated"] - worse["attainment"]["ttft"]["real"] > 0.5
