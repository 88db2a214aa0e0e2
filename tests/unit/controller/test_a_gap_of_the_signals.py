"""While nobody tells of the ledgers, what is unknown is not taken for none: replicas serve on, and the gap teaches nothing."""

from __future__ import annotations

import pytest
from tests.unit.controller.test_a_spare_replica_in_a_rollout import World

from reasonscale.api import constants as c
from reasonscale.signals.assemble import Sample

RUNS = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
POD = {"metadata": {"name": "p", "labels": {c.LABEL_ROLE: "engine"}}, "status": RUNS}
DOWN = "Prometheus at http://p did not answer"


def ready(world: World) -> tuple[str, str]:
    return next((x["status"], x["reason"]) for x in world.server.status["conditions"] if x["type"] == "Ready")


@pytest.fixture
async def world() -> World:
    world = World()
    await world.turns()
    assert ready(world) == ("False", "NoReplica")
    world.server.found_pods, world.server.serve = [POD], 1
    await world.turns()
    assert ready(world) == ("True", "Serving")
    return world


async def gap(world: World, kind: str, turns: int) -> None:
    """Let Prometheus be down, have old ledgers only, or none yet: it is back with new storage."""
    serve, then = world.server.serve, world.now[0]

    async def old() -> list[Sample]:
        return [Sample(c.M_LEDGER_TIME, {"model": "m", "WorkerId": "0"}, then)]

    async def nothing() -> list[Sample]:
        return []

    fetch = world.server.fetch
    if kind == "none":
        world.server.fetch = nothing  # type: ignore[method-assign]
    elif kind == "stale":
        world.server.fetch = old  # type: ignore[method-assign]
        world.now[0] += 60.0
    else:
        world.server.serve = 0
    for _ in range(turns):
        await world.loop.tick(DOWN if kind == "down" else None)
        world.now[0] += 5.0
    world.server.serve, world.server.fetch = serve, fetch  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["down", "stale", "none"])
async def test_replicas_that_served_are_not_called_gone_and_the_gap_is_no_start(world: World, kind: str) -> None:
    await gap(world, kind, 60)
    assert ready(world) == ("Unknown", "NotSeen")
    assert world.server.says("Ready") == "nobody knows how many of 1 replicas serve, since their ledgers can't be read; 1 did at the last look"  # fmt: skip
    assert world.server.status["replicas"] == {"desired": 1, "ready": 1, "starting": 0, "draining": 0, "asleep": 0}
    await world.turns()
    assert ready(world) == ("True", "Serving")
    assert world.loop._scaler is not None
    assert not [s for s in world.loop._scaler.state.starts_s if s > 60.0], "300 s without signals are no start"


async def test_pods_that_are_gone_meanwhile_do_not_serve(world: World) -> None:
    world.server.found_pods = []
    await gap(world, "down", 2)
    assert ready(world) == ("False", "NoReplica")


@pytest.mark.parametrize("serve_says", ["unhealthy", "updating"])
async def test_without_a_ledger_engines_that_serve_says_are_lost_or_replaced_do_not_serve(
    world: World, serve_says: str
) -> None:
    """The pod of an engine that has died runs on, and its series end with it."""
    setattr(world.server, serve_says, True)
    await gap(world, "none", 2)
    assert ready(world) == ("False", "NoReplica")


async def test_a_prometheus_without_a_ledger_of_a_model_that_has_not_served_yet_says_that_none_serves() -> None:
    world = World()
    world.server.found_pods = [POD]
    await gap(world, "none", 4)
    assert ready(world) == ("False", "NoReplica")


async def test_an_operator_that_starts_in_the_gap_goes_by_the_status(world: World) -> None:
    status = world.server.status
    world.operator()
    world.loop._body["status"] = status
    world.loop.see(world.loop._body)
    await gap(world, "down", 2)
    assert ready(world) == ("Unknown", "NotSeen")
