"""Sends a stream's pieces in batches: each message between processes costs more than the token that it carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

T = TypeVar("T")
SHORTEST_S, LONGEST_S, EACH_S = 0.02, 0.4, 0.002


def interval_s(streams: int) -> float:
    """Return how long a stream's tokens are gathered where so many streams run at once.

    A message costs the replica, the ingress and the proxy over a millisecond between them, whatever it carries, and one proxy
    passes those of all replicas (`bench.passage`). One stream alone is sent as it comes; 256, each with a token in 20 ms,
    would be 12,800 messages a second, and are 640.
    """
    return min(LONGEST_S, max(SHORTEST_S, EACH_S * streams))


async def batched(
    source: AsyncGenerator[T, None], interval_s: Callable[[], float], beat_s: float | None = None, beat: Callable[[], T | None] = lambda: None
) -> AsyncGenerator[list[T], None]:  # fmt: skip
    """Yield what `source` makes: the first piece at once, then what came meanwhile, at most every `interval_s()`.

    Where nothing comes for `beat_s`, what `beat` makes is sent; nothing runs in between. An error of the source (or of
    the beat) is raised after all that came before it; left early, the source is closed.
    """
    pieces: list[T] = []
    there = asyncio.Event()

    async def read() -> None:
        try:
            async for piece in source:
                pieces.append(piece)
                there.set()
        finally:
            there.set()

    reader = asyncio.create_task(read())
    try:
        while True:
            if beat_s is None:
                await there.wait()
            else:
                try:
                    async with asyncio.timeout(beat_s):
                        await there.wait()
                except TimeoutError:
                    alive = beat()
                    if alive is None:
                        continue
                    pieces.append(alive)
            there.clear()
            ended = reader.done()
            if pieces:
                batch = pieces[:]
                pieces.clear()
                yield batch
            if ended:
                reader.result()
                return
            await asyncio.wait((reader,), timeout=interval_s())
            if reader.done():
                there.set()
    finally:
        reader.cancel()
        await asyncio.wait((reader,))
        await source.aclose()
