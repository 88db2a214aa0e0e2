"""The engine model against a real GPU: `python -m bench.validate [--data ../shared/data]`.

Each measurement file gives a profile, fitted from its sweep and prefill alone, through which its replays are sent. What is
printed is the error of the model's mean and p95 against the measured ones, over the requests that finished in both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench.forecast import header

from reasonscale.profiles.fit import fit
from reasonscale.profiles.library import load
from reasonscale.profiles.profile import BadProfile, Profile, read_json
from reasonscale.simulator.engine import replay
from reasonscale.simulator.validation import compare, loads

GOALS = {"e2e": 0.10, "ttft": 0.15, "tpot": 0.15}


def speed(profile: Profile, requests: int = 100_000, seed: int = 1) -> dict[str, float]:
    """Return how fast the model runs: Poisson arrivals at 0.7 requests/s, log-normal outputs of mean 1,500 tokens."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / 0.7, requests))
    prompt = np.clip(rng.lognormal(5.5, 1.2, requests), 1, 30_000).astype(np.int64)
    output = np.clip(rng.lognormal(6.8, 1.0, requests), 1, 32_768).astype(np.int64)
    replay(profile, arrival[:10], prompt[:10], output[:10])  # compiles
    began = time.process_time()
    run = replay(profile, arrival, prompt, output)
    took = time.process_time() - began
    return {"requests": requests, "output_tokens": int(run.made_tokens.sum()), "cpu_s": round(took, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/validate.json"))
    args = parser.parse_args()
    files = sorted((args.data / "h200").glob("*.json"))
    if not files:
        print(f"validate: no measurements in {args.data / 'h200'}; --data must name the folder above", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    try:
        for file in files:
            data = read_json(file)
            profile = fit(data, name=file.stem, where=str(file))
            rows += [
                {"file": file.name, "load": key, **asdict(compare(data[key], profile, f"{file}: {key}")[0])}
                for key in loads(data)
            ]
    except BadProfile as error:
        print(f"validate: {error}", file=sys.stderr)
        return 2
    means = {
        f"{metric}_{q}": round(float(np.mean([abs(row[f"{metric}_{q}_err"]) for row in rows])), 5)
        for metric in GOALS
        for q in ("mean", "p95")
    }
    print(f"{'':<26}{'finished':>9}{'E2E':>8}{'p95':>8}{'TTFT':>8}{'p95':>8}{'TPOT':>8}{'p95':>8}")
    for row in rows:
        shares = "".join(f"{row[f'{m}_{q}_err']:>+8.1%}" for m in GOALS for q in ("mean", "p95"))
        print(f"{row['file'] + ' ' + row['load']:<26}{row['finished']:>9}{shares}")
    print(
        f"{'mean absolute error':<35}" + "".join(f"{means[f'{m}_{q}']:>8.1%}" for m in GOALS for q in ("mean", "p95"))
    )
    ran = speed(load("qwen2-32b-h200"))
    print(f"speed: {ran['requests']:,} requests, {ran['output_tokens']:,} tokens in {ran['cpu_s']} s of one core")
    report = {"header": header("python -m bench.validate"), "loads": rows, "mean_absolute_error": means, "speed": ran}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(means[f"{metric}_mean"] > goal for metric, goal in GOALS.items()))


if __name__ == "__main__":
    sys.exit(main())
