"""Tells replicas to sleep and to wake, as the ingress was told. Runs under Ray.

Each ingress tells them, and tells them again until they say that it is so: a call that is lost, or an ingress that comes
later, changes nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from ray.llm._internal.serve.core.protocol import RawRequestInfo

from reasonscale.api import constants as c
from reasonscale.serving.asleep import LIMIT_S
from reasonscale.serving.shared import LOADS

TURN_S: Final = 1.0
TIMEOUT_S: Final = LIMIT_S + 10.0  # the replica says itself that it takes too long
log = logging.getLogger("ray.serve")


class Rests:
    """Brings the replicas of all models to what was said of them. `wait`: whether a model's requests wait too long."""

    def __init__(self, handles: Mapping[str, Any], wait: Callable[[str], bool]) -> None:
        self._handles = {model: handle.options(stream=False) for model, handle in handles.items()}
        self._wait = wait
        self._telling: dict[tuple[str, bool], asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def configure(self) -> None:
        """Look at once at what is said now; called on the loop that serves requests."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        self._turn()

    def rouse(self, model: str) -> bool:
        """Have all of a model's replicas take requests, until something else is said of them; False where none sleeps."""
        loads = LOADS.get(self._handles[model].deployment_name)
        if loads is None or not loads.rouse():
            return False
        self._turn()
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            try:
                self.turn()
            except Exception:  # the next turn may do better
                log.exception("replicas could not be told to sleep or to wake")

    def turn(self) -> None:
        """Wake whoever is waited for, and tell all what is said of them; once in `TURN_S`."""
        for model in self._handles:
            if self._wait(model):
                self.rouse(model)
        self._turn()

    def _turn(self) -> None:
        for handle in self._handles.values():
            loads = LOADS.get(handle.deployment_name)
            for replica, asleep in loads.to_tell() if loads is not None else ():
                key = (replica, asleep)
                if key not in self._telling or self._telling[key].done():
                    # In no request's context: Serve would give the call that request's id, by which its router then
                    # takes the one for the other, and one of them waits for ever.
                    telling = asyncio.create_task(self._tell(handle, replica, asleep), context=contextvars.Context())
                    self._telling[key] = telling
        self._telling = {key: task for key, task in self._telling.items() if not task.done()}

    async def _tell(self, handle: Any, replica: str, asleep: bool) -> None:
        call = handle.rest.remote(asleep, RawRequestInfo(headers={c.HEADER_REPLICA: replica}))
        try:
            await asyncio.wait_for(call, TIMEOUT_S)
        except TimeoutError:
            call.cancel()
        except Exception as error:  # it is lost, or goes: who has requests there will see
            log.warning("replica %s could not be told to %s: %s", replica, "sleep" if asleep else "wake", error)
