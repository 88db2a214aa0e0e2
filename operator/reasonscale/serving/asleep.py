"""Puts a replica's engine to sleep and wakes it; a request that comes meanwhile wakes it first. Needs no engine to be tried."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from reasonscale.serving.errors import EngineLost

AWAKE, ASLEEP, FALLING, HELD = 0, 1, 2, 3  # the stages, as a replica reports them; HELD: asleep, and can't wake yet
STAY_S: Final = 5.0  # after its last request: one that came on its way is followed by others
LIMIT_S: Final = (
    120.0  # of a fall or a wake; the first fall takes longest, 21 s for the 7B, in which its host memory is pinned
)
HELD_S: Final = 600.0  # by an engine that starts on its GPU: longer than that of any model that fits on one
LOOK_S: Final = 0.1
LEVEL: Final = 1  # vLLM's: weights in host memory, the KV cache dropped


class Engine(Protocol):
    """What vLLM's client has of it."""

    async def sleep(self, level: int) -> Any: ...

    async def wake_up(self) -> Any: ...


class Sleeper:
    """An engine that may sleep. `busy` tells whether it has requests; `none_starts` gives False where an engine starts on its GPU.

    Nobody falls asleep or wakes then: what came free or was taken meanwhile would count as the other's, whose start then
    fails, or leaves it with less KV cache for good. Both ways are gone to their end, whoever waits for it: an engine half asleep is of no use. What fails is an EngineLost,
    for each who waits and in `lost`.
    """

    def __init__(
        self, busy: Callable[[], bool], none_starts: Callable[[], AbstractContextManager[bool]],
        clock: Callable[[], float] = time.monotonic, limit_s: float = LIMIT_S,
    ) -> None:  # fmt: skip
        self.engine: Engine | None = None  # None: it can't sleep
        self.stage = AWAKE
        self.fell_s: float | None = None  # how long the last fall asleep took, and the last wake
        self.woke_s: float | None = None
        self.lost: EngineLost | None = None
        self._busy, self._none_starts, self._clock, self._limit_s = busy, none_starts, clock, limit_s
        self._used_s = float("-inf")
        self._doing: asyncio.Future[None] | None = None

    async def rest(self, asleep: bool) -> bool:
        """Go to sleep where there is nothing to do, or wake; return whether the engine sleeps then."""
        if asleep:
            idle = not self._busy() and self._clock() - self._used_s >= STAY_S
            if self.engine is not None and self.stage == AWAKE and self._doing is None and idle:
                await self._do(self._fall(self.engine))
        else:
            await self._wake()
        return self.stage == ASLEEP

    async def awake(self) -> None:
        """Return once the engine is awake: each request waits for it, after it is counted by `busy`."""
        self._used_s = self._clock()
        await self._wake()

    async def _wake(self) -> None:
        while self.stage != AWAKE:
            assert self.engine is not None
            await (asyncio.shield(self._doing) if self._doing is not None else self._do(self._rise(self.engine)))

    async def _do(self, what: Any) -> None:
        doing = self._doing = asyncio.ensure_future(what)
        doing.add_done_callback(self._done)
        await asyncio.shield(doing)

    def _done(self, doing: asyncio.Future[None]) -> None:
        self._doing = None
        if not doing.cancelled() and isinstance(error := doing.exception(), EngineLost):
            self.lost = error

    async def _fall(self, engine: Engine) -> None:
        with self._none_starts() as none_starts:
            if not none_starts or self._busy():
                return
            self.stage, began = FALLING, self._clock()
            try:
                await asyncio.wait_for(engine.sleep(level=LEVEL), self._limit_s)
            except Exception as error:
                raise EngineLost(f"the engine could not go to sleep: {self._said(error)}") from error
            self.stage, self.fell_s = ASLEEP, self._clock() - began

    async def _rise(self, engine: Engine) -> None:
        since = self._clock()
        while True:
            with self._none_starts() as none_starts:
                if none_starts:
                    began = self._clock()
                    try:
                        await asyncio.wait_for(engine.wake_up(), self._limit_s)
                    except Exception as error:
                        # Most likely its place on the GPU is not free any more.
                        raise EngineLost(f"the engine could not be woken: {self._said(error)}") from error
                    self.stage, self.woke_s = AWAKE, self._clock() - began
                    return
            self.stage = HELD
            if self._clock() - since > HELD_S:
                raise EngineLost(
                    f"the engine could not be woken: another has been starting on its GPU for {HELD_S:g} s"
                )
            await asyncio.sleep(LOOK_S)

    def _said(self, error: Exception) -> str:
        return f"it did not answer within {self._limit_s:g} s" if isinstance(error, TimeoutError) else str(error)
