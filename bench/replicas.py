"""Whether a second replica adds capacity on this machine: `python -m bench.replicas`.

As in the demo, each engine is held to a pace, so that a replica is bound by its batch and not by a core that it would
share with the other. The same questions are asked of one replica and of two, with enough in flight to fill both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from bench.forecast import header
from bench.stack import load, stack


async def measure(pace_ms: float, at_once: int, requests: int) -> dict[str, Any]:
    """Return the rounds with 1, 2 and again 1 replicas, and what the second added."""
    rounds = []
    async with stack(pace_ms) as ours:
        for replicas in (1, 2, 1):
            await ours.replicas(replicas)
            name = ours.resolved.served_name
            await load(ours.url, name, at_once=2 * replicas, requests=2 * replicas)  # warm: a first step compiles
            found = await load(ours.url, name, at_once=at_once, requests=requests)
            rounds.append({"replicas": replicas, **found.to_json()})
            print(rounds[-1], file=sys.stderr)
    one = (rounds[0]["tokens_per_s"] + rounds[2]["tokens_per_s"]) / 2
    return {
        "pace_ms": pace_ms,
        "at_once": at_once,
        "rounds": rounds,
        "two_over_one": round(rounds[1]["tokens_per_s"] / one, 3),
        "failed": sum(r["failed"] for r in rounds),
    }


def main() -> int:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pace-ms", type=float, default=40.0, help="least time of a step; 0: as fast as it goes")
    parser.add_argument("--at-once", type=int, default=16, help="requests in flight; a replica seats 8")
    parser.add_argument("--requests", type=int, default=32, help="requests of a round")
    parser.add_argument("--out", type=Path, default=Path("bench/results/replicas.json"))
    args = parser.parse_args()
    found = asyncio.run(measure(args.pace_ms, args.at_once, args.requests))
    command = f"python -m bench.replicas --pace-ms {args.pace_ms:g} --at-once {args.at_once} --requests {args.requests}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"header": header(command), **found}, indent=2) + "\n")
    print(f"two replicas make {found['two_over_one']} times the tokens of one; {args.out}")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
