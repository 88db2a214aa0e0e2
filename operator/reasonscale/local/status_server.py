"""A small HTTP server of our own process: `/status` for `top`, `/metrics` for Prometheus. On loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class StatusServer:
    """Answers GET requests, one a connection."""

    def __init__(self, registry: CollectorRegistry, status: Callable[[], Any]) -> None:
        self._registry, self._status = registry, status
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, port: int) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            try:
                path = head.split(b" ", 2)[1].decode()
            except (IndexError, UnicodeDecodeError):
                path = None
            if path is None:
                code, kind, body = "400 Bad Request", "text/plain", b"that is no request line\n"
            elif path == "/metrics":
                code, kind, body = "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry)
            elif path == "/status":
                code, kind, body = "200 OK", "application/json", json.dumps(self._status()).encode()
            else:
                code, kind, body = "404 Not Found", "text/plain", b"there are /status and /metrics\n"
            writer.write(
                f"HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # not a request of ours
        finally:
            writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
