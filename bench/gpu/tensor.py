"""An engine over two GPUs, through the product: `python -m bench.gpu tensor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.gpu.loop import killed, used
from bench.gpu.tax import burst, figures, resolved_of, stack


async def measure(file: Path, streams: int, tokens: int, keep: Any) -> dict[str, Any]:
    """Return what streams saw, and what became of those whose engine was killed with -9."""
    resolved, began = resolved_of(file), time.monotonic()
    name, out = resolved.served_name, dict[str, Any](gpus_per_replica=resolved.gpus_per_replica, tokens=tokens)
    async with stack(resolved, file.parent / "logs") as app:
        out["ready_s"] = round(time.monotonic() - began, 1)
        for _ in range(2):
            await burst(app.url, name, streams, 40)
        out["gpu_used_gib"] = [] if resolved.gpus_per_replica == 1 else used()
        out["streams"] = [figures(await burst(app.url, name, count, tokens), tokens) for count in (1, streams)]
        keep(out)
        out["killed"] = await killed(app.url, name, 4 * tokens, streams // 4)
        keep(out)
    return out
