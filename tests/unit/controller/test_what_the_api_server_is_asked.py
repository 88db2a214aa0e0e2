"""What the API server is asked, to the letter: by requests that a mock of it takes, without a cluster."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasonscale.api import constants as c
from reasonscale.controller.kube import KindMissing, Kube, KubeError, NotLeading

KINDS = {
    "v1/pods": "Pod",
    "ray.io/v1/rayservices": "RayService",
    f"{c.GROUP}/{c.VERSION}/{c.PLURAL}": c.KIND,
}
SERVICES, MODELS = "/apis/ray.io/v1/namespaces/n/rayservices", f"/apis/{c.GROUP}/{c.VERSION}/namespaces/n/{c.PLURAL}"
MANIFEST = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "m", "namespace": "n"}, "spec": {}}


@pytest.fixture
async def kube(kmock: Any, tmp_path: Path) -> AsyncIterator[Kube]:
    """A client of a mock that knows the kinds that the operator asks for, but no PodMonitor."""
    for resource, kind in KINDS.items():
        kmock.resources[resource] = {
            "kind": kind, "namespaced": True, "verbs": ["get", "list", "watch", "patch", "delete"],
            "subresources": ["status"] if kind == c.KIND else [],
        }  # fmt: skip
    given = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": str(kmock.url)}}], "users": [{"name": "x", "user": {"token": "t"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(given))
    kube = await Kube.connect(tmp_path / "kubeconfig")
    yield kube
    await kube.close()


def asked(kmock: Any, method: str, path: str) -> Any:
    """Return the one request of a method to a path."""
    [found] = [r for r in kmock if r.method == method and r.url.path == path]
    return found


async def test_a_child_is_applied_by_one_manager_that_takes_its_fields_back(kmock: Any, kube: Kube) -> None:
    kmock.objects["ray.io/v1/rayservices", "n", "m"] = MANIFEST
    kmock[f"patch {SERVICES}/m"] << {**MANIFEST, "metadata": {"name": "m", "resourceVersion": "7"}}
    found = await kube.apply(MANIFEST)
    assert found["metadata"]["resourceVersion"] == "7"
    request = asked(kmock, "PATCH", f"{SERVICES}/m")
    assert request.headers["Content-Type"] == "application/apply-patch+yaml"
    assert dict(request.params) == {"fieldManager": c.FIELD_MANAGER, "force": "true"}
    assert request.data == MANIFEST
    assert kube.writes == 1


async def test_a_status_is_patched_at_its_subresource_and_nulls_take_fields_away(kmock: Any, kube: Kube) -> None:
    kmock[f"patch {MODELS}/m/status"] << {}
    await kube.patch_status("n", "m", {"drain": {"tokensOwed": None}})
    request = asked(kmock, "PATCH", f"{MODELS}/m/status")
    assert request.headers["Content-Type"] == "application/merge-patch+json"
    assert request.data == {"status": {"drain": {"tokensOwed": None}}}


async def test_a_list_asks_for_our_label_in_all_namespaces_or_in_one(kmock: Any, kube: Kube) -> None:
    for path, namespace in (("/api/v1/pods", None), ("/api/v1/namespaces/n/pods", "n")):
        kmock[f"get {path}"] << {"metadata": {"resourceVersion": "1"}, "items": []}
        await kube.list("v1", "Pod", c.LABEL_MODEL, namespace)
        assert dict(asked(kmock, "GET", path).params) == {"labelSelector": c.LABEL_MODEL}


async def test_a_watch_goes_on_from_a_version_asks_for_bookmarks_and_takes_events_in_pieces(
    kmock: Any, kube: Kube
) -> None:
    events = [{"type": kind, "object": {"metadata": {"resourceVersion": n}}} for kind, n in (("ADDED", "8"), ("BOOKMARK", "9"))]  # fmt: skip
    text = b"".join(json.dumps(x).encode() + b"\n" for x in events)
    kmock["get /api/v1/pods"] << (text[:30], text[30:70], text[70:])
    assert [e async for e in kube.watch("v1", "Pod", c.LABEL_MODEL, None, "7", 60)] == events
    assert dict(asked(kmock, "GET", "/api/v1/pods").params) == {
        "labelSelector": c.LABEL_MODEL, "resourceVersion": "7", "watch": "true", "timeoutSeconds": "60", "allowWatchBookmarks": "true",
    }  # fmt: skip


async def test_what_the_server_says_against_a_child_is_kept_to_the_word(kmock: Any, kube: Kube) -> None:
    kmock.objects["ray.io/v1/rayservices", "n", "m"] = MANIFEST
    kmock[f"patch {SERVICES}/m"] << 403 << {"kind": "Status", "message": "rayservices is forbidden: no right"}
    with pytest.raises(KubeError, match="RayService m: rayservices is forbidden: no right"):
        await kube.apply(MANIFEST)
    assert kube.writes == 0


async def test_a_kind_that_the_server_does_not_know_is_said_and_nothing_is_sent(kmock: Any, kube: Kube) -> None:
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "m", "namespace": "n"}}  # fmt: skip
    with pytest.raises(KindMissing, match=r"this cluster has no PodMonitor \(monitoring.coreos.com/v1\)"):
        await kube.apply(monitor)
    assert not [r for r in kmock if r.method == "PATCH"]


async def test_a_recreate_deletes_in_the_background_and_what_is_gone_already_is_no_failure(
    kmock: Any, kube: Kube
) -> None:
    await kube.delete("ray.io/v1", "RayService", "n", "m")  # the mock has none: 404
    assert kube.writes == 0
    kmock.objects["ray.io/v1/rayservices", "n", "m"] = MANIFEST
    await kube.delete("ray.io/v1", "RayService", "n", "m")
    assert kube.writes == 1
    assert [r.data for r in kmock if r.method == "DELETE"] == [{"propagationPolicy": "Background"}] * 2


async def test_who_does_not_lead_sends_no_write_at_all(kmock: Any, kube: Kube) -> None:
    kube.may_act = lambda: False
    for write in (
        lambda: kube.apply(MANIFEST),
        lambda: kube.patch_status("n", "m", {}),
        lambda: kube.delete("ray.io/v1", "RayService", "n", "m"),
        lambda: kube.remove_fields("ray.io/v1", "RayService", "n", "m", {"spec": {"x": None}}),
    ):
        with pytest.raises(NotLeading):
            await write()
    assert not [r for r in kmock if r.method not in ("GET",)]
