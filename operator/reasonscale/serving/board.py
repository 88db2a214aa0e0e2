"""What the ingress replicas of one Ray know together: which engines were lost, and whose turn it is. Runs under Ray.

The board is a named actor that the first ingress makes and owns, and that any other finds by its name; it goes with its
maker, and the next who needs it makes another. Where it can't be asked, an ingress goes by what it saw itself.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Hashable
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.serving.turns import TURN_S, Deaths, Losses

NAME: Final = "reasonscale-board"
NAMESPACE: Final = "reasonscale"
GAUGE_S: Final = 5.0
WAIT_S: Final = 120.0  # for a turn; a board that does not answer for so long is done without
log = logging.getLogger("ray.serve")


class Board:
    """The actor."""

    def __init__(self) -> None:
        self._deaths: dict[str, Deaths] = {}

    def _of(self, model: str) -> Deaths:
        return self._deaths.setdefault(model, Deaths())

    async def note(self, model: str, replica: str | None) -> float:
        """Note a lost replica (None: none); return for how long nothing is handed on."""
        self._of(model).note(replica)
        return self._of(model).off_for_s

    async def take(self, model: str, who: str, arrived_s: float) -> float:
        """Wait for a turn; return for how long nothing is handed on."""
        await self._of(model).turns.take(who, arrived_s)
        return self._of(model).off_for_s

    async def give(self, model: str, who: str) -> None:
        """End a turn, and a wait for one."""
        self._of(model).turns.leave(who)

    async def here(self) -> None:
        """Answer."""


def find() -> Any:
    """Return the board's handle, made where there is none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Nowhere else: on an engine's node it would keep that from ever being given back.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=10_000)(Board)
    return actor.options(name=NAME, namespace=NAMESPACE, get_if_exists=True, scheduling_strategy=here).remote()


class SharedTurns:
    """Turns that all ingress replicas take together; alone where the board can't be asked."""

    def __init__(
        self, model: str, deaths: Deaths, board: Callable[[], Any], forget: Callable[[], None], wait_s: float = WAIT_S
    ) -> None:
        self._model, self._deaths, self._board, self._forget = model, deaths, board, forget
        self._wait_s = wait_s
        self._alone = deaths.turns
        self._mine: dict[Hashable, asyncio.TimerHandle] = {}
        self._here = uuid.uuid4().hex

    def _name(self, who: Hashable) -> str:
        return f"{self._here}.{hash(who)}"

    def holds(self, who: Hashable) -> bool:
        """Tell whether it is somebody's turn."""
        return who in self._mine or self._alone.holds(who)

    async def take(self, who: Hashable, arrived_s: float) -> None:
        """Wait for one's turn; it ends with `give`, or after TURN_S."""
        try:
            async with asyncio.timeout(self._wait_s):
                off_s = await self._board().take.remote(self._model, self._name(who), arrived_s)
        except asyncio.CancelledError:
            self._tell_given(who)
            raise
        except Exception as error:
            log.warning("turns are taken by this ingress alone: %s", type(error).__name__)
            self._forget()
            await self._alone.take(who, arrived_s)
            return
        self._deaths.turn_off(off_s)
        self._drop(who)
        self._mine[who] = asyncio.get_running_loop().call_later(TURN_S, self.give, who)

    def _drop(self, who: Hashable) -> bool:
        timer = self._mine.pop(who, None)
        if timer is not None:
            timer.cancel()
        return timer is not None

    def give(self, who: Hashable) -> None:
        """End a turn; nothing where it was another's."""
        self._alone.give(who)
        if self._drop(who):
            self._tell_given(who)

    def _tell_given(self, who: Hashable) -> None:
        try:
            self._board().give.remote(self._model, self._name(who))
        except Exception:  # the board ends each turn by itself
            log.warning("the board was not told that a turn is over")


class SharedDeaths:
    """Losses of one model that all ingress replicas count together."""

    def __init__(self, model: str, board: Callable[[], Any], forget: Callable[[], None] = lambda: None) -> None:
        self._model, self._board, self._forget, self._seen = model, board, forget, Deaths()
        self.turns = SharedTurns(model, self._seen, board, forget)
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, replica: str | None) -> None:
        """Note that a replica was lost; each counts once."""
        self._seen.note(replica)
        task = asyncio.get_running_loop().create_task(self._tell(replica))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, replica: str | None) -> None:
        try:
            self._seen.turn_off(await self._board().note.remote(self._model, replica))
        except Exception as error:
            log.warning("a loss was counted by this ingress alone: %s", type(error).__name__)
            self._forget()

    @property
    def off(self) -> bool:
        """Whether so many were lost that requests are not handed on for now."""
        return self._seen.off


class LossesOf:
    """The losses of each model, as an ingress keeps them: with the other ingress replicas where there are any."""

    def __init__(self) -> None:
        self._shared = False
        self._alone: dict[str, Deaths] = {}
        self._together: dict[str, SharedDeaths] = {}
        self._found: Any = None
        self._writing: asyncio.Task[None] | None = None

    async def _write(self) -> None:
        """Say of each model whether it is off; Ray forgets a gauge that is silent for 20 s."""
        from ray.util.metrics import Gauge

        off = Gauge(c.M_RESUME_OFF, description=c.M_RESUME_OFF, tag_keys=(c.LABEL_METRIC_MODEL,))
        while True:
            known: dict[str, Losses] = {**self._alone, **self._together}
            for model, losses in known.items():
                off.set(float(losses.off), tags={c.LABEL_METRIC_MODEL: model})
            await asyncio.sleep(GAUGE_S)
            if self._shared:
                await self.look()

    async def look(self) -> None:
        """Look for another board where the one that was found is gone, or could not be placed: before a loss, and not at it."""
        try:
            async with asyncio.timeout(GAUGE_S):
                await self.board().here.remote()
        except Exception:
            self.forget_board()

    def share(self, shared: bool) -> None:
        """Tell whether there are other ingress replicas; the board takes seconds to start, and is there before a loss."""
        self._shared = shared
        if shared and self._found is None:
            try:
                self.board()
            except Exception:  # it is looked for again when it is needed
                log.exception("the board of the ingress replicas could not be made")

    def board(self) -> Any:
        """Return the board; one that died is looked for again at the next loss."""
        if self._found is None:
            self._found = find()
        return self._found

    def forget_board(self) -> None:
        """Look for the board again when it is needed next."""
        self._found = None

    def of(self, model: str) -> Losses:
        """Return a model's losses."""
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())
        if not self._shared:
            return self._alone.setdefault(model, Deaths())
        return self._together.setdefault(model, SharedDeaths(model, self.board, self.forget_board))
