"""What the whole stack (proxy, ingress, router, ledger) costs against a bare vLLM: `python -m bench.tax`.

Both serve the bundled model with the same arguments, and take turns under the same closed-loop load (bare, stack, stack,
bare, ...), so that a drift of the machine falls on both. Then each is sent single short requests with pauses between, in
turns: the time to first token where cores are free. `--pace-ms` holds both engines to a step time: then cores are
free, as beside a GPU. Without it the engine and the stack share the cores, and the tax is an upper bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.forecast import header
from bench.stack import NUMBERS, Round, bare, load, stack

from reasonscale.demo import tasks
from reasonscale.load.client import percentile, send
from reasonscale.load.trace import Planned


async def alone(url: str, name: str, requests: int) -> list[float]:
    """Return the times to first token of single requests, the first two left out as warm-up."""
    found = []
    for i in range(requests + 2):
        planned = Planned(0.0, tasks.collatz_task(NUMBERS[i]).question, None, max_tokens=12)
        outcomes = await send(url, name, [planned])
        found += [o.ttft_s for o in outcomes if o.ttft_s is not None]
        await asyncio.sleep(0.2)
    return found[2:]


async def measure(pace_ms: float, pairs: int, at_once: int, requests: int) -> dict[str, Any]:
    """Return both sides' rounds and the tax."""
    sides: dict[str, list[Round]] = {"bare": [], "stack": []}
    with tempfile.TemporaryDirectory() as folder:
        async with bare(pace_ms, Path(folder) / "bare.log") as bare_url, stack(pace_ms) as ours:
            urls = {"bare": bare_url, "stack": ours.url}
            name = ours.resolved.served_name
            for url in urls.values():
                await load(url, name, at_once=at_once, requests=at_once)  # warm
            for pair in range(pairs):
                for side in ("bare", "stack") if pair % 2 == 0 else ("stack", "bare"):
                    found = await load(urls[side], name, at_once=at_once, requests=requests)
                    sides[side].append(found)
                    print(f"{side:>5}: {found.to_json()}", file=sys.stderr)
            single: dict[str, list[float]] = {"bare": [], "stack": []}
            for side in ("bare", "stack", "stack", "bare"):
                single[side] += await alone(urls[side], name, 12)
    idle = {side: round(1000 * (percentile(times, 0.5) or 0.0), 1) for side, times in single.items()}
    ratios = [s.tokens_per_s / b.tokens_per_s for b, s in zip(sides["bare"], sides["stack"], strict=True)]
    return {
        "pace_ms": pace_ms,
        "at_once": at_once,
        "rounds": {side: [r.to_json() for r in rounds] for side, rounds in sides.items()},
        "throughput_tax_percent": round(100 * (1 - mean(ratios)), 2),
        "throughput_tax_percent_by_pair": [round(100 * (1 - r), 2) for r in ratios],
        "ttft_p50_added_ms": round(
            1000 * (median(r.ttft_p50_s for r in sides["stack"]) - median(r.ttft_p50_s for r in sides["bare"])), 2
        ),
        "ttft_p50_alone_ms": idle,
        "ttft_p50_added_alone_ms": round(idle["stack"] - idle["bare"], 1),
        "failed": sum(r.failed for rounds in sides.values() for r in rounds),
    }


def main() -> int:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pace-ms", type=float, default=40.0, help="least time of a step, both sides; 0: as fast as it goes"
    )
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=8, help="requests in flight; the bundled model seats 8")
    parser.add_argument("--requests", type=int, default=16, help="requests of a round")
    parser.add_argument("--out", type=Path, default=Path("bench/results/tax.json"))
    args = parser.parse_args()
    found = asyncio.run(measure(args.pace_ms, args.pairs, args.at_once, args.requests))
    command = f"python -m bench.tax --pace-ms {args.pace_ms:g} --pairs {args.pairs} --at-once {args.at_once} --requests {args.requests}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"header": header(command), **found}, indent=2) + "\n")
    print(
        f"throughput tax {found['throughput_tax_percent']} %, TTFT p50 +{found['ttft_p50_added_alone_ms']} ms alone,"
        f" +{found['ttft_p50_added_ms']} ms under load; {args.out}"
    )
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
