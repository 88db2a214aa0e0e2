"""What restarts what, by a real KubeRay before a real API server: each field is changed, and the Ray clusters are compared."""

from __future__ import annotations

import copy
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.cluster.control_plane import ControlPlane, binaries
from e2e.cluster.kuberay import KubeRay
from tests.kube.running import until
from tests.unit.render.test_what_restarts_what import BASE, CHANGES, changed, service

from reasonscale.api import constants as c
from reasonscale.api.effects import Effect, effect_of
from reasonscale.render.marks import with_surge_mark

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.fleet, pytest.mark.timeout(600)]
SERVICES = "/apis/ray.io/v1/namespaces/n/rayservices"
CLUSTERS = "/apis/ray.io/v1/namespaces/n/rayclusters"
APPLY = {"Content-Type": "application/apply-patch+yaml"}
LAST = "last"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A control plane of its own: KubeRay would see to the other tests' RayServices too."""
    folder = binaries()
    assert folder is not None
    plane = ControlPlane(folder, Path(tmp_path_factory.mktemp("plane")))
    kuberay = KubeRay(plane)
    plane.start()
    try:
        kuberay.install()
        plane.kubectl("create", "namespace", "n")
        plane.kubectl(
            "create", "serviceaccount", "default", "-n", "n"
        )  # else no pod is made, and KubeRay looks ever more seldom
        kuberay.start()
        context = ssl.create_default_context(cafile=str(plane.ca))
        headers = {"Authorization": f"Bearer {plane.token}"}
        with httpx.Client(base_url=plane.url, headers=headers, verify=context, trust_env=False, timeout=60) as client:
            yield client
    finally:
        kuberay.stop()
        plane.stop()


def apply(http: httpx.Client, name: str, manifest: dict[str, Any]) -> None:
    """Apply a RayService with few pods: nothing runs in them, and their numbers are no part of what is compared."""
    given = copy.deepcopy(manifest)
    given["metadata"]["name"] = name
    ingress, engines = given["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    ingress |= dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), 0)
    engines["replicas"] = engines["minReplicas"]
    query = {"fieldManager": c.FIELD_MANAGER, "force": "true"}
    answer = http.patch(f"{SERVICES}/{name}", json=given, headers=APPLY, params=query)
    assert answer.status_code in (200, 201), answer.text


def seen(http: httpx.Client) -> dict[str, tuple[int, str]]:
    """Return the generation of every RayService and the Ray cluster that KubeRay has made of it; none while one is not made."""
    made = {x["metadata"]["name"] for x in http.get(CLUSTERS).json()["items"]}
    out = {}
    for item in http.get(SERVICES).json()["items"]:
        cluster = ((item.get("status") or {}).get("pendingServiceStatus") or {}).get("rayClusterName")
        if cluster not in made:
            return {}
        out[item["metadata"]["name"]] = (item["metadata"]["generation"], cluster)
    return out


def test_kuberay_starts_a_new_cluster_for_the_fields_of_the_table_and_for_no_other(http: httpx.Client) -> None:
    names = {f"f-{n}": path for n, path in enumerate(CHANGES)}
    for name, path in names.items():
        apply(http, name, service(BASE | CHANGES[path][1])[0])
    apply(http, LAST, service(BASE)[0])
    before = until(lambda: seen(http), 240)
    for name, path in names.items():
        value, more = CHANGES[path]
        apply(http, name, service(changed(path, value) | more)[0])
    # KubeRay takes them in their order: when it has seen this Surge, it has seen the others.
    apply(http, LAST, with_surge_mark(service(BASE)[0], "another"))
    until(lambda: (x := seen(http)) and x[LAST][1] != before[LAST][1], 240)
    expected = {path for path in CHANGES if effect_of(path) is Effect.CLUSTER}

    def new() -> set[str]:
        after = seen(http)
        return {path for name, path in names.items() if after and after[name][1] != before[name][1]}

    until(lambda: len(new()) >= len(expected), 120)
    assert new() == expected
    same = {path for name, path in names.items() if seen(http)[name][0] == before[name][0]}
    assert same == {path for path in CHANGES if effect_of(path) is Effect.NOTHING}
