"""One real API server with our CustomResourceDefinition, for every test of this folder that asks for it."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from e2e.cluster.control_plane import ControlPlane, binaries
from tests.kube.running import CRDS, MODELS, SERVICES, until

from reasonscale.api.crd import crd


@dataclass(slots=True)
class Cluster:
    """A control plane and an admin's client of it."""

    plane: ControlPlane
    http: httpx.Client
    crd: dict[str, Any]  # as the server keeps it

    def refusals(self, resource: dict[str, Any]) -> dict[str, str]:
        """Return what the server says against a new resource, by field; empty where it would take it."""
        answer = self.http.post(MODELS, params={"dryRun": "All", "fieldValidation": "Ignore"}, json=resource)
        if answer.status_code == 201:
            return {}
        assert answer.status_code == 422, answer.text
        causes = answer.json()["details"].get("causes", [])
        return {cause.get("field", ""): cause["message"] for cause in causes}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start etcd and an API server, and give it our CustomResourceDefinition."""
    folder = binaries()
    assert folder is not None
    plane = ControlPlane(folder, Path(tmp_path_factory.mktemp("plane")))
    plane.start()
    try:
        headers = {"Authorization": f"Bearer {plane.token}"}
        context = ssl.create_default_context(cafile=str(plane.ca))
        with httpx.Client(base_url=plane.url, headers=headers, verify=context, trust_env=False, timeout=60) as http:
            made = http.post(CRDS, json=crd())
            assert made.status_code == 201, made.text
            deadline = time.monotonic() + 30
            while True:
                found = http.get(f"{CRDS}/{crd()['metadata']['name']}").json()
                held = {x["type"]: x for x in found.get("status", {}).get("conditions") or ()}  # null at first
                if held.get("Established", {}).get("status") == "True" and http.get(MODELS).status_code == 200:
                    break
                assert time.monotonic() < deadline, held
                time.sleep(0.2)
            yield Cluster(plane, http, found)
    finally:
        plane.stop()


@pytest.fixture(scope="module")
def kuberay(cluster: Cluster) -> Cluster:
    """Give the server KubeRay's definition, if it has it not yet."""
    text = (Path(os.environ["REASONSCALE_KUBERAY_CRDS"]) / "ray.io_rayservices.yaml").read_text()
    assert cluster.http.post(CRDS, json=yaml.safe_load(text)).status_code in (201, 409)
    until(lambda: cluster.http.get(SERVICES).status_code == 200)
    return cluster
