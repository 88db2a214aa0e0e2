"""A kind is looked for once, by one at a time; one that is missing is looked for again a little later."""

from __future__ import annotations

import asyncio

import pytest
from kubernetes.aio.dynamic.exceptions import ResourceNotFoundError

from reasonscale.controller import kube
from reasonscale.controller.kube import KindMissing, Kube


class Resources:
    """A discovery that breaks when two ask at once, as the client's own does."""

    def __init__(self) -> None:
        self.asked, self.busy, self.known = 0, False, {"Pod"}

    async def get(self, api_version: str, kind: str) -> str:
        assert not self.busy, "two at once"
        self.busy = True
        await asyncio.sleep(0)
        self.busy = False
        self.asked += 1
        if kind not in self.known:
            raise ResourceNotFoundError(kind)
        return kind


class Dynamic:
    def __init__(self) -> None:
        self.resources = Resources()


async def test_models_side_by_side_cost_one_discovery_of_each_kind() -> None:
    dynamic = Dynamic()
    api = Kube(None, dynamic)
    assert await asyncio.gather(*(api._resource("v1", "Pod") for _ in range(50))) == ["Pod"] * 50
    found = await asyncio.gather(*(api._resource("v1", "PodMonitor") for _ in range(50)), return_exceptions=True)
    assert all(isinstance(x, KindMissing) for x in found)
    assert dynamic.resources.asked == 2


async def test_a_kind_that_comes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = Dynamic()
    api = Kube(None, dynamic)
    monkeypatch.setattr(kube, "ABSENT_S", 0.0)
    with pytest.raises(KindMissing, match="this cluster has no PodMonitor"):
        await api._resource("v1", "PodMonitor")
    dynamic.resources.known.add("PodMonitor")
    assert await api._resource("v1", "PodMonitor") == "PodMonitor"
