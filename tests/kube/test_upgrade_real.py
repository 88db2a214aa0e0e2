"""A later operator before what an earlier one made: engines go on, and `update` or the engines' own settings bring it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from e2e.cluster.control_plane import free_ports
from tests.kube.running import MERGE, MODELS, SERVICES, Operator, conditions, numbers, resource, until

from reasonscale.api import constants as c

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(240)]
NAME = "upgraded"


def _cluster(kuberay: Any) -> dict[str, Any]:
    found: dict[str, Any] = kuberay.http.get(f"{SERVICES}/{NAME}").json()["spec"]["rayClusterConfig"]
    for group in found["workerGroupSpecs"]:
        for name in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(name, None)
    return found


def test_a_later_operator_leaves_engines_as_they_are_until_it_is_told(kuberay: Any, tmp_path: Path) -> None:
    spec = {"scaling": {"mode": "Manual", "maxReplicas": 4}, "replicas": 1}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "three-gpus"}}
    assert kuberay.http.post("/api/v1/nodes", json=node).status_code == 201
    room = {"status": {"allocatable": {"nvidia.com/gpu": "3"}, "capacity": {"nvidia.com/gpu": "3"}}}
    assert kuberay.http.patch("/api/v1/nodes/three-gpus/status", json=room, headers=MERGE).status_code == 200
    first = Operator(kuberay, tmp_path, ports=free_ports(2))
    second: Operator | None = None
    try:
        assert kuberay.http.post(MODELS, json=resource(NAME, **spec)).status_code == 201
        until(lambda: conditions(kuberay, NAME).get("UpdateAvailable", {}).get("status") == "False")
        before = _cluster(kuberay)
        runs = kuberay.http.get(f"{MODELS}/{NAME}").json()["status"]["renderRevision"]
        first.stop()
        second = Operator(
            kuberay, tmp_path, "--code-image", "j:2", "--redis-address", "redis:6379", ports=free_ports(2)
        )
        held = until(lambda: (x := conditions(kuberay, NAME)["UpdateAvailable"])["status"] == "True" and x)
        assert "initContainers[0].image" in held["message"]
        assert kuberay.http.get(f"{MODELS}/{NAME}").json()["status"]["renderRevision"] == runs
        # It is scaled all the same, and what changes in place does.
        patch = {"spec": {"replicas": 3, "reasoning": {"budget": {"default": 777}}}}
        kuberay.http.patch(f"{MODELS}/{NAME}", json=patch, headers=MERGE)
        until(lambda: numbers(kuberay, NAME) == 3)
        assert "777" in kuberay.http.get(f"{SERVICES}/{NAME}").json()["spec"]["serveConfigV2"]
        assert _cluster(kuberay) == before
        listed = kuberay.plane.kubectl("get", c.SHORT_NAME, NAME, "-o", "wide").stdout
        assert "UPDATE" in listed
        kuberay.http.patch(
            f"{MODELS}/{NAME}", json={"metadata": {"annotations": {c.ANNOTATION_UPDATE: "now"}}}, headers=MERGE
        )
        until(lambda: "gcsFaultToleranceOptions" in _cluster(kuberay), 60)
        until(lambda: conditions(kuberay, NAME)["UpdateAvailable"]["status"] == "False")
        until(lambda: conditions(kuberay, NAME)["RolloutBlocked"]["status"] == "False")
        assert _cluster(kuberay)["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
        assert kuberay.http.get(f"{MODELS}/{NAME}").json()["status"]["renderRevision"] != runs
        assert "Traceback" not in second.output.read_text()
    finally:
        first.stop()
        if second is not None:
            second.stop()
        kuberay.http.delete(f"{MODELS}/{NAME}")
        kuberay.http.delete("/api/v1/nodes/three-gpus")
