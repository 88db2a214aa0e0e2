"""In a pod each answer ends its connection, by the server that Serve's proxy runs in; on one machine connections are kept."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from reasonscale.serving.proxy import middlewares

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the other end's port, in two pieces as a stream does."""
    port = str(scope["client"][1]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": port, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def ports(environ: dict[str, str], count: int) -> list[str]:
    """Return from which ports one client asked, that keeps connections where it may."""
    import uvicorn

    wrapped: Any = app
    for layer in reversed(middlewares(environ)):
        wrapped = layer.cls(wrapped, *layer.args, **layer.kwargs)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(wrapped, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[s]))
        while not server.started:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            found = [(await http.get("/")).text for _ in range(count)]
        server.should_exit = True
        await serving
    return found


@pytest.mark.engine
@pytest.mark.parametrize(("environ", "connections"), [(POD, 3), ({}, 1)])
async def test_a_pod_s_answer_ends_its_connection(environ: dict[str, str], connections: int) -> None:
    found = await ports(environ, 3)
    assert len(set(found)) == connections
