"""The cluster that the tests run against, whoever made it: this machine's own, or that of a kubeconfig and images of one's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from e2e.cluster.control_plane import binaries
from e2e.cluster.machine import Machine

from reasonscale.api import constants as c

ROOT = Path(__file__).parents[2]
IMAGE_ENV, ENGINE_ENV, PROMETHEUS_ENV = (
    "REASONSCALE_E2E_IMAGE",
    "REASONSCALE_E2E_ENGINE_IMAGE",
    "REASONSCALE_E2E_PROMETHEUS",
)
_OWN = ("KUBECONFIG", IMAGE_ENV, ENGINE_ENV, PROMETHEUS_ENV)
# What a model is made of, beside the pods' volumes.
_OWNED = "pods,rayservice,raycluster,service,endpointslice,pdb,networkpolicy,secret,serviceaccount,role,rolebinding"
T = TypeVar("T")


def own_cluster() -> bool:
    """Tell whether the environment names a cluster, with the images and the Prometheus that the tests need."""
    return all(os.environ.get(name) for name in _OWN)


def until(look: Callable[[], T | None], within_s: float, what: str, every_s: float = 1.0) -> T:
    """Return what `look` finds once it is something; AssertionError that says what never was."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(every_s)


@dataclass(slots=True)
class Target:
    """A cluster with KubeRay and a Prometheus, and the images of this tree."""

    kubeconfig: Path
    image: str
    engine_image: str
    prometheus: str
    machine: Machine | None = None

    @classmethod
    def of_environment(cls) -> Target:
        """Return the cluster that the environment names."""
        config, image, engine, prometheus = (os.environ[name] for name in _OWN)
        return cls(Path(config), image, engine, prometheus)

    @classmethod
    def of_machine(cls, machine: Machine) -> Target:
        """Return the cluster of this machine, which is up."""
        assert machine.prometheus is not None
        return cls(
            machine.plane.kubeconfig, machine.operator_image, machine.engine_image, machine.prometheus.url, machine
        )

    @property
    def env(self) -> dict[str, str]:
        """Return what the README's commands are given."""
        repository, _, tag = self.image.rpartition(":")
        folder = binaries(("kubectl", "helm"))
        path = f"{folder}:{os.environ['PATH']}" if folder else os.environ["PATH"]
        mine = {"KUBECONFIG": str(self.kubeconfig), "PATH": f"{ROOT / '.venv' / 'bin'}:{path}"}
        return {
            **os.environ,
            **mine,
            "IMAGE": repository,
            "TAG": tag,
            "ENGINE_IMAGE": self.engine_image,
            "PROMETHEUS": self.prometheus,
        }

    def sh(self, command: str, timeout_s: float = 120, check: bool = True) -> str:
        """Run a command line as a user would, in the tree's root; return what it printed."""
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False)  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def kubectl(self, *args: str, check: bool = True, stdin: str | None = None) -> str:
        """Run kubectl."""
        program = shutil.which("kubectl", path=self.env["PATH"])
        done = subprocess.run([str(program), *args], env=self.env, input=stdin, capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        assert not check or done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr[-2000:]}"
        return done.stdout

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any] | None:
        """Return an object; None where there is none."""
        text = self.kubectl("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, selector: str, namespace: str = "default") -> list[dict[str, Any]]:
        """Return the objects with a label."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("-n", namespace, "get", kind, "-l", selector, "-o", "json"))["items"]  # fmt: skip
        return found

    def apply(self, manifest: dict[str, Any]) -> None:
        """Apply an object."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def model(self, name: str) -> dict[str, Any]:
        """Return a ReasoningModel, which is there."""
        found = self.get(c.PLURAL, name)
        assert found is not None, f"no ReasoningModel {name}"
        return found

    def conditions(self, name: str) -> dict[str, dict[str, Any]]:
        """Return a model's conditions by type."""
        return {x["type"]: x for x in (self.model(name).get("status") or {}).get("conditions") or ()}

    def ready(self, name: str) -> bool:
        """Tell whether a model serves."""
        return self.conditions(name).get("Ready", {}).get("status") == "True"

    def replicas(self, name: str) -> dict[str, int]:
        """Return a model's numbers of replicas."""
        found: dict[str, int] = (self.model(name).get("status") or {}).get("replicas") or {}
        return found

    def pods(self, model: str, role: str | None = None) -> list[dict[str, Any]]:
        """Return a model's pods that are not going."""
        selector = f"{c.LABEL_MODEL}={model}" + (f",{c.LABEL_ROLE}={role}" if role else "")
        return [p for p in self.list("pods", selector) if not p["metadata"].get("deletionTimestamp")]

    def left(self, model: str) -> str:
        """Return the names of what there is of a model."""
        names = self.kubectl("get", _OWNED, "-o", "name").split()
        return " ".join(x for x in names if f"/{model}" in x)

    def upgrade(self, values: str) -> None:
        """Give the chart other values, and wait until its operator runs with them."""
        self.sh(f"helm upgrade reasonscale charts/reasonscale -n reasonscale --reuse-values --wait --timeout 2m --set {values}", 150)  # fmt: skip

    def url(self, model: str) -> str:
        """Return the address of a model's Service, which this machine reaches."""
        service = self.get("service", f"{model}-openai")
        assert service is not None
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def query(self, text: str) -> list[dict[str, Any]]:
        """Ask Prometheus."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": text}, trust_env=False, timeout=30)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def kill_operator(self) -> None:
        """Kill the operator's process on its node, at once."""
        assert self.machine is not None
        containerd = self.machine.containerd
        [found] = containerd.ctr(
            "containers", "ls", "-q", "labels.io.kubernetes.container.name==operator"
        ).stdout.split()
        done = containerd.ctr("tasks", "kill", "--signal", "SIGKILL", found)
        assert done.returncode == 0, done.stderr

    def story(self, model: str) -> str:
        """Return what a person would look at when a model does not come."""
        parts = [
            self.kubectl("describe", c.SHORT_NAME, model, check=False),
            self.kubectl("get", "pods,rayservice,raycluster", "-o", "wide", check=False),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-4000:],
            self.kubectl("-n", "reasonscale", "logs", "deploy/reasonscale", "--tail=20", check=False),
        ]
        return "\n".join(parts)
