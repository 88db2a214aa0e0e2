"""The product on GPUs, as `reasonscale up` runs it: `python -m bench.gpu loop` on one, `python -m bench.gpu fleet` on three.

A load at a constant rate whose chains get longer and shorter again moves the model from one engine to three and back; then
an engine is killed under its streams. On one GPU the engines share it and are held to 40 ms a step, three times what a step
of all three takes: so none slows another. On three, each has its own and runs as fast as it can: what a step takes is the
GPU's.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from bench.gpu import shapes
from bench.gpu.client import Seen, body, play

from reasonscale.local.ray_node import free_port
from reasonscale.serving.gpus import GIB, NoGpuError, visible

CONTEXT, SEED = 8192, 7
CALM_S = 100.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What runs on the GPUs, and the load: requests a second; of each phase the seconds and the range of tokens of a chain."""

    shape: str
    fraction: int
    seats: int
    tpot: str
    pace_ms: float
    rate: float
    phases: tuple[tuple[float, tuple[int, int]], ...]
    killed_tokens: int


SHARED = Setup(
    "qwen2-1.5b", 30, 64, "80ms", 40.0, 4.5, ((180.0, (120, 300)), (480.0, (600, 1000)), (240.0, (120, 300))), 300
)
WHOLE = Setup(
    "qwen2-7b", 100, 256, "15ms", 0.0, 16.0, ((150.0, (300, 700)), (480.0, (1400, 2600)), (270.0, (300, 700))), 4000
)


def load(setup: Setup, rehearse: bool) -> list[tuple[float, int, dict[str, Any]]]:
    """Return (seconds, output tokens, request) of Poisson arrivals at a constant rate through the phases."""
    rng, out, began = random.Random(SEED), [], 0.0
    rate, scale = (0.4, 0.2) if rehearse else (setup.rate, 1.0)
    for length, (low, high) in setup.phases:
        length *= scale
        t = began + rng.expovariate(rate)
        while t < began + length:
            tokens = int(rng.randint(low, high) * (0.1 if rehearse else 1))
            # A client each: of those who ask the same, one who is refused is taken for one who comes back.
            asked = body(setup.shape, tokens, stops=True, eos=shapes.EOS) | {"user": f"client-{len(out)}"}
            out.append((t, tokens, asked))
            t += rng.expovariate(rate)
        began += length
    return out


@asynccontextmanager
async def up(file: Path, logs: Path, *more: str, ready: int = 1, pace_ms: float = SHARED.pace_ms) -> Any:
    """Run `reasonscale up` and yield (its API's address, its status page's, seconds until so many replicas are ready)."""
    port, status = free_port(), free_port()
    command = [
        sys.executable, "-m", "reasonscale.cli.main", "up", str(file), "--plain", "--port", str(port),
        "--status-port", str(status), "--log-dir", str(logs), *more,
    ]  # fmt: skip
    began = time.monotonic()
    with (logs.parent / "up.txt").open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | ({"REASONSCALE_PACE_MS": f"{pace_ms:g}"} if pace_ms else {}),
            stdout=said,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            while b"ready: OpenAI" not in (logs.parent / "up.txt").read_bytes():
                if process.returncode is not None or time.monotonic() - began > 400:
                    raise RuntimeError(f"up did not start: {(logs.parent / 'up.txt').read_text()[-1500:]}")
                await asyncio.sleep(0.5)
            while int((await _status(f"http://127.0.0.1:{status}")).get("ready") or 0) < ready:
                if time.monotonic() - began > 600:
                    raise RuntimeError(f"fewer than {ready} replicas: {(logs.parent / 'up.txt').read_text()[-1500:]}")
                await asyncio.sleep(1.0)
            yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{status}", time.monotonic() - began
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                try:
                    await asyncio.wait_for(process.wait(), 90)
                except TimeoutError:
                    process.kill()


async def _status(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        found = (await http.get(f"{url}/status")).json()
    rows = found if isinstance(found, list) else found.get("models", [found])
    return dict(rows[0]) if rows else {}


class Watch:
    """Notes the GPUs' memory and the status each second."""

    def __init__(self, status: str, rehearse: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self._status, self._rehearse = status, rehearse

    async def run(self) -> None:
        while True:
            row: dict[str, Any] = {"t": time.time()}
            try:
                if not self._rehearse:
                    row["gpu_used_gib"] = await asyncio.to_thread(used)
                seen = await _status(self._status)
                row |= {key: seen.get(key) for key in ("target", "ready", "starting", "draining")}
            except (NoGpuError, httpx.HTTPError, ValueError) as error:
                row["problem"] = str(error)
            self.rows.append(row)
            await asyncio.sleep(1)

    async def settled(self, timeout_s: float) -> bool:
        """Wait until one replica is left and none comes or goes."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            await asyncio.sleep(2)
            last = next((r for r in reversed(self.rows) if r.get("ready") is not None), None)
            if last and (last["target"], last["ready"], last["starting"], last["draining"]) == (1, 1, 0, 0):
                return True
        return False


def used() -> list[float]:
    """Return what is in use of each GPU's memory that this process may use, in GiB."""
    return [round((g.total - g.free) / GIB, 3) for g in visible()]


def engines() -> list[int]:
    """Return the process ids of vLLM's engine cores below this process."""
    import psutil

    return [
        p.pid for p in psutil.Process().children(recursive=True) if "EngineCore" in " ".join([*p.cmdline(), p.name()])
    ]


async def killed(url: str, name: str, tokens: int, streams: int = 8, after_s: float = 4.0) -> dict[str, Any]:
    """Kill one engine with -9 while it streams, and return what became of the streams."""
    start = time.time() + 1
    playing = asyncio.create_task(
        play(url, [(start + i / streams, body(name, tokens)) for i in range(streams)], processes=2)
    )
    await asyncio.sleep(1 + after_s)
    victims = engines()
    for pid in victims[:1]:
        os.kill(pid, signal.SIGKILL)
    at = time.time()
    seen = await playing
    return {
        "streams": len(seen), "engines": len(victims), "killed_after_s": round(at - start, 1),
        "whole": sum(s.tokens == tokens and not s.error for s in seen), "errors": sorted({s.error[:200] for s in seen if s.error}),
        "longest_pause_s": round(max(s.longest_pause for s in seen), 1),
    }  # fmt: skip


async def measure(
    setup: Setup, folder: Path, out: Path, keep: Callable[[Any], None], *, rehearse: bool
) -> dict[str, Any]:
    """Run it and keep: the plan, what clients saw, the records of the loop, the GPUs' memory."""
    if rehearse:
        setup = replace(setup, shape="tiny", seats=8, killed_tokens=100)
    file = shapes.resource(
        setup.shape, folder, fraction=setup.fraction, seats=setup.seats, context=CONTEXT, tpot=setup.tpot, cpu=rehearse
    )  # fmt: skip
    logs, found = folder / "logs", dict[str, Any](asdict(setup))
    async with up(file, logs, pace_ms=setup.pace_ms) as (url, status, ready_s):
        found["ready_s"] = round(ready_s, 1)
        keep(found)
        watch = Watch(status, rehearse)
        watching = asyncio.create_task(watch.run())
        warm = [(time.time() + 0.5 + i / 8, body(setup.shape, 24, stops=True, eos=shapes.EOS)) for i in range(8)]
        await play(url, warm, processes=2)
        plan, start = load(setup, rehearse), time.time() + 2
        seen = await play(url, [(start + t, request) for t, _, request in plan], processes=2 if rehearse else 6)
        found |= {"start": start, "load": figures(seen, plan)}
        save(out, logs, found, plan, seen, watch.rows)
        keep(found)
        found["killed"] = await killed(url, setup.shape, setup.killed_tokens)
        keep(found)
        save(out, logs, found, plan, seen, watch.rows)
        found["settled"] = await watch.settled(10 if rehearse else CALM_S)
        watching.cancel()
    if not rehearse:
        await asyncio.sleep(2)
        found["gpu_used_after_gib"] = used()
    save(out, logs, found, plan, seen, watch.rows)
    keep(found)
    return found


def figures(seen: list[Seen], plan: list[tuple[float, int, Any]]) -> dict[str, Any]:
    """Return what came of the load."""
    short = sum(
        not s.error and s.tokens not in (tokens, tokens - 1, tokens + 1)
        for s, (_, tokens, _) in zip(seen, plan, strict=True)
    )
    return {
        "requests": len(seen), "failed": sum(bool(s.error) for s in seen), "of_other_length": short,
        "errors": sorted({s.error[:200] for s in seen if s.error})[:5], "tokens": sum(s.tokens for s in seen),
        "finish": {f: sum(s.finish == f for s in seen) for f in {s.finish for s in seen}},
        "longest_pause_s": round(max((s.longest_pause for s in seen), default=0.0), 2),
    }  # fmt: skip


def save(out: Path, logs: Path, found: dict[str, Any], plan: Any, seen: list[Seen], rows: list[dict[str, Any]]) -> None:
    """Write everything that the comparison with the simulator needs."""
    raw = {
        "start": found["start"], "plan": [(round(t, 4), tokens) for t, tokens, _ in plan], "seen": [asdict(s) for s in seen],
        "watch": rows,
    }  # fmt: skip
    with gzip.open(out / "loop-raw.json.gz", "wt") as file:
        json.dump(raw, file)
    with gzip.open(out / "loop-decisions.jsonl.gz", "wb") as target:
        target.write((logs / "decisions.jsonl").read_bytes())
