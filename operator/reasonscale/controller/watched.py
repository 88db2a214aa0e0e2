"""What others keep in the API server, followed by a list and a watch with a label selector: RayServices and pods.

kopf's watches have no label selector, and a cluster's pods are many. Each watch ends after a minute and begins again, so that
`heard_s` grows old only where the API server can't be reached.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.controller.kube import KindMissing, Kube, KubeError

WATCH_S: Final = 60
RETRY_S: Final = 5.0
_METADATA: Final = ("name", "namespace", "uid", "resourceVersion", "labels", "creationTimestamp", "deletionTimestamp")
_POD_STATUS: Final = ("phase", "podIP", "conditions")
_CONTAINER: Final = ("name", "image", "state", "lastState", "restartCount")
MISSING_RETRY_S: Final = 5.0
_log = logging.getLogger("reasonscale.controller")


class Watched:
    """The objects of a kind that carry a label, as last heard of."""

    def __init__(
        self, kube: Kube, api_version: str, kind: str, selector: str, namespace: str | None = None,
        clock: Callable[[], float] = time.monotonic, part: Callable[[dict[str, Any]], dict[str, Any]] = lambda item: item,
    ) -> None:  # fmt: skip
        """`part`: what is kept of each object."""
        self._part = part
        self._kube, self._api_version, self.kind, self._selector = kube, api_version, kind, selector  # a label
        self._namespace, self._clock = namespace, clock
        self._items: dict[tuple[str, str], dict[str, Any]] = {}
        # By namespace and the label's value: with 200 models, going through all pods for each of them took a tenth of a turn.
        self._by_label: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self.heard_s = clock()
        self.missing: str | None = None  # why there is nothing to watch
        self.ready = asyncio.Event()  # a list has been read since the start

    def get(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return an object; None where there is none."""
        return self._items.get((namespace, name))

    def select(self, namespace: str, value: str) -> list[dict[str, Any]]:
        """Return a namespace's objects whose label has this value."""
        return list(self._by_label.get((namespace, value), {}).values())

    def all(self) -> list[dict[str, Any]]:
        """Return every object."""
        return list(self._items.values())

    def _keep(self, key: tuple[str, str], item: dict[str, Any] | None) -> None:
        """Put an object, or take it away."""
        old = self._items.pop(key, None)
        if old is not None:
            group = (key[0], self._value(old))
            self._by_label[group].pop(key[1])
            if not self._by_label[group]:
                del self._by_label[group]
        if item is not None:
            self._items[key] = item
            self._by_label.setdefault((key[0], self._value(item)), {})[key[1]] = item

    def _value(self, item: dict[str, Any]) -> str:
        return str((item["metadata"].get("labels") or {}).get(self._selector, ""))

    def age_s(self) -> float:
        """Return the seconds since the API server was last heard of this kind; 0 while the kind is missing."""
        return 0.0 if self.missing else self._clock() - self.heard_s

    def _take(self, kind: str, item: dict[str, Any]) -> None:
        meta = item["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        known = self._items.get(key)
        if known and known["metadata"].get("uid") == meta.get("uid") and _version(item) < _version(known):
            return  # older than the answer to our own write
        if kind in ("DELETED", "ADDED", "MODIFIED"):
            self._keep(key, None if kind == "DELETED" else self._part(item))

    def put(self, item: dict[str, Any]) -> None:
        """Take the answer to a write of our own: the watch tells of it a moment later."""
        self._take("MODIFIED", item)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                version: str | None = await self._list()
                while version:
                    version = await self._follow(version)
            except KindMissing as error:
                self.missing = str(error)
                self._items.clear()
                self._by_label.clear()
                self.ready.set()
                await asyncio.sleep(MISSING_RETRY_S)
            except (TimeoutError, KubeError, OSError) as error:
                _log.warning(
                    json.dumps({"event": "watch", "kind": self.kind, "problem": str(error) or type(error).__name__})
                )
                await asyncio.sleep(RETRY_S)

    async def _list(self) -> str:
        found = await self._kube.list(self._api_version, self.kind, self._selector, self._namespace)
        self._items, self._by_label = {}, {}
        for item in found.get("items") or ():
            self._take("ADDED", item)
        self.heard_s, self.missing = self._clock(), None
        self.ready.set()
        return str(found["metadata"]["resourceVersion"])

    async def _follow(self, version: str) -> str | None:
        """Follow one watch to its end; return the version to go on from, None where a new list is needed."""
        async for event in self._kube.watch(
            self._api_version, self.kind, self._selector, self._namespace, version, WATCH_S
        ):
            self.heard_s = self._clock()
            if event["type"] == "ERROR":
                return None
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":  # it has a version and no name
                self._take(event["type"], event["object"])
        self.heard_s = self._clock()
        return version


def of_pod(pod: dict[str, Any]) -> dict[str, Any]:
    """Return what is read of a pod, a tenth of it: whose it is, where, and what becomes of its containers."""
    meta, status = pod["metadata"], pod.get("status") or {}
    kept: dict[str, Any] = {k: status[k] for k in _POD_STATUS if k in status}
    for group in ("initContainerStatuses", "containerStatuses"):
        kept[group] = [{k: x[k] for k in _CONTAINER if k in x} for x in status.get(group) or ()]
    return {
        "metadata": {k: meta[k] for k in _METADATA if k in meta},
        "spec": {k: v for k, v in (pod.get("spec") or {}).items() if k == "nodeName"},
        "status": kept,
    }


def of_service(service: dict[str, Any]) -> dict[str, Any]:
    """Return a RayService with those of its managed fields alone that others than the operator set: what drift is found by."""
    meta = service["metadata"]
    if not meta.get("managedFields"):
        return service
    others = [x for x in meta["managedFields"] if x.get("manager") != c.FIELD_MANAGER and not x.get("subresource")]
    return {**service, "metadata": {**meta, "managedFields": others}}


def _version(item: dict[str, Any]) -> int:
    text = str(item["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0
