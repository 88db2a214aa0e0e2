"""A model that nobody touches costs nothing: ten minutes of turns in virtual time, before an API server that fills in defaults."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from reasonscale.api import constants as c
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.kube import KindMissing, KubeError
from reasonscale.controller.model_loop import ModelLoop, Settings
from reasonscale.controller.operator import GUARD_S, WATCH_STALLED_S, Guard
from reasonscale.controller.status import stamp
from reasonscale.controller.watched import Watched
from reasonscale.render.marks import app_of
from reasonscale.signals.assemble import Sample
from reasonscale.signals.sources import SignalsMissing


class Server:
    """An API server for one model, and what is watched of it."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.writes: list[str] = []
        self.status: dict[str, Any] = {}
        self.refuse: KubeError | None = None
        self.found_pods: list[dict[str, Any]] = []

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.refuse is not None and manifest["kind"] == "RayService":
            raise self.refuse
        self.writes.append(manifest["kind"])
        kept = copy.deepcopy(manifest)
        kept["metadata"]["resourceVersion"] = str(len(self.writes))
        if manifest["kind"] == "RayService":
            kept["spec"]["upgradeStrategy"] = {"type": "NewCluster"}  # a default that the server fills in
        self.objects[manifest["kind"]] = kept
        return kept

    async def patch_status(self, namespace: str, name: str, status: dict[str, Any]) -> None:
        self.writes.append("status")
        self.status = status

    async def list(self, *_: Any) -> dict[str, Any]:
        raise KubeError("nodes is forbidden")

    def service(self, namespace: str, name: str) -> dict[str, Any] | None:
        if isinstance(self.refuse, KindMissing):
            raise self.refuse  # as the watch does while the cluster has no such kind
        return self.objects.get("RayService")

    def pods(self, namespace: str, name: str) -> list[dict[str, Any]]:
        return self.found_pods

    def put(self, service: dict[str, Any]) -> None:
        self.objects["RayService"] = service


class Blind:
    """No signals at all."""

    limit_s = 30.0

    async def fetch(self) -> list[Sample]:
        raise SignalsMissing("Prometheus at http://p did not answer")


def loop(server: Server, now: list[float], **settings: Any) -> ModelLoop:
    out = ModelLoop(
        server, server, lambda *_: Blind(), Settings(image="i:1", code_image="j:1", **settings), DecisionMetrics(CollectorRegistry()), lambda: now[0]  # type: ignore[arg-type]
    )  # fmt: skip
    spec = {"model": {"uri": "hf://Qwen/Qwen3-32B"}, "parallelism": {"tensor": 2}, "scaling": {"maxReplicas": 4}}
    meta = {"name": "m", "namespace": "n", "uid": "u", "generation": 1}
    out.see({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": meta, "spec": spec})
    return out


async def test_replicas_whose_pods_never_come_are_given_up_and_asked_for_again_later() -> None:
    server, now = Server(), [1_800_000_000.0]
    model = loop(server, now, default_mode="Auto")
    model._status = {"replicas": {"desired": 3}}
    await turns(model, now, 2)

    def asked() -> int:
        return int(app_of(server.objects["RayService"])["deployments"][0]["num_replicas"])

    assert asked() == 3
    labels = {c.LABEL_ROLE: "engine"}
    made = {"creationTimestamp": stamp(now[0]), "labels": labels}
    server.found_pods = [{"metadata": {"name": f"p{n}", **made}, "status": {"phase": "Pending"}} for n in range(2)]
    await turns(model, now, 2)
    assert asked() == 3, "they have their time"
    now[0] += 901.0
    await turns(model, now, 2)
    assert asked() == 1
    assert conditions(server)["Degraded"] == ("True", "StartTimeout")
    server.found_pods = []
    await turns(model, now, 2)
    assert conditions(server)["Degraded"] == ("True", "StartTimeout"), "said as long as it lasts"
    now[0] += 901.0
    await turns(model, now, 2)
    assert conditions(server)["Degraded"] == ("False", "AsWanted")


async def test_a_replica_of_two_nodes_that_is_placed_in_half_gives_its_gpus_back() -> None:
    server, now = Server(), [1_800_000_000.0]
    model = loop(server, now, default_mode="Auto")
    model.see({**model._body, "spec": {**model._body["spec"], "parallelism": {"tensor": 8, "pipeline": 2}}})
    model._status = {"replicas": {"desired": 2}}
    await turns(model, now, 2)
    groups = lambda: server.objects["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]  # noqa: E731
    assert (groups()[1]["numOfHosts"], groups()[1]["replicas"]) == (2, 2)
    made = {"creationTimestamp": stamp(now[0]), "labels": {c.LABEL_ROLE: "engine"}}
    runs = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    server.found_pods = [
        {"metadata": {"name": f"p{n}", **made}, "status": runs if n < 3 else {"phase": "Pending"}} for n in range(4)
    ]
    now[0] += 901.0
    await turns(model, now, 2)
    assert groups()[1]["replicas"] == 1, "the pod that runs goes with the one that never came"
    assert conditions(server)["Degraded"] == ("True", "StartTimeout")


def conditions(server: Server) -> dict[str, tuple[str, str]]:
    return {x["type"]: (x["status"], x["reason"]) for x in server.status["conditions"]}


async def turns(model: ModelLoop, now: list[float], count: int) -> None:
    for _ in range(count):
        await model.tick("Prometheus at http://p did not answer")
        now[0] += 5.0


@pytest.mark.parametrize("early", [False, True])
async def test_what_the_first_status_is_worth_is_told_also_where_the_watch_brings_it_back_first(early: bool) -> None:
    class Quick(Server):
        async def patch_status(self, namespace: str, name: str, status: dict[str, Any]) -> None:
            await super().patch_status(namespace, name, status)
            if early:
                model.see({**model._body, "status": status})

    server, now = Quick(), [1000.0]
    model = loop(server, now)
    await turns(model, now, 1)
    assert server.objects["Event"]["reason"] == "SignalsMissing"


async def test_an_unchanged_model_is_written_at_most_once_in_ten_minutes() -> None:
    server, now = Server(), [1000.0]
    model = loop(server, now)
    await turns(model, now, 3)
    server.writes.clear()
    await turns(model, now, 120)
    assert len(server.writes) <= 1
    assert conditions(server)["SignalsAvailable"] == ("False", "PrometheusDown")
    assert conditions(server)["ScalingActive"] == ("False", "Recommend"), "the default of the chart"


async def test_an_edit_that_comes_back_each_turn_costs_one_write_in_ten_minutes() -> None:
    server, now = Server(), [1000.0]
    model = loop(server, now)
    await turns(model, now, 3)
    server.writes.clear()
    for n in range(120):
        service = server.objects["RayService"]
        service["spec"]["rayClusterDeletionDelaySeconds"] = 1
        service["metadata"]["resourceVersion"] = str(1000 + n)
        await turns(model, now, 1)
    assert server.writes.count("RayService") <= 2
    assert server.writes.count("Event") <= 12
    assert conditions(server)["Degraded"] == ("True", "DriftContested")


async def test_an_edit_is_found_by_an_operator_that_has_just_started() -> None:
    server, now = Server(), [1000.0]
    await turns(loop(server, now), now, 3)
    group = server.objects["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    group["template"]["spec"]["containers"][0]["image"] = "evil:1"
    server.writes.clear()
    await turns(loop(server, now), now, 1)
    assert "RayService" in server.writes
    assert "Event" in server.writes
    again = server.objects["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    assert again["template"]["spec"]["containers"][0]["image"] == "i:1"


async def test_frozen_nothing_is_applied() -> None:
    server, now = Server(), [1000.0]
    await turns(loop(server, now, freeze=True), now, 3)
    assert set(server.writes) <= {"status", "Event"}
    assert conditions(server)["ScalingActive"] == ("False", "Frozen")


async def test_a_held_model_says_what_waits_and_is_left_alone() -> None:
    server, now = Server(), [1000.0]
    await turns(loop(server, now), now, 3)
    server.objects.pop("Event", None)
    runs, before = server.status["renderRevision"], copy.deepcopy(server.objects)
    later = loop(server, now, redis_address="redis:6379")
    later._body["metadata"]["annotations"] = {c.ANNOTATION_HOLD: "true"}
    await turns(later, now, 2)
    assert conditions(server)["UpdateAvailable"] == ("True", "OtherRendering")
    later._body["spec"]["engine"] = {"args": {"seed": "7"}}
    later._body["metadata"]["generation"] = 2
    await turns(later, now, 2)
    assert conditions(server)["RolloutBlocked"] == ("True", "Blocked")
    assert server.status["renderRevision"] == runs
    assert {k: v for k, v in server.objects.items() if k != "Event"} == before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KindMissing("this cluster has no RayService (ray.io/v1)"), "KubeRayMissing"),
        (KubeError("RayService m: .spec.x: field not declared in schema"), "CRDTooOld"),
        (
            KubeError("unable to create new content in namespace n because it is being terminated"),
            "NamespaceTerminating",
        ),
    ],
)
async def test_what_the_server_refuses_is_a_condition_and_is_tried_again(error: KubeError, reason: str) -> None:
    server, now = Server(), [1000.0]
    model = loop(server, now)
    server.refuse = error
    await turns(model, now, 2)
    assert conditions(server)["Degraded"] == ("True", reason)
    server.refuse = None
    await turns(model, now, 1)
    assert conditions(server)["Degraded"] == ("False", "AsWanted")
    assert "RayService" in server.objects


class Listed:
    """A list of models, as the API server would give it."""

    def __init__(self) -> None:
        self.versions: dict[str, int] | KubeError = {}

    async def list(self, *_: Any) -> dict[str, Any]:
        if isinstance(self.versions, KubeError):
            raise self.versions
        return {"items": [{"metadata": {"uid": u, "resourceVersion": str(v)}} for u, v in self.versions.items()]}


async def test_a_watch_that_misses_a_change_grows_old_and_one_that_lags_a_moment_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, listed = [0.0], Listed()
    monkeypatch.setattr("reasonscale.controller.operator.time.monotonic", lambda: now[0])
    seen: dict[str, dict[str, Any]] = {}
    guard = Guard(listed, None, lambda: seen)  # type: ignore[arg-type]
    # Behind at every look, and never for long.
    for n in range(10):
        listed.versions = {"a": n + 1}
        await guard.look()
        now[0] += GUARD_S
        assert guard.age_s() <= GUARD_S
        seen["a"] = {"metadata": {"resourceVersion": str(n + 1)}}
    # And one that is never told.
    listed.versions = {"a": 99}
    while guard.age_s() < WATCH_STALLED_S:
        await guard.look()
        now[0] += GUARD_S
        assert now[0] < 10_000
    # A server that does not answer ages it too.
    seen["a"] = {"metadata": {"resourceVersion": "99"}}
    await guard.look()
    assert guard.age_s() < GUARD_S
    listed.versions = KubeError("refused")
    for _ in range(8):
        now[0] += GUARD_S
        await guard.look()
    assert guard.age_s() >= WATCH_STALLED_S
    assert guard.missing is None
    listed.versions = KindMissing("no ReasoningModel")
    await guard.look()
    assert "reasonscale-crds" in str(guard.missing)


def test_an_answer_to_our_own_write_is_not_undone_by_an_older_event() -> None:
    def item(version: int, uid: str = "u") -> dict[str, Any]:
        return {"metadata": {"name": "m", "namespace": "n", "uid": uid, "resourceVersion": str(version)}}

    watched = Watched(None, "ray.io/v1", "RayService", "x")  # type: ignore[arg-type]
    watched.put(item(7))
    watched._take("MODIFIED", item(5))
    assert watched.get("n", "m") == item(7)
    watched._take("DELETED", item(8))
    assert watched.get("n", "m") is None
    watched._take("ADDED", item(3, "other"))
    assert watched.get("n", "m") == item(3, "other")
