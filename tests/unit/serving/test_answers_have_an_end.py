"""Where an ingress is lost, Serve sends nothing more; the client is told so, once, and can send again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from reasonscale.serving.proxy import WholeAnswers

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
JSON = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


def body(text: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


def play(*messages: dict[str, Any], leaves: bool = False, kind: str = "http") -> list[dict[str, Any]]:
    """Return what a client is sent where Serve sends these messages and then no more."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if leaves:
            await receive()
        for message in messages:
            await send(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(WholeAnswers(app)({"type": kind}, receive, send))
    return sent


def test_a_whole_answer_passes_as_it_is() -> None:
    whole = [START, body(b"data: 1\n\n", True), body(b"", False)]
    assert play(*whole) == whole


def test_a_cut_stream_ends_with_an_error_and_done() -> None:
    sent = play(START, body(b'data: {"half', True))
    assert sent[-1].get("more_body", False) is False
    text = b"".join(m["body"] for m in sent[1:]).decode()
    parts = text.split("\n\n")
    assert json.loads(parts[1].removeprefix("data: "))["error"]["code"] == "ingress_lost"
    assert parts[2] == "data: [DONE]"


def test_a_request_that_got_nothing_is_answered_503_and_may_come_back() -> None:
    start, end = play()
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")
    assert json.loads(end["body"])["error"]["code"] == "ingress_lost"


@pytest.mark.parametrize("messages", [(JSON, body(b'{"ha', True)), (JSON,)])
def test_a_cut_answer_that_is_no_stream_stays_cut(messages: Any) -> None:
    assert play(*messages) == list(messages)  # no JSON that looks whole can be made of half of one


def test_a_client_that_went_away_is_told_nothing() -> None:
    assert play(START, leaves=True) == [START]


def test_what_is_no_http_passes() -> None:
    assert play(kind="lifespan") == []
