"""The forecast of tokens still to come against the truth, on the arrivals and lengths of production traffic.

    python -m bench.forecast [--data ../shared/data] [--hours 12] [--seed 1]

Requests are drawn from the fitted clients of ServeGen's DeepSeek-R1 day: arrivals of each client and 600 s window by
its Gamma or Weibull renewal process, output tokens from its segment's distribution. Each makes `--tokens-per-s` from
its arrival on. Every minute the fleet's remaining tokens are forecast 0, 60 and 120 s ahead by

- ours: the ledger's binned counts, as `scaling` uses them (it sees no single request's length or age);
- mean length: a request owes what it lacks of the mean of those that ended in the last hour;
- static bins: a request ends at the next of 100, 1,000 and 4,096 tokens above what it has made, beyond that at twice.

Both rivals get exact ages, the true arrival rate of the last ten minutes, and take the mean length for who comes.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.crowd import Crowd, Floats

from reasonscale.scaling.forecast import owed_forecast
from reasonscale.scaling.outlook import loads_of
from reasonscale.scaling.state import State, learn
from reasonscale.scaling.types import Fleet, Freshness, Observation, Policy
from reasonscale.simulator.servegen import renewals

AHEAD_S = (0.0, 60.0, 120.0)
TICK_S, JUDGE_S, WARM_S = 5.0, 60.0, 1800.0
SEGMENT_S = 21_600
Z90 = 1.2816
STATIC = np.array([100.0, 1000.0, 4096.0])
LEAST_INFLIGHT = 100


def header(command: str) -> dict[str, Any]:
    """Return where and when a result was made."""
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    nproc = subprocess.run(["nproc"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": f"{cpu or platform.processor()}, {nproc} cores",
        "python": platform.python_version(),
    }


def sample(folder: Path, hours: float, seed: int) -> tuple[Floats, Floats]:
    """Return arrival times and output lengths of `hours` hours."""
    rng = np.random.default_rng(seed)
    starts: list[Floats] = []
    lengths: list[Floats] = []
    for trace in sorted(folder.glob("chunk-*-trace.csv")):
        data = json.loads(trace.with_name(trace.name.replace("-trace.csv", "-dataset.json")).read_text())
        segments = {int(k): ast.literal_eval(v["output_tokens"]) for k, v in data.items() if v.get("output_tokens")}
        tables = {k: (np.array(list(v), dtype=float), np.cumsum(list(v.values()))) for k, v in segments.items() if v}
        for row in trace.read_text().splitlines():
            begin, rate, _, pattern, shape, _ = row.split(",")
            segment = int(float(begin)) // SEGMENT_S * SEGMENT_S
            if float(begin) >= hours * 3600 or float(rate) <= 0.0 or segment not in tables:
                continue
            times = float(begin) + renewals(rng, pattern, float(shape), float(rate))
            values, cumulative = tables[segment]
            drawn = values[np.searchsorted(cumulative, rng.random(len(times)) * cumulative[-1])]
            starts.append(times)
            lengths.append(np.maximum(drawn, 1.0))
    order = np.argsort(np.concatenate(starts))
    return np.concatenate(starts)[order], np.concatenate(lengths)[order]


def _rivals(crowd: Crowd, now: float, ahead: float) -> tuple[float, float]:
    """Return what the mean length and the static bins say of the tokens owed `ahead` seconds from now."""
    speed = crowd.speed
    ended = (crowd.ends <= now) & (crowd.ends > now - 3600.0)
    mean = float(crowd.lengths[ended].mean()) if ended.any() else 1000.0
    there = (crowd.starts <= now) & (crowd.ends > now)
    made = (now - crowd.starts[there]) * speed
    rate = float(np.sum((crowd.starts <= now) & (crowd.starts > now - 600.0))) / 600.0
    ages = np.linspace(0.0, ahead, 61)[:-1] * speed
    fresh = rate * ahead / len(ages)
    ends = np.append(STATIC, np.inf)[np.searchsorted(STATIC, made, side="right")]
    ends = np.where(np.isinf(ends), 2.0 * made, ends)
    coming = fresh * np.maximum(0.0, mean - ages).sum()
    by_mean = np.maximum(0.0, mean - made - ahead * speed).sum() + coming
    by_bins = np.maximum(0.0, ends - made - ahead * speed).sum() + coming
    return float(by_mean), float(by_bins)


def judge(starts: Floats, lengths: Floats, speed: float, until: float) -> dict[str, Any]:
    """Return errors and coverage for each time ahead."""
    crowd, state = Crowd(starts, lengths, speed), State.new()
    policy = Policy(length_prior={"medium": 1500.0}, length_limit={"medium": 32768.0})
    errors: dict[tuple[str, float], list[float]] = {}
    covered: dict[float, list[bool]] = {a: [] for a in AHEAD_S}
    now = 0.0
    while now + AHEAD_S[-1] + TICK_S <= until:
        now += TICK_S
        counts = crowd.step(now)
        seen = Observation(now, TICK_S, Freshness.FRESH, 1.0, Fleet(1, 1), {"medium": counts})
        state = learn(state, seen, policy)
        if now < WARM_S or now % JUDGE_S >= TICK_S or crowd.inflight(now) < LEAST_INFLIGHT:
            continue
        loads = loads_of(seen, state, policy)
        for ahead in AHEAD_S:
            truth = crowd.owed(now + ahead)
            mean, high = owed_forecast(loads, ahead, 1.0 / speed, Z90)
            by_mean, by_bins = _rivals(crowd, now, ahead)
            for name, value in (("ours", mean), ("mean_length", by_mean), ("static_bins", by_bins)):
                errors.setdefault((name, ahead), []).append(abs(value - truth) / truth)
            covered[ahead].append(truth <= high)
    return {
        f"{ahead:.0f}s": {
            **{f"{n}_mean_abs_error": round(float(np.mean(errors[n, ahead])), 4) for n in ("ours", "mean_length", "static_bins")},
            "ours_p90_coverage": round(float(np.mean(covered[ahead])), 4),
            "forecasts": len(covered[ahead]),
        }
        for ahead in AHEAD_S
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--hours", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens-per-s", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/forecast.json"))
    args = parser.parse_args()
    folder = args.data / "traces" / "servegen_deepseek_r1"
    if not folder.is_dir():
        print(f"bench.forecast: no folder {folder}; --data names the folder that holds traces/servegen_deepseek_r1")
        return 2
    starts, lengths = sample(folder, args.hours, args.seed)
    result = judge(starts, lengths, args.tokens_per_s, args.hours * 3600.0)
    command = f"python -m bench.forecast --hours {args.hours:g} --seed {args.seed} --tokens-per-s {args.tokens_per_s:g}"
    report = {
        "header": header(command),
        "requests": len(starts),
        "mean_tokens": round(float(lengths.mean()), 1),
        "ahead": result,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{len(starts)} requests, {lengths.mean():.0f} tokens each; error of the fleet's remaining tokens")
    for ahead, row in result.items():
        print(
            f"  {ahead:>4} ahead: ours {row['ours_mean_abs_error']:.1%} (p90 covers {row['ours_p90_coverage']:.0%}), "
            f"mean length {row['mean_length_mean_abs_error']:.1%}, static bins {row['static_bins_mean_abs_error']:.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
