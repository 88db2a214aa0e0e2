"""A chain of more than ten minutes is answered, streamed and not: no timer below cuts it. Takes twelve minutes.

In a process of its own, on a Ray of its own, with an engine held to so slow a pace that a thousand tokens take so long.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.demo.tasks import collatz_task
from reasonscale.load.client import send
from reasonscale.load.trace import Planned
from reasonscale.local.app import LocalApp
from reasonscale.local.ray_node import free_port

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(1200)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "micro-reasoner.yaml"
PACE_MS, TASK = 800.0, collatz_task(27)  # 111 steps, about 870 tokens


async def test_a_chain_of_more_than_ten_minutes_is_answered_streamed_and_not(tmp_path: Path) -> None:
    model = resolve(load_models(EXAMPLE)[0], EXAMPLE.parent)
    app = LocalApp([model], "127.0.0.1", free_port(), tmp_path, env={"REASONSCALE_PACE_MS": f"{PACE_MS:g}"})
    try:
        await app.start()
        started = time.monotonic()
        body = {"model": model.served_name, "messages": [{"role": "user", "content": TASK.question}], "temperature": 0}
        async with httpx.AsyncClient(base_url=app.url, timeout=None, trust_env=False) as http:
            whole, streamed = await asyncio.gather(
                http.post("/v1/chat/completions", json=body),
                send(app.url, model.served_name, [Planned(0, TASK.question, TASK.answer)]),
            )
        took = time.monotonic() - started
        assert took > 610
        assert whole.status_code == 200, whole.text
        assert whole.json()["choices"][0]["message"]["content"].strip() == TASK.answer
        assert [(o.error, o.correct) for o in streamed] == [(None, True)]
        print(f"answered after {took:.0f} s, streamed and not")
    finally:
        await app.stop(drain_s=1)
