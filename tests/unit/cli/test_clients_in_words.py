"""`chat` and `load` on an endpoint that breaks off, hangs, or answers something else. The endpoint is played."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reasonscale.cli.main import run


class Endpoint(BaseHTTPRequestHandler):
    """One model, [/m]; a request hangs, breaks off, or ends with an engine's error."""

    how = "error"
    asked = threading.Event()

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": "[/m]", "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.how == "break":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        event = json.dumps({"id": "1", "choices": [{"index": 0, "delta": {"content": "4[/]"}}]}).encode()
        event = b"data: " + event + b"\n\n"
        if self.how == "break":
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            return
        self.wfile.write(event)
        self.wfile.flush()
        if self.how == "error":
            self.wfile.write(b'data: {"error": {"message": "the engine [/died]", "code": 500}}\n\n')
            return
        self.asked.set()
        over.wait(20)


over = threading.Event()


@pytest.fixture
def url() -> Iterator[str]:
    over.clear()
    Endpoint.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("how", "message"),
    [("error", "broke off: the engine [/died]"), ("break", "broke off: peer closed connection")],
)
def test_chat_says_that_an_answer_broke_off(
    how: str, message: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Endpoint, "how", how)
    assert run(["chat", "347+85", "--url", url]) == 1
    captured = capsys.readouterr()
    assert "4[/]" in captured.out
    assert message in captured.err
    assert "fault of ours" not in captured.err


def test_chat_asks_no_proxy_of_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert run(["chat", "347+85", "--url", url]) == 1
    assert "4[/]" in capsys.readouterr().out


def test_chat_with_a_url_that_is_none_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "347+85", "--url", "http://127.0.0.1:x"]) == 2
    assert "--url was 'http://127.0.0.1:x'" in capsys.readouterr().err


def test_a_second_interrupt_ends_a_load_at_once_and_keeps_what_was_answered(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Endpoint, "how", "hang")

    def interrupt() -> None:
        Endpoint.asked.wait(10)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    threading.Thread(target=interrupt, daemon=True).start()
    began, report = time.monotonic(), tmp_path / "report.json"
    argv = ["load", "--url", url, "--workload", "sums", "--rate", "5", "--duration", "60", "--report", str(report)]
    try:
        assert run(argv) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 10
    said = capsys.readouterr().out
    assert "waiting for what runs (again Ctrl-C: at once)" in said
    assert "what still ran was cut off" in said
    assert json.loads(report.read_text())["requests"] == 0


def test_a_report_that_can_not_be_written_is_said_before_anything_is_sent(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["load", "--url", url, "--rate", "20", "--duration", "0.05", "--report", str(tmp_path)]
    assert run(argv) == 2
    said = capsys.readouterr()
    assert f"--report was {tmp_path}; it is a folder and must be a file" in " ".join(said.err.split())
    assert "requests to" not in said.out
