"""What the benchmarks of serving share: the stack on a Ray of its own, a bare vLLM, and a closed-loop load."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from reasonscale.api.load import load_models
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.demo import tasks
from reasonscale.load.client import percentile, send
from reasonscale.load.trace import Planned
from reasonscale.local.ray_node import free_port, start_ray
from reasonscale.local.serve_api import ServeApi
from reasonscale.serving.config import (
    LOCAL_ENV,
    OFFLINE_ENV,
    app_name,
    deployment_name,
    engine_kwargs,
    serve_app,
    serve_config,
)

EXAMPLE = Path(__file__).parents[1] / "examples" / "micro-reasoner.yaml"
# Chains of 400 to 700 tokens: long enough for decode to be the work, short enough for a round of half a minute.
NUMBERS = [n for n in range(2, 1000) if 400 < len(tasks.collatz_task(n).chain) < 700]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of load came to."""

    tokens_per_s: float
    ttft_p50_s: float
    tpot_p50_s: float
    requests: int
    failed: int
    cpu_percent: float

    def to_json(self) -> dict[str, float]:
        """Return the figures, rounded."""
        return {k: round(v, 5) for k, v in asdict(self).items()}


def model() -> Resolved:
    """Return the bundled model."""
    return resolve(load_models(EXAMPLE)[0], EXAMPLE.parent)


def _cpu() -> tuple[float, float]:
    values = [float(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


async def load(url: str, name: str, *, at_once: int, requests: int) -> Round:
    """Keep `at_once` requests in flight until so many were answered; the same questions each time."""
    todo = [tasks.collatz_task(NUMBERS[i % len(NUMBERS)]) for i in range(requests)]
    outcomes = []
    began, busy = time.monotonic(), _cpu()

    async def worker() -> None:
        while todo:
            task = todo.pop(0)
            outcomes.extend(await send(url, name, [Planned(0.0, task.question, task.answer)]))

    await asyncio.gather(*(worker() for _ in range(at_once)))
    passed, after = time.monotonic() - began, _cpu()
    good = [o for o in outcomes if not o.failed]
    tokens = sum(o.reasoning_tokens + o.answer_tokens for o in good)
    return Round(
        tokens_per_s=tokens / passed,
        ttft_p50_s=percentile([o.ttft_s for o in good if o.ttft_s is not None], 0.5) or 0.0,
        tpot_p50_s=percentile([o.tpot_s for o in good if o.tpot_s is not None], 0.5) or 0.0,
        requests=len(outcomes),
        failed=len(outcomes) - len(good),
        cpu_percent=100 * (after[0] - busy[0]) / max(1.0, after[1] - busy[1]),
    )


@dataclass(slots=True)
class Stack:
    """The whole stack with one model."""

    url: str
    resolved: Resolved
    api: ServeApi

    async def replicas(self, wanted: int, timeout_s: float = 240.0) -> None:
        """Set the number of replicas and wait until all of them run."""
        name = deployment_name(self.resolved)
        await self.api.set_replicas(app_name([self.resolved]), name, wanted)
        await self.ready(wanted, timeout_s)

    async def ready(self, wanted: int, timeout_s: float = 240.0) -> None:
        """Wait until the application and just so many replicas run."""
        deadline = time.monotonic() + timeout_s
        while True:
            state = await self.api.state(app_name([self.resolved]))
            words = [word for _, word, _ in state.replicas.get(deployment_name(self.resolved), ())]
            if state.status == "RUNNING" and words == ["RUNNING"] * wanted:
                return
            if state.status == "DEPLOY_FAILED" or time.monotonic() > deadline:
                raise RuntimeError(f"no {wanted} replicas: {state.status} {state.message} {words}")
            await asyncio.sleep(0.5)


def pace(pace_ms: float) -> dict[str, str]:
    """Return the environment that holds an engine to a least time per step; empty for 0."""
    return {"REASONSCALE_PACE_MS": f"{pace_ms:g}"} if pace_ms else {}


@asynccontextmanager
async def stack(pace_ms: float) -> AsyncIterator[Stack]:
    """Run the whole stack; stop it at the end."""
    resolved, port = model(), free_port()
    node = await asyncio.to_thread(start_ray)
    api = ServeApi(node.dashboard_url, node.token)
    try:
        app = serve_app([resolved], {resolved.name: 1}, local=True, env=pace(pace_ms))
        await api.put(serve_config(app, host="127.0.0.1", port=port))
        found = Stack(f"http://127.0.0.1:{port}", resolved, api)
        await found.ready(1)
        yield found
    finally:
        await api.close()
        await asyncio.to_thread(node.stop)


def flags(kwargs: dict[str, Any]) -> list[str]:
    out = []
    for name, value in kwargs.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            out.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            out += [f"--{flag}", str(value)]
    return out


@asynccontextmanager
async def vllm_server(
    resolved: Resolved, kwargs: dict[str, Any], env: dict[str, str], log: Path, timeout_s: float
) -> AsyncIterator[str]:
    """Run vLLM's own server with an engine's arguments; yield its address once it is healthy."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
        "--model", resolved.model_source, "--served-model-name", resolved.served_name, *flags(kwargs),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=file, stderr=asyncio.subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + timeout_s
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            while True:
                if process.returncode is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the bare server did not start: {log.read_text(errors='replace')[-1500:]}")
                try:
                    if (await http.get(f"{url}/health")).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.5)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def bare(pace_ms: float, log: Path, timeout_s: float = 240.0) -> AsyncIterator[str]:
    """Run vLLM's own server on the same model with the same arguments; yield its address."""
    resolved = model()
    env = (
        os.environ | LOCAL_ENV | OFFLINE_ENV | pace(pace_ms) | {"VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
    )
    async with vllm_server(resolved, engine_kwargs(resolved), env, log, timeout_s) as url:
        yield url
