"""A rollout in place starts one replica more first, where GPUs are free for it: in virtual time, before an API server with nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.controller.test_writes_are_few import Server

from reasonscale.api import constants as c
from reasonscale.api.load import parse
from reasonscale.api.resolve import resolve
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.kube import KubeError
from reasonscale.controller.model_loop import ModelLoop, Settings
from reasonscale.controller.spare import room_for_one
from reasonscale.controller.status import stamp
from reasonscale.render.context import Context, Subject
from reasonscale.render.marks import app_of, replicas_of
from reasonscale.signals.assemble import Sample
from reasonscale.signals.sources import SignalsMissing

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen3-32B"}, "parallelism": {"tensor": 2}, "replicas": 1,
    "scaling": {"mode": "Manual", "maxReplicas": 4},
}  # fmt: skip


def pod_on(node: str, takes: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {}, "spec": {"nodeName": node, **takes}, "status": {"phase": "Running"}}


class Nodes(Server):
    """An API server with one node, whose engines are as many as `serve` says."""

    limit_s = 30.0

    def __init__(self, gpus: int, now: list[float]) -> None:
        super().__init__()
        self.gpus, self.now, self.serve, self.updating, self.blind = gpus, now, 0, False, False
        self.unhealthy, self.sleep_mode = False, False
        self.going: set[int] = set()  # of those that serve, those that were told to go

    async def list(self, _: str, kind: str, *__: Any) -> dict[str, Any]:
        if self.blind:
            raise KubeError("nodes is forbidden")
        room = {"metadata": {"name": "a"}, "status": {"allocatable": {"nvidia.com/gpu": str(self.gpus)}}}
        takes = {"containers": [{"resources": {"requests": {"nvidia.com/gpu": "2"}}}]}
        placed = min(self.groups[1], self.gpus // 2) if "RayService" in self.objects else 0
        return {"items": [room] if kind == "Node" else [pod_on("a", takes)] * placed}

    async def fetch(self) -> list[Sample]:
        if not self.serve:
            raise SignalsMissing("none yet")
        out = []
        for n in range(self.serve):
            labels = {"model": "m", "WorkerId": str(n)}
            who = {c.LABEL_METRIC_REPLICA: f"r{n}", c.LABEL_METRIC_NODE: "a"}
            out += [Sample(c.M_LEDGER_TIME, labels, self.now[0]), Sample(c.M_REPLICA, labels | who, float(n))]
            out += [Sample(c.M_ASLEEP, labels, 0.0)] if self.sleep_mode else []
            out += [Sample(c.M_DRAINING, labels, float(n in self.going))]
        return out

    def service(self, namespace: str, name: str) -> dict[str, Any] | None:
        found = super().service(namespace, name)
        if found is not None:
            held = {
                "LLMServer:m": {"status": "UNHEALTHY" if self.unhealthy else "UPDATING" if self.updating else "HEALTHY"}
            }
            found["status"] = {"activeServiceStatus": {"rayClusterName": "m-a", "applicationStatuses": {"m": {"serveDeploymentStatuses": held}}}}  # fmt: skip
        return found

    @property
    def asked(self) -> tuple[int, int | None]:
        """The number of replicas, and the batch that engines are told."""
        app = app_of(self.objects["RayService"])
        return int(app["deployments"][0]["num_replicas"]), app["args"]["models"][0]["engine_kwargs"].get("seed")

    @property
    def groups(self) -> list[int]:
        return [g["replicas"] for g in self.objects["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]]

    def says(self, kind: str) -> str:
        return next(str(x["message"]) for x in self.status["conditions"] if x["type"] == kind)


class World:
    """One model of one replica that serves, and the clock."""

    def __init__(self, gpus: int = 4) -> None:
        self.now = [1_800_000_000.0]
        self.server = Nodes(gpus, self.now)
        self.spec, self.generation = SPEC, 1
        self.notes: dict[str, str] = {}
        self.loop = self.operator()

    def operator(self) -> ModelLoop:
        self.loop = ModelLoop(
            self.server, self.server, lambda *_: self.server, Settings(image="i:1", code_image="j:1"),
            DecisionMetrics(CollectorRegistry()), lambda: self.now[0],
        )  # type: ignore[arg-type]  # fmt: skip
        self.see()
        return self.loop

    def see(self) -> None:
        meta = {"name": "m", "namespace": "n", "uid": "u", "generation": self.generation, "annotations": self.notes}
        status = self.server.status
        self.loop.see(
            {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": meta, "spec": self.spec, "status": status}
        )

    def change(self, **spec: Any) -> None:
        self.spec, self.generation = {**self.spec, **spec}, self.generation + 1
        self.see()

    async def turns(self, count: int = 2) -> None:
        for _ in range(count):
            await self.loop.tick()
            self.now[0] += 5.0


@pytest.fixture
async def world() -> World:
    world = World()
    await world.turns()
    world.server.serve = 1
    await world.turns()
    assert world.server.asked == (1, None)
    return world


async def test_one_more_starts_first_serves_while_engines_restart_and_goes_when_they_have(world: World) -> None:
    server = world.server
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    assert server.asked == (2, None), "the old engines go on until it is there"
    assert server.groups[1] == 2
    assert server.says("Progressing") == "InPlace: one replica more starts on free GPUs first, so that none is missing while engines restart"  # fmt: skip
    assert server.status["replicas"] == {"desired": 1, "ready": 1, "starting": 0, "draining": 0, "asleep": 0}
    await world.turns(20)
    assert server.asked == (2, None)
    server.serve = 2
    await world.turns(1)
    assert server.asked == (2, 1)
    server.updating = True
    await world.turns(30)
    assert server.asked == (2, 1)
    assert "one replica more runs meanwhile, so that none is missing" in server.says("Progressing")
    assert server.status["replicas"]["draining"] == 0
    server.updating = False
    await world.turns(3)
    assert server.asked == (1, 1)
    assert c.ANNOTATION_SPARE not in server.objects["RayService"]["metadata"]["annotations"]
    writes = len(server.writes)
    server.serve = 1
    await world.turns(20)
    assert server.asked == (1, 1)
    assert server.writes[writes:].count("RayService") == 0


@pytest.mark.parametrize("why", ["no GPU", "at the maximum", "nodes may not be seen"])
async def test_without_room_for_it_the_cost_is_said_and_the_rollout_goes_on(why: str) -> None:
    world = World(gpus=1 if why == "no GPU" else 4)
    if why == "at the maximum":
        world.change(scaling={"mode": "Manual", "maxReplicas": 1})
    await world.turns()
    world.server.serve = 1
    world.change(engine={"args": {"seed": "1"}})
    world.server.blind = why == "nodes may not be seen"
    await world.turns()
    assert world.server.asked == (1, 1)
    assert "an outage of one engine start" in world.server.says("Progressing")


async def test_one_that_does_not_come_within_start_timeout_is_waited_for_no_longer(world: World) -> None:
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    assert world.server.asked == (2, None)
    world.now[0] += 901.0
    await world.turns()
    assert world.server.asked == (1, 1)


async def test_its_pod_that_never_comes_costs_no_replica_that_is_asked_for() -> None:
    world = World(gpus=6)
    world.change(scaling={"mode": "Auto", "minReplicas": 1, "maxReplicas": 4, "rates": {"downStable": "1h"}})
    world.loop._status = {"replicas": {"desired": 2}}
    await world.turns()
    runs = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    made = {"creationTimestamp": stamp(world.now[0]), "labels": {c.LABEL_ROLE: "engine"}}
    pods = [
        {"metadata": {"name": f"p{n}", **made}, "status": runs if n < 2 else {"phase": "Pending"}} for n in range(3)
    ]
    world.server.found_pods, world.server.serve = pods[:2], 2
    await world.turns()
    assert world.server.asked == (2, None)
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    assert world.server.asked == (3, None)
    world.server.found_pods = pods
    world.now[0] += 905.0
    await world.turns(4)
    assert world.server.asked == (2, 1)
    assert "given up" not in world.server.says("Degraded")


async def test_a_change_that_is_taken_back_lets_it_go(world: World) -> None:
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    world.change(engine={})
    await world.turns(3)
    assert world.server.asked == (1, None)


async def test_a_number_that_reaches_its_maximum_meanwhile_takes_its_place(world: World) -> None:
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    world.change(replicas=4)
    await world.turns(3)
    assert world.server.asked == (4, 1)


async def test_an_operator_that_starts_meanwhile_does_not_count_it(world: World) -> None:
    world.change(engine={"args": {"seed": "1"}}, scaling={"mode": "Auto", "maxReplicas": 4})
    await world.turns()
    assert world.server.asked == (2, None)
    assert replicas_of(world.server.objects["RayService"]) == 1
    world.operator()
    await world.turns()
    assert world.server.asked == (2, None), "it is asked for once, and not twice"
    assert world.server.status["replicas"]["desired"] == 1


async def test_an_operator_that_starts_when_the_spare_has_taken_the_last_gpus_waits_for_it(world: World) -> None:
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    assert world.server.asked == (2, None)
    world.operator()
    await world.turns(20)
    assert world.server.asked == (2, None), "no GPU is free for a spare, since it has them"
    world.server.serve = 2
    world.operator()
    await world.turns()
    assert world.server.asked == (2, 1)


@pytest.mark.parametrize("heard", [False, True])
async def test_an_operator_that_starts_while_serve_replaces_engines_keeps_it_until_they_are(
    world: World, heard: bool
) -> None:
    """Also before Serve has heard of it: its status then says nothing yet."""
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    world.server.serve = 2
    await world.turns(1)
    assert world.server.asked == (2, 1)
    world.server.updating = heard
    world.operator()
    await world.turns(8)
    world.server.updating = True
    await world.turns(30)
    assert world.server.asked == (2, 1)
    assert "one replica more runs meanwhile, so that none is missing" in world.server.says("Progressing")
    world.server.updating = False
    await world.turns(3)
    assert world.server.asked == (1, 1)
    assert world.server.says("Progressing") == "nothing is being started or replaced"


async def test_a_model_that_is_held_meanwhile_has_it_still_when_it_is_let_go_on(world: World) -> None:
    world.change(engine={"args": {"seed": "1"}})
    await world.turns()
    world.server.serve = 2
    world.notes = {c.ANNOTATION_HOLD: "true"}
    world.see()
    await world.turns(20)
    assert world.server.asked == (2, None)
    assert world.server.status["replicas"]["draining"] == 0
    world.notes = {}
    world.see()
    await world.turns(2)
    assert world.server.asked == (2, 1)


async def grown_and_shrunk(world: World) -> None:
    """Let a second replica come and go again."""
    world.change(replicas=2)
    await world.turns()
    world.server.serve = 2
    await world.turns()
    world.change(replicas=1)
    await world.turns(6)


async def test_engines_that_run_without_sleep_mode_are_stopped_and_not_kept_awake_as_if_they_slept() -> None:
    world = World()
    world.change(replicas=2, rollout={"strategy": "Surge"})
    await world.turns()
    world.server.serve = 2
    await world.turns()
    world.change(scaling={"mode": "Manual", "maxReplicas": 4, "asleep": 1}, replicas=1)
    await world.turns(6)
    assert "Surge needs 2 GPUs, 0 are free" in world.server.says("RolloutBlocked")
    assert world.server.asked == (1, None)
    assert world.server.status["replicas"]["asleep"] == 0
    world.server.gpus, world.server.serve = 8, 1
    await world.turns(10)
    await grown_and_shrunk(world)
    assert world.server.asked == (1, None), "the old engines serve still, beside the cluster that starts"
    world.server.sleep_mode, world.server.serve = True, 1
    await world.turns(2)
    assert app_of(world.server.objects["RayService"])["args"]["models"][0]["engine_kwargs"]["enable_sleep_mode"]
    await grown_and_shrunk(world)
    assert world.server.asked == (2, None)
    assert world.server.status["replicas"]["asleep"] == 1


def test_a_replica_of_eight_finds_no_room_on_two_nodes_with_four_free_each() -> None:
    model = parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": {**SPEC, "parallelism": {"tensor": 8}}})  # fmt: skip
    subject = Subject(model, resolve(model), Context("n", 1, "i", "j"))
    assert not room_for_one(subject, {"a": 4.0, "b": 4.0})
    assert room_for_one(subject, {"a": 4.0, "b": 8.0})
    assert not room_for_one(subject, None), "who may not see the nodes asks for nothing"
    asleep = replace(subject, context=replace(subject.context, replicas=0))
    assert not room_for_one(asleep, {"b": 8.0}), "nothing runs that could be missing"


async def test_one_that_finishes_its_chains_before_it_goes_is_not_taken_for_the_replica_more(world: World) -> None:
    world.server.gpus, world.server.serve, world.server.going = 8, 2, {0}
    world.change(engine={"args": {"seed": "1"}})
    await world.turns(4)
    assert world.server.asked == (2, None), "the old engine goes on until the replica more is there"
    world.server.serve = 3
    await world.turns()
    assert world.server.asked == (2, 1)


@pytest.mark.parametrize("restarted", ["no", "before Serve has heard of it", "before the status was written"])
async def test_of_two_replicas_neither_goes_while_serve_replaces_one_of_them(world: World, restarted: str) -> None:
    world.change(replicas=2)
    await world.turns()
    world.server.serve = 2
    world.change(engine={"args": {"seed": "1"}})
    before = dict(world.server.status)
    await world.turns()
    assert world.server.asked == (2, 1)
    if restarted == "before Serve has heard of it":
        world.operator()
        await world.turns()
    world.server.updating, world.server.serve = True, 1
    if restarted == "before the status was written":
        world.server.status = before
        world.operator()
    world.change(replicas=1)
    await world.turns(30)
    assert world.server.asked == (2, 1), "the one that serves is the next to be stopped"
    world.server.updating, world.server.serve = False, 2
    await world.turns(20)
    assert world.server.asked == (1, 1)


async def test_a_status_that_tells_of_a_new_cluster_holds_no_replica_of_it(world: World) -> None:
    world.change(replicas=2)
    await world.turns()
    said = {"type": "Progressing", "status": "True", "reason": "Rollout", "message": "cluster m-b starts beside the one that serves"}  # fmt: skip
    world.server.status = {**world.server.status, "conditions": [said]}
    world.operator()
    world.change(replicas=1)
    await world.turns(1)
    assert world.server.asked == (1, None)


async def test_a_replica_that_starts_while_engines_take_new_settings_can_be_taken_back(world: World) -> None:
    """Serve says UPDATING of that too, until the replica is there."""
    world.server.updating = True
    world.change(replicas=2)
    await world.turns()
    assert world.server.asked == (2, None)
    world.change(replicas=1)
    await world.turns()
    assert world.server.asked == (1, None)
