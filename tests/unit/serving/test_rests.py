"""An ingress tells each replica, and it alone, to sleep and to wake: what Serve's router makes of it, and what is told again."""

from __future__ import annotations

import asyncio
import contextvars
from types import SimpleNamespace
from typing import Any

import pytest

from reasonscale.api import constants as c
from reasonscale.serving import rests, shared
from reasonscale.serving.asleep import ASLEEP, AWAKE
from reasonscale.serving.rests import Rests
from reasonscale.serving.router import ExpectedWork
from reasonscale.serving.routing import AT, REQUESTS, RESTS, Loads

NAME = "LLMServer:m"
REQUEST = contextvars.ContextVar("REQUEST", default="none")


class Handle:
    """A deployment's handle whose replicas do as they are told, unless they are lost."""

    deployment_name = NAME

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []
        self.requests: set[str] = set()  # in whose context it was told
        self.stage: dict[str, int] = {"a": AWAKE, "b": AWAKE}
        self.lost: set[str] = set()
        self.slow = asyncio.Event()
        self.slow.set()
        self.rest = SimpleNamespace(remote=self._rest)

    def options(self, stream: bool) -> Handle:
        assert not stream
        return self

    async def _rest(self, asleep: bool, info: Any) -> bool:
        replica = info.headers[c.HEADER_REPLICA]
        self.told.append((replica, asleep))
        self.requests.add(REQUEST.get())
        if replica in self.lost:
            raise RuntimeError("the actor died")
        await self.slow.wait()
        self.stage[replica] = ASLEEP if asleep else AWAKE
        return asleep


class World:
    def __init__(self) -> None:
        self.handle, self.waits, self.at = Handle(), False, 0
        self.loads = shared.LOADS[NAME] = Loads()
        self.rests = Rests({"m": self.handle}, lambda model: self.waits)

    def report(self) -> None:
        self.at += 1
        for name, stage in self.handle.stage.items():
            self.loads.report(name, {AT: self.at, RESTS: stage})

    async def second(self) -> None:
        """A turn, and the reports after it."""
        self.rests.turn()
        for _ in range(10):  # whoever is told has heard it
            await asyncio.sleep(0)
        self.report()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rests, "TURN_S", 3600.0)  # turns are taken by hand
    made = World()
    made.report()
    made.rests.configure()
    yield made
    made.rests._task.cancel()
    del shared.LOADS[NAME]


async def test_one_is_told_once_and_again_only_where_it_does_not_do_it(world: World) -> None:
    world.loads.empty(["b"], 60.0, ["b"])
    await world.second()
    world.handle.told.clear()
    await world.second()
    assert world.handle.told == []  # it said that it sleeps
    world.handle.stage["b"] = AWAKE  # a request woke it
    world.report()
    await world.second()
    assert ("b", True) in world.handle.told
    world.loads.empty([], 60.0)
    await world.second()
    assert world.handle.stage == {"a": AWAKE, "b": AWAKE}
    assert "a" not in {replica for replica, _ in world.handle.told}


async def test_a_call_that_takes_long_is_made_once(world: World) -> None:
    world.handle.slow.clear()
    world.loads.empty(["b"], 60.0, ["b"])
    for _ in range(5):
        await world.second()
    assert world.handle.told == [("b", True)]
    world.loads.empty([], 60.0)
    await world.second()
    assert world.handle.told == [("b", True), ("b", False)]  # it waits there until it has fallen asleep
    world.handle.slow.set()


async def test_one_that_is_lost_is_told_again_and_hurts_nobody(world: World) -> None:
    world.handle.lost.add("b")
    world.loads.empty(["b"], 60.0, ["b"])
    await world.second()
    await world.second()
    assert world.handle.told.count(("b", True)) > 1


async def test_turns_follow_each_other_also_after_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rests, "TURN_S", 0.001)
    made, asked = World(), []

    def waits(model: str) -> bool:
        asked.append(model)
        if len(asked) == 1:
            raise RuntimeError("one turn fails")
        return False

    made.rests = Rests({"m": made.handle}, waits)
    made.report()
    made.rests.configure()
    made.loads.empty(["b"], 60.0, ["b"])
    try:
        async with asyncio.timeout(5):
            while made.handle.stage["b"] != ASLEEP:
                await asyncio.sleep(0.001)
    finally:
        made.rests._task.cancel()
        del shared.LOADS[NAME]


async def test_who_waits_too_long_at_the_gate_has_all_of_them_woken_once(world: World) -> None:
    world.loads.empty(["b"], 60.0, ["b"])
    await world.second()
    assert world.handle.stage["b"] == ASLEEP
    world.waits = True
    await world.second()
    await world.second()
    assert world.handle.stage["b"] == AWAKE
    world.waits = False
    await world.second()
    assert world.handle.stage["b"] == AWAKE  # until something else is said of it
    assert not world.rests.rouse("m")


async def test_no_replica_is_told_in_the_name_of_a_request(world: World) -> None:
    world.loads.empty(["b"], 60.0, ["b"])
    await world.second()
    REQUEST.set("of a client")
    assert world.rests.rouse("m")
    for _ in range(10):
        await asyncio.sleep(0)
    assert ("b", False) in world.handle.told
    assert world.handle.requests == {"none"}


async def test_serve_s_router_gives_what_names_a_replica_to_it_alone_and_counts_it_for_nothing() -> None:
    made = object.__new__(ExpectedWork)
    made._deployment_id = SimpleNamespace(name=NAME)
    made.initialize_state()
    try:
        replicas = [
            SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats={AT: 1, REQUESTS: n})
            for name, n in (("a", 0), ("b", 9))
        ]

        def pending(**headers: str) -> Any:
            args = [True, SimpleNamespace(headers=headers)]
            return SimpleNamespace(args=args, routing_context=SimpleNamespace(should_backoff=False))

        def names(groups: Any) -> list[list[str]]:
            return [[r.replica_id.unique_id for r in group] for group in groups]

        assert names(await made.choose_replicas(replicas, pending())) == [["a"], ["b"]]
        to_b = pending(**{c.HEADER_REPLICA: "b"})
        assert names(await made.choose_replicas(replicas, to_b)) == [["b"]]
        assert await made.choose_replicas(replicas, pending(**{c.HEADER_REPLICA: "gone"})) == []
        before = made._loads.work("b")
        made.on_request_routed(to_b, replicas[1].replica_id, None)
        assert made._loads.work("b") == before
    finally:
        shared.LOADS.pop(NAME, None)
        shared.READY.pop(NAME, None)
