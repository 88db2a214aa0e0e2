"""Whether the ledger counts every token, with three engines and many streams, and what a killed engine costs them: `python -m bench.gpu ledger`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu.loop import killed
from bench.gpu.tax import burst, figures, metric, replicas_ready, resolved_of, stack

_TOKENS = ("reasonscale_reasoning_tokens_total", "reasonscale_answer_tokens_total")


async def measure(file: Path, streams: int, tokens: int, keep: Any) -> dict[str, Any]:
    """Return what the clients got and what the ledgers counted meanwhile, over all replicas."""
    resolved = resolved_of(file)
    out: dict[str, Any] = {"streams": streams, "tokens": tokens, "replicas": resolved.replicas}
    with tempfile.TemporaryDirectory() as folder:
        async with stack(resolved, Path(folder)) as app:
            await burst(app.url, resolved.served_name, 12, 16)
            await replicas_ready(app, resolved.replicas or 1)
            before = await metric(app, *_TOKENS), await metric(app, "reasonscale_arrivals_total")
            found = await burst(app.url, resolved.served_name, streams, tokens)
            await asyncio.sleep(4)
            after = await metric(app, *_TOKENS), await metric(app, "reasonscale_arrivals_total")
            out["killed"] = await killed(app.url, resolved.served_name, 4 * tokens, streams // 8, after_s=tokens / 100)
    out |= figures(found, tokens) | {
        "client_tokens": sum(s.tokens for s in found), "ledger_tokens": after[0] - before[0],
        "client_requests": len(found), "ledger_requests": after[1] - before[1],
    }  # fmt: skip
    out["exact"] = out["client_tokens"] == out["ledger_tokens"] and out["client_requests"] == out["ledger_requests"]
    print(f"ledger: {out}", file=sys.stderr, flush=True)
    keep(out)
    return out
