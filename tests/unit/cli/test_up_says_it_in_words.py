"""`reasonscale up` around what it starts: what it refuses, how signals end it, where warnings go. The application is played."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasonscale.cli.main import run
from reasonscale.local import app as module
from reasonscale.local.app import ServeError
from reasonscale.local.ray_node import free_port

EXAMPLE = Path(__file__).parents[3] / "examples" / "micro-reasoner.yaml"


def output(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.err + captured.out).split())


class App:
    """A played LocalApp: starts at once, and then does what a test wants."""

    on_start: Callable[[], None] = staticmethod(lambda: None)
    on_loops: Callable[[], None] = staticmethod(lambda: None)
    on_stop: Callable[[], None] = staticmethod(lambda: None)
    start_s = 0.0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.autoscalers: dict[str, Any] = {}
        self.records: dict[str, Any] = {}
        self.url = "http://127.0.0.1:1"

    async def start(self, ray: str | None) -> None:
        type(self).on_start()
        await asyncio.sleep(self.start_s)

    def run_loops(self) -> None:
        type(self).on_loops()

    async def stop(self) -> None:
        type(self).on_stop()


def sent(number: int) -> None:
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)


def up(monkeypatch: pytest.MonkeyPatch, logs: Path, *more: str, **played: Any) -> int:
    monkeypatch.setattr(
        module,
        "LocalApp",
        type("Played", (App,), {k: staticmethod(v) if callable(v) else v for k, v in played.items()}),
    )
    options = {"--port": str(free_port()), "--status-port": "0", "--log-dir": str(logs)}
    options |= dict(zip(more[::2], more[1::2], strict=True))
    return run(["up", str(EXAMPLE), *(text for pair in options.items() for text in pair)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "70000"], "--port was 70000; must lie between 1 and 65535"),
        (["--port", "0"], "--port was 0; must lie between 1 and 65535"),
        (["--status-port", "-1"], "--status-port was -1; must lie between 0 and 65535"),
        (["--port", "9001", "--status-port", "9001"], "they must differ"),
        (["--host", "nosuch.invalid"], "--host was 'nosuch.invalid'; must be an IPv4 address of this machine"),
        (["--host", "::1"], "--host was '::1'; must be an IPv4 address"),
        (["--host", ""], "--host was ''; must be an IPv4 address"),
        (["--host", "192.0.2.1"], "--host was '192.0.2.1'; must be an IPv4 address of this machine"),
        (["--log-dir", str(EXAMPLE)], f"--log-dir was {EXAMPLE}; it can't be written to: File exists"),
    ],
)
def test_where_it_can_not_listen_or_write_is_wrong_input(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(monkeypatch, tmp_path, *argv) == 2
    assert message in output(capsys)


def test_the_status_port_is_looked_for_on_loopback_whatever_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = s.getsockname()[1]
        assert up(monkeypatch, tmp_path, "--host", "127.0.0.2", "--status-port", str(taken)) == 2
    assert f"port {taken} is taken already; choose another with --status-port" in output(capsys)


def test_a_sigterm_stops_it_cleanly_although_what_it_started_put_a_handler_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(15))

    assert up(monkeypatch, tmp_path, on_start=start, on_loops=lambda: sent(signal.SIGTERM)) == 0
    assert output(capsys).endswith("stopped")


def test_a_sigint_while_it_starts_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(monkeypatch, tmp_path, on_start=lambda: sent(signal.SIGINT), start_s=30.0) == 130
    assert "ready" not in (said := output(capsys))
    assert said.endswith("stopped")


def test_what_can_not_be_taken_away_again_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise ServeError("Ray's dashboard did not answer")

    assert up(monkeypatch, tmp_path, on_loops=lambda: sent(signal.SIGINT), on_stop=stop) == 1
    said = output(capsys)
    assert "could not be taken away again: Ray's dashboard did not answer" in said
    assert said.endswith("stopped")
    assert "fault of ours" not in said


def test_warnings_and_traces_go_to_a_file_and_not_into_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loops() -> None:
        log = logging.getLogger("reasonscale.autoscaler")
        log.warning("blind")
        try:
            raise ValueError("of the loop")
        except ValueError:
            log.exception("a turn failed")
        sent(signal.SIGINT)

    before = list(logging.getLogger().handlers)
    assert up(monkeypatch, tmp_path, on_loops=loops) == 0
    assert "blind" not in (said := output(capsys))
    assert "Traceback" not in said
    written = (tmp_path / "reasonscale.log").read_text()
    assert "WARNING reasonscale.autoscaler blind" in written
    assert "ValueError: of the loop" in written
    assert logging.getLogger().handlers == before


def test_a_status_port_taken_meanwhile_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        assert up(monkeypatch, tmp_path, "--status-port", str(port), on_start=s.listen) == 1
    assert f"can't listen on port {port} for /status" in output(capsys)
