"""Hands requests of an engine that was lost on to others: oldest first, one by one, and never one that kills its engines."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from reasonscale.serving import events
from reasonscale.serving.continuation import Continuation, NotTheSame
from reasonscale.serving.errors import GaveUp, is_loss
from reasonscale.serving.stream import KEEP_ALIVE_S, Batch, error_of, flatten
from reasonscale.serving.turns import Losses

log = logging.getLogger("ray.serve")
PASSED_TOKENS: Final = 4  # an engine that makes so many of a request does not die of its prompt
GATHER_S: Final = 0.05  # those that lost the same engine come within it, and then the oldest goes first
SAME_S, SAME_MOST = 0.5, 60  # a lost replica that is met again is given time to go
ROOM_POLL_S, ROOM_S = 0.25, 30.0  # a resume waits so long for room in a KV cache, then in an engine's own queue
_OFTEN = "engines are lost again and again, so that requests are not handed on; send it again later"


class Hung(Exception):
    """A replica said nothing for too long."""


class Moved(Exception):
    """A replica is about to be stopped, and it is this request's turn to go on in another."""


@dataclass(frozen=True, slots=True)
class Way:
    """What a request's takeover asks of the ingress around it. Times are seconds of its clock."""

    open_stream: Callable[[], Any]  # begin with it in an engine
    placed: Callable[[], tuple[str, float] | None]  # the replica that the router gave it to, and when
    avoid: Callable[[str], None]  # send nothing to that replica
    leaves: Callable[[str], bool] = lambda replica: False  # it will be stopped before long
    room: Callable[[int], bool] = lambda tokens: True  # some replica's KV cache has room for so many tokens
    resumed: Callable[[float], None] = lambda pause_s: None  # it goes on, after such a pause
    moved: Callable[[], None] = lambda: None  # it goes on, and its replica was not lost


class Takeover:
    """One request, in whichever engine it is."""

    def __init__(
        self, kept: Continuation, arrived_s: float, deaths: Losses, way: Way, *, hang_s: float, attempts: int,
        back_s: float = 900.0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`arrived_s`: unix time, by which the oldest goes first. `back_s`: for how long an engine is waited for."""
        self._kept, self._arrived_s, self._deaths, self._way = kept, arrived_s, deaths, way
        self._hang_s, self._attempts, self._back_s = hang_s, attempts, back_s
        self._clock = clock
        self.times = 0  # handed on after a loss
        self.moves = 0  # handed on by a replica that was about to be stopped
        self._last: str | None = None  # the replica that was lost last
        self._same = 0  # times that it was met again
        self._moving: asyncio.Task[None] | None = None  # waits for the turn to leave a replica
        self._batch = Batch()

    async def pieces(self) -> AsyncGenerator[Any, None]:
        """Yield (kind, text) of a stream, or the one object of a whole answer; GaveUp where no engine may go on."""
        turns, lost_s, had, moved = self._deaths.turns, None, 0, False
        try:
            while True:
                try:
                    had = len(self._kept.ids)
                    async with aclosing(self._watched(flatten(self._way.open_stream(), self._batch))) as stream:
                        async for piece in stream:
                            if isinstance(piece, dict):
                                self._check_refusal(piece.get("error"))
                                yield piece
                                continue
                            if piece[0] == events.ERROR and len(self._kept.ids) == had:
                                self._check_refusal({"message": error_of(piece[1])[1]})
                            found = self._kept.take(piece)
                            if lost_s is not None and len(self._kept.ids) > had:
                                self._way.moved() if moved else self._way.resumed(self._clock() - lost_s)
                                lost_s = None
                            if self._moving is None and len(self._kept.ids) >= had + PASSED_TOKENS:
                                turns.give(self)
                            if found is not None:
                                yield found
                            if self._may_move():
                                raise Moved
                    return
                except NotTheSame:
                    raise GaveUp(
                        503, "engine_lost", "the engine was lost, and the next made another prompt of it"
                    ) from None
                except Moved:
                    lost_s, moved = self._clock(), True
                    self.moves += 1
                    self._way.avoid(self._replica() or "")
                    self._moving = None
                except Exception as error:
                    if not (isinstance(error, Hung) or is_loss(error)):
                        raise
                    lost_s, moved = lost_s or self._clock(), False
                    self._lost(error)
                    async for waiting in self._waited():
                        yield waiting
                self._kept.restart()
                self._batch.left = 0
        finally:
            if self._moving is not None:
                self._moving.cancel()
            turns.give(self)

    def more(self) -> bool:
        """Tell whether the next piece is here already."""
        return self._batch.left > 0

    def _replica(self) -> str | None:
        """Return the replica that has it: as that says itself, else as the router has it."""
        placed = self._way.placed()
        return self._kept.holder or (placed[0] if placed else None)

    def _may_move(self) -> bool:
        """Tell whether its replica is about to be stopped and it is its turn to leave; it runs on until then."""
        if self._moving is None:
            replica = self._replica()
            if replica is None or self._kept.binds is not None or not self._way.leaves(replica):
                return False
            self._moving = asyncio.ensure_future(self._deaths.turns.take(self, self._arrived_s))
        return self._moving.done()

    def _check_refusal(self, error: Mapping[str, Any] | None) -> None:
        """GaveUp where an engine that is to go on with a request refuses it, say because its context is shorter."""
        if error is not None and (self.times or self.moves):
            raise GaveUp(503, "engine_lost", f"the engine that took over refused it: {error.get('message')}")

    def _lost(self, error: Exception) -> None:
        """Count a loss; GaveUp where the request is not to be handed on."""
        replica = self._replica()
        self._deaths.note(replica)
        if replica is not None:
            self._way.avoid(replica)
        log.warning(
            "a request's engine was lost after %d tokens (%s, replica %s, the one before %s)",
            len(self._kept.ids), type(error).__name__, replica, self._last,
        )  # fmt: skip
        # One that was lost and still takes requests, for the second until it is gone, dies of none of them.
        if replica is not None and replica == self._last and self._same < SAME_MOST:
            self._same += 1
            return
        self._last = replica
        self.times += 1
        if self.times > 1 and self._deaths.turns.holds(self):
            raise GaveUp(
                500, "engine_crash_suspect", "two engines were lost with this request; it is not tried on a third"
            )
        if not self._kept.resumable:
            raise GaveUp(
                503, "engine_lost", f"the engine was lost; with {self._kept.binds} nobody else can go on: send it again"
            )
        self._check_off()
        if self.times > self._attempts:
            raise GaveUp(503, "engine_lost", f"{self.times} engines were lost under this request; send it again")

    def _check_off(self) -> None:
        if self._deaths.off:
            raise GaveUp(503, "engine_lost", _OFTEN)

    async def _waited(self) -> AsyncGenerator[Any, None]:
        """Wait for one's turn, and for room; yield what keeps the client's connection open meanwhile."""
        await asyncio.sleep(SAME_S if self._same else GATHER_S)
        turn = asyncio.ensure_future(self._turn())
        try:
            while not turn.done():
                await asyncio.wait((turn,), timeout=KEEP_ALIVE_S)
                if not turn.done():
                    yield (events.OTHER, "")
            turn.result()
        finally:
            turn.cancel()
        self._check_off()  # by what another ingress saw meanwhile

    async def _turn(self) -> None:
        """Take one's turn where a KV cache has room for all that was made; the oldest first, each waits ROOM_S at most."""
        until = self._clock() + ROOM_S
        await self._deaths.turns.take(self, self._arrived_s)
        while not self._way.room(len(self._kept.kept)) and self._clock() < until:
            await asyncio.sleep(ROOM_POLL_S)
            await self._deaths.turns.take(self, self._arrived_s)  # it begins again

    async def _watched(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Yield a stream's pieces; Hung where its replica says nothing for too long, from when it was given to one."""
        began_s = self._clock()
        first = asyncio.ensure_future(anext(stream, None))
        try:
            while not first.done():
                await asyncio.wait((first,), timeout=5.0)
                if first.done():
                    break
                placed = self._way.placed()
                here = placed is not None and placed[1] >= began_s
                if here and placed is not None and self._clock() - placed[1] > self._hang_s:
                    raise Hung
                if self.times and not here and self._clock() - began_s > self._back_s:
                    raise GaveUp(503, "engine_lost", f"the engine was lost and no other came in {self._back_s:.0f} s")
                yield (events.ALIVE, {}, [], ())
            piece = first.result()
            while piece is not None:
                yield piece
                if self._batch.left:  # it is here: no clock has to be set for it
                    piece = await anext(stream, None)
                    continue
                try:
                    async with asyncio.timeout(self._hang_s):
                        piece = await anext(stream, None)
                except TimeoutError:
                    raise Hung from None
        finally:
            first.cancel()
            await asyncio.wait((first,))
            await stream.aclose()
