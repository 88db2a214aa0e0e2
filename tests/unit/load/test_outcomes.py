"""What a request came to is told by its stream; a failure is counted by its kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.load.client import Outcome, percentile, send, summarize
from reasonscale.load.trace import Planned


def event(**delta: Any) -> str:
    return "data: " + json.dumps({"choices": [{"delta": delta}]}) + "\n\n"


USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":7}}}\n\n'
DONE = "data: [DONE]\n\n"


@asynccontextmanager
async def server(reply: bytes) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    running = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with running:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"


def ok(body: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + body.encode()


async def one(reply: bytes, answer: str | None = "432") -> Outcome:
    async with server(reply) as url:
        [outcome] = await send(url, "m", [Planned(0, "347+85", answer)])
    return outcome


async def test_a_whole_stream_is_checked_and_counted() -> None:
    out = await one(ok(event(reasoning="3+4") + event(content="\n\n432") + USAGE + DONE))
    assert (out.error, out.correct, out.prompt_tokens, out.reasoning_tokens, out.answer_tokens) == (None, True, 5, 7, 2)
    assert out.ttft_s is not None
    assert out.ttfat_s is not None
    assert out.ttft_s <= out.ttfat_s


async def test_a_wrong_answer_is_no_failure() -> None:
    out = await one(ok(event(content="431") + DONE))
    assert (out.error, out.correct) == (None, False)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (ok(event(content="43")), "the stream ended before [DONE]"),
        (ok('data: {"error": {"message": "the engine was lost"}}\n\n' + DONE), "the engine was lost"),
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull", "full"),
        (ok('data: {"error": "lost"}\n\n' + DONE), "AttributeError"),
        (ok("data: 3\n\n" + DONE), "TypeError"),
        (b"", "RemoteProtocolError"),
    ],
)
async def test_a_failure_says_what_it_was(reply: bytes, message: str) -> None:
    out = await one(reply)
    assert out.failed
    assert message in (out.error or "")
    assert out.correct is None


@pytest.mark.parametrize(
    ("reply", "cut"),
    [
        (ok(event(content="43")), True),
        (ok(event(content="43") + 'data: {"error": {"message": "the engine was lost"}}\n\n' + DONE), True),
        (ok(event(content="43")).replace(b"Connection: close", b"Content-Length: 9999"), True),
        (ok(event(content="431") + DONE), False),
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull", False),
        (b"", False),
    ],
)
async def test_a_stream_that_began_and_did_not_come_to_its_end_was_cut_however_that_showed(
    reply: bytes, cut: bool
) -> None:
    assert (await one(reply)).cut is cut


async def test_nobody_there_is_a_failure_and_no_exception() -> None:
    [out] = await send("http://127.0.0.1:9", "m", [Planned(0, "1+1", "2")])
    assert out.error is not None
    assert "ConnectError" in out.error


async def test_requests_are_sent_at_their_times_whatever_earlier_ones_do() -> None:
    never = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()

    running = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"
    outcomes = await send(url, "m", [Planned(i * 0.01, "1+1", "2") for i in range(5)], timeout_s=1.5)
    running.close()
    assert len(outcomes) == 5
    assert all(o.failed and o.late_s < 1.4 for o in outcomes)


def test_a_report_counts_by_kind() -> None:
    good = Outcome(0, "a", 200, ttft_s=0.1, ttfat_s=0.5, e2e_s=1.1, reasoning_tokens=9, answer_tokens=2, correct=True)
    report = summarize([good, Outcome(1, "a", 429, "full"), Outcome(2, "a", 429, "full")])
    assert (report["requests"], report["failed"], report["correct"], report["failures"]) == (3, 2, 1, {"429: full": 2})
    assert report["tpot_ms"] == {"p50": 100.0, "p95": 100.0}


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_among_its_values(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found is not None
    assert min(values) - 1e-6 <= found <= max(values) + 1e-6


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 0.5) is None
