"""What the kubelet is told: green, or red with the cause."""

from __future__ import annotations

import socket

import httpx

from reasonscale.controller.health import serve


async def test_each_path_says_its_own_problem() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    problems: list[str | None] = [None, "this cluster has no ReasoningModel: install the chart reasonscale-crds"]
    runner = await serve("127.0.0.1", port, lambda: problems[0], lambda: problems[1])
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            assert (await http.get("/healthz")).status_code == 200
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.text) == (503, f"{problems[1]}\n")
            problems[:] = ["no turn was taken for 70 s", None]
            assert (await http.get("/healthz")).status_code == 503
            assert (await http.get("/readyz")).text == "ok\n"
    finally:
        await runner.cleanup()
