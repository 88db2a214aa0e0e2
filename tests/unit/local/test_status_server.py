"""The status server answers what it is asked, and says so where that is no request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from reasonscale.local.status_server import StatusServer


@pytest.fixture
async def server() -> AsyncIterator[StatusServer]:
    registry = CollectorRegistry()
    Counter("turns", "Turns.", registry=registry).inc()
    found = StatusServer(registry, lambda: [{"model": "m"}])
    await found.start(0)
    yield found
    await found.close()


async def answer(server: StatusServer, head: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + b"\r\n\r\n")
    first, _, rest = (await reader.read()).partition(b"\r\n")
    writer.close()
    return first, rest.partition(b"\r\n\r\n")[2]


async def test_it_has_status_and_metrics(server: StatusServer) -> None:
    first, body = await answer(server, b"GET /status HTTP/1.1")
    assert (first, json.loads(body)) == (b"HTTP/1.1 200 OK", [{"model": "m"}])
    assert b"turns_total 1.0" in (await answer(server, b"GET /metrics HTTP/1.1"))[1]
    assert (await answer(server, b"GET /x HTTP/1.1"))[0] == b"HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("head", [b"GET /\xff HTTP/1.1", b"GET"])
async def test_what_is_no_request_is_answered_400_and_leaves_no_trace(
    server: StatusServer, head: bytes, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (await answer(server, head))[0] == b"HTTP/1.1 400 Bad Request"
    await asyncio.sleep(0.01)
    assert caplog.text == ""
    assert capsys.readouterr().err == ""
