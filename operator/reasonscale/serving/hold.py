"""Holds requests for a model that has no replica, wakes one, and lets them on in the order in which they came.

Pure but for asyncio: how many replicas there are, and what wakes one, is given. Where a replica is there and nobody
waits, a request passes at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Final

from reasonscale.serving.settings import HoldLimits

LOOK_S: Final = 0.1  # while requests are held
AGAIN_S: Final = 1.0  # after a call that should wake a replica has failed
STARTS: Final = 5  # the longest of the last so many is what a start is taken to last
LATE_S: Final = 5  # told where a start lasts longer than it ever did
_ENDS: Final = 32  # turns that their rate is taken over
log = logging.getLogger("ray.serve")


class NotHeld(Exception):
    """A request that is not, or no longer, held: 503, and when to come back."""

    def __init__(self, code: str, message: str, retry_after_s: int) -> None:
        super().__init__(f"{message}; come back in {retry_after_s} s")
        self.code, self.retry_after_s = code, retry_after_s


class Pass:
    """One request's leave to go on. `begun` and `over` may be called more than once; `over` always has to be."""

    __slots__ = ("_hold", "held_s", "may_go", "size_bytes", "turn")

    def __init__(self, hold: Hold, size_bytes: int) -> None:
        self._hold, self.size_bytes = hold, size_bytes
        self.may_go: asyncio.Future[None] | None = None  # while it is held
        self.turn = False  # let on, and not begun by an engine yet
        self.held_s = 0.0

    def begun(self) -> None:
        """Note that an engine has begun it: the next may go on."""
        if self.turn:
            self.turn = False
            self._hold._ended_turn()

    def over(self) -> None:
        """Note that it has ended, however it did."""
        self.begun()
        self._hold._leave(self)


class Hold:
    """The requests of one model at one ingress. `replicas` says how many take requests now; None: not known yet."""

    def __init__(
        self, limits: HoldLimits, replicas: Callable[[], int | None], wake: Callable[[], Awaitable[object]],
        woken: Callable[[float], None] = lambda start_s: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.limits = limits
        self._replicas, self._wake, self._woken, self._clock = replicas, wake, woken, clock
        self._held: dict[Pass, None] = {}  # in the order in which they came
        self._inside: set[Pass] = set()
        self.held_bytes = 0
        self._turns = 0  # let on, and not begun yet
        self._ends_s: deque[float] = deque(maxlen=_ENDS)
        self._asleep_since: float | None = None  # when the first of those that are held came
        self._starts_s: deque[float] = deque(maxlen=STARTS)
        self._moved = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """Return how many wait here."""
        return len(self._held)

    @property
    def inside(self) -> int:
        """Return how many there are in all, from their first byte to their last."""
        return len(self._inside)

    async def enter(self, size_bytes: int) -> Pass:
        """Return once the request may go on; NotHeld where there is no room for it, or no replica came in time."""
        mine = Pass(self, size_bytes)
        if not self._held and self._replicas():
            self._inside.add(mine)
            return mine
        limits = self.limits
        if self.held >= limits.requests or self.held_bytes + size_bytes > limits.size_bytes:
            raise NotHeld(
                "hold_full", f"{self.held} requests are held already until a replica is ready", self._back_s()
            )
        came_s = self._clock()
        mine.may_go = asyncio.get_running_loop().create_future()
        self._held[mine] = None
        self._inside.add(mine)
        self.held_bytes += size_bytes
        if self._pump is None or self._pump.done():
            # Neither in this request's context, nor what it does: Serve would give its calls this request's id.
            self._pump = asyncio.create_task(self._let_on(), context=contextvars.Context())
        try:
            async with asyncio.timeout(limits.wait_s):
                await mine.may_go
        except TimeoutError:
            mine.over()
            raise NotHeld("hold_timeout", f"no replica took it within {limits.wait_s:g} s", self._back_s()) from None
        except asyncio.CancelledError:
            mine.over()
            raise
        mine.held_s = self._clock() - came_s
        return mine

    def _leave(self, mine: Pass) -> None:
        self._inside.discard(mine)
        self._unhold(mine)

    def _unhold(self, mine: Pass) -> None:
        if mine in self._held:
            del self._held[mine]
            self.held_bytes -= mine.size_bytes

    def _ended_turn(self) -> None:
        self._turns -= 1
        self._ends_s.append(self._clock())
        self._moved.set()

    async def _let_on(self) -> None:
        """Wake a replica, and then let on as many as its batch has seats for and have not begun: the rest keeps its order here."""
        while self._held:
            try:
                self._turn()
            except Exception:  # the next look may do better; a hold that stands still would hold everyone
                log.exception("what is held could not be let on")
            self._moved.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._moved.wait()
            except TimeoutError:
                continue
        self._asleep_since = None  # nobody waits any longer: what is slept from now on is no start

    def _turn(self) -> None:
        replicas = self._replicas()
        if replicas:
            self._note_start()
            while self._held and self._turns < replicas * self.limits.seats:
                first = next(iter(self._held))
                self._unhold(first)
                assert first.may_go is not None
                if not first.may_go.done():
                    first.turn, self._turns = True, self._turns + 1
                    first.may_go.set_result(None)
        else:
            if replicas is not None and self._asleep_since is None:
                self._asleep_since = self._clock()
            if self._waking is None or self._waking.done():
                self._waking = asyncio.create_task(self._call())

    def _note_start(self) -> None:
        if self._asleep_since is not None:
            start_s = self._clock() - self._asleep_since
            self._asleep_since = None
            self._starts_s.append(start_s)
            self._woken(start_s)

    async def _call(self) -> None:
        """Ask any replica for a sign of life: the call waits for one, and Serve starts one because it waits."""
        try:
            await self._wake()
        except Exception as error:
            log.warning("a replica that should have woken did not answer: %s", error)
            await asyncio.sleep(AGAIN_S)

    def _back_s(self) -> int:
        """Return when to come back: when the replica should be ready, or when half of what is held should have begun."""
        now = self._clock()
        if self._asleep_since is None:
            if len(self._ends_s) < 2 or now <= self._ends_s[0]:
                return LATE_S
            rate = len(self._ends_s) / (now - self._ends_s[0])
            return max(1, min(60, ceil(self.held / 2 / rate)))
        start_s = max(self._starts_s) if self._starts_s else self.limits.start_s
        left = start_s - (now - self._asleep_since)
        return max(1, ceil(left)) if left > 0.0 else LATE_S
