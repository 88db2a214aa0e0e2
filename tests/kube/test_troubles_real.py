"""What can be wrong with a cluster, before a real API server: each is a condition with its cause and its remedy, and ends by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.cluster.control_plane import free_ports
from tests.kube.running import CRDS, MERGE, MODELS, SERVICES, Operator, conditions, numbers, resource, until
from tests.kube.test_chart_real import path_of, rendered

from reasonscale.api.crd import crd
from reasonscale.profiles.library import load, shipped
from reasonscale.profiles.profile import dump

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(300)]


def test_a_namespace_that_is_being_deleted_is_named(kuberay: Any, tmp_path: Path) -> None:
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "going"}}
    assert kuberay.http.post("/api/v1/namespaces", json=space).status_code == 201
    path = MODELS.replace("/default/", "/going/")
    assert kuberay.http.post(path, json=resource("late")).status_code == 201
    kuberay.http.delete("/api/v1/namespaces/going")  # it stays: nothing here empties it
    operator = Operator(kuberay, tmp_path, "--namespace", "going", ports=free_ports(2))
    try:

        def degraded() -> Any:
            status = kuberay.http.get(f"{path}/late").json().get("status") or {}
            return {x["type"]: x for x in status.get("conditions", ())}.get("Degraded")

        held = until(lambda: (x := degraded()) and x["status"] == "True" and x, 60)
        assert held["reason"] == "NamespaceTerminating"
        assert "the namespace is being deleted, nothing new can be made in it" in held["message"]
    finally:
        operator.stop()
        kuberay.http.delete(f"{path}/late")
    assert "Traceback" not in operator.output.read_text()


def test_a_kuberay_that_goes_is_named_and_one_that_comes_back_is_used_at_once(kuberay: Any, tmp_path: Path) -> None:
    operator = Operator(kuberay, tmp_path, ports=free_ports(2))
    try:
        spec = {"scaling": {"mode": "Manual", "maxReplicas": 4}, "replicas": 3}
        assert kuberay.http.post(MODELS, json=resource("waits", **spec)).status_code == 201
        until(lambda: numbers(kuberay, "waits") == 3, 60)
        kuberay.http.delete(f"{CRDS}/rayservices.ray.io")
        held = until(lambda: (x := conditions(kuberay, "waits")["Degraded"])["reason"] == "KubeRayMissing" and x, 90)
        assert held["message"].endswith("install KubeRay and its CRDs")
        text = (Path(os.environ["REASONSCALE_KUBERAY_CRDS"]) / "ray.io_rayservices.yaml").read_text()
        until(lambda: kuberay.http.post(CRDS, json=yaml.safe_load(text)).status_code == 201, 60)
        until(lambda: numbers(kuberay, "waits") == 3, 90)
        until(lambda: conditions(kuberay, "waits")["Degraded"]["status"] == "False")
    finally:
        operator.stop()
        kuberay.http.delete(f"{MODELS}/waits")
    assert "Traceback" not in operator.output.read_text()


def test_a_profile_that_nobody_has_stops_no_model_and_one_that_comes_restarts_nothing(
    kuberay: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    operator = Operator(kuberay, tmp_path, "--profiles", str(folder), ports=free_ports(2))
    try:
        spec = {"accelerator": {"profile": "my-gpu"}, "scaling": {"mode": "Manual", "maxReplicas": 4}, "replicas": 2}
        assert kuberay.http.post(MODELS, json=resource("profiled", **spec)).status_code == 201
        until(lambda: numbers(kuberay, "profiled") == 2, 60)
        held = until(lambda: conditions(kuberay, "profiled").get("ProfileLoaded"))
        assert (held["status"], held["reason"]) == ("False", "NoSuchProfile")
        assert held["message"].startswith("spec.accelerator.profile: was 'my-gpu'; no profile has that name")
        assert all(name in held["message"] for name in shipped())
        assert conditions(kuberay, "profiled")["Degraded"]["status"] == "False"

        def told() -> list[dict[str, Any]]:
            events = kuberay.http.get("/api/v1/namespaces/default/events").json()["items"]
            return [e for e in events if e["involvedObject"]["name"] == "profiled" and e["reason"] == "NoSuchProfile"]

        assert until(told)[0]["message"] == held["message"]
        before = kuberay.http.get(f"{SERVICES}/profiled").json()["metadata"]
        (folder / "my-gpu.json").write_text(dump(load("qwen2-7b-h100")))
        until(lambda: conditions(kuberay, "profiled")["ProfileLoaded"]["reason"] == "Loaded")
        named = {"spec": {"accelerator": {"profile": "qwen2-7b-h200"}}}
        kuberay.http.patch(f"{MODELS}/profiled", json=named, headers=MERGE)
        until(lambda: "qwen2-7b-h200" in conditions(kuberay, "profiled")["ProfileLoaded"]["message"])
        after = kuberay.http.get(f"{SERVICES}/profiled").json()["metadata"]
        assert after["generation"] == before["generation"], "neither engines nor their cluster were touched"
    finally:
        operator.stop()
        kuberay.http.delete(f"{MODELS}/profiled")
    assert "Traceback" not in operator.output.read_text()


@contextmanager
def namespaced(cluster: Any) -> Iterator[str]:
    """Install what the chart's namespaced mode gives its account, and yield a token of it."""
    made = []
    for manifest in rendered("namespaced=true", release="narrow"):
        if manifest["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
            answer = cluster.http.post(path_of(manifest), json=manifest)
            assert answer.status_code == 201, answer.text
            made.append(f"{path_of(manifest)}/{manifest['metadata']['name']}")
        assert manifest["kind"] != "ClusterRoleBinding", "no rights beyond the namespace"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    answer = cluster.http.post("/api/v1/namespaces/default/serviceaccounts/narrow-reasonscale/token", json=asked)
    assert answer.status_code == 201, answer.text
    try:
        yield str(answer.json()["status"]["token"])
    finally:
        for path in made:
            cluster.http.delete(path)


def test_a_role_of_one_namespace_is_enough_for_it(kuberay: Any, tmp_path: Path) -> None:
    with namespaced(kuberay) as token:
        config = yaml.safe_load(Path(kuberay.plane.kubeconfig).read_text())
        for user in config["users"]:
            user["user"] = {"token": token}
        (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(config))
        made = kuberay.http.post(MODELS, json=resource("narrow"))
        assert made.status_code == 201, made.text
        health, metrics = free_ports(2)
        command = [
            sys.executable, "-m", "reasonscale.cli.main", "operator", "--kubeconfig", str(tmp_path / "narrow.yaml"), "--image", "i:1",
            "--code-image", "j:1", "--namespace", "default", "--health-port", str(health), "--metrics-port", str(metrics),
        ]  # fmt: skip
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: kuberay.http.get(f"{SERVICES}/narrow").status_code == 200, 60)
            held = until(lambda: conditions(kuberay, "narrow"), 60)
            assert held["Degraded"]["status"] == "False"
            said = (tmp_path / "log").read_text()
            assert "forbidden" not in said.lower()
            assert "Traceback" not in said
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            kuberay.http.delete(f"{MODELS}/narrow")


def test_a_resource_stored_before_a_rule_existed_is_not_accepted_and_what_runs_stays(
    kuberay: Any, tmp_path: Path
) -> None:
    name, path = "older", f"{CRDS}/{crd()['metadata']['name']}"
    spec = {"scaling": {"mode": "Manual", "minReplicas": 1, "maxReplicas": 4}, "replicas": 2}
    first = Operator(kuberay, tmp_path, ports=free_ports(2))
    try:
        assert kuberay.http.post(MODELS, json=resource(name, **spec)).status_code == 201
        until(lambda: numbers(kuberay, name) == 2)
        until(lambda: conditions(kuberay, name).get("Accepted", {}).get("status") == "True")
    finally:
        first.stop()
    before = kuberay.http.get(f"{SERVICES}/{name}").json()["metadata"]

    def rules(definition: dict[str, Any]) -> None:
        definition = json.loads(json.dumps(definition))
        definition["metadata"]["resourceVersion"] = kuberay.http.get(path).json()["metadata"]["resourceVersion"]
        answer = kuberay.http.put(path, json=definition)
        assert answer.status_code == 200, answer.text

    def refused(least: int, dry_run: bool = True) -> bool:
        change = {"spec": {"scaling": {"minReplicas": least}}}
        query = {"dryRun": "All"} if dry_run else {}
        answer = kuberay.http.patch(f"{MODELS}/{name}", json=change, headers=MERGE, params=query)
        assert answer.status_code in (200, 422), answer.text
        return bool(answer.status_code == 422)

    assert refused(6)
    rules(_without_rules(crd()))
    try:
        until(lambda: not refused(6))
        assert not refused(6, dry_run=False)
    finally:
        rules(crd())
    until(lambda: refused(5))
    second = Operator(kuberay, tmp_path, ports=free_ports(2))
    try:
        held = until(lambda: (x := conditions(kuberay, name)["Accepted"])["status"] == "False" and x)
        assert "spec.scaling.minReplicas: was 6" in held["message"]
        assert held["message"].endswith("what runs is left as it is")
        after = kuberay.http.get(f"{SERVICES}/{name}").json()["metadata"]
        assert (after["uid"], after["generation"]) == (before["uid"], before["generation"])
        assert "Traceback" not in second.output.read_text()
    finally:
        second.stop()
        kuberay.http.delete(f"{MODELS}/{name}")


def _without_rules(node: Any) -> Any:
    """Return a schema as an older definition had it: no rule between fields."""
    if isinstance(node, dict):
        return {k: _without_rules(v) for k, v in node.items() if k != "x-kubernetes-validations"}
    return [_without_rules(x) for x in node] if isinstance(node, list) else node
