"""Hands a stream on to its client: times by what each piece carries, a true end, and an engine that is let go."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from reasonscale.serving import events
from reasonscale.serving.access_log import Entry
from reasonscale.serving.errors import error_body

# A hidden chain sends nothing for minutes, and what lies between closes an idle connection, often after 60 s.
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = ": thinking\n\n"


class Batch:
    """How many pieces of the message that came last are still to be read: those come without waiting."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = 0


async def flatten(stream: Any, batch: Batch | None = None) -> AsyncGenerator[Any, None]:
    """Yield what the server sends piece by piece: it batches several events of a stream into a list.

    Left before its end, the request is cancelled, so that the engine stops making tokens that nobody reads.
    """
    ended = False
    batch = batch or Batch()
    try:
        async for item in stream:
            if isinstance(item, list):
                for n, piece in enumerate(item, 1):
                    batch.left = len(item) - n
                    yield piece
            else:
                yield item
        ended = True
    finally:
        if not ended and hasattr(stream, "cancel"):
            stream.cancel()


def error_of(event: str) -> tuple[int, str]:
    """Return status and message of an engine's error event."""
    try:
        error = json.loads(event.removeprefix("data: "))["error"]
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        return status, str(error.get("message") or "the engine failed")
    except (ValueError, KeyError, TypeError, AttributeError):
        return 500, "the engine failed"


async def relay(
    first: Any,
    rest: AsyncGenerator[Any, None],
    entry: Entry,
    settle: Callable[[int, dict[str, Any]], None],
    failure: Callable[[Exception], tuple[int, str, str]],
    more: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[str, None]:
    """Yield server-sent events, `[DONE]` last and once. `settle(status, counts)` is called when the stream is over.

    Events that came in one message leave in one: `more` tells that the next piece comes without waiting. Each on its way
    alone costs the ingress and the proxy as much as all of them: 256 streams of an H100 stood at a quarter of its tokens.
    A failure after the first event ends the stream with OpenAI's error object, and is settled as what it is: no 200.
    """
    counts: dict[str, Any] = {}
    status = 499  # the client went away, unless the stream comes to its end
    failed: int | None = None
    code = "engine_error"
    sent_s = clock()
    told: list[str] = []
    try:
        item: Any = first
        while item is not None:
            kind, text = item
            if kind == events.COUNTS:
                counts = text
            elif kind == events.ERROR:
                failed, message = error_of(text)
                told.append(_error_event(failed, message if failed < 500 else "the engine failed", entry.id))
            elif text != events.DONE:
                if kind in (events.REASONING, events.ANSWER):
                    entry.first(kind == events.ANSWER, clock())
                if text:
                    told.append(text)
                elif not told and clock() - sent_s >= KEEP_ALIVE_S:
                    told.append(KEEP_ALIVE)
            if told and not more():
                sent_s = clock()
                yield _taken(told)
            item = await anext(rest, None)
        if told:
            yield _taken(told)
        status = failed or 200
        yield events.DONE
    except Exception as error:
        status, message, code = failure(error)
        if told:
            yield _taken(told)
        yield _error_event(status, message, entry.id, code)
        yield events.DONE
    finally:
        await rest.aclose()
        status = failed or status
        if status not in (200, 499):
            entry.error = code
        settle(status, counts)


def _taken(told: list[str]) -> str:
    text = "".join(told)
    told.clear()
    return text


def _error_event(status: int, message: str, rid: str, code: str = "engine_error") -> str:
    body = error_body(status, f"{message} (request {rid})", code=code)
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"
