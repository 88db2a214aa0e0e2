"""/healthz: red when ticks or watches stall, so that the kubelet starts the operator again. /readyz: red while there is nothing to watch."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web


async def serve(host: str, port: int, live: Callable[[], str | None], ready: Callable[[], str | None]) -> web.AppRunner:
    """Answer on a port until the runner is cleaned up. Each function returns what is wrong; None: nothing."""

    def answer(ask: Callable[[], str | None]) -> Callable[[web.Request], object]:
        async def handle(_: web.Request) -> web.Response:
            problem = ask()
            return web.Response(status=200 if problem is None else 503, text=(problem or "ok") + "\n")

        return handle

    app = web.Application()
    app.router.add_get("/healthz", answer(live))  # type: ignore[arg-type]
    app.router.add_get("/readyz", answer(ready))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
