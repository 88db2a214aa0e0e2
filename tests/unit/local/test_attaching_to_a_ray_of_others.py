"""On a Ray of others: Serve's proxy stays where it is, and what may have been deployed is taken away again."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasonscale.local.app import LocalApp, StartFailed
from reasonscale.local.ray_node import RayNode, free_port
from reasonscale.local.serve_api import ServeApi, ServeError

CONFIG = {"applications": [{"name": "a", "deployments": [{"name": "d", "num_replicas": 1}]}]}


class Dashboard:
    """A played dashboard: where Serve listens, and how it answers a PUT."""

    def __init__(self, at: tuple[str, int] | None = None) -> None:
        self.at, self.puts = at, list[dict[str, Any]]()
        self.refuses = self.hangs = False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            options = {"http_options": {"host": self.at[0], "port": self.at[1]}} if self.at else {}
            return httpx.Response(200, json={"applications": {}, **options})
        self.puts.append(json.loads(request.content))
        if self.hangs:
            self.hangs = False
            await asyncio.sleep(30)
        return httpx.Response(400 if self.refuses else 200, text="no")

    def api(self) -> ServeApi:
        return ServeApi("http://ray", None, httpx.MockTransport(self))


def attached(dashboard: Dashboard, port: int) -> tuple[LocalApp, list[str]]:
    said: list[str] = []
    app = LocalApp([], "127.0.0.1", port, Path(), say=said.append)
    app._api = dashboard.api()
    app._node = RayNode("", (), None, owned=False, session_dir="")
    return app, said


async def test_where_serve_listens_already_is_where_the_api_is() -> None:
    app, said = attached(Dashboard(("127.0.0.1", 8123)), 8000)
    await app._take_address()
    assert app.url == "http://127.0.0.1:8123"
    assert "listens at 127.0.0.1:8123 already" in said[0]


async def test_its_own_proxy_does_not_take_the_port() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        app, said = attached(Dashboard(("127.0.0.1", port)), port)
        await app._take_address()
        assert (app.port, said) == (port, [])
        # Without Serve, it is somebody else who listens there.
        app, _ = attached(Dashboard(), port)
        with pytest.raises(StartFailed, match=f"port {port} is taken already"):
            await app._take_address()


async def test_a_free_port_is_kept_where_serve_does_not_run_yet() -> None:
    app, said = attached(Dashboard(), port := free_port())
    await app._take_address()
    assert (app.port, said) == (port, [])


async def test_what_was_cut_off_while_it_was_put_is_taken_away_again() -> None:
    dashboard = Dashboard()
    dashboard.hangs = True
    api = dashboard.api()
    putting = asyncio.create_task(api.put(CONFIG))
    await asyncio.sleep(0.05)
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
    await api.remove_all()
    assert [len(put["applications"]) for put in dashboard.puts] == [1, 0]


async def test_a_number_that_was_refused_is_not_carried_by_the_next_change() -> None:
    dashboard = Dashboard()
    api = dashboard.api()
    await api.put(CONFIG)
    dashboard.refuses = True
    with pytest.raises(ServeError):
        await api.set_replicas("a", "d", 9)
    assert api.config == CONFIG
