"""The operator: kopf watches the models, one task ticks for all of them. Level-based; it leaves no finalizer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

import kopf

from reasonscale.api import constants as c
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.kube import Kube
from reasonscale.controller.model_loop import ModelLoop, Settings
from reasonscale.signals.assemble import Sample
from reasonscale.signals.sources import Samples, SignalsMissing

TICK_S: Final = 5.0
STALLED_S: Final = 60.0
_log = logging.getLogger("reasonscale.controller")


class OncePerTick:
    """Samples that all models of a tick share: one query for all of them."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.limit_s = samples.limit_s
        self._found: list[Sample] | SignalsMissing = SignalsMissing("nothing was asked for yet")

    async def renew(self) -> None:
        """Ask once."""
        try:
            self._found = await self._samples.fetch()
        except SignalsMissing as error:
            self._found = error

    async def fetch(self) -> list[Sample]:
        if isinstance(self._found, SignalsMissing):
            raise self._found
        return self._found


class Manager:
    """All models that the operator looks after."""

    def __init__(self, kube: Kube, samples: Samples, settings: Settings, metrics: DecisionMetrics) -> None:
        self._kube, self._settings, self._metrics = kube, settings, metrics
        self._samples = OncePerTick(samples)
        self._loops: dict[str, ModelLoop] = {}
        self.ticked_s = time.monotonic()
        self._told: str | None = None

    def seen(self, kind: str | None, body: dict[str, Any]) -> None:
        """Take an event of the watch: the newest body is all that counts."""
        uid = body["metadata"]["uid"]
        if kind == "DELETED":
            self._loops.pop(uid, None)  # the children go by their owner references
            self._metrics.forget(f"{body['metadata'].get('namespace', 'default')}/{body['metadata']['name']}")
            return
        if uid not in self._loops:
            self._loops[uid] = ModelLoop(self._kube, self._samples, self._settings, self._metrics)
        self._loops[uid].see(body)

    async def tick(self) -> None:
        """Take one turn for every model; what fails for one is logged and the others go on."""
        await self._samples.renew()
        try:
            await self._samples.fetch()
            problem = None
        except SignalsMissing as error:
            problem = str(error)
        if problem != self._told:
            self._told = problem
            _log.warning(json.dumps({"event": "signals", "problem": problem}))
        for uid, loop in list(self._loops.items()):
            try:
                await loop.tick()
            except Exception:
                _log.exception("a turn for the model %s failed", uid)
        self.ticked_s = time.monotonic()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_S)

    def healthy(self) -> bool:
        """Tell whether ticks still happen."""
        return time.monotonic() - self.ticked_s < STALLED_S


def registry_of(manager: Manager, kubeconfig: Path | None) -> kopf.OperatorRegistry:
    """Return kopf's handlers: they hand events on, and hold no logic."""
    registry = kopf.OperatorRegistry()
    tasks: list[asyncio.Task[None]] = []

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> Any:
        if kubeconfig is None:
            return kopf.login_with_service_account(**kwargs)
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.watching.server_timeout = 60
        tasks.append(asyncio.create_task(manager.run()))

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @kopf.on.event(c.GROUP, c.VERSION, c.PLURAL, registry=registry)
    async def event(type: str | None, body: kopf.Body, **_: Any) -> None:
        manager.seen(type, json.loads(json.dumps(dict(body), default=dict)))

    @kopf.on.probe(id="ticks", registry=registry)
    def ticks(**_: Any) -> bool:
        if not manager.healthy():
            raise RuntimeError("no turn was taken for a minute")
        return True

    return registry
