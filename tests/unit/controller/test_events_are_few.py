"""Events tell what turned, with numbers, and don't storm."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reasonscale.controller.events import AGGREGATE_S, BURST, REFILL_S, Event, Recorder, events_of

BODY = {"metadata": {"name": "m", "namespace": "n", "uid": "u"}}


def status(*conditions: tuple[str, str, str, str], **more: Any) -> dict[str, Any]:
    return {
        "conditions": [dict(zip(("type", "status", "reason", "message"), x, strict=True)) for x in conditions]
    } | more


class Writes:
    """Counts what is written."""

    def __init__(self) -> None:
        self.manifests: list[dict[str, Any]] = []

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.manifests.append(manifest)
        return manifest


def test_what_turns_is_told_once() -> None:
    good = status(("Degraded", "False", "AsWanted", "all"), ("SignalsAvailable", "True", "Fresh", "read"))
    bad = status(("Degraded", "True", "NoGPU", "pod p waits for 8"), ("SignalsAvailable", "False", "Absent", "none"))
    assert [e.reason for e in events_of(good, bad)] == ["NoGPU", "SignalsMissing"]
    assert list(events_of(bad, bad)) == []
    assert [e.reason for e in events_of(bad, good)] == ["Recovered", "SignalsBack"]
    other = status(("Degraded", "True", "ImagePull", "x"), ("SignalsAvailable", "False", "Stale", "y"))
    assert [e.reason for e in events_of(bad, other)] == ["ImagePull"]
    assert list(events_of({}, good)) == []
    assert [e.reason for e in events_of({}, bad)] == ["NoGPU"], "a model that was just made has no ledger yet"


def test_a_decision_is_told_with_its_numbers_and_a_recommendation_is_called_one() -> None:
    one = {
        "from": 6,
        "to": 8,
        "reason": "KVForecast",
        "message": "6 -> 8: 1.9M tokens owed, KV full in 140 s",
        "time": "t",
    }
    assert list(events_of({}, {"lastDecision": one})) == [Event("Normal", "Scaled", one["message"])]
    assert list(events_of({"lastDecision": one}, {"lastDecision": one})) == []
    said = status(("ScalingActive", "False", "Recommend", "mode Recommend"), lastDecision=one)
    assert [e.reason for e in events_of({}, said)] == ["Recommended"]


def test_hold_and_release_are_told() -> None:
    auto, held = (status(("ScalingActive", "True", r, "mode Auto")) for r in ("Auto", "Held"))
    assert [e.reason for e in events_of(auto, held)] == ["Held"]
    assert [e.reason for e in events_of(held, auto)] == ["Released"]


async def test_the_same_within_ten_minutes_is_counted_on_one_event() -> None:
    now, writes = [1000.0], Writes()
    recorder = Recorder(writes, lambda: now[0])  # type: ignore[arg-type]
    for n in range(3):
        await recorder.record(BODY, Event("Normal", "Scaled", f"{n}"))
        now[0] += 60
    assert len({m["metadata"]["name"] for m in writes.manifests}) == 1
    assert (writes.manifests[-1]["count"], writes.manifests[-1]["message"]) == (3, "2")
    now[0] += AGGREGATE_S
    await recorder.record(BODY, Event("Normal", "Scaled", "later"))
    assert len({m["metadata"]["name"] for m in writes.manifests}) == 2


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["Scaled", "NoGPU", "Recovered"])), max_size=300))
async def test_no_storm_however_often_it_turns(turns: list[tuple[float, str]]) -> None:
    now, writes = [0.0], Writes()
    recorder = Recorder(writes, lambda: now[0])  # type: ignore[arg-type]
    for after, reason in turns:
        now[0] += after
        await recorder.record(BODY, Event("Normal", reason, "x"))
    assert len(writes.manifests) <= BURST + now[0] / REFILL_S
