"""A replica that starts says whether it still fetches weights: by the files that a real hub client writes, and by no others."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reasonscale.serving.fetching import GREW_WITHIN_S, fetches, folders_of, told

BIG = 3 << 20


def write(path: Path, size: int, age_s: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * size)
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_a_large_file_that_has_just_grown_is_a_fetch_and_nothing_else_is(tmp_path: Path) -> None:
    folders = folders_of(tmp_path, "org/m", "served")
    now = time.time()
    assert not fetches(folders, now), "there is no folder yet"
    write(tmp_path / "models--org--m" / "blobs" / "config.json", 900)
    write(tmp_path / "models--org--other" / "blobs" / "w", BIG)
    write(tmp_path / "models--org--m" / "blobs" / "done", BIG, age_s=2 * GREW_WITHIN_S)
    assert not fetches(folders, now)
    write(tmp_path / "models--served" / "snapshots" / "0" / "model.safetensors", BIG)
    assert fetches(folders, now)


@contextmanager
def hub(size: int, half: threading.Event) -> Iterator[str]:
    """A hub with one file of weights, of which the second half waits."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.send_response(200)
            for name, value in (("ETag", '"e"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", str(size))):
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(b"\0" * (size // 2))
            self.wfile.flush()
            half.wait(60)
            self.wfile.write(b"\0" * (size - size // 2))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        half.set()
        server.shutdown()
        server.server_close()


@pytest.mark.engine
def test_what_the_hub_s_client_fetches_is_told_while_it_comes(tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    size, half, said = 24 << 20, threading.Event(), []
    with hub(size, half) as url, told(said.append, folders_of(tmp_path, "org/m")):
        given = {"repo_id": "org/m", "filename": "model.safetensors", "cache_dir": tmp_path, "endpoint": url}
        fetcher = threading.Thread(target=hf_hub_download, kwargs=given)
        fetcher.start()
        deadline = time.monotonic() + 60
        while 1.0 not in said:
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        half.set()
        fetcher.join(60)
        assert next((tmp_path / "models--org--m").rglob("model.safetensors")).stat().st_size == size
    assert said[-1] == 0.0, "a start that is over fetches nothing"


def test_a_start_goes_on_where_nothing_can_be_told(tmp_path: Path) -> None:
    def broken(value: float) -> None:
        raise RuntimeError("no metrics here")

    with told(broken, [tmp_path]):
        started = True
    assert started
