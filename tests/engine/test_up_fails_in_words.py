"""What `reasonscale up` says where it can't come up, how it attaches to a Ray of others, and what it leaves behind: nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reasonscale.load.client import send
from reasonscale.load.trace import Planned
from reasonscale.local.ray_node import RAY_ENV, free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
EXAMPLES = Path(__file__).parents[2] / "examples"
RESOURCE = (
    (EXAMPLES / "micro-reasoner.yaml").read_text().replace("file://micro-reasoner", f"file://{EXAMPLES}/micro-reasoner")
)


class Up:
    """A `reasonscale up` in a session of its own, its output in a file."""

    def __init__(self, folder: Path, resource: str, *more: str, env: dict[str, str] | None = None) -> None:
        (folder / "model.yaml").write_text(resource)
        self.output, self.port = folder / "up.log", free_port()
        command = [sys.executable, "-m", "reasonscale.cli.main", "up", str(folder / "model.yaml"), "--plain"]
        command += ["--log-dir", str(folder), "--port", str(self.port), "--status-port", str(free_port()), *more]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | (env or {})
            )

    def text(self) -> str:
        return self.output.read_text()

    def ready(self, within_s: float = 240.0) -> None:
        deadline = time.monotonic() + within_s
        while "ready: " not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.5)

    def left(self, within_s: float = 30.0) -> list[str]:
        """Return the processes of its session that still live after so long."""
        deadline = time.monotonic() + within_s
        while True:
            out = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
            found = [
                line
                for line in out.splitlines()[1:]
                if int(line.split()[0]) == self.process.pid and " Z" not in line[:14]
            ]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


def test_an_engine_that_cannot_start_says_its_own_last_error(tmp_path: Path) -> None:
    # 8 blocks of 32 tokens can't hold one sequence of the context's length; only the engine can tell.
    broken = RESOURCE.replace('num_gpu_blocks_override: "160"', 'num_gpu_blocks_override: "8"')
    assert broken != RESOURCE
    up = Up(tmp_path, broken)
    try:
        assert up.process.wait(300) == 1, up.text()
        [said] = [line for line in up.text().splitlines() if line.startswith("up: ")]
        assert "KV cache" in said, said
        assert "Traceback" not in up.text()
        assert up.text().strip().endswith("stopped")
        assert up.left() == []
    finally:
        up.end()


def test_attaching_where_no_ray_runs_says_so(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    up = Up(tmp_path, RESOURCE, "--ray", address)
    try:
        assert up.process.wait(120) == 1, up.text()
        assert "Traceback" not in up.text()
        [said] = [line for line in up.text().splitlines() if line.startswith("up: ")]
        assert address in said
    finally:
        up.end()


@pytest.fixture
def ray_of_others(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a Ray as its own operator would, on loopback; stop it by its process group."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += [
        "--port",
        str(port),
        "--dashboard-host",
        "127.0.0.1",
        "--dashboard-port",
        str(free_port()),
        "--num-cpus",
        "8",
    ]
    command += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    command += ["--object-store-memory", "150000000", "--disable-usage-stats"]
    env = (
        {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        | RAY_ENV
        | {"RAY_AUTH_MODE": "disabled"}
    )
    with (tmp_path / "ray.log").open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert process.poll() is None, (tmp_path / "ray.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "ray.log").read_text()
            time.sleep(0.5)
        yield f"127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_it_serves_on_a_ray_of_others_and_leaves_that_running(
    tmp_path: Path, ray_of_others: tuple[str, subprocess.Popen[bytes]]
) -> None:
    address, ray = ray_of_others
    up = Up(tmp_path, RESOURCE, "--ray", address, env={"RAY_AUTH_MODE": "disabled"})
    try:
        up.ready()
        [outcome] = asyncio.run(send(f"http://127.0.0.1:{up.port}", "micro-reasoner", [Planned(0, "347+85", "432")]))
        assert outcome.error is None
        assert outcome.correct
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(120) == 0, up.text()
        assert up.left() == []
        assert ray.poll() is None, "the Ray of others was stopped"
    finally:
        up.end()
