"""The holds of one ingress: one for each model that may sleep, with what Ray knows of its replicas. Runs under Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge, Histogram

from reasonscale.api import constants as c
from reasonscale.serving.hold import Hold, Pass
from reasonscale.serving.settings import HoldLimits, ModelSettings
from reasonscale.serving.shared import READY

_WAKES = [0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800]
_GAUGES = (c.M_HELD, c.M_HELD_BYTES, c.M_INGRESS_REQUESTS, c.M_INGRESS_TIME)
log = logging.getLogger("ray.serve")


class Holds:
    """Lets requests on to models that are awake, and holds those for the ones that sleep."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles
        self._holds: dict[str, Hold] = {}
        self._gauges = {name: Gauge(name, description=name, tag_keys=(c.LABEL_METRIC_MODEL,)) for name in _GAUGES}
        self._wakes = Histogram(
            c.M_WAKE, description=c.M_WAKE, boundaries=_WAKES, tag_keys=(c.LABEL_METRIC_MODEL,)
        )  # fmt: skip
        self._told: asyncio.Task[None] | None = None

    def configure(self, settings: Mapping[str, ModelSettings]) -> None:
        """Take new limits; called on the loop that serves requests."""
        for name, model in settings.items():
            if model.hold is None:
                self._holds.pop(name, None)  # an engine restart came before: it is another application
            elif name in self._holds:
                self._holds[name].limits = model.hold
            else:
                self._holds[name] = self._hold(name, model.hold)
        if self._told is None:
            self._told = asyncio.create_task(self._tell())

    def _hold(self, model: str, limits: HoldLimits) -> Hold:
        handle = self._handles[model]
        signs = handle.options(stream=False)
        return Hold(
            limits,
            replicas=lambda: READY.get(handle.deployment_name),
            wake=lambda: signs.check_health.remote(),
            woken=lambda start_s: self._wakes.observe(start_s, tags={c.LABEL_METRIC_MODEL: model}),
        )

    async def enter(self, model: str, size_bytes: int) -> Pass | None:
        """Return once a request may go on: None at once for a model that never sleeps. NotHeld where it can't be held."""
        hold = self._holds.get(model)
        return await hold.enter(size_bytes) if hold is not None else None

    async def _tell(self) -> None:
        """Write the gauges once a second, changed or not: Ray forgets one that is silent for about 20 s."""
        while True:
            try:
                for model, hold in self._holds.items():
                    now = (hold.held, hold.held_bytes, hold.inside, time.time())
                    for name, value in zip(_GAUGES, now, strict=True):
                        self._gauges[name].set(value, tags={c.LABEL_METRIC_MODEL: model})
            except Exception:
                log.exception("what is held could not be written")
            await asyncio.sleep(1.0)
