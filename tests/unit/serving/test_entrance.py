"""The gate in asyncio: who waits goes when a seat comes free, who goes away leaves nothing, and what waits is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.serving.test_budgets_of_requests import QWEN

from reasonscale.api import constants as c
from reasonscale.serving import entrance
from reasonscale.serving.entrance import Entrance, Told
from reasonscale.serving.gate import Ticket
from reasonscale.serving.routing import Takes

SETTINGS = replace(QWEN, seats=2, max_queue_s=1000.0, max_in_flight=5, pressure_floor=200, pressure_steps=4)


class Metrics:
    """Ray's metrics as a table."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def kind(self, add: bool) -> Any:
        values = self.values

        class Metric:
            def __init__(
                self, name: str, description: str = "", tag_keys: tuple[str, ...] = (), boundaries: Any = None
            ) -> None:
                self.name, self.keys = name, set(tag_keys)

            def set(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
                assert set(tags or {}) == self.keys
                key = (self.name, (tags or {}).get("cls", ""))
                values[key] = values.get(key, 0.0) + value if add else value

            inc = observe = set

        return Metric


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    found = Metrics()
    monkeypatch.setattr(entrance, "Gauge", found.kind(add=False))
    monkeypatch.setattr(entrance, "Counter", found.kind(add=True))
    monkeypatch.setattr(entrance, "Histogram", found.kind(add=True))
    monkeypatch.setattr(entrance, "TICK_S", 0.01)
    monkeypatch.setattr(entrance, "EXPORT_S", 0.01)
    return found


class Replicas:
    """What the replicas take."""

    def __init__(self, takes: int | None) -> None:
        self.takes = takes

    def __call__(self, seats: int) -> Takes | None:
        return None if self.takes is None else Takes(self.takes, 0, 60.0)


async def settled(*tasks: asyncio.Task[Any]) -> list[bool]:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return [task.done() for task in tasks]


def key() -> str:
    return "k"


async def test_who_waits_goes_when_another_ends_and_when_a_replica_comes(metrics: Metrics) -> None:
    replicas = Replicas(1)
    gate = Entrance(SETTINGS, replicas, Told())
    tickets = [Ticket("low", prompt_tokens=10) for _ in range(3)]
    tasks = [asyncio.create_task(gate.enter(ticket, key)) for ticket in tickets]
    assert await settled(*tasks) == [True, False, False]
    gate.leave(tickets[0], 30)
    assert await settled(*tasks) == [True, True, False]
    replicas.takes = 2
    async with asyncio.timeout(5):
        await tasks[2]
    assert [task.result() for task in tasks] == [None] * 3


async def test_a_client_that_goes_away_while_it_waits_or_as_it_is_sent_leaves_nothing(metrics: Metrics) -> None:
    gate = Entrance(SETTINGS, Replicas(1), Told())
    tickets = [Ticket("low") for _ in range(3)]
    tasks = [asyncio.create_task(gate.enter(ticket, key)) for ticket in tickets]
    await settled(*tasks)
    tasks[1].cancel()
    await settled(*tasks)
    assert len(gate.gate.waiting) == 1
    gate.leave(tickets[0], 30)  # the third is sent ...
    tasks[2].cancel()  # ... and goes away before it knows
    await asyncio.wait(tasks)
    assert tasks[2].cancelled()
    assert not gate.gate.running
    assert not len(gate.gate.waiting)
    assert gate.gate.room == 1


async def test_of_clients_that_go_away_together_none_is_sent_to_an_engine_that_is_gone_before_the_next_turn(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "TICK_S", 0.05)
    gate = Entrance(SETTINGS, Replicas(2), Told())
    tickets = [Ticket("low") for _ in range(5)]
    tasks = [asyncio.create_task(gate.enter(ticket, key)) for ticket in tickets]
    assert await settled(*tasks) == [True, True, False, False, False]
    for ticket in tickets[:2]:  # those that run are noticed first
        gate.leave(ticket, None)
        await settled()
    for task in tasks[2:4]:
        task.cancel()
    async with asyncio.timeout(5):
        await tasks[4]  # it stays, and has a seat with the next turn
    assert metrics.values[c.M_GATE_SENT, "low"] == 3
    assert [task.cancelled() for task in tasks] == [False, False, True, True, False]


async def test_what_waits_is_told_by_class_and_what_went_is_no_longer_told(metrics: Metrics) -> None:
    gate = Entrance(SETTINGS, Replicas(1), Told())
    tickets = [Ticket("low", prompt_tokens=10), Ticket("high", prompt_tokens=20), Ticket("high", prompt_tokens=30)]
    tasks = [asyncio.create_task(gate.enter(ticket, key)) for ticket in tickets]
    await asyncio.sleep(0.05)
    told = metrics.values
    assert told[c.M_GATE_WAITING, "low"] == 0
    assert told[c.M_GATE_WAITING, "high"] == 2
    assert told[c.M_GATE_PROMPT, "high"] == 50
    assert told[c.M_GATE_ENTERED, "high"] == 2
    assert told[c.M_GATE_TIME, ""] > 1e9
    gate.leave(tickets[0], 30)
    await asyncio.sleep(0.05)
    assert told[c.M_GATE_WAITING, "high"] == 1
    assert told[c.M_GATE_SENT, "high"] == 1
    tasks[2].cancel()
    await asyncio.wait(tasks)


async def test_under_pressure_the_default_is_smaller_and_settings_change_it_in_place(metrics: Metrics) -> None:
    gate = Entrance(SETTINGS, Replicas(1), Told())
    assert gate.budget_default == QWEN.budget_default == 1000
    gate.gate.pressure.step = 4
    assert gate.budget_default == 200
    assert gate.note_shrunk() == {c.HEADER_PRESSURE: "4/4"}
    assert metrics.values[c.M_SHRUNK, ""] == 1
    gate.rule(replace(SETTINGS, pressure_floor=500))
    assert gate.budget_default == 500
    gate.rule(replace(SETTINGS, pressure_floor=None, pressure_steps=0))
    assert gate.budget_default == 1000


async def test_a_refusal_waits_for_nothing(metrics: Metrics) -> None:
    gate = Entrance(replace(SETTINGS, max_queue_s=0.1), Replicas(1), Told())
    assert await gate.enter(Ticket("low"), key) is None
    refusal = await gate.enter(Ticket("low"), key)
    assert refusal is not None
    assert refusal.retry_after_s > 1
    assert metrics.values[c.M_GATE_ENTERED, "low"] == 2  # it is asked for, and the scaler sees it
    assert await gate.enter(Ticket("low"), key) is not None  # the same again, too early
    assert metrics.values[c.M_GATE_ENTERED, "low"] == 2
    assert metrics.values[c.M_GATE_SENT, "low"] == 1


async def test_one_that_is_refused_again_and_again_counts_as_refused_once(metrics: Metrics) -> None:
    gate = Entrance(replace(SETTINGS, max_queue_s=0.1), Replicas(1), Told())
    assert await gate.enter(Ticket("low"), key) is None
    for _ in range(5):
        ticket = Ticket("low")
        assert await gate.enter(ticket, key) is not None
        gate.note_refused(ticket)
    other = Ticket("low")
    assert await gate.enter(other, lambda: "another") is not None
    gate.note_refused(other)
    assert metrics.values[c.M_GATE_REFUSED, "low"] == 2


async def test_one_that_is_let_in_since_a_sleeper_was_woken_is_judged_and_counted_as_if_that_had_been_awake(
    metrics: Metrics,
) -> None:
    replicas, roused = Replicas(1), []
    settings = replace(SETTINGS, max_in_flight=100, max_queue_s=2.0, expected={"low": 10.0})
    gate = Entrance(settings, replicas, Told())

    def rouse() -> bool:
        roused.append(True)
        replicas.takes = 2
        return len(roused) == 1

    tasks: list[asyncio.Task[Any]] = []
    while not roused:
        tasks.append(asyncio.create_task(gate.enter(Ticket("low"), lambda: f"k{len(tasks)}", rouse)))
        await settled()
        assert len(tasks) < 50
    # The last would have been refused. One that waited has gone to the woken replica, and there is room behind it.
    assert len(gate.gate.running) == 2
    assert len(gate.gate.waiting) == len(tasks) - 2 > 1
    assert len(gate.gate.bookings) == 0
    assert metrics.values[c.M_GATE_ENTERED, "low"] == len(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
