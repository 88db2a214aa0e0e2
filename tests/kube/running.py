"""What the tests before a real API server share: paths, a resource, the operator as a process, and looks at what came of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from e2e.cluster.control_plane import free_ports

from reasonscale.api import constants as c

MODELS = f"/apis/{c.GROUP}/{c.VERSION}/namespaces/default/{c.PLURAL}"
SERVICES = "/apis/ray.io/v1/namespaces/default/rayservices"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MERGE = {"Content-Type": "application/merge-patch+json"}


def resource(name: str, **spec: Any) -> dict[str, Any]:
    model = {"uri": "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"}
    return {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": name}, "spec": {"model": model} | spec}


def until(what: Callable[[], Any], within_s: float = 40.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.3)
    return found


class Operator:
    """A running `reasonscale operator`."""

    def __init__(self, cluster: Any, folder: Path, *more: str, ports: list[int] | None = None) -> None:
        self.output = folder / f"operator-{len(list(folder.iterdir()))}.log"
        self.health, self.metrics = ports or free_ports(2)
        given = {"--image": "i:1", "--code-image": "j:1", "--prometheus-url": "http://127.0.0.1:9"}
        rest = [part for flag, value in given.items() if flag not in more for part in (flag, value)]
        command = [
            sys.executable, "-m", "reasonscale.cli.main", "operator", "--kubeconfig", str(cluster.plane.kubeconfig),
            *(() if "--namespace" in more else ("--namespace", "default")), "--health-port", str(self.health), "--metrics-port", str(self.metrics), *rest, *more,
        ]  # fmt: skip
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


def numbers(cluster: Any, name: str) -> int | None:
    answer = cluster.http.get(f"{SERVICES}/{name}")
    if answer.status_code != 200:
        return None
    app = yaml.safe_load(answer.json()["spec"]["serveConfigV2"])["applications"][0]
    return int(app["deployments"][0]["num_replicas"])


def conditions(cluster: Any, name: str) -> dict[str, dict[str, Any]]:
    status = cluster.http.get(f"{MODELS}/{name}").json().get("status") or {}
    return {x["type"]: x for x in status.get("conditions", ())}
