"""A model that may sleep, before an API server: down to zero, a restart of the operator there, and awake again. Virtual time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from tests.unit.controller.test_writes_are_few import Server, conditions

from reasonscale.api import constants as c
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.model_loop import ModelLoop, Settings
from reasonscale.render.marks import app_hashed, cluster_hashed, emptied_of, replicas_of
from reasonscale.render.text import to_yaml
from reasonscale.serving.numbers import number_of, numbered, set_emptied, set_number
from reasonscale.signals.assemble import Sample
from reasonscale.signals.sources import SignalsMissing

SCALING = {"mode": "Auto", "minReplicas": 0, "maxReplicas": 3, "scaleToZero": {"after": "60s"}}


class Metrics:
    """Plays Prometheus: what ingresses and engines have written."""

    limit_s = 30.0

    def __init__(self, now: list[float]) -> None:
        self.now, self.engines, self.held, self.ingresses, self.down = now, 0, 0, 2, False

    async def fetch(self) -> list[Sample]:
        if self.down:
            raise SignalsMissing("Prometheus at http://p did not answer")
        out = []
        for n in range(self.ingresses):
            labels = {"model": "m", "WorkerId": f"ingress{n}"}
            held = self.held if n == 0 else 0
            out += [Sample(c.M_INGRESS_TIME, labels, self.now[0]), Sample(c.M_HELD, labels, held)]
            out += [Sample(c.M_INGRESS_REQUESTS, labels, held)]
        for n in range(self.engines):
            labels = {"model": "m", "WorkerId": f"engine{n}"}
            out += [Sample(c.M_LEDGER_TIME, labels, self.now[0]), Sample(c.M_KV_CAPACITY, labels, 1e6)]
            out += [Sample(c.M_WAITING, labels | {"cls": "medium"}, 0)]
        return out


class World:
    def __init__(self, **scaling: Any) -> None:
        self.now, self.server, self.registry = [1_800_000_000.0], Server(), CollectorRegistry()
        self.metrics = Metrics(self.now)
        self.spec = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "scaling": SCALING | scaling}
        self.start()

    def start(self) -> None:
        """Start an operator, as after a restart."""
        settings = Settings(image="i:1", code_image="j:1")
        server: Any = self.server
        self.registry = CollectorRegistry()
        self.loop = ModelLoop(
            server, server, lambda *_: self.metrics, settings, DecisionMetrics(self.registry), lambda: self.now[0]
        )
        meta = {"name": "m", "namespace": "n", "uid": "u", "generation": 1}
        body = {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": meta, "spec": self.spec}
        self.loop.see(copy.deepcopy(body) | ({"status": self.server.status} if self.server.status else {}))

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await self.loop.tick("down" if self.metrics.down else None)
            self.now[0] += 5.0

    @property
    def replicas(self) -> int:
        return replicas_of(self.server.objects["RayService"])

    def told(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"reasonscale_{name}", {"model": "n/m"})


async def asleep() -> World:
    world = World()
    await world.turns(1)
    world.metrics.engines = 1
    await world.turns(20)
    assert world.replicas == 0
    world.metrics.engines = 0
    await world.turns(2)
    return world


async def test_asleep_it_is_ready_and_says_so_and_nothing_in_it_is_an_alarm() -> None:
    world = await asleep()
    found = conditions(world.server)
    assert found["Ready"] == ("True", "AtZero")
    assert found["ScalingActive"] == ("True", "AtZero")
    assert found["SignalsAvailable"] == ("True", "IngressOnly")
    assert found["Degraded"][0] == "False"
    assert world.loop._status["lastDecision"]["reason"] == c.REASON_IDLE
    assert world.server.status["replicas"] == {"desired": 0, "ready": 0, "starting": 0, "draining": 0, "asleep": 0}
    assert (world.told("signals_fresh"), world.told("asleep"), world.told("held")) == (1.0, 1.0, 0.0)


async def test_sleep_and_waking_change_numbers_alone_so_that_no_cluster_and_no_engine_is_replaced() -> None:
    world = World()
    await world.turns(1)
    first = copy.deepcopy(world.server.objects["RayService"])
    world.metrics.engines = 1
    await world.turns(20)
    world.metrics.engines, world.metrics.held = 0, 3
    await world.turns(2)
    last = world.server.objects["RayService"]
    assert [replicas_of(first), replicas_of(last)] == [1, 1]
    assert cluster_hashed(first) == cluster_hashed(last)
    assert app_hashed(first) == app_hashed(last)
    group = last["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    assert (group["minReplicas"], group["replicas"]) == (0, 1)


async def test_a_pod_that_lingers_after_its_replica_has_gone_does_not_count_as_one_that_serves() -> None:
    runs = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    world = World()
    world.server.found_pods = [{"metadata": {"name": "p", "labels": {c.LABEL_ROLE: "engine"}}, "status": runs}]
    await world.turns(1)
    world.metrics.engines = 1
    await world.turns(20)
    assert world.replicas == 0
    world.metrics.engines = 0
    await world.turns(2)
    assert world.server.status["replicas"]["draining"] == 0
    world.metrics.held = 3
    await world.turns(2)
    assert world.replicas == 1
    assert world.server.status["replicas"] == {"desired": 1, "ready": 0, "starting": 1, "draining": 0, "asleep": 0}


async def test_an_operator_that_starts_beside_a_sleeping_model_leaves_it_asleep() -> None:
    world = await asleep()
    world.start()
    await world.turns(5)
    assert world.replicas == 0


@pytest.mark.parametrize("down", [False, True])
async def test_nothing_unknown_wakes_it_or_puts_it_to_sleep(down: bool) -> None:
    world = await asleep()
    world.metrics.ingresses, world.metrics.down = 0, down
    await world.turns(40)
    assert world.replicas == 0
    found = conditions(world.server)
    assert (found["SignalsAvailable"][0], found["Ready"][0]) == ("False", "Unknown"), "nobody would hold a request"
    awake = World()
    awake.metrics.ingresses = 0
    await awake.turns(1)
    awake.metrics.engines = 1
    await awake.turns(40)
    assert awake.replicas == 1, "nobody knows what the ingress has"


async def test_one_that_is_held_wakes_it_at_the_next_turn_and_while_it_loads_it_is_left_alone() -> None:
    world = await asleep()
    world.metrics.held = 1
    await world.turns(1)
    assert world.replicas == 1
    assert world.server.status["lastDecision"]["message"].startswith("0 -> 1: 1 request held until a replica is ready")
    await world.turns(60)  # five minutes to load
    assert conditions(world.server)["Ready"] == ("False", "NoReplica")
    assert conditions(world.server)["SignalsAvailable"] == ("True", "IngressOnly")
    assert world.server.status["demand"]["heldRequests"] == 1
    assert world.told("signals_fresh") == 1.0, "no alert while it wakes"
    world.metrics.held = 0  # its client went
    await world.turns(60)
    assert world.replicas == 1, "what loads is not put to sleep"
    world.metrics.engines = 1
    await world.turns(20)
    assert world.replicas == 0


async def test_pods_that_never_come_leave_a_waking_model_at_one() -> None:
    world = await asleep()
    world.metrics.held = 1
    await world.turns(2)
    labels = {c.LABEL_ROLE: "engine"}
    made = {"name": "p", "creationTimestamp": "2027-01-15T08:00:00Z", "labels": labels}
    world.server.found_pods = [{"metadata": made, "status": {"phase": "Pending"}}]
    world.now[0] += 3600.0
    await world.turns(5)
    assert world.replicas == 1
    assert conditions(world.server)["Degraded"] == ("True", "StartTimeout")


def test_what_a_sleeping_model_is_told_can_be_woken_by_serve_itself() -> None:
    for n in range(4):
        told = numbered(n, sleeps=True)["autoscaling_config"]
        assert (told["min_replicas"], told["max_replicas"]) == (n, max(1, n))
        for sleeps in (True, False):
            deployment = {"name": "d", **numbered(7, sleeps=sleeps)}
            set_number(deployment, n)
            assert number_of(deployment) == n
            assert ("num_replicas" in deployment) is not sleeps


async def restarted_while_one_of(number: int) -> World:
    """Return a world whose operator starts anew while one of so many replicas, r0, is emptied."""
    world = World(minReplicas=1)
    await world.turns(1)
    service = world.server.objects["RayService"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    engines, ingress = config["applications"][0]["deployments"][0], config["applications"][0]["deployments"][-1]
    set_number(engines, number)
    set_emptied(ingress, engines["name"], ["r0"])
    service["spec"]["serveConfigV2"] = to_yaml([config])
    world.metrics.engines = number
    world.start()
    return world


async def test_a_restart_of_the_operator_goes_on_emptying_whom_it_had_emptied() -> None:
    world = await restarted_while_one_of(2)
    await world.turns(2)
    service = world.server.objects["RayService"]
    assert (replicas_of(service), emptied_of(service)) == (2, (("r0",), ()))
    assert world.server.status["replicas"]["draining"] == 1


async def test_a_restart_of_the_operator_does_not_lengthen_the_time_for_which_one_may_be_emptied() -> None:
    world = await restarted_while_one_of(2)
    for _ in range(9):  # one every five minutes, where drain.max is thirty
        await world.turns(60)
        world.start()
    assert replicas_of(world.server.objects["RayService"]) == 1


async def test_one_that_was_emptied_when_its_model_was_held_counts_as_serving_once_the_ingress_lets_it() -> None:
    world = await restarted_while_one_of(3)
    world.loop._body["metadata"]["annotations"] = {c.ANNOTATION_HOLD: "true"}
    writes = world.server.writes.count("RayService")
    await world.turns(2)
    assert world.server.status["replicas"] | {"desired": 0} == {"desired": 0, "ready": 2, "starting": 0, "draining": 1, "asleep": 0}  # fmt: skip
    await world.turns(400)  # longer than drain.max and two minutes
    assert world.server.status["replicas"] | {"desired": 0} == {"desired": 0, "ready": 3, "starting": 0, "draining": 0, "asleep": 0}  # fmt: skip
    assert world.server.writes.count("RayService") == writes


async def test_who_is_emptied_and_who_of_them_sleeps_is_read_as_it_was_written() -> None:
    world = World(minReplicas=1)
    await world.turns(1)
    service = copy.deepcopy(world.server.objects["RayService"])
    assert emptied_of(service) == ((), ())
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    engines, ingress = config["applications"][0]["deployments"][0], config["applications"][0]["deployments"][-1]
    set_emptied(ingress, engines["name"], ["r0", "r1"], ["r1"])
    service["spec"]["serveConfigV2"] = to_yaml([config])
    assert emptied_of(service) == (("r0", "r1"), ("r1",))
