"""The operator between a real API server and a real Prometheus: it sees, recommends and does not act; blind, it holds and says so."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

import httpx
import pytest
from e2e.cluster.control_plane import free_ports
from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
from tests.kube.test_operator_real import MODELS, Operator, conditions, kuberay, numbers, resource, until  # noqa: F401

from reasonscale.api import constants as c

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.prometheus, pytest.mark.timeout(240)]


def page() -> CollectorRegistry:
    """Return what one replica writes that is full, with 400 requests behind it."""
    registry = CollectorRegistry()
    labels = ["model", "WorkerId"]

    def series(kind: Any, name: str, **more: str) -> Any:
        return kind("ray_" + name.removesuffix("_total"), "x", [*labels, *more], registry=registry).labels(
            "seen", "w", *more.values()
        )

    series(Gauge, c.M_LEDGER_TIME).set_function(time.time)
    series(Gauge, c.M_KV_CAPACITY).set(100_000)
    series(Gauge, c.M_KV_USED).set(99_000)
    series(Gauge, c.M_WAITING, cls="high").set(400)
    series(Gauge, c.M_WAITING_PROMPT, cls="high").set(400_000)
    series(Gauge, c.M_INFLIGHT, cls="high", phase=c.PHASE_REASONING, bin="4096").set(20)
    series(Counter, c.M_ARRIVALS, cls="high").inc(420)
    return registry


def test_a_recommendation_is_made_of_real_signals_and_nothing_is_scaled(kuberay: Any, tmp_path: Path) -> None:  # noqa: F811
    web: WSGIServer = make_server("127.0.0.1", 0, make_wsgi_app(page()))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    port, health, metrics = free_ports(3)
    (tmp_path / "p.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: a, static_configs: [{{targets: ['127.0.0.1:{web.server_port}']}}]}}]\n"
    )
    command = [
        "prometheus",
        f"--config.file={tmp_path}/p.yml",
        f"--storage.tsdb.path={tmp_path}/d",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    prometheus = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    logs = tmp_path / "logs"
    logs.mkdir()
    flags = ("--prometheus-url", f"http://127.0.0.1:{port}", "--prometheus-scrape-interval", "1")
    operator = Operator(kuberay, logs, *flags, ports=[health, metrics])
    try:
        assert kuberay.http.post(MODELS, json=resource("seen", scaling={"maxReplicas": 4})).status_code == 201
        until(lambda: conditions(kuberay, "seen").get("SignalsAvailable", {}).get("status") == "True", 60)
        held = conditions(kuberay, "seen")
        assert (held["ScalingActive"]["status"], held["ScalingActive"]["reason"]) == ("False", "Recommend")
        assert held["Ready"]["status"] == "True"
        text = until(lambda: (t := _page(metrics)) and 'reasonscale_replicas_desired{model="default/seen"} ' in t and t)
        said = float(text.split('reasonscale_replicas_desired{model="default/seen"} ')[1].split()[0])
        assert said > 1, "400 requests wait behind a full cache"
        assert 'reasonscale_operator_watch_age_seconds{kind="RayService"}' in text
        assert numbers(kuberay, "seen") == 1
        assert kuberay.http.get(f"{MODELS}/seen").json()["status"]["demand"]["queuedTokens"] > 0
        made = until(lambda: kuberay.http.get(f"{MODELS}/seen").json()["status"].get("lastDecision"))
        assert made["to"] > made["from"] == 1
        listed = kuberay.plane.kubectl("get", c.SHORT_NAME, "seen", "-o", "wide").stdout
        described = kuberay.plane.kubectl("describe", c.SHORT_NAME, "seen").stdout
        assert "Recommended" in described
        (tmp_path / "kubectl.txt").write_text(listed + described)
        prometheus.terminate()
        prometheus.wait(20)
        blind = until(
            lambda: (x := conditions(kuberay, "seen")["SignalsAvailable"])["reason"] == "PrometheusDown" and x, 60
        )
        assert f"127.0.0.1:{port} did not answer" in blind["message"]
        assert numbers(kuberay, "seen") == 1
        described = kuberay.plane.kubectl("describe", c.SHORT_NAME, "seen").stdout
        assert "SignalsMissing" in described
        assert "queuedTokens" not in kuberay.http.get(f"{MODELS}/seen").json()["status"]["demand"], (
            "unknown is not zero"
        )
    finally:
        operator.stop()
        if prometheus.poll() is None:
            prometheus.terminate()
            prometheus.wait(20)
        web.shutdown()
        kuberay.http.delete(f"{MODELS}/seen")


def _page(port: int) -> str | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.HTTPError:
        return None
