"""Whether answers stay right when an engine is killed under its streams: `python -m bench.gpu answers`.

The bundled model, whose answers can be checked, with two replicas on the GPU, held to a pace at which a chain takes some
seconds. One engine is killed with -9 while 24 chains run.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bench.gpu.loop import engines, up
from bench.stack import EXAMPLE, NUMBERS

from reasonscale.demo import tasks
from reasonscale.load.client import percentile, send
from reasonscale.load.trace import Planned

STREAMS = 24


def resource(folder: Path, *, cpu: bool) -> Path:
    """Write the example with two replicas, each of a fifth of a GPU."""
    row = yaml.safe_load(EXAMPLE.read_text())
    spec = row["spec"]
    spec["model"]["uri"] = f"file://{EXAMPLE.parent / 'micro-reasoner'}"
    spec["scaling"] |= {"mode": "Manual"}
    spec["replicas"] = 2
    if not cpu:
        spec["accelerator"] = {"fraction": 20}
        spec["engine"]["args"] |= {"num_gpu_blocks_override": "1024", "max_num_seqs": str(STREAMS)}
    out = folder / "micro-reasoner.yaml"
    out.write_text(yaml.safe_dump(row))
    return out


async def measure(folder: Path, keep: Callable[[Any], None], *, rehearse: bool) -> dict[str, Any]:
    """Return what became of the chains, and whether their answers were right."""
    file, found = resource(folder, cpu=rehearse), dict[str, Any]()
    async with up(file, folder / "logs", ready=2) as (url, _, ready_s):
        found["ready_s"] = round(ready_s, 1)
        picked = [tasks.collatz_task(NUMBERS[i % len(NUMBERS)]) for i in range(16 if rehearse else STREAMS)]
        plan = [Planned(0.0, task.question, task.answer) for task in picked]
        playing = asyncio.create_task(send(url, "micro-reasoner", plan))
        await asyncio.sleep(5.0)
        victims, at = engines(), time.time()
        os.kill(victims[0], signal.SIGKILL)
        seen = await playing
        lasted = [o.e2e_s for o in seen if o.e2e_s is not None]
        found |= {
            "streams": len(seen), "engines": len(victims), "killed_after_s": 5.0, "ended_after_kill_s": round(time.time() - at, 1),
            "failed": sum(o.failed for o in seen), "right": sum(o.correct is True for o in seen),
            "errors": sorted({str(o.error)[:200] for o in seen if o.failed}), "e2e_s_p50": percentile(lasted, 0.5),
            "e2e_s_most": max(lasted, default=None), "tokens": sum(o.reasoning_tokens + o.answer_tokens for o in seen),
        }  # fmt: skip
        keep(found)
    return found
