"""Two hundred models on fake nodes: do all converge, and what does a model cost that nobody touches?

Real: the API server with its controllers, KubeRay, Prometheus and the operator. Not real: the nodes (kwok) and what runs in their
pods (`cluster/fake_ray.py`). Needs root, the binaries of REASONSCALE_E2E_BIN, the CRDs of REASONSCALE_KUBERAY_CRDS and `prometheus`.
    python -m e2e.fleet --models 200 --minutes 10 [--out bench/results/fleet.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from e2e.cluster.control_plane import ControlPlane, binaries, free_ports
from e2e.cluster.fake_nodes import FakeNodes

from reasonscale.api import constants as c
from reasonscale.api.crd import crd

SPACES: Final = tuple(f"team-{n}" for n in range(4))
MODELS: Final = f"/apis/{c.GROUP}/{c.VERSION}/{c.PLURAL}"
SERVICES: Final = "/apis/ray.io/v1/rayservices"
MERGE: Final = {"Content-Type": "application/merge-patch+json"}
CLUSTERS: Final = "/apis/ray.io/v1/rayclusters"
METADATA: Final = {
    "Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
}  # without what they hold
CHANGED: Final = 20
START_S: Final = 300.0  # on a machine that others use, each part takes its time


def model(n: int) -> dict[str, Any]:
    """Return one model of the fleet: every second obeys a number, the others decide for themselves."""
    spec: dict[str, Any] = {
        "model": {"uri": "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"},
        "scaling": {"mode": "Manual" if n % 2 else "Auto", "maxReplicas": 4},
    }
    if n % 2:
        spec["replicas"] = 1
    meta = {"name": f"m-{n}", "namespace": SPACES[n % len(SPACES)]}
    return {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": meta, "spec": spec}


def until(what: Callable[[], Any], within_s: float, said: Callable[[], str] = lambda: "") -> float:
    """Wait until something holds, and return the seconds that it took."""
    began, pause = time.monotonic(), 0.5
    while True:
        with suppress(httpx.HTTPError):  # a server that is busy is asked again
            if what():
                return time.monotonic() - began
        if time.monotonic() - began > within_s:
            raise RuntimeError(f"not within {within_s:.0f} s: {said()}")
        time.sleep(pause)
        pause = min(5.0, 1.3 * pause)  # who asks for everything all the time is the load himself


@dataclass(slots=True)
class Watch:
    """Counts the writes to each model, as a watch of the API server tells them."""

    client: httpx.Client
    writes: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        version = self.client.get(MODELS).json()["metadata"]["resourceVersion"]
        threading.Thread(target=self._run, args=(version,), daemon=True).start()

    def _run(self, version: str) -> None:
        given = {"watch": "1", "resourceVersion": version, "timeoutSeconds": "3600"}
        with suppress(httpx.HTTPError), self.client.stream("GET", MODELS, params=given, timeout=None) as answer:
            for line in answer.iter_lines():  # until the API server is stopped
                event = json.loads(line)
                if event["type"] == "MODIFIED":
                    self.writes[event["object"]["metadata"]["name"]] += 1


class Fleet:
    """Everything that runs for the measurement."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        found = binaries()
        assert found is not None, "REASONSCALE_E2E_BIN names no folder with the binaries"
        self._stack, self._folder, self._bin = stack, folder, found
        self.plane = ControlPlane(found, folder / "plane", controllers=True)
        stack.callback(self.plane.stop)
        self.plane.start()
        context = ssl.create_default_context(cafile=str(self.plane.ca))
        self.http = httpx.Client(
            base_url=self.plane.url, headers={"Authorization": f"Bearer {self.plane.token}"}, verify=context, trust_env=False, timeout=60
        )  # fmt: skip
        stack.callback(self.http.close)
        self.metrics_port, self._ledgers_port, self._prometheus_port, health, ray_metrics, ray_probe = free_ports(6)
        self._health, self._ray = health, (ray_metrics, ray_probe)
        self.operator: subprocess.Popen[bytes] | None = None

    def _run(self, name: str, command: list[str], **env: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **env}, start_new_session=True
            )  # fmt: skip
        self._stack.callback(self.end, process)
        return process

    @staticmethod
    def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
        """End a process, the hard way where it does not go within 20 s."""
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Make an object; a server that is busy is asked again."""
        for _ in range(5):
            answer = self.http.post(path, json=body)
            if answer.status_code in (201, 409):
                return
            if answer.status_code not in (429, 500, 503, 504):
                break
            time.sleep(5)
        raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")

    def install(self, nodes: int) -> None:
        """Give the cluster its definitions, namespaces and nodes, and start what works on it."""
        given = [
            crd(),
            *(
                yaml.safe_load(p.read_text())
                for p in sorted(Path(os.environ["REASONSCALE_KUBERAY_CRDS"]).glob("*.yaml"))
            ),
        ]
        for definition in given:
            self.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        for space in SPACES:
            self.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
        until(lambda: all(self.http.get(p).status_code == 200 for p in (MODELS, SERVICES, CLUSTERS)), START_S)
        until(
            lambda: all(
                self.http.get(f"/api/v1/namespaces/{s}/serviceaccounts/default").status_code == 200 for s in SPACES
            ),
            START_S,
        )
        fake = FakeNodes(self.plane, self.http)
        self._stack.callback(fake.stop)
        fake.start(nodes)
        self._run("fake-ray", [sys.executable, "-m", "e2e.cluster.fake_ray", str(self._ledgers_port)])
        until(lambda: "answers" in (self._folder / "fake-ray.log").read_text(), START_S)
        self._run(
            "kuberay",
            [str(self._bin / "kuberay-operator"), "--use-kubernetes-proxy", "--enable-leader-election=false", "--reconcile-concurrency=4",
             f"--metrics-addr=127.0.0.1:{self._ray[0]}", f"--health-probe-bind-address=127.0.0.1:{self._ray[1]}"],
            KUBECONFIG=str(self.plane.kubeconfig),
        )  # fmt: skip
        (self._folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 15s}\n"
            f"scrape_configs: [{{job_name: ledgers, static_configs: [{{targets: ['127.0.0.1:{self._ledgers_port}']}}]}}]\n"
        )
        self._run(
            "prometheus",
            ["prometheus", f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={self._folder}/tsdb",
             f"--web.listen-address=127.0.0.1:{self._prometheus_port}"],
        )  # fmt: skip
        self.operate()

    def operate(self) -> None:
        """Start the operator."""
        self.operator = self._run(
            "operator",
            [sys.executable, "-m", "reasonscale.cli.main", "operator", f"--kubeconfig={self.plane.kubeconfig}", "--image=fake/vllm:1",
             "--code-image=fake/code:1", f"--prometheus-url=http://127.0.0.1:{self._prometheus_port}", "--prometheus-scrape-interval=15",
             f"--health-port={self._health}", f"--metrics-port={self.metrics_port}"],
        )  # fmt: skip

    def make(self, count: int) -> None:
        """Make the models."""
        for n in range(count):
            body = model(n)
            path = f"/apis/{c.GROUP}/{c.VERSION}/namespaces/{body['metadata']['namespace']}/{c.PLURAL}"
            self.post(path, body)

    def unconverged(self) -> dict[str, str]:
        """Return the models that are not as they should be, and why."""
        out = {}
        for item in self.http.get(MODELS).json()["items"]:
            held = {x["type"]: x for x in (item.get("status") or {}).get("conditions") or ()}
            wanted = {
                "Accepted": "True",
                "Ready": "True",
                "SignalsAvailable": "True",
                "Progressing": "False",
                "Degraded": "False",
            }
            wrong = [
                f"{k}: {held.get(k, {}).get('message', 'absent')}"
                for k, v in wanted.items()
                if held.get(k, {}).get("status") != v
            ]
            if wrong:
                out[item["metadata"]["name"]] = "; ".join(wrong)
        return out

    def metric(self, name: str) -> float:
        """Return a number of the operator's own metrics, summed over its labels."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False, timeout=30).text
        return sum(float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith((f"{name} ", f"{name}{{")))

    def clusters(self) -> set[str]:
        """Return the Ray clusters that KubeRay has made: another one is an engine started anew."""
        return {x["metadata"]["uid"] for x in self.http.get(CLUSTERS, headers=METADATA).json()["items"] or ()}

    def versions(self, path: str) -> dict[str, str]:
        """Return what changes when somebody changes the spec of an object, or makes it again."""
        return {
            f"{x['metadata']['namespace']}/{x['metadata']['name']}": f"{x['metadata']['uid']}/{x['metadata']['generation']}"
            for x in self.http.get(path, headers=METADATA).json()["items"] or ()
        }

    def rss_mb(self) -> float:
        """Return the operator's resident memory."""
        assert self.operator is not None
        status = Path(f"/proc/{self.operator.pid}/status").read_text()
        return int(next(x for x in status.splitlines() if x.startswith("VmRSS")).split()[1]) / 1024

    def cpu_s(self) -> float:
        """Return the processor time that the operator has taken."""
        assert self.operator is not None
        fields = Path(f"/proc/{self.operator.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _quiet(fleet: Fleet, count: int, minutes: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure what models cost that nobody touches."""
    watch = Watch(fleet.http)
    watch.begin()
    writes, cpu, ticks, spent = (
        fleet.metric("reasonscale_operator_api_writes"), fleet.cpu_s(),
        fleet.metric("reasonscale_operator_tick_seconds_count"), fleet.metric("reasonscale_operator_tick_seconds_sum"),
    )  # fmt: skip
    before, began = fleet.versions(SERVICES), time.monotonic()
    time.sleep(60 * minutes)
    took = time.monotonic() - began
    each = [watch.writes[f"m-{n}"] for n in range(count)]
    ticked = fleet.metric("reasonscale_operator_tick_seconds_count") - ticks
    out = {
        "seconds": round(took, 1),
        "writes_by_the_operator": int(fleet.metric("reasonscale_operator_api_writes") - writes),
        "writes_to_one_model_most": max(each),
        "writes_per_model_and_10_minutes_mean": round(sum(each) / count / (took / 600), 4),
        "writes_per_model_and_10_minutes_most": round(max(each) / (took / 600), 4),
        "rayservices_changed": sum(fleet.versions(SERVICES).get(k) != v for k, v in before.items()),
        "turns": int(ticked),
        "turn_s_mean": round((fleet.metric("reasonscale_operator_tick_seconds_sum") - spent) / max(1, ticked), 3),
        "operator_cores": round((fleet.cpu_s() - cpu) / took, 3),
        "operator_rss_mb": round(fleet.rss_mb()),
    }
    say(f"untouched for {took:.0f} s: {out}")
    return out


def _changes(fleet: Fleet, count: int) -> dict[str, Any]:
    """Measure how long a change of some models takes, while the others rest."""
    names = [n for n in range(count) if n % 2][:CHANGED]
    before, clusters = fleet.versions(SERVICES), fleet.clusters()
    began, took = time.monotonic(), {}
    for n in names:
        meta = model(n)["metadata"]
        path = f"/apis/{c.GROUP}/{c.VERSION}/namespaces/{meta['namespace']}/{c.PLURAL}/{meta['name']}"
        assert fleet.http.patch(path, json={"spec": {"replicas": 2}}, headers=MERGE).status_code == 200
    wanted = {f"{model(n)['metadata']['namespace']}/m-{n}" for n in names}

    def done() -> bool:
        now = fleet.versions(SERVICES)
        for key in wanted:
            if now[key] != before[key]:
                took.setdefault(key, time.monotonic() - began)
        return len(took) == len(wanted)

    until(done, START_S, lambda: f"{len(took)} of {len(wanted)} changed")
    time.sleep(20)  # KubeRay has seen it by now
    others = sum(v != before[k] for k, v in fleet.versions(SERVICES).items() if k not in wanted)
    each = sorted(took.values())
    return {
        "models": len(names),
        "s_p50": round(each[len(each) // 2], 1),
        "s_most": round(each[-1], 1),
        "others_changed": others,
        "new_clusters": len(fleet.clusters() - clusters),
    }


def _restart(fleet: Fleet) -> dict[str, Any]:
    """Kill the operator, start another, and see what it changes."""
    assert fleet.operator is not None
    before, clusters = fleet.versions(SERVICES), fleet.clusters()
    fleet.end(fleet.operator, signal.SIGKILL)
    fleet.operate()
    began = time.monotonic()

    def ticks() -> bool:
        try:
            return fleet.metric("reasonscale_operator_tick_seconds_count") >= 3
        except httpx.HTTPError:
            return False

    until(ticks, START_S)
    after = fleet.versions(SERVICES)
    return {
        "three_turns_after_s": round(time.monotonic() - began, 1),
        "rayservices_changed": sum(after.get(k) != v for k, v in before.items()),
        "new_clusters": len(fleet.clusters() - clusters),
        "writes": int(fleet.metric("reasonscale_operator_api_writes")),
    }


def measure(count: int, minutes: float, folder: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the whole measurement and return its numbers."""
    with ExitStack() as stack:
        fleet = Fleet(stack, folder)
        fleet.install(nodes=-(-2 * count // 8) + 1)
        fleet.make(count)
        took = until(
            lambda: len(fleet.versions(SERVICES)) == count and not fleet.unconverged(), 120 + 6 * count,
            lambda: json.dumps(dict(list(fleet.unconverged().items())[:3])),
        )  # fmt: skip
        writes = int(fleet.metric("reasonscale_operator_api_writes"))
        say(f"{count} models converged in {took:.0f} s, with {writes} writes by the operator")
        found: dict[str, Any] = {
            "models": count,
            "converged": count,
            "converged_s": round(took, 1),
            "writes_until_then": writes,
        }
        found["pods"] = sum(
            len(fleet.http.get(f"/api/v1/namespaces/{s}/pods", headers=METADATA).json()["items"] or ()) for s in SPACES
        )
        time.sleep(40)  # the last of the load's numbers are written
        found["untouched"] = _quiet(fleet, count, minutes, say)
        found["changed"] = _changes(fleet, count)
        say(f"changed: {found['changed']}")
        found["operator_killed"] = _restart(fleet)
        say(f"operator killed and started again: {found['operator_killed']}")
        assert "Traceback" not in (folder / "operator.log").read_text()
        return found


def main() -> int:
    """Measure, print, and write the result where it is asked for."""
    parser = argparse.ArgumentParser(prog="python -m e2e.fleet", description="Many models on fake nodes.")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long nobody touches them")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # what was started is ended all the same
    folder = Path(tempfile.mkdtemp(prefix="reasonscale-fleet-"))
    try:
        found = measure(given.models, given.minutes, folder, lambda text: print(text, flush=True))
    except (AssertionError, RuntimeError):
        print(f"logs: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    header = {
        "command": f"python -m e2e.fleet --models {given.models} --minutes {given.minutes:g}",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "hardware": f"{platform.machine()}, {os.cpu_count()} cores, with other work beside it",
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps({"header": header, **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
