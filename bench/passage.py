"""What a token costs on its way from the engine to its client, in CPU time by process: `python -m bench.passage`.

A tiny model on a CPU makes tokens faster than two cores hand them on, as a GPU does. What is compared is CPU time per token,
which other work on the machine hardly changes; tokens per second mean nothing here. A bare vLLM server is measured beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.forecast import header
from bench.gpu import shapes
from bench.gpu.tax import bare, burst, resolved_of, stack
from bench.processes import cpu


async def round_of(url: str, name: str, streams: int, tokens: int, own: set[str]) -> dict[str, Any]:
    """Run a burst; return the CPU time of each role in microseconds a token."""
    before = cpu()
    seen = await burst(url, name, streams, tokens)
    after = cpu()
    good = [s for s in seen if not s.error and s.tokens == tokens]
    made = sum(s.tokens for s in good)
    out: dict[str, float] = dict.fromkeys(sorted(own), 0.0)
    for pid, (what, spent) in after.items():
        if what in own:
            out[what] += spent - before.get(pid, (what, 0.0))[1]
    each = {what: round(1e6 * spent / max(1, made), 1) for what, spent in out.items()}
    return {
        "failed": len(seen) - len(good), "us_per_token": each, "reads_per_token": round(sum(s.reads for s in good) / max(1, made), 3),
        "passage_us_per_token": round(sum(v for k, v in each.items() if k != "engine"), 1),
    }  # fmt: skip


async def measure(streams: tuple[int, ...], tokens: int) -> dict[str, Any]:
    """Return both sides' CPU time by number of streams."""
    rounds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = shapes.resource(
            "tiny", Path(folder), fraction=100, replicas=1, cpu=True, seats=max(streams), blocks=4000
        )
        resolved = resolved_of(file)
        name = resolved.served_name
        for side in ("bare", "stack"):
            opened = (
                bare(resolved, Path(folder) / "bare.log", gpus=False)
                if side == "bare"
                else stack(resolved, Path(folder))
            )
            async with opened as at:
                url = at if isinstance(at, str) else at.url
                own = {"engine", "server"} if side == "bare" else {"engine", "ingress", "replica", "proxy"}
                await burst(url, name, max(streams), 40)
                for count in streams:
                    found = await round_of(url, name, count, tokens, own)
                    rounds.setdefault(str(count), {})[side] = found
                    print(f"{count:>4} {side:>5}: {found}", file=sys.stderr, flush=True)
    return {"tokens": tokens, "rounds": rounds}


def main() -> int:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,16,64,256")
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("bench/results/passage.json"))
    args = parser.parse_args()
    found = asyncio.run(measure(tuple(int(n) for n in args.streams.split(",")), args.tokens))
    command = f"python -m bench.passage --streams {args.streams} --tokens {args.tokens}"
    args.out.write_text(json.dumps({"header": header(command), **found}, indent=1) + "\n")
    print(f"{args.out}")
    return 1 if any(side["failed"] for pair in found["rounds"].values() for side in pair.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
