"""Fake nodes by kwok: pods that are placed on them run at once, with nothing behind. Needs root, for one route on loopback.

The pods' addresses are made local to this machine, so that a connection to one reaches what listens here and nothing leaves it.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
from e2e.cluster.control_plane import ControlPlane

CIDR = "10.251.0.0/21"
_STAGES = Path(__file__).with_name("stages.yaml")
_SELECTOR = "kwok.x-k8s.io/node"
_READY_WITHIN_S = 300.0


class FakeNodes:
    """Running fake nodes. `start` them, `stop` them."""

    def __init__(self, plane: ControlPlane, http: httpx.Client, gpus: int = 8) -> None:
        self._plane, self._http, self._gpus = plane, http, gpus
        self._process: subprocess.Popen[bytes] | None = None

    def _route(self, verb: str) -> None:
        subprocess.run(
            ["ip", "route", verb, "local", CIDR, "dev", "lo"], check=verb == "replace", capture_output=verb != "replace"
        )

    def start(self, count: int) -> None:
        """Make so many nodes, and wait until all are Ready."""
        self._route("replace")
        held = {
            "cpu": "256", "memory": "4Ti", "pods": "500", "ephemeral-storage": "4Ti", "nvidia.com/gpu": str(self._gpus),
        }  # fmt: skip
        for n in range(count):
            meta = {
                "name": f"fake-{n}",
                "labels": {"kubernetes.io/hostname": f"fake-{n}"},
                "annotations": {_SELECTOR: "fake"},
            }
            body = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": meta,
                "status": {"capacity": held, "allocatable": held},
            }
            answer = self._http.post("/api/v1/nodes", json=body)
            assert answer.status_code == 201, answer.text
        gateway = str(next(ipaddress.ip_network(CIDR).hosts()))
        with (self._plane.folder / "kwok.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._plane.bin / "kwok"), f"--kubeconfig={self._plane.kubeconfig}", f"--cidr={CIDR}", f"--node-ip={gateway}",
                 f"--manage-nodes-with-annotation-selector={_SELECTOR}=fake", "--node-lease-duration-seconds=40", f"--config={_STAGES}"],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _READY_WITHIN_S
        while self._ready() < count:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(
                    f"the fake nodes are not ready:\n{(self._plane.folder / 'kwok.log').read_text()[-2000:]}"
                )
            time.sleep(0.3)

    def _ready(self) -> int:
        items: list[dict[str, Any]] = json.loads(self._http.get("/api/v1/nodes").text)["items"]
        return sum(
            any(x["type"] == "Ready" and x["status"] == "True" for x in n["status"].get("conditions") or ())
            for n in items
        )

    def stop(self) -> None:
        """Stop kwok, and take the route away."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._route("del")
