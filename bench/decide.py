"""Time of one decision: `python -m bench.decide`.

200 replicas and 4 or 16 classes with every token bin in use; each call gets another observation and the state of the
call before, as in the loop; then 1,000 such models in one loop. `cpu` is the thread's own time: what another process takes on a busy machine is not in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.forecast import header

from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State
from reasonscale.scaling.types import (
    N_BINS,
    ClassCounts,
    Fleet,
    Freshness,
    Observation,
    Policy,
    ReplicaCounts,
    StepTime,
)

REPLICAS = 200


def observations(classes: int, n: int, seed: int = 1) -> list[Observation]:
    """Return `n` observations five seconds apart of a fleet under a load that moves."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        load = 1.0 + 0.3 * np.sin(i / 20.0)
        seen = {}
        for k in range(classes):
            inflight = rng.poisson(60.0 * load / classes * 4, N_BINS).astype(float)
            reached = rng.poisson(np.linspace(200.0, 2.0, N_BINS) * load).astype(float)
            seen[f"class{k}"] = ClassCounts(
                waiting=float(rng.poisson(3)),
                waiting_prompt_tokens=3000.0,
                reasoning=tuple(inflight.tolist()),
                answering=tuple((inflight * 0.3).tolist()),
                inflight_prompt_tokens=tuple((inflight * 800.0).tolist()),
                reached=tuple(reached.tolist()),
                ended=tuple((reached * 0.1).tolist()),
                arrivals=float(reached[0]),
                prompt_tokens=float(reached[0] * 800.0),
                reasoning_tokens=50_000.0,
            )
        replicas = tuple(
            ReplicaCounts(f"replica-{r}", 258_176.0, 100_000.0, 30.0, 0.0, 0.0, 150.0, 5.0, 4500.0, 1.5e7, 20_000.0)
            for r in range(REPLICAS)
        )
        fleet = Fleet(REPLICAS, REPLICAS - 2, (10.0, 30.0))
        out.append(Observation(5.0 * (i + 1), 5.0, Freshness.FRESH, 1.0, fleet, seen, replicas))
    return out


def measure(classes: int, n: int) -> dict[str, Any]:
    """Return the quantiles, in ms, of `n` decisions."""
    policy = Policy(max_replicas=400, step_time=StepTime(0.02, 1.2e-4, 1.6e-8, 9e-5), kv_capacity_tokens=258_176.0)
    state, took, cpu = State.new(), [], []
    gc.collect()
    for i, seen in enumerate(observations(classes, n + 50)):
        began, began_cpu = time.perf_counter(), time.thread_time()
        _, state = decide(seen, policy, state)
        if i >= 50:
            took.append((time.perf_counter() - began) * 1e3)
            cpu.append((time.thread_time() - began_cpu) * 1e3)
    out: dict[str, Any] = {"classes": classes, "replicas": REPLICAS, "calls": n}
    for name, values in (("", took), ("cpu_", cpu)):
        p50, p99 = np.percentile(values, [50, 99])
        out |= {f"{name}p50_ms": round(float(p50), 3), f"{name}p99_ms": round(float(p99), 3)}
    return out


def of_many(models: int, rounds: int) -> dict[str, Any]:
    """Return the quantiles, in ms, of a decision where one loop decides for so many models, and a round's seconds."""
    policy = Policy(max_replicas=400, step_time=StepTime(0.02, 1.2e-4, 1.6e-8, 9e-5), kv_capacity_tokens=258_176.0)
    seen = [observations(4, rounds + 2, seed) for seed in range(8)]
    states, took, whole = [State.new()] * models, [], []
    for i in range(rounds + 2):
        began_round = time.perf_counter()
        for m in range(models):
            began = time.perf_counter()
            _, states[m] = decide(seen[m % len(seen)][i], policy, states[m])
            if i >= 2:
                took.append((time.perf_counter() - began) * 1e3)
        whole.append(time.perf_counter() - began_round)
    p50, p99 = np.percentile(took, [50, 99])
    return {
        "models": models, "classes": 4, "replicas": REPLICAS, "calls": len(took), "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3), "round_s": round(float(np.median(whole[2:])), 3),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("bench/results/decide.json"))
    args = parser.parse_args()
    rows = [measure(classes, args.calls) for classes in (4, 16)]
    report = {"header": header(f"python -m bench.decide --calls {args.calls}"), "decisions": rows}
    report["many"] = many = of_many(1000, 5)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    for row in rows:
        wall, cpu = (
            f"{row['p50_ms']:.2f}, p99 {row['p99_ms']:.2f} ms",
            f"{row['cpu_p50_ms']:.2f}, p99 {row['cpu_p99_ms']:.2f} ms",
        )
        print(f"{row['replicas']} replicas, {row['classes']:2d} classes: p50 {wall}; cpu p50 {cpu}")
    print(
        f"{many['models']} models of {REPLICAS} replicas in one loop: p50 {many['p50_ms']:.2f}, p99 {many['p99_ms']:.2f} ms, "
        f"{many['round_s']:.2f} s for all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
