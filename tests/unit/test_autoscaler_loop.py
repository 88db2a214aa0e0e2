"""The loop: what it sees, does and records, and what it makes of a source or an actuator that fails."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import fields, replace

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.scaling.worlds import POLICY, counts, observe

from reasonscale.api import constants as c
from reasonscale.autoscaler import Autoscaler, RecordFile, read_records
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.scaling.emptying import serving
from reasonscale.scaling.record import replay
from reasonscale.scaling.types import Fleet, Freshness, Mode, Numbers


class Cluster:
    """A source and an actuator in one: it shows `running` requests and counts what it is asked."""

    def __init__(self, running: float = 30.0) -> None:
        self.time, self.running, self.target, self.asked = 100.0, running, 1, []
        self.source_error: Exception | None = None
        self.actuator_error: Exception | None = None

    async def observe(self):
        if self.source_error:
            raise self.source_error
        self.time += 5.0
        load = counts({16: self.running / 2, 200: self.running / 2}, arrivals=self.running / 2)
        return observe(self.time, await self.fleet(), medium=load)

    async def set_replicas(self, replicas: int) -> None:
        if self.actuator_error:
            raise self.actuator_error
        self.asked.append(replicas)
        self.target = replicas

    async def fleet(self) -> Fleet:
        if self.source_error and self.actuator_error:
            raise self.actuator_error
        return Fleet(self.target, self.target)


def loop_of(cluster: Cluster, policy=POLICY, **more) -> Autoscaler:
    return Autoscaler("m", cluster, cluster, policy, clock=lambda: cluster.time, **more)


async def test_a_decision_to_scale_is_acted_on_and_told_to_the_listeners():
    cluster, told = Cluster(), []
    loop = loop_of(cluster, listeners=[told.append])
    for _ in range(3):
        await loop.tick()
    assert cluster.asked
    assert cluster.asked[0] > 1
    assert [r.decision.act for r in told][:2] == [False, True]
    assert told[1].decision.target == cluster.asked[0]


class Emptying(Cluster):
    """One that can have replicas emptied; each call in its order."""

    def __init__(self) -> None:
        super().__init__(running=0.0)
        self.target, self.emptied, self.asleep, self.calls = 2, (), (), []

    async def observe(self):
        seen = await super().observe()
        replicas = tuple(
            replace(r, replica=f"r{i}", node=f"n{i}", since_s=float(i)) for i, r in enumerate(seen.replicas)
        )
        return replace(seen, replicas=replicas)

    async def set_replicas(self, replicas: int) -> None:
        await super().set_replicas(replicas)
        self.calls.append(("number", replicas))

    async def empty(self, replicas: tuple[str, ...], asleep: tuple[str, ...]) -> None:
        self.calls.append(("empty", replicas))
        self.emptied, self.asleep = replicas, asleep

    async def fleet(self) -> Fleet:
        return replace(await super().fleet(), emptied=self.emptied, asleep=self.asleep)


async def test_a_replica_is_emptied_then_the_number_is_lowered_and_only_then_the_routers_forget_it():
    cluster = Emptying()
    loop = loop_of(cluster)
    for _ in range(40):
        await loop.tick()
    assert cluster.calls == [("empty", ("r0",)), ("number", 1), ("empty", ())]


async def test_one_that_may_sleep_is_named_once_and_the_number_stays():
    cluster = Emptying()
    loop = loop_of(cluster, replace(POLICY, asleep=1))
    for _ in range(40):
        await loop.tick()
    assert cluster.asleep == ("r0",)
    assert cluster.calls == [("empty", ("r0",)), ("empty", ("r0",))]  # emptied, then asleep


async def test_what_is_emptied_when_a_model_is_held_stays_so_and_nobody_is_told_anything():
    cluster = Emptying()
    loop = loop_of(cluster)
    for _ in range(40):
        await loop.tick()
        if cluster.emptied:
            break
    held = loop_of(cluster, replace(POLICY, mode=Mode.RECOMMEND))
    for _ in range(10):
        await held.tick()
    assert (cluster.emptied, cluster.calls) == (("r0",), [("empty", ("r0",))])


@pytest.mark.parametrize("asleep", [(), ("r1",)])
async def test_what_is_emptied_in_recommend_serves_again_once_the_ingress_lets_it_and_what_sleeps_sleeps_on(asleep):
    cluster, told = Emptying(), []
    cluster.target, cluster.emptied, cluster.asleep = 3, ("r0", *asleep), asleep
    policy = replace(POLICY, mode=Mode.RECOMMEND, drain_s=100.0, asleep=1)
    loop = loop_of(cluster, policy, listeners=[told.append])
    began = cluster.time
    while cluster.time < began + 100.0 + c.EMPTIED_MORE_S:
        await loop.tick()
    assert cluster.calls == []
    for _ in range(4):
        await loop.tick()
    assert cluster.calls == [("empty", asleep)]
    fleet = serving(told[-1].observation.fleet)
    assert (fleet.target, fleet.ready, fleet.draining) == (3 - len(asleep), 3 - len(asleep), 0)
    assert told[-1].decision.current == fleet.target


async def test_recommend_never_acts():
    cluster = Cluster()
    loop = loop_of(cluster, replace(POLICY, mode=Mode.RECOMMEND))
    records = [await loop.tick() for _ in range(4)]
    assert cluster.asked == []
    assert records[-1].decision.target > 1


async def test_a_source_that_fails_holds_and_the_error_is_told():
    cluster = Cluster()
    loop = loop_of(cluster)
    for _ in range(3):
        await loop.tick()
    held = cluster.target
    cluster.source_error = ConnectionError("no route to the metrics")
    record = await loop.tick()
    assert (record.decision.target, record.decision.act, record.decision.reason) == (held, False, c.REASON_SIGNALS)
    assert record.decision.freshness is Freshness.ABSENT
    assert "no route to the metrics" in record.problem
    cluster.source_error = None
    assert (await loop.tick()).decision.freshness is Freshness.FRESH


async def test_an_actuator_that_fails_is_told_and_asked_again_at_the_next_tick():
    cluster = Cluster()
    loop = loop_of(cluster)
    cluster.actuator_error = TimeoutError("Serve did not answer")
    await loop.tick()
    record = await loop.tick()
    assert "Serve did not answer" in record.problem
    assert cluster.target == 1
    cluster.actuator_error = None
    await loop.tick()
    assert cluster.target > 1


async def test_knowing_nothing_at_all_is_no_record_and_no_crash():
    cluster = Cluster()
    cluster.source_error = cluster.actuator_error = ConnectionError("down")
    assert await loop_of(cluster).tick() is None


async def test_a_listener_that_fails_does_not_keep_the_others_from_hearing():
    told = []

    def broken(record):
        raise RuntimeError("full disk")

    await loop_of(Cluster(), listeners=[broken, told.append]).tick()
    assert len(told) == 1


async def test_each_decision_is_one_line_of_json(caplog):
    caplog.set_level(logging.INFO, logger="reasonscale.autoscaler")
    record = await loop_of(Cluster()).tick()
    (line,) = [r.message for r in caplog.records]
    data = json.loads(line)
    assert data["event"] == "decision"
    assert (data["model"], data["target"], data["reason"]) == ("m", record.decision.target, record.decision.reason)
    assert set(data["numbers"]) == {f.name for f in fields(Numbers)}


async def test_a_written_recording_replays_to_the_decisions_that_were_made(tmp_path):
    path = tmp_path / "decisions.jsonl"
    cluster, writer = Cluster(), RecordFile(path)
    loop = loop_of(cluster, listeners=[writer])
    for running in (4.0, 20.0, 30.0, 30.0, 2.0, 2.0):
        cluster.running = running
        await loop.tick()
    writer.close()
    records = read_records(path)
    assert len({r.decision.target for r in records}) > 1
    assert list(replay([r.observation for r in records], records[0].policy)) == [r.decision for r in records]


def test_a_broken_recording_is_named_by_file_line_and_field(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"model": "m", "observation": {"time": "late"}}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl:1: Record\.observation\.time is 'late', float is wanted"):
        read_records(path)


async def test_the_loop_ticks_at_the_interval_less_what_a_tick_took_until_it_is_stopped():
    cluster, slept, stop = Cluster(), [], asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            stop.set()

    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 99.0])
    await Autoscaler("m", cluster, cluster, lambda: POLICY, clock=lambda: next(clock), sleep=sleep).run(stop)
    assert slept == [4.0, 3.0, 5.0]


async def test_every_number_of_a_decision_is_a_gauge_and_unknown_is_not_zero():
    registry = CollectorRegistry()
    cluster = Cluster()
    loop = loop_of(cluster, listeners=[DecisionMetrics(registry)])
    record = await loop.tick()

    def read(name, **labels):
        return registry.get_sample_value(name, {"model": "m", **labels})

    for f in fields(Numbers):
        value, seen = getattr(record.decision.numbers, f.name), read(f"reasonscale_decision_{f.name}")
        assert seen is not None
        assert seen == value if value is not None else seen != seen
    assert read("reasonscale_replicas_desired") == record.decision.target
    assert read("reasonscale_replicas_ready") == 1
    assert read("reasonscale_decisions_total", reason=record.decision.reason) == 1
    cluster.source_error = ConnectionError("down")
    await loop.tick()
    owed = read("reasonscale_decision_owed_tokens")
    assert owed != owed
    assert read("reasonscale_signals_fresh") == 0
    assert read("reasonscale_decision_problems_total") == 1


async def test_a_record_file_goes_on_where_it_was_and_keeps_the_one_before_when_it_is_full(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_text("first\n")
    writer = RecordFile(path)
    writer.close()
    assert path.read_text() == "first\n"
    full = RecordFile(path, most_bytes=3)
    await loop_of(Cluster(), listeners=[full]).tick()
    full.close()
    assert (tmp_path / "decisions.jsonl.1").read_text() == "first\n"
    assert len(read_records(path)) == 1
