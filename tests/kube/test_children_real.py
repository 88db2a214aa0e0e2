"""What a resource becomes, before a real API server: KubeRay's own schema, Kubernetes' objects, Pod Security."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.render.children import children
from reasonscale.render.context import Context

pytestmark = [pytest.mark.kube, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PATHS = {
    "Service": "/api/v1/namespaces/models/services",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/models/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/models/networkpolicies",
    "RayService": "/apis/ray.io/v1/namespaces/models/rayservices",
}


def rendered(file: Path) -> list[dict[str, Any]]:
    [model] = load_models(file)
    context = Context(namespace="models", replicas=1, image="i:1", code_image="j:1", cpu=file.stem == "micro-reasoner")
    return children(model, resolve(model), context)


@pytest.fixture(scope="module")
def namespace(cluster: Any) -> Iterator[Any]:
    """Make a namespace that lets in nothing but restricted pods."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = cluster.http.post("/api/v1/namespaces", json={"metadata": {"name": "models", "labels": labels}})
    assert made.status_code == 201, made.text
    account = {"metadata": {"name": "default", "namespace": "models"}}
    cluster.http.post("/api/v1/namespaces/models/serviceaccounts", json=account)
    return cluster


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_kubernetes_takes_the_companions_to_the_letter(namespace: Any, file: Path) -> None:
    for child in rendered(file):
        if child["kind"] in ("PodMonitor", "RayService"):
            continue
        answer = namespace.http.post(
            PATHS[child["kind"]], params={"dryRun": "All", "fieldValidation": "Strict"}, json=child
        )
        assert answer.status_code == 201, (child["kind"], answer.text)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_every_pod_is_let_in_where_only_restricted_ones_are(namespace: Any, file: Path) -> None:
    cluster = rendered(file)[0]["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = json.loads(json.dumps(group["template"]))
        pod = {
            "metadata": template["metadata"] | {"name": "p"},
            "spec": template["spec"] | {"serviceAccountName": "default"},
        }
        answer = namespace.http.post(
            "/api/v1/namespaces/models/pods", params={"dryRun": "All", "fieldValidation": "Strict"}, json=pod
        )
        assert answer.status_code == 201, answer.text


@pytest.mark.kuberay
def test_kuberay_takes_the_rayservices_to_the_letter(namespace: Any) -> None:
    folder = Path(os.environ["REASONSCALE_KUBERAY_CRDS"])
    crd = yaml.safe_load((folder / "ray.io_rayservices.yaml").read_text())
    made = namespace.http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=crd)
    assert made.status_code in (201, 409), made.text
    deadline = time.monotonic() + 60
    while namespace.http.get(PATHS["RayService"]).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for file in EXAMPLES:
        child = rendered(file)[0]
        answer = namespace.http.post(
            PATHS["RayService"], params={"dryRun": "All", "fieldValidation": "Strict"}, json=child
        )
        assert answer.status_code == 201, (file.stem, answer.text)
