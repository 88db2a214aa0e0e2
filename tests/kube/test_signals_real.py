"""The operator between a real API server and a real Prometheus: it sees, recommends and does not act; blind, it holds and says so."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

import httpx
import pytest
from e2e.cluster.control_plane import free_ports
from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
from tests.kube.running import MERGE, MODELS, Operator, conditions, numbers, resource, until

from reasonscale.api import constants as c

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.prometheus, pytest.mark.timeout(240)]


def page(*, draining: bool = False) -> CollectorRegistry:
    """Return what one replica writes that is full, with 400 requests behind it; and what another writes that goes."""
    registry = CollectorRegistry()
    gauges: dict[str, Any] = {}

    def series(kind: Any, name: str, worker: str = "w", **more: str) -> Any:
        if name not in gauges:
            gauges[name] = kind(
                "ray_" + name.removesuffix("_total"), "x", ["model", "WorkerId", *more], registry=registry
            )
        return gauges[name].labels("seen", worker, *more.values())

    for worker in ("w", "x") if draining else ("w",):
        series(Gauge, c.M_LEDGER_TIME, worker).set_function(time.time)
        series(Gauge, c.M_KV_CAPACITY, worker).set(100_000)
        series(Gauge, c.M_KV_USED, worker).set(99_000)
        series(Gauge, c.M_INFLIGHT, worker, cls="high", phase=c.PHASE_REASONING, bin="4096").set(20)
        series(Counter, c.M_ARRIVALS, worker, cls="high").inc(420)
    series(Gauge, c.M_WAITING, cls="high").set(400)
    series(Gauge, c.M_WAITING_PROMPT, cls="high").set(400_000)
    if draining:
        series(Gauge, c.M_DRAINING, "x").set(1)
    return registry


@dataclass(slots=True)
class Seen:
    """A running operator, and the Prometheus that it asks."""

    prometheus: subprocess.Popen[bytes]
    port: int
    metrics: int

    def blind(self) -> None:
        """Stop the Prometheus."""
        self.prometheus.terminate()
        self.prometheus.wait(20)


@contextmanager
def seeing(kuberay: Any, folder: Path, registry: CollectorRegistry) -> Iterator[Seen]:
    """Run an operator and a Prometheus that scrapes a page of ours."""
    web: WSGIServer = make_server("127.0.0.1", 0, make_wsgi_app(registry))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    port, health, metrics = free_ports(3)
    (folder / "p.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: a, static_configs: [{{targets: ['127.0.0.1:{web.server_port}']}}]}}]\n"
    )
    command = [
        "prometheus", f"--config.file={folder}/p.yml", f"--storage.tsdb.path={folder}/d", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    prometheus = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    logs = folder / "logs"
    logs.mkdir()
    flags = ("--prometheus-url", f"http://127.0.0.1:{port}", "--prometheus-scrape-interval", "1")
    operator = Operator(kuberay, logs, *flags, ports=[health, metrics])
    found = Seen(prometheus, port, metrics)
    try:
        yield found
    finally:
        operator.stop()
        if prometheus.poll() is None:
            found.blind()
        web.shutdown()
        kuberay.http.delete(f"{MODELS}/seen")


def test_a_recommendation_is_made_of_real_signals_and_nothing_is_scaled(kuberay: Any, tmp_path: Path) -> None:
    with seeing(kuberay, tmp_path, page()) as seen:
        assert kuberay.http.post(MODELS, json=resource("seen", scaling={"maxReplicas": 4})).status_code == 201
        until(lambda: conditions(kuberay, "seen").get("SignalsAvailable", {}).get("status") == "True", 60)
        held = conditions(kuberay, "seen")
        assert (held["ScalingActive"]["status"], held["ScalingActive"]["reason"]) == ("False", "Recommend")
        assert held["Ready"]["status"] == "True"
        text = until(
            lambda: (t := _page(seen.metrics)) and 'reasonscale_replicas_desired{model="default/seen"} ' in t and t
        )
        said = float(text.split('reasonscale_replicas_desired{model="default/seen"} ')[1].split()[0])
        assert said > 1, "400 requests wait behind a full cache"
        assert 'reasonscale_operator_watch_age_seconds{kind="RayService"}' in text
        assert numbers(kuberay, "seen") == 1
        assert kuberay.http.get(f"{MODELS}/seen").json()["status"]["demand"]["queuedTokens"] > 0
        made = until(lambda: kuberay.http.get(f"{MODELS}/seen").json()["status"].get("lastDecision"))
        assert made["to"] > made["from"] == 1
        listed = kuberay.plane.kubectl("get", c.SHORT_NAME, "seen", "-o", "wide").stdout
        described = until(  # events come after the status that they are of
            lambda: "Recommended" in (t := kuberay.plane.kubectl("describe", c.SHORT_NAME, "seen").stdout) and t
        )
        (tmp_path / "kubectl.txt").write_text(listed + described)
        seen.blind()
        blind = until(
            lambda: (x := conditions(kuberay, "seen")["SignalsAvailable"])["reason"] == "PrometheusDown" and x, 60
        )
        assert f"127.0.0.1:{seen.port} did not answer" in blind["message"]
        assert numbers(kuberay, "seen") == 1
        assert until(lambda: "SignalsMissing" in kuberay.plane.kubectl("describe", c.SHORT_NAME, "seen").stdout)
        assert "queuedTokens" not in kuberay.http.get(f"{MODELS}/seen").json()["status"]["demand"], (
            "unknown is not zero"
        )


def test_describe_says_what_it_does_why_what_it_waits_for_and_what_is_owed(kuberay: Any, tmp_path: Path) -> None:
    pods = "/api/v1/namespaces/default/pods"
    labels = {c.LABEL_MODEL: "seen", c.LABEL_ROLE: "engine"}
    container = {"name": "ray-worker", "image": "i:1"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "seen-engine-x", "labels": labels},
        "spec": {"containers": [container]},
    }
    kuberay.http.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "default"}})
    made = until(lambda: (a := kuberay.http.post(pods, json=pod)).status_code in (201, 409) and a)
    assert made, "the pod that waits"
    unplaced = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
    }
    said = kuberay.http.patch(
        f"{pods}/seen-engine-x/status", json={"status": {"conditions": [unplaced]}}, headers=MERGE
    )
    assert said.status_code == 200, said.text
    try:
        with seeing(kuberay, tmp_path, page(draining=True)):
            assert kuberay.http.post(MODELS, json=resource("seen", scaling={"maxReplicas": 4})).status_code == 201
            until(lambda: kuberay.http.get(f"{MODELS}/seen").json().get("status", {}).get("lastDecision"), 90)
            until(lambda: kuberay.http.get(f"{MODELS}/seen").json()["status"].get("drain", {}).get("tokensOwed"), 60)
            told = " ".join(kuberay.plane.kubectl("describe", c.SHORT_NAME, "seen").stdout.split())
            print(kuberay.plane.kubectl("describe", c.SHORT_NAME, "seen").stdout)
    finally:
        kuberay.http.delete(f"{pods}/seen-engine-x", params={"gracePeriodSeconds": 0})
    for what in (
        "1 of 1 replicas serve", "Draining: 1", "Queued Tokens: ",  # what it does
        "tokens owed, KV full now, a replica takes", "replicas wanted, maxReplicas is 4",  # why
        "engine pods: 1 without a node", "pod seen-engine-x waits for GPUs: 0/4 nodes are available", "free some, add nodes, or lower maxReplicas",
        "Tokens Owed: ", "Expected: ",  # what is owed
    ):  # fmt: skip
        assert what in told, what


def _page(port: int) -> str | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.HTTPError:
        return None
