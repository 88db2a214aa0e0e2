"""The operator as a process before a real API server: what it applies, what it says, and what it leaves alone.

There is no Prometheus here and no node: signals are absent, so that every number has to be held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.kube.running import MERGE, MODELS, SERVICES, Operator, conditions, numbers, resource, until

from reasonscale.api import constants as c

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def operator(kuberay: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    found = Operator(kuberay, tmp_path_factory.mktemp("operator"))
    try:
        yield found
    finally:
        found.stop()


def test_a_model_gets_its_children_and_a_status_and_no_finalizer(kuberay: Any, operator: Operator) -> None:
    made = kuberay.http.post(
        MODELS, json=resource("held", scaling={"minReplicas": 2, "maxReplicas": 4, "mode": "Auto"})
    )
    assert made.status_code == 201, made.text
    uid = made.json()["metadata"]["uid"]
    until(lambda: numbers(kuberay, "held") == 2)
    until(lambda: "SignalsAvailable" in conditions(kuberay, "held"))
    for path in (SERVICES, "/api/v1/namespaces/default/services", "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
                 "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"):  # fmt: skip
        items = [x for x in kuberay.http.get(path).json()["items"] if x["metadata"]["name"].startswith("held")]
        assert items, path
        assert all(x["metadata"]["ownerReferences"][0]["uid"] == uid for x in items)
    found = kuberay.http.get(f"{MODELS}/held").json()
    assert "finalizers" not in found["metadata"]
    held = conditions(kuberay, "held")
    assert held["Accepted"]["status"] == "True"
    assert (held["SignalsAvailable"]["status"], held["SignalsAvailable"]["reason"]) == ("False", "PrometheusDown")
    assert found["status"]["resolved"]["parser"] == "deepseek_r1"
    assert found["status"]["endpoint"] == "http://held-openai.default.svc:8000/v1"
    assert "held" in kuberay.plane.kubectl("get", c.SHORT_NAME).stdout


def test_nothing_is_written_while_nothing_changes(kuberay: Any, operator: Operator) -> None:
    time.sleep(6)  # the last of the first turns
    paths = (f"{MODELS}/held", f"{SERVICES}/held")
    before = [kuberay.http.get(p).json()["metadata"]["resourceVersion"] for p in paths]
    time.sleep(16)  # three ticks
    assert [kuberay.http.get(p).json()["metadata"]["resourceVersion"] for p in paths] == before


def test_kubectl_scale_is_obeyed_in_manual_mode_and_in_place(kuberay: Any, operator: Operator) -> None:
    spec = {"scaling": {"mode": "Manual", "maxReplicas": 4}, "replicas": 1}
    assert kuberay.http.post(MODELS, json=resource("manual", **spec)).status_code == 201
    until(lambda: numbers(kuberay, "manual") == 1)
    cluster = kuberay.http.get(f"{SERVICES}/manual").json()["spec"]["rayClusterConfig"]
    kuberay.plane.kubectl("scale", c.SHORT_NAME, "manual", "--replicas=3")
    until(lambda: numbers(kuberay, "manual") == 3)
    after = kuberay.http.get(f"{SERVICES}/manual").json()["spec"]["rayClusterConfig"]
    for spec_ in (cluster, after):
        for group in spec_["workerGroupSpecs"]:
            group.pop("replicas")
    assert after == cluster, "KubeRay would start a new cluster"
    status = until(lambda: kuberay.http.get(f"{MODELS}/manual").json()["status"].get("lastDecision"))
    assert (status["from"], status["to"], status["reason"]) == (1, 3, c.REASON_MANUAL)


def test_hold_leaves_everything_as_it_is(kuberay: Any, operator: Operator) -> None:
    hold = {"metadata": {"annotations": {c.ANNOTATION_HOLD: "true"}}}
    kuberay.http.patch(f"{MODELS}/manual", json=hold, headers=MERGE)
    until(lambda: conditions(kuberay, "manual")["ScalingActive"]["reason"] == "Held")
    kuberay.plane.kubectl("scale", c.SHORT_NAME, "manual", "--replicas=2")
    time.sleep(11)
    assert numbers(kuberay, "manual") == 3
    kuberay.http.patch(f"{MODELS}/manual", json={"metadata": {"annotations": {c.ANNOTATION_HOLD: None}}}, headers=MERGE)
    until(lambda: numbers(kuberay, "manual") == 2)


def test_what_only_the_operator_can_refuse_is_said_and_what_runs_stays(kuberay: Any, operator: Operator) -> None:
    before = kuberay.http.get(f"{SERVICES}/held").json()["metadata"]["generation"]
    kuberay.http.patch(f"{MODELS}/held", json={"spec": {"reasoning": {"mode": "Never"}}}, headers=MERGE)
    until(lambda: conditions(kuberay, "held")["Accepted"]["status"] == "False")
    said = conditions(kuberay, "held")["Accepted"]["message"]
    assert said.startswith("spec.reasoning.mode: was Never")
    assert kuberay.http.get(f"{SERVICES}/held").json()["metadata"]["generation"] == before
    kuberay.http.patch(f"{MODELS}/held", json={"spec": {"reasoning": {"mode": "Auto"}}}, headers=MERGE)
    until(lambda: conditions(kuberay, "held")["Accepted"]["status"] == "True")


def test_a_restart_of_the_operator_scales_nothing(kuberay: Any, operator: Operator, tmp_path: Path) -> None:
    patch = {"spec": {"scaling": {"mode": "Auto"}}}
    kuberay.http.patch(f"{MODELS}/manual", json=patch, headers=MERGE)
    until(lambda: conditions(kuberay, "manual")["ScalingActive"]["reason"] == "Auto")
    assert numbers(kuberay, "manual") == 2
    operator.process.kill()
    operator.process.wait(10)
    again = Operator(kuberay, tmp_path)
    try:
        until(
            lambda: (
                httpx.get(f"http://127.0.0.1:{again.health}/healthz", trust_env=False).status_code == 200
                if again.process.poll() is None and _open(again.health)
                else None
            )
        )
        time.sleep(11)
        assert numbers(kuberay, "manual") == 2
        assert "Traceback" not in again.output.read_text()
    finally:
        again.stop()


def _open(port: int) -> bool:
    import socket

    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def test_wrong_input_is_said_at_once(tmp_path: Path) -> None:
    base = [
        sys.executable,
        "-m",
        "reasonscale.cli.main",
        "operator",
        "--image",
        "i",
        "--code-image",
        "j",
    ]
    for more, words in (
        (["--kubeconfig", str(tmp_path / "none")], "there is no such file"),
        (["--default-mode", "auto"], "there are Auto, Recommend"),
        ([], "this is no pod"),
        (["--prometheus-url", "prometheus:9090"], "it must be http://host:port or https://host:port"),
        (["--prometheus-ca-file", str(tmp_path / "none")], "--prometheus-ca-file was"),
        (["--lease-seconds", "2"], "it must be 5 or more"),
    ):
        env = {k: v for k, v in os.environ.items() if k != "KUBERNETES_SERVICE_HOST"}
        done = subprocess.run([*base, *more], capture_output=True, text=True, timeout=60, env=env, check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert json.dumps("Traceback")[1:-1] not in done.stderr
