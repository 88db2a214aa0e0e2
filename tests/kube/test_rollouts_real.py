"""Rollouts and causes before a real API server: what is applied by each strategy, what is blocked in numbers, why replicas don't come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from e2e.cluster.control_plane import free_ports
from tests.kube.running import MERGE, MODELS, SERVICES, Operator, conditions, numbers, resource, until

from reasonscale.api import constants as c
from reasonscale.render.marks import replicas_of

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(240)]
NAME = "rolls"
SPEC = {"scaling": {"mode": "Manual", "maxReplicas": 4}, "replicas": 2, "parallelism": {"tensor": 4}}


@pytest.fixture(scope="module")
def model(kuberay: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpus"}}
    assert kuberay.http.post("/api/v1/nodes", json=node).status_code == 201
    room = {"status": {"allocatable": {"nvidia.com/gpu": "4"}, "capacity": {"nvidia.com/gpu": "4"}}}
    assert kuberay.http.patch("/api/v1/nodes/gpus/status", json=room, headers=MERGE).status_code == 200
    operator = Operator(kuberay, tmp_path_factory.mktemp("rollout"), ports=free_ports(2))
    try:
        assert kuberay.http.post(MODELS, json=resource(NAME, **SPEC)).status_code == 201
        until(lambda: numbers(kuberay, NAME) == 2)
        until(lambda: "RolloutBlocked" in conditions(kuberay, NAME))
        yield kuberay
        assert "Traceback" not in operator.output.read_text()
    finally:
        operator.stop()
        kuberay.http.delete(f"{MODELS}/{NAME}")
        kuberay.http.delete("/api/v1/nodes/gpus")


def change(cluster: Any, spec: dict[str, Any]) -> None:
    assert cluster.http.patch(f"{MODELS}/{NAME}", json={"spec": spec}, headers=MERGE).status_code == 200


def service(cluster: Any) -> dict[str, Any]:
    found: dict[str, Any] = cluster.http.get(f"{SERVICES}/{NAME}").json()
    return found


def seed(cluster: Any) -> Any:
    app = yaml.safe_load(service(cluster)["spec"]["serveConfigV2"])["applications"][0]
    return app["args"]["models"][0]["engine_kwargs"].get("seed")


def engines(cluster: Any) -> dict[str, Any]:
    found: dict[str, Any] = service(cluster)["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    return found


def test_in_place_touches_serve_s_config_alone(model: Any) -> None:
    before = service(model)["spec"]["rayClusterConfig"]
    change(model, {"engine": {"args": {"seed": "1"}}})
    # Four GPUs are free: one replica more is asked for first, and no engine starts anew until it serves.
    until(lambda: numbers(model, NAME) == 3)
    until(lambda: "one replica more starts on free GPUs first" in conditions(model, NAME)["Progressing"]["message"])
    assert seed(model) is None
    assert replicas_of(service(model)) == 2
    change(model, {"scaling": {"maxReplicas": 2}})
    until(lambda: seed(model) == 1)
    change(model, {"scaling": {"maxReplicas": 4}})
    until(lambda: engines(model)["maxReplicas"] == 4)
    assert service(model)["spec"]["rayClusterConfig"] == before
    assert c.ANNOTATION_SPARE not in service(model)["metadata"]["annotations"]
    events = model.http.get("/api/v1/namespaces/default/events").json()["items"]
    said = [e["message"] for e in events if e["reason"] == "RolloutStarted" and e["involvedObject"]["name"] == NAME]
    assert said == ["InPlace: the engines restart one after another; one of 2 replicas is out at a time"]


def test_a_surge_without_room_is_blocked_in_numbers_and_scaling_goes_on(model: Any) -> None:
    change(model, {"engine": {"args": {"seed": "2"}}, "rollout": {"strategy": "Surge"}})
    held = until(lambda: (x := conditions(model, NAME)["RolloutBlocked"])["status"] == "True" and x)
    assert held["message"] == "Surge needs 8 GPUs, 4 are free; use InPlace"
    model.plane.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=1")
    until(lambda: numbers(model, NAME) == 1)
    # With one replica of 4 GPUs there is room at the next look.
    until(lambda: seed(model) == 2, 60)
    notes = service(model)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert notes[c.ANNOTATION_ENGINES]
    assert service(model)["spec"]["rayClusterDeletionDelaySeconds"] >= 1800
    until(lambda: conditions(model, NAME)["RolloutBlocked"]["status"] == "False")


def test_recreate_ends_the_old_one_first_and_waits_for_its_pods(model: Any) -> None:
    uid = service(model)["metadata"]["uid"]
    labels = {c.LABEL_MODEL: NAME, c.LABEL_ROLE: "engine"}
    pod = {
        "metadata": {"name": "old", "labels": labels},
        "spec": {"serviceAccountName": "default", "containers": [{"name": "x", "image": "x"}]},
    }
    model.http.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "default"}})
    made = model.http.post("/api/v1/namespaces/default/pods", json=pod)
    assert made.status_code == 201, made.text
    # What the pod waits for is said meanwhile.
    said = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes: 1 Insufficient nvidia.com/gpu.",
    }
    status = {"status": {"conditions": [said]}}
    assert model.http.patch("/api/v1/namespaces/default/pods/old/status", json=status, headers=MERGE).status_code == 200
    cause = until(lambda: (x := conditions(model, NAME)["Degraded"])["reason"] == "NoGPU" and x)
    assert "pod old waits for GPUs" in cause["message"]
    change(model, {"engine": {"args": {"seed": "3"}}, "rollout": {"strategy": "Recreate"}})
    until(lambda: model.http.get(f"{SERVICES}/{NAME}").status_code == 404)
    until(lambda: "old pods" in conditions(model, NAME)["RolloutBlocked"]["message"])
    assert model.http.get(f"{SERVICES}/{NAME}").status_code == 404
    model.http.request("DELETE", "/api/v1/namespaces/default/pods/old", json={"gracePeriodSeconds": 0})
    until(lambda: model.http.get(f"{SERVICES}/{NAME}").status_code == 200)
    assert service(model)["metadata"]["uid"] != uid
    assert (seed(model), numbers(model, NAME)) == (3, 1)


def test_an_engine_s_own_error_is_shown(model: Any) -> None:
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: 4.0 GiB KV cache is needed, 1.0 GiB is there'
    held = {"applicationStatuses": {NAME: {"status": "DEPLOY_FAILED", "message": trace, "serveDeploymentStatuses": {}}}}
    patch = {"status": {"activeServiceStatus": held}}
    answer = model.http.patch(f"{SERVICES}/{NAME}/status", json=patch, headers=MERGE)
    assert answer.status_code == 200, answer.text
    cause = until(lambda: (x := conditions(model, NAME)["Degraded"])["reason"] == "EngineFailed" and x)
    assert "ValueError: 4.0 GiB KV cache is needed" in cause["message"]
