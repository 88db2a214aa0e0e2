"""A watch goes through all that an API server sends: events, bookmarks, and the end of its history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from reasonscale.controller.watched import Watched, of_pod


def pod(name: str, version: int, **labels: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": name, "resourceVersion": str(version), "labels": labels}}


class Server:
    """Hands out one list and then one watch's events after another."""

    def __init__(self, *watches: list[tuple[str, dict[str, Any]]]) -> None:
        self.watches, self.asked, self.lists = list(watches), [], 0

    async def list(self, *_: Any) -> dict[str, Any]:
        self.lists += 1
        return {"metadata": {"resourceVersion": "1"}, "items": [pod("first", 1)]}

    async def watch(self, *args: Any) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(args[4])
        for kind, item in self.watches.pop(0) if self.watches else ():
            yield {"type": kind, "object": item}
        if not self.watches:
            await asyncio.sleep(3600)


async def followed(server: Server) -> Watched:
    watched = Watched(server, "v1", "Pod", "l")  # type: ignore[arg-type]
    task = asyncio.create_task(watched.run())
    for _ in range(50):
        await asyncio.sleep(0)
    ended = task.done() and task.exception()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not ended, repr(ended)
    return watched


async def test_a_bookmark_moves_the_version_on_and_names_nothing() -> None:
    bookmark = {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "70"}, "spec": {"containers": None}}
    server = Server([("ADDED", pod("second", 5)), ("BOOKMARK", bookmark)], [("DELETED", pod("first", 71))], [])
    watched = await followed(server)
    assert server.asked[:2] == ["1", "70"]
    assert watched.get("default", "second") is not None
    assert watched.get("default", "first") is None


async def test_of_a_pod_nothing_is_kept_that_nobody_reads() -> None:
    whole = pod("second", 5, l="m") | {
        "spec": {"nodeName": "n", "containers": [{"name": "ray", "env": []}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "qosClass": "Burstable", "containerStatuses": [{"name": "ray", "imageID": "i"}]},
    }  # fmt: skip
    whole["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    watched = Watched(None, "v1", "Pod", "l", part=of_pod)  # type: ignore[arg-type]
    watched.put(whole)
    assert watched.select("default", "m") == [{
        "metadata": {"name": "second", "namespace": "default", "resourceVersion": "5", "labels": {"l": "m"}},
        "spec": {"nodeName": "n"},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "initContainerStatuses": [], "containerStatuses": [{"name": "ray"}]},
    }]  # fmt: skip


@pytest.mark.parametrize("code", [410, 500])
async def test_an_error_event_has_all_listed_anew(code: int) -> None:
    server = Server([("ERROR", {"kind": "Status", "code": code, "metadata": {}})], [])
    watched = await followed(server)
    assert server.lists == 2
    assert watched.get("default", "first") is not None
