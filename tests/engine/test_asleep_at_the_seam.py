"""Our engine over a played client of vLLM's that sleeps: vLLM has no sleep on a CPU. A GPU's is measured by `python -m bench.gpu asleep`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from reasonscale.serving import events, place
from reasonscale.serving.asleep import ASLEEP, AWAKE, Sleeper
from reasonscale.serving.engine import ReasonEngine
from reasonscale.serving.errors import EngineLost
from reasonscale.serving.inflight import InFlight


class Client:
    errored = False

    def __init__(self) -> None:
        self.asleep, self.fails = False, False

    async def sleep(self, level: int) -> None:
        await asyncio.sleep(0)
        self.asleep = True

    async def wake_up(self) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("CUDA out of memory")
        self.asleep = False


def engine() -> ReasonEngine:
    made = object.__new__(ReasonEngine)
    made.inflight, made.replica = InFlight(), "r"
    made.max_waiting, made.hang_s, made.field_names, made.hidden = 10, 60.0, ("reasoning",), False
    made._engine_client = Client()
    made.sleeper = Sleeper(lambda: made.inflight.any, lambda: place.none_starts(None))
    made.sleeper.engine = made._engine_client
    return made


async def answer(client: Client) -> AsyncIterator[str]:
    assert not client.asleep
    yield 'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    yield "data: [DONE]\n\n"


async def test_a_request_says_that_it_is_here_wakes_the_engine_and_only_then_reaches_it() -> None:
    made = engine()
    assert await made.sleeper.rest(True)
    for now in (0.0, 10_000.0):
        made.check_moving(now)  # one that sleeps makes no step, and hangs not
    pieces = made._watched(answer(made._engine_client), "chatcmpl-", SimpleNamespace(request_id="q", tools=None), None)
    assert (await anext(pieces))[0] == events.ALIVE
    assert made.sleeper.stage == ASLEEP
    rest = [piece[0] async for piece in pieces]
    assert rest[-1] == events.COUNTS
    assert len(rest) == 3
    assert made.sleeper.stage == AWAKE


async def test_where_it_can_not_be_woken_the_request_goes_on_in_another_engine_and_the_replica_goes() -> None:
    made = engine()
    await made.sleeper.rest(True)
    made._engine_client.fails = True
    pieces = made._watched(answer(made._engine_client), "chatcmpl-", SimpleNamespace(request_id="q", tools=None), None)
    with pytest.raises(EngineLost, match="could not be woken"):
        [piece async for piece in pieces]
    with pytest.raises(EngineLost, match="could not be woken"):
        made.check_moving(0.0)
