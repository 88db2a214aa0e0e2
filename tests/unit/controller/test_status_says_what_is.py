"""A status says what changed, and is written for nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reasonscale.api import constants as c
from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.autoscaler import Record
from reasonscale.controller.held import Held, fetching_replicas, ready_replicas
from reasonscale.controller.status import HISTORY, Found, changed, merged, moved, refused, stamp, status_of
from reasonscale.scaling.decide import decide
from reasonscale.scaling.policy import policy_of
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Fleet, Freshness, Observation
from reasonscale.signals.assemble import Sample

EXAMPLE = Path(__file__).parents[3] / "examples" / "r1-distill-qwen-7b.yaml"
RESOLVED = replace(resolve(load_models(EXAMPLE)[0]), mode="Manual", replicas=3, max_replicas=8)


def record(target: int, now: float = 100.0, wanted: int = 3) -> Record:
    policy = policy_of(replace(RESOLVED, replicas=wanted))
    seen = Observation(
        time=now, window_s=5.0, freshness=Freshness.ABSENT, age_s=None, fleet=Fleet(target, target), classes={}, replicas=(),
        held_requests=0.0,
    )  # fmt: skip
    return Record("m", seen, policy, decide(seen, policy, State.new())[0])


def status(found: Record | None, before: dict[str, Any], now: float = 100.0, **more: Any) -> dict[str, Any]:
    return status_of(RESOLVED, found, before, namespace="n", generation=1, found=Found(**more), now=now)


def test_the_same_again_is_no_change_however_much_later() -> None:
    first = status(record(3), {})
    assert changed({}, first)
    again = status(record(3, 200.0), first, now=200.0)
    assert not changed(first, again)
    assert again["conditions"] == first["conditions"], "no time in it ticks"


def test_a_decision_is_kept_with_the_ten_before_it() -> None:
    before: dict[str, Any] = {}
    for n in range(1, 15):
        before |= status(record(n % 3 + 1, float(n), wanted=4 + n % 2), before, now=float(n))
    assert len(before["history"]) == HISTORY
    assert before["history"][0] == before["lastDecision"]
    assert before["lastDecision"]["reason"] == c.REASON_MANUAL


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    old = [{"type": "Ready", "status": "True", "reason": "a", "message": "", "lastTransitionTime": stamp(1)}]
    same = merged(old, [{"type": "Ready", "status": "True", "reason": "b", "message": "x"}], stamp(9))
    turned = merged(old, [{"type": "Ready", "status": "False", "reason": "b", "message": "x"}], stamp(9))
    assert (same[0]["lastTransitionTime"], turned[0]["lastTransitionTime"]) == (stamp(1), stamp(9))


def test_a_refused_resource_says_why_and_keeps_the_other_conditions() -> None:
    before = status(record(3), {})
    found = refused("spec.x: was 1", before, 2, 300.0)
    kinds = {x["type"]: x for x in found["conditions"]}
    assert kinds["Accepted"]["status"] == "False"
    assert "spec.x: was 1" in kinds["Accepted"]["message"]
    assert kinds["ScalingActive"] == {x["type"]: x for x in before["conditions"]}["ScalingActive"]


def test_trouble_is_said_as_degraded() -> None:
    found = status(None, {}, trouble=("KubeRayMissing", "install KubeRay"))
    assert {x["type"]: (x["status"], x["reason"]) for x in found["conditions"]}["Degraded"] == (
        "True",
        "KubeRayMissing",
    )


def test_only_fresh_ledgers_of_the_model_are_ready_replicas() -> None:
    def ledger(worker: str, written: float, model: str = "m") -> Sample:
        return Sample(c.M_LEDGER_TIME, {"model": model, "WorkerId": worker}, written)

    samples = [ledger("a", 95.0), ledger("b", 99.0), ledger("dead", 10.0), ledger("x", 99.0, "other")]
    assert ready_replicas(samples, "m", 100.0, 30.0) == 2


def test_replicas_of_the_model_that_fetch_weights_are_counted() -> None:
    def says(worker: str, value: float, model: str = "m") -> Sample:
        return Sample(c.M_FETCHING, {"model": model, "WorkerId": worker}, value)

    samples = [says("a", 1.0), says("b", 0.0), says("c", 1.0), says("x", 1.0, "other")]
    assert fetching_replicas(samples, "m") == 2


@pytest.mark.parametrize(("ready", "starting", "draining"), [(1, 2, 0), (3, 0, 0), (5, 0, 2)])
async def test_replicas_are_starting_until_they_are_ready_and_draining_beyond_the_target(
    ready: int, starting: int, draining: int
) -> None:
    now = [0.0]

    async def counted() -> int:
        return ready

    held = Held(1, lambda: now[0])
    held.ready = counted
    await held.set_replicas(3)
    now[0] = 7.0
    fleet = await held.fleet()
    assert (fleet.target, len(fleet.starting_s), fleet.draining) == (3, starting, draining)
    assert all(age == 7.0 for age in fleet.starting_s)


@pytest.mark.parametrize(
    ("before", "now", "says_something"),
    [
        ({"inFlightTokens": 80_000}, {"inFlightTokens": 85_000}, False),
        ({"inFlightTokens": 80_000}, {"inFlightTokens": 95_000}, True),
        ({"queuedTokens": 0}, {"queuedTokens": 900}, False),
        ({"queuedTokens": 0}, {"queuedTokens": 1_100}, True),
        ({"kvUsagePercent": 5}, {"kvUsagePercent": 7}, False),
        ({"kvUsagePercent": 5}, {"kvUsagePercent": 9}, True),
        ({"kvFullIn": "140s"}, {"kvFullIn": "131s"}, False),
        ({"kvFullIn": None}, {"kvFullIn": "131s"}, True),
        ({"kvFullIn": "131s"}, {"kvFullIn": None}, True),
        (None, {"queuedTokens": 0}, True),
        ({}, {"queuedTokens": None}, False),
    ],
)
def test_numbers_of_the_load_are_worth_a_write_when_they_say_something_new(
    before: dict[str, Any] | None, now: dict[str, Any], says_something: bool
) -> None:
    assert moved(before, now) is says_something


def test_a_replica_that_is_emptied_stands_in_the_status_as_one_that_drains() -> None:
    found = record(2)
    fleet = Fleet(3, 3, emptied=("r0",))
    decision = replace(found.decision, current=2, target=2, emptied=("r0",), freshness=Freshness.FRESH)
    seen = replace(found.observation, fleet=fleet, freshness=Freshness.FRESH)
    said = status(replace(found, observation=seen, decision=decision), {})
    assert said["replicas"] == {"desired": 2, "ready": 2, "starting": 0, "draining": 1, "asleep": 0}
    assert said["drain"]["tokensOwed"] is not None
    ready = next(x for x in said["conditions"] if x["type"] == "Ready")
    assert ready["message"] == "2 of 2 replicas serve"


def test_what_sleeps_and_what_it_holds_stands_in_the_status_while_it_does() -> None:
    found = record(2)
    fleet = Fleet(3, 3, emptied=("r0",), asleep=("r0",))
    decision = replace(found.decision, current=2, target=2, emptied=("r0",), asleep=("r0",))
    before = status(found, {})
    assert "asleep" not in before
    said = status(replace(found, observation=replace(found.observation, fleet=fleet), decision=decision), before)
    assert said["replicas"] == {"desired": 2, "ready": 2, "starting": 0, "draining": 0, "asleep": 1}
    assert said["asleep"] == {"gpus": 1, "hostMemory": "28.3Gi"}  # twice 15.2 GB of weights
    assert status(found, said)["asleep"] is None
    assert "asleep" not in status(found, status(found, said))


def test_what_replicas_owe_that_go_stands_in_the_status_while_they_do_and_is_taken_away_then() -> None:
    found = record(3)
    numbers = replace(found.decision.numbers, drain_owed_tokens=12_345.6, drain_expected_s=93.4)
    decision = replace(found.decision, numbers=numbers, freshness=Freshness.FRESH)
    going = replace(found, observation=replace(found.observation, fleet=Fleet(3, 3, (), 1)), decision=decision)
    first = status(going, {})
    assert first["replicas"]["draining"] == 1
    assert first["drain"] == {"tokensOwed": 12346, "expected": "93s"}
    later = replace(decision, numbers=replace(numbers, drain_owed_tokens=11_000.0))
    assert not changed(first, status(replace(going, decision=later), first)), "it moves all the time"
    assert status(replace(found, decision=decision), first)["drain"] == {"tokensOwed": None, "expected": None}


def test_that_requests_are_not_handed_on_any_more_is_said_as_degraded() -> None:
    found = record(3)
    off = replace(found, observation=replace(found.observation, resume_off=True))
    [said] = [x for x in status(off, {})["conditions"] if x["type"] == "Degraded"]
    assert (said["status"], said["reason"]) == ("True", "ResumeOff")
    assert "look why engines die" in said["message"]
