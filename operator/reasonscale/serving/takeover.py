"""Hands requests of an engine that was lost on to others: oldest first, one by one, and never one that kills its engines."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from reasonscale.serving import events
from reasonscale.serving.continuation import Continuation, NotTheSame
from reasonscale.serving.errors import GaveUp, is_loss
from reasonscale.serving.stream import KEEP_ALIVE_S, flatten

log = logging.getLogger("ray.serve")
PASSED_TOKENS: Final = 4  # an engine that makes so many of a request does not die of its prompt
TURN_S: Final = 5.0  # the next request is not kept waiting for longer
GATHER_S: Final = 0.05  # those that lost the same engine come within it, and then the oldest goes first
SAME_S, SAME_MOST = 0.5, 60  # a lost replica that is met again is given time to go
MANY_DEATHS, DEATHS_WITHIN_S, OFF_S = 8, 600.0, 600.0
_OFTEN = "engines are lost again and again, so that requests are not handed on; send it again later"


class Turns:
    """Who goes next. `held` by one at a time; the oldest that waits comes first."""

    def __init__(self) -> None:
        self._held: object | None = None
        self._waiting: list[tuple[float, int, asyncio.Future[None], object]] = []
        self._order = itertools.count()

    def holds(self, who: object) -> bool:
        """Tell whether it is somebody's turn."""
        return self._held is who

    async def take(self, who: object, arrived_s: float) -> None:
        """Wait for one's turn; it ends with `give`, or after TURN_S."""
        if self._held is None:
            self._begin(who)
            return
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (arrived_s, next(self._order), there, who))
        try:
            await there
        except asyncio.CancelledError:
            if there.done() and not there.cancelled():
                self.give(who)
            raise

    def give(self, who: object) -> None:
        """End a turn; nothing where it was another's."""
        if self._held is not who:
            return
        self._held = None
        while self._waiting:
            _, _, there, after = heapq.heappop(self._waiting)
            if not there.done():
                self._begin(after)
                there.set_result(None)
                return

    def _begin(self, who: object) -> None:
        self._held = who
        asyncio.get_running_loop().call_later(TURN_S, self.give, who)


class Deaths:
    """Engines of one model that were lost of late, as one ingress saw it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, str]] = deque(maxlen=64)
        self._off_until = 0.0
        self.turns = Turns()

    def note(self, replica: str | None) -> None:
        """Note that a replica was lost; each counts once."""
        now = self._clock()
        if replica is None or any(replica == name for _, name in self._seen):
            return
        self._seen.append((now, replica))
        if sum(1 for when, _ in self._seen if now - when <= DEATHS_WITHIN_S) >= MANY_DEATHS:
            self._off_until = now + OFF_S

    @property
    def off(self) -> bool:
        """Whether so many were lost that requests are not handed on for now."""
        return self._clock() < self._off_until


class Hung(Exception):
    """A replica said nothing for too long."""


class Takeover:
    """One request, in whichever engine it is."""

    def __init__(
        self, kept: Continuation, arrived_s: float, deaths: Deaths, *, hang_s: float, attempts: int,
        open_stream: Callable[[], Any], placed: Callable[[], tuple[str, float] | None], avoid: Callable[[str], None],
        resumed: Callable[[float], None] = lambda pause_s: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._kept, self._arrived_s, self._deaths = kept, arrived_s, deaths
        self._hang_s, self._attempts = hang_s, attempts
        self._open, self._placed, self._avoid, self._resumed = open_stream, placed, avoid, resumed
        self._clock = clock
        self.times = 0  # handed on
        self._last: str | None = None  # the replica that was lost last
        self._same = 0  # times that it was met again

    async def pieces(self) -> AsyncGenerator[Any, None]:
        """Yield (kind, text) of a stream, or the one object of a whole answer; GaveUp where no engine may go on."""
        turns, lost_s = self._deaths.turns, None
        try:
            while True:
                try:
                    had = len(self._kept.ids)
                    async with aclosing(self._watched(flatten(self._open()))) as stream:
                        async for piece in stream:
                            if isinstance(piece, dict):
                                yield piece
                                continue
                            found = self._kept.take(piece)
                            if lost_s is not None and len(self._kept.ids) > had:
                                self._resumed(self._clock() - lost_s)
                                lost_s = None
                            if len(self._kept.ids) >= had + PASSED_TOKENS:
                                turns.give(self)
                            if found is not None:
                                yield found
                    return
                except NotTheSame:
                    raise GaveUp(
                        503, "engine_lost", "the engine was lost, and the next made another prompt of it"
                    ) from None
                except Exception as error:
                    if not (isinstance(error, Hung) or is_loss(error)):
                        raise
                    lost_s = lost_s or self._clock()
                    self._lost(error)
                async for waiting in self._waited():
                    yield waiting
                self._kept.restart()
        finally:
            turns.give(self)

    def _lost(self, error: Exception) -> None:
        """Count a loss; GaveUp where the request is not to be handed on."""
        placed = self._placed()
        replica = placed[0] if placed else None
        self._deaths.note(replica)
        if replica is not None:
            self._avoid(replica)
        # One that was lost and still takes requests, for the second until it is gone, dies of none of them.
        if replica is not None and replica == self._last and self._same < SAME_MOST:
            self._same += 1
            return
        self._last = replica
        log.warning("a request's engine was lost after %d tokens (%s)", len(self._kept.ids), type(error).__name__)
        self.times += 1
        if self._deaths.turns.holds(self):
            raise GaveUp(
                500, "engine_crash_suspect", "two engines were lost with this request; it is not tried on a third"
            )
        if not self._kept.resumable:
            raise GaveUp(
                503, "engine_lost", f"the engine was lost; with {self._kept.binds} nobody else can go on: send it again"
            )
        if self._deaths.off:
            raise GaveUp(503, "engine_lost", _OFTEN)
        if self.times > self._attempts:
            raise GaveUp(503, "engine_lost", f"{self.times} engines were lost under this request; send it again")

    async def _waited(self) -> AsyncGenerator[Any, None]:
        """Wait for one's turn; yield what keeps the client's connection open meanwhile."""
        await asyncio.sleep(SAME_S if self._same else GATHER_S)
        turn = asyncio.ensure_future(self._deaths.turns.take(self, self._arrived_s))
        try:
            while not turn.done():
                await asyncio.wait((turn,), timeout=KEEP_ALIVE_S)
                if not turn.done():
                    yield (events.OTHER, "")
            turn.result()
        finally:
            turn.cancel()

    async def _watched(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Yield a stream's pieces; Hung where its replica says nothing for too long, from when it was given to one."""
        began_s = self._clock()
        first = asyncio.ensure_future(anext(stream, None))
        try:
            while not first.done():
                await asyncio.wait((first,), timeout=5.0)
                if first.done():
                    break
                placed = self._placed()
                if placed is not None and placed[1] >= began_s and self._clock() - placed[1] > self._hang_s:
                    raise Hung
                yield (events.ALIVE, {}, [], ())
            piece = first.result()
            while piece is not None:
                yield piece
                try:
                    async with asyncio.timeout(self._hang_s):
                        piece = await anext(stream, None)
                except TimeoutError:
                    raise Hung from None
        finally:
            first.cancel()
            await asyncio.wait((first,))
            await stream.aclose()
