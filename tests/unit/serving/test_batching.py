"""Pieces of a stream: the first at once, the rest together, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from reasonscale.serving.batching import LONGEST_S, SHORTEST_S, batched, interval_s

AGES = 3600.0


async def _made(pieces: list[int], go: asyncio.Event, closed: list[bool]) -> AsyncGenerator[int, None]:
    try:
        yield pieces[0]
        await go.wait()
        for piece in pieces[1:]:
            yield piece
    finally:
        closed.append(True)


def test_the_first_piece_waits_for_nothing_and_the_end_for_no_interval() -> None:
    async def run() -> list[list[int]]:
        go: asyncio.Event = asyncio.Event()
        out = []
        async for batch in batched(_made([1, 2, 3, 4], go, []), lambda: AGES):
            out.append(batch)
            go.set()
        return out

    assert asyncio.run(asyncio.wait_for(run(), 5)) == [[1], [2, 3, 4]]


def test_what_comes_within_an_interval_comes_together() -> None:
    async def ticking() -> AsyncGenerator[int, None]:
        for i in range(20):
            yield i
            await asyncio.sleep(0.005)

    async def run() -> list[list[int]]:
        return [batch async for batch in batched(ticking(), lambda: 0.03)]

    out = asyncio.run(run())
    assert [i for batch in out for i in batch] == list(range(20))
    assert out[0] == [0]
    assert len(out) < 15


def test_an_error_comes_after_what_came_before_it() -> None:
    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        raise ValueError("the engine died")

    async def run() -> list[int]:
        seen: list[int] = []

        async def read() -> None:
            async for batch in batched(failing(), lambda: AGES):
                seen.extend(batch)

        with pytest.raises(ValueError, match="the engine died"):
            await read()
        return seen

    assert asyncio.run(asyncio.wait_for(run(), 5)) == [1, 2]


def test_an_empty_source_ends_at_once() -> None:
    async def empty() -> AsyncGenerator[int, None]:
        for piece in ():
            yield piece

    async def run() -> list[list[int]]:
        return [batch async for batch in batched(empty(), lambda: AGES)]

    assert asyncio.run(asyncio.wait_for(run(), 5)) == []


def test_left_early_it_closes_its_source() -> None:
    closed: list[bool] = []

    async def run() -> None:
        stream = batched(_made([1, 2], asyncio.Event(), closed), lambda: AGES)
        assert await anext(stream) == [1]
        await stream.aclose()

    asyncio.run(asyncio.wait_for(run(), 5))
    assert closed == [True]


def test_one_stream_is_sent_as_it_comes_and_messages_stay_few_however_many_stream() -> None:
    assert interval_s(0) == interval_s(1) == SHORTEST_S
    for streams in range(1, 1000):
        assert streams / interval_s(streams) <= max(500.0, streams / LONGEST_S) + 1e-6
        assert interval_s(streams) <= LONGEST_S
