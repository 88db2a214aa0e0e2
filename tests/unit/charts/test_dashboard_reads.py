"""Every query of the dashboard, and every rule behind it, before a real Prometheus that scrapes our own metrics: each returns data."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from reasonscale.api import constants as c
from reasonscale.autoscaler import Record
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.metrics import OperatorMetrics
from reasonscale.scaling.types import Decision, Fleet, Freshness, Numbers, Observation, Policy

CHART = Path(__file__).parents[3] / "charts" / "reasonscale"
DASHBOARD: dict[str, Any] = json.loads((CHART / "dashboards" / "reasonscale.json").read_text())
RULES = yaml.safe_load((CHART / "recording.yaml").read_text())


def queries() -> list[str]:
    found = [t["expr"] for p in DASHBOARD["panels"] for t in p["targets"]]
    found += [a["expr"] for a in DASHBOARD["annotations"]["list"]]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found.append(re.sub(r"label_values\((.*), model\)", r"count by (model) (\1)", variable["query"]))
    return found


def filled(query: str) -> str:
    """Return a query as Grafana sends it, with all models chosen."""
    return query.replace("$model", ".*").replace("$served", ".*").replace("$__rate_interval", "1m")


class Engines:
    """What replicas and ingresses write, by the names and labels that they use, with Ray's prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._made: dict[str, Any] = {}

    def _metric(self, kind: Any, name: str, labels: dict[str, str]) -> Any:
        if name not in self._made:
            self._made[name] = kind(
                "ray_" + name.removesuffix("_total"), name, ["model", "WorkerId", *labels], registry=self._registry
            )
        return self._made[name].labels("m", "w", *labels.values())

    def write(self) -> None:
        self._metric(Gauge, c.M_LEDGER_TIME, {}).set(time.time())
        self._metric(Gauge, c.M_KV_CAPACITY, {}).set(1000)
        self._metric(Gauge, c.M_KV_USED, {}).set(400)
        self._metric(Gauge, c.M_WAITING, {"cls": "high"}).set(2)
        self._metric(Gauge, c.M_GATE_WAITING, {"cls": "high"}).set(4)
        self._metric(Gauge, c.M_PRESSURE, {}).set(1)
        for phase in (c.PHASE_REASONING, c.PHASE_ANSWERING):
            self._metric(Gauge, c.M_INFLIGHT, {"cls": "high", "phase": phase, "bin": "16"}).set(3)
        for name in (c.M_REASONING_TOKENS, c.M_ANSWER_TOKENS, c.M_BUDGET_EXHAUSTED):
            self._metric(Counter, name, {"cls": "high"}).inc(5)
        self._metric(Counter, c.M_REJECTED, {"reason": "full"}).inc()
        for name in (c.M_TTFT, c.M_TTFAT, c.M_TPOT):
            self._metric(Histogram, name, {"cls": "high"}).observe(0.05)


def record(target: int) -> Record:
    seen = Observation(
        time=time.time(), window_s=5.0, freshness=Freshness.FRESH, age_s=1.0, fleet=Fleet(target, target), classes={}, replicas=(),
        held_requests=0.0,
    )  # fmt: skip
    numbers = replace(Numbers(), kv_full_in_s=140.0, horizon_s=118.0, owed_tokens=1e6, queued_tokens=2e5)
    return Record("n/m", seen, Policy(), Decision(time.time(), target, target, True, c.REASON_KV, "x", numbers))


def test_every_record_that_is_read_is_made_and_every_one_made_is_read() -> None:
    made = {r["record"] for g in RULES["groups"] for r in g["rules"]}
    read = set(re.findall(r"reasonscale:[a-z0-9_:]+", " ".join(queries())))
    assert read == made


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(p["title"] and p["fieldConfig"]["defaults"]["unit"] for p in DASHBOARD["panels"])


@pytest.mark.prometheus
def test_every_query_of_the_dashboard_returns_data() -> None:
    registry = CollectorRegistry()
    engines, decisions, own = Engines(registry), DecisionMetrics(registry), OperatorMetrics(registry)
    own.follow(lambda: 1.0, {"Pod": lambda: 2.0})
    web: WSGIServer = make_server("127.0.0.1", 0, make_wsgi_app(registry))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    folder = Path(tempfile.mkdtemp())
    shutil.copy(CHART / "recording.yaml", folder)
    (folder / "p.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [recording.yaml]\n"
        f"scrape_configs: [{{job_name: a, static_configs: [{{targets: ['127.0.0.1:{web.server_port}']}}]}}]\n"
    )
    command = [
        "prometheus",
        f"--config.file={folder}/p.yml",
        f"--storage.tsdb.path={folder}/d",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        empty, deadline, n = queries(), time.monotonic() + 90, 0
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            while empty and time.monotonic() < deadline:
                n += 1
                engines.write()
                decisions(record(1 + n % 3))
                own.tick.observe(0.02)
                time.sleep(0.5)
                try:
                    empty = [q for q in empty if not _data(http, filled(q))]
                except httpx.HTTPError:
                    continue
        assert empty == []
    finally:
        process.terminate()
        process.wait(20)
        web.shutdown()
        shutil.rmtree(folder)


def _data(http: httpx.Client, query: str) -> bool:
    reply = http.post("/api/v1/query", data={"query": query})
    if reply.status_code == 503:
        # It listens before it has opened its store.
        return False
    answer = reply.json()
    assert answer["status"] == "success", (query, answer)
    # A quantile of nothing is NaN: no data for a person.
    return any(row["value"][1] != "NaN" for row in answer["data"]["result"])
