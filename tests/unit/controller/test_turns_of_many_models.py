"""Two hundred models in one turn: side by side, one that fails stops no other, and a long turn is no standstill."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller import operator
from reasonscale.controller.kube import NotLeading
from reasonscale.controller.metrics import OperatorMetrics
from reasonscale.controller.operator import AT_ONCE, Manager
from reasonscale.controller.watched import Watched
from reasonscale.signals.sources import SignalsMissing


class Blind:
    limit_s = 30.0

    async def fetch(self) -> list[Any]:
        raise SignalsMissing("none")


class Loop:
    """A model's loop that waits for an API server."""

    busy = most = done = 0
    fails: type[Exception] | None = None

    def __init__(self, *_: Any) -> None:
        self.name = ""

    def see(self, body: dict[str, Any]) -> None:
        self.name = body["metadata"]["name"]

    async def tick(self, problem: str | None) -> None:
        Loop.busy += 1
        Loop.most = max(Loop.most, Loop.busy)
        await asyncio.sleep(0)
        Loop.busy -= 1
        if self.name == "m-3" and Loop.fails:
            raise Loop.fails("bad")
        Loop.done += 1


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.setattr(operator, "ModelLoop", Loop)
    Loop.busy = Loop.most = Loop.done = 0
    Loop.fails = None
    registry = CollectorRegistry()

    class Kube:
        writes = 0

    found = Manager(Kube(), Blind(), object(), DecisionMetrics(registry), OperatorMetrics(registry))  # type: ignore[arg-type]
    for n in range(200):
        found.seen("ADDED", {"metadata": {"uid": str(n), "name": f"m-{n}", "namespace": "d"}})
    return found


async def test_turns_wait_for_the_api_server_side_by_side_and_not_all_at_once(manager: Manager) -> None:
    await manager.tick()
    assert (Loop.done, Loop.most) == (200, AT_ONCE)


@pytest.mark.parametrize("fails", [ValueError, NotLeading])
async def test_one_that_fails_stops_no_other(manager: Manager, fails: type[Exception]) -> None:
    Loop.fails = fails
    await manager.tick()
    assert Loop.done == 199


async def test_a_turn_that_gets_on_is_no_standstill(manager: Manager) -> None:
    manager.leads, manager.ticked_s = True, time.monotonic() - 3600
    assert "no turn was taken for 3600 s" in (manager.stalled() or "")
    task = asyncio.create_task(manager.tick())
    while not Loop.done:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert Loop.done < 200, "the turn goes on"
    assert manager.stalled() is None
    await task


def test_objects_are_found_by_their_label_after_they_change_and_go() -> None:
    watched = Watched(None, "v1", "Pod", "model", clock=lambda: 0.0)  # type: ignore[arg-type]

    def tell(kind: str, name: str, value: str, version: int) -> None:
        meta = {
            "namespace": "n",
            "name": name,
            "uid": name,
            "resourceVersion": str(version),
            "labels": {"model": value},
        }
        watched._take(kind, {"metadata": meta})

    tell("ADDED", "a", "x", 1)
    tell("ADDED", "b", "x", 2)
    tell("MODIFIED", "b", "y", 3)
    assert [p["metadata"]["name"] for p in watched.select("n", "x")] == ["a"]
    assert [p["metadata"]["name"] for p in watched.select("n", "y")] == ["b"]
    tell("DELETED", "a", "x", 4)
    assert watched.select("n", "x") == []
    assert watched.select("other", "y") == []
    assert len(watched.all()) == 1
