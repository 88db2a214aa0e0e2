"""`reasonscale up FILE...`: serve models on this machine."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from reasonscale.local.app import LocalApp

STATUS_PORT = 8787


def up(
    *files: Path, host: str = "127.0.0.1", port: int = 8000, ray: str | None = None, log_dir: Path = Path("reasonscale-logs"),
    status_port: int = STATUS_PORT, plain: bool = False,
) -> int:  # fmt: skip
    """Serve models on this machine with the OpenAI API, and scale them by their chain of thought. Ctrl-C drains and stops.

    Parameters
    ----------
    files
        YAML files with ReasoningModels; several models share one Ray.
    host
        Address of the OpenAI endpoint.
    port
        Port of the OpenAI endpoint.
    ray
        Attach to a Ray that runs already (host:port) instead of starting one; nothing of it is stopped.
    log_dir
        Folder for decisions.jsonl and access.jsonl.
    status_port
        Port on 127.0.0.1 of /status (for `reasonscale top`) and /metrics.
    plain
        Lines instead of a live table, as when this is no terminal.
    """
    return asyncio.run(_up(files, host, port, ray, log_dir, status_port, plain))


def _check(files: tuple[Path, ...], host: str, ports: list[int], err: Console) -> list[Any] | None:
    """Return the resolved models, or None after having said what is wrong."""
    from reasonscale.api.load import load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource, notes
    from reasonscale.local.ray_node import port_taken

    if not files:
        err.print("up: name at least one file, such as examples/micro-reasoner.yaml")
        return None
    resolved, bad = [], False
    for file in files:
        try:
            for model in load_models(file):
                resolved.append(resolve(model, file.parent))
                for note in notes(model):
                    err.print(f"note: {note}", markup=False)
        except InvalidResource as error:
            bad = True
            for problem in error.problems:
                err.print(f"{file}: {problem}", markup=False)
    names = [m.served_name for m in resolved]
    for name in {n for n in names if names.count(n) > 1}:
        bad = True
        err.print(f"up: two models are named {name}; names must differ")
    for m in resolved:
        if not m.model_source.startswith("/") and not bad:
            err.print(f"note: {m.served_name} is fetched from {m.model_source} when its engine starts")
    for port in ports:
        if port and port_taken(host, port):
            bad = True
            err.print(f"up: port {port} is taken already; choose another with --port or --status-port")
    return None if bad else resolved


async def _up(
    files: tuple[Path, ...], host: str, port: int, ray: str | None, log_dir: Path, status_port: int, plain: bool
) -> int:
    out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    models = _check(files, host, [port, status_port], err)
    if models is None:
        return 2
    from reasonscale.local.app import LocalApp, ServeError, StartFailed

    app = LocalApp(models, host, port, log_dir, say=lambda text: out.print(text, markup=False))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        starting = asyncio.create_task(app.start(ray))
        await asyncio.wait([starting, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return 130
        await starting
        await serve(app, stop, status_port, out, live=out.is_terminal and not plain)
    except (StartFailed, ServeError, ConnectionError) as error:
        err.print(f"up: {error}", markup=False)
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        await app.stop()
        out.print("stopped")
    return 0


async def serve(app: LocalApp, stop: asyncio.Event, status_port: int, out: Console, *, live: bool) -> None:
    """Run the loops and show them until `stop` is set."""
    from prometheus_client import CollectorRegistry
    from rich.live import Live

    from reasonscale.autoscaler import Record
    from reasonscale.autoscaler_metrics import DecisionMetrics
    from reasonscale.local.status import model_status, view
    from reasonscale.local.status import plain as plain_line
    from reasonscale.local.status_server import StatusServer

    registry = CollectorRegistry()
    metrics = DecisionMetrics(registry)
    events: deque[str] = deque(maxlen=6)
    told: dict[str, float] = {}

    def event(record: Record) -> None:
        if record.decision.target != record.decision.current:
            text = f"{time.strftime('%H:%M:%S')} {record.model} {record.decision.reason}: {record.decision.message}"
            events.append(text)
            if not live:
                out.print(text, markup=False)
        if not live and time.monotonic() - told.get(record.model, 0) >= 10:
            told[record.model] = time.monotonic()
            out.print(time.strftime("%H:%M:%S ") + plain_line(model_status(record)), markup=False)

    for scaler in app.autoscalers.values():
        scaler.listen(metrics)
        scaler.listen(event)
    server = StatusServer(registry, lambda: [model_status(r) for r in app.records.values()])
    await server.start(status_port)
    out.print(f"ready: OpenAI API at {app.url}/v1, status and metrics at http://127.0.0.1:{server.port}", markup=False)
    out.print(f"try:   reasonscale chat --url {app.url} '347+85'", markup=False)
    app.run_loops()
    title = f"reasonscale  {app.url}/v1"
    try:
        if not live:
            await stop.wait()
            return
        with Live(console=out, refresh_per_second=2) as screen:
            while not stop.is_set():
                screen.update(view([model_status(r) for r in app.records.values()], title, list(events)))
                try:
                    await asyncio.wait_for(stop.wait(), 0.5)
                except TimeoutError:
                    continue
    finally:
        await server.close()
