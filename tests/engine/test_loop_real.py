"""`reasonscale up`, as a user runs it: it scales up for the thought still to come, down when calm, and stops clean.

In a process of its own: a process has one Ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasonscale.autoscaler import Record, read_records
from reasonscale.demo.report import COT_REASONS
from reasonscale.demo.tasks import collatz_task
from reasonscale.load.client import send
from reasonscale.load.trace import Planned
from reasonscale.local.ray_node import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "micro-reasoner.yaml"
LONG = [n for n in range(2, 1000) if 450 < len(collatz_task(n).chain) < 800]


@dataclass(slots=True)
class Up:
    """A running `reasonscale up`."""

    process: subprocess.Popen[bytes]
    url: str
    status_url: str
    logs: Path
    output: Path

    def status(self) -> dict[str, Any]:
        [model] = httpx.get(f"{self.status_url}/status", timeout=10, trust_env=False).json() or [{}]
        return dict(model)

    def records(self) -> list[Record]:
        return read_records(self.logs / "decisions.jsonl")


def _processes(group: int) -> list[str]:
    """Return the processes of a session that still live."""
    out = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if line.split(None, 1)[0] == str(group) and " Z" not in line[:14]]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    port, status_port = free_port(), free_port()
    output = folder / "up.log"
    # Held to a pace: unpaced, the micro model ends its chains faster than a second replica can start.
    env = os.environ | {"REASONSCALE_PACE_MS": "40"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "reasonscale.cli.main",
                "up",
                str(EXAMPLE),
                "--port",
                str(port),
                "--status-port",
                str(status_port),
                "--log-dir",
                str(folder),
                "--plain",
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while "ready: " not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.5)
        yield Up(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{status_port}", folder, output)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def test_it_listens_on_loopback_alone(up: Up) -> None:
    out = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    session = {
        line.split()[1]
        for line in subprocess.run(
            ["ps", "-eo", "sid,pid"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if line.split()[0] == str(up.process.pid)
    }
    ours = [line for line in out.splitlines() if any(f"pid={pid}," in line for pid in session)]
    assert len(ours) >= 5
    assert [
        line for line in ours if not line.split()[3].startswith(("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:"))
    ] == []


def test_it_scales_up_for_the_thought_still_to_come_and_down_when_calm(up: Up) -> None:
    plans = [Planned(i * 1.6, collatz_task(n).question, collatz_task(n).answer) for i, n in enumerate(LONG[:44])]
    outcomes = asyncio.run(send(up.url, "micro-reasoner", plans))
    assert [o.error for o in outcomes if o.failed] == []
    assert sum(bool(o.correct) for o in outcomes) >= 0.9 * len(outcomes)
    ups = [r for r in up.records() if r.decision.act and r.decision.target > r.decision.current]
    assert ups, "it never scaled up"
    assert any(r.decision.reason in COT_REASONS for r in ups), [r.decision.message for r in ups]
    deadline = time.monotonic() + 300
    while True:
        status = up.status()
        if status["ready"] == 1 and status["target"] == 1 and not status["draining"] and not status["starting"]:
            break
        assert time.monotonic() < deadline, f"not back at one replica: {status}"
        time.sleep(1)
    assert max(r.observation.fleet.ready for r in up.records()) >= 2


def test_signals_are_fresh_when_a_decision_uses_them(up: Up) -> None:
    ages = [r.observation.age_s for r in up.records() if r.observation.freshness == "fresh"]
    assert len(ages) > 10
    assert max(a for a in ages if a is not None) <= 6
    page = httpx.get(f"{up.status_url}/metrics", timeout=10, trust_env=False).text
    assert "reasonscale_decision_owed_tokens" in page


def test_every_decision_is_one_line_that_can_be_read_back(up: Up) -> None:
    lines = (up.logs / "decisions.jsonl").read_text().splitlines()
    assert all(json.loads(line)["model"] == "micro-reasoner" for line in lines)
    access = [json.loads(line) for line in (up.logs / "access.jsonl").read_text().splitlines()]
    assert len(access) >= 44
    assert "question" not in access[0]


def test_ctrl_c_lets_a_running_chain_end_and_leaves_nothing_behind(up: Up) -> None:
    group = up.process.pid

    async def ask_and_interrupt() -> Any:
        task = asyncio.create_task(send(up.url, "micro-reasoner", [Planned(0, "collatz 27", "111")]))
        await asyncio.sleep(6)
        up.process.send_signal(signal.SIGINT)
        return await task

    [outcome] = asyncio.run(ask_and_interrupt())
    assert outcome.error is None
    assert up.process.wait(120) == 0, up.output.read_text()
    deadline = time.monotonic() + 30
    while _processes(group) and time.monotonic() < deadline:
        time.sleep(1)
    assert _processes(group) == []
