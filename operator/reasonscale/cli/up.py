"""`reasonscale up FILE...`: serve models on this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from reasonscale.local.app import LocalApp

STATUS_PORT = 8787
LOG = "reasonscale.log"


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
        Folder for decisions.jsonl, access.jsonl and reasonscale.log.
    status_port
        Port on 127.0.0.1 of /status (for `reasonscale top`) and /metrics.
    plain
        Lines instead of a live table, as when this is no terminal.
    """
    return asyncio.run(_up(files, host, port, ray, log_dir, status_port, plain))


def _where(host: str, port: int, status_port: int, attach: bool, log_dir: Path) -> Iterator[str]:
    """Yield what is wrong with where `up` shall listen and write."""
    from reasonscale.local.ray_node import port_taken

    for name, number, least in (("--port", port, 1), ("--status-port", status_port, 0)):
        if not least <= number <= 65535:
            yield f"{name} was {number}; must lie between {least} and 65535"
            return
    if port == status_port:
        yield f"--port and --status-port were both {port}; they must differ"
    try:
        address = socket.getaddrinfo(host or "-", port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        if not attach:
            with socket.socket() as s:
                s.bind((address, 0))
    except (OSError, UnicodeError):
        yield f"--host was {host!r}; must be an IPv4 address of this machine, or a name that has one"
        return
    # A Ray that runs already may hold the port itself: `start` looks, once it has asked.
    if not attach and port_taken(host, port):
        yield f"port {port} is taken already; choose another with --port"
    if status_port and port_taken("127.0.0.1", status_port):
        yield f"port {status_port} is taken already; choose another with --status-port"
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(log_dir, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
    except OSError as error:
        yield f"--log-dir was {log_dir}; it can't be written to: {error.strerror}"


def _check(files: tuple[Path, ...], err: Console) -> tuple[list[Any] | None, dict[str, Any]]:
    """Return the resolved models, or None after having said what is wrong, and the priors of those that name a profile."""
    from reasonscale.api.load import base_of, load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource, notes
    from reasonscale.profiles.library import chosen_beside

    if not files:
        err.print("up: name at least one file, such as examples/micro-reasoner.yaml")
        return None, {}
    resolved, priors, bad = [], {}, False
    for file in files:
        try:
            for model in load_models(file):
                resolved.append(resolve(model, base_of(file)))
                for note in notes(model):
                    err.print(f"note: {note}")
                profile = chosen_beside(resolved[-1], base_of(file))
                if profile is not None:
                    priors[model.metadata.name] = profile.prior
                    if profile.note:
                        err.print(f"note: {profile.note}")
        except InvalidResource as error:
            bad = True
            for problem in error.problems:
                err.print(f"{file}: {problem}")
    names = [m.served_name for m in resolved]
    for name in {n for n in names if names.count(n) > 1}:
        bad = True
        err.print(f"up: two models are named {name}; names must differ")
    for m in resolved:
        if not m.model_source.startswith("/") and not bad:
            err.print(f"note: {m.served_name} is fetched from {m.model_source} when its engine starts")
    return None if bad else resolved, priors


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Let warnings go to a file: on a terminal they would tear the live view apart."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        handler.close()


async def _up(
    files: tuple[Path, ...], host: str, port: int, ray: str | None, log_dir: Path, status_port: int, plain: bool
) -> int:
    out = Console(highlight=False, soft_wrap=True, markup=False)
    err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    models, priors = _check(files, err)
    wrong = list(_where(host, port, status_port, ray is not None, log_dir)) if files else []
    for problem in wrong:
        err.print(f"up: {problem}")
    if models is None or wrong:
        return 2
    from reasonscale.local.app import LocalApp, ServeError, StartFailed

    app = LocalApp(models, host, port, log_dir, say=out.print, priors=priors)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)

    code = 0
    with _logged(log_dir / LOG):
        listen()
        try:
            starting = asyncio.create_task(app.start(ray))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if starting.done():
                await starting
                listen()  # what was started may have put handlers of its own
                await serve(app, stop, status_port, out, live=out.is_terminal and not plain)
            else:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                code = 130
        except (StartFailed, ServeError, ConnectionError) as error:
            err.print(f"up: {error}")
            code = 1
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            try:
                await app.stop()
            except ServeError as error:
                err.print(f"up: what was deployed could not be taken away again: {error}")
                code = 1
            out.print("stopped")
    return code


async def serve(app: LocalApp, stop: asyncio.Event, status_port: int, out: Console, *, live: bool) -> None:
    """Run the loops and show them until `stop` is set."""
    from prometheus_client import CollectorRegistry
    from rich.live import Live

    from reasonscale.autoscaler import Record
    from reasonscale.autoscaler_metrics import DecisionMetrics
    from reasonscale.local.app import StartFailed
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
                out.print(text)
        if not live and time.monotonic() - told.get(record.model, 0) >= 10:
            told[record.model] = time.monotonic()
            out.print(time.strftime("%H:%M:%S ") + plain_line(model_status(record)))

    for scaler in app.autoscalers.values():
        scaler.listen(metrics)
        scaler.listen(event)
    server = StatusServer(registry, lambda: [model_status(r) for r in app.records.values()])
    try:
        await server.start(status_port)
    except OSError as error:  # taken while the engines started
        raise StartFailed(f"can't listen on port {status_port} for /status: {error.strerror}") from None
    out.print(f"ready: OpenAI API at {app.url}/v1, status and metrics at http://127.0.0.1:{server.port}")
    out.print(f"try:   reasonscale chat --url {app.url} '347+85'")
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
