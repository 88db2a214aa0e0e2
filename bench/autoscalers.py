"""Ours against the autoscalers that people use, in the simulator: GPU-hours at 99 % of requests within every objective.

    python -m bench.autoscalers quick   three synthetic traces, one cold start, one seed: under three minutes
    python -m bench.autoscalers tune    a grid over each rival's parameters, to bench/tuned.json
    python -m bench.autoscalers full    all traces x cold starts x seeds; goes on where it was interrupted

Traces of production (`--data`) are used where they are; without them only the synthetic part runs. Every run is kept, one
line each, until its command has ended, so that an interruption loses nothing but the runs under way. Results of the same
name are added to: a run that is there already is replaced, the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from bench.forecast import header

from reasonscale.profiles.library import load as load_profile
from reasonscale.simulator import bounds, policies, servegen, synthetic, traces, workload
from reasonscale.simulator.run import Options, first_replicas, run, setting_of, static_peak
from reasonscale.simulator.workload import Workload

PROFILE = "qwen2-32b-h200"
AIM = 0.99
MAIN_START_S = 120.0
QUICK = ("cot-shift", "math-heavy", "rag")
SYNTHETIC = ("cot-shift", "math-heavy", "rag", "agents", "flash-crowd", "r1-day")
REAL = ("r1-0-12h", "m-small-r1", "azure-r1")
TUNE = ("cot-shift", "math-heavy", "rag", "r1-1-2h")
RESULTS = Path("bench/results")
TUNED = Path("bench/tuned.json")

# The main parameters of each rule; 20 points or more, the rest as shipped.
GRIDS: dict[str, dict[str, list[Any]]] = {
    "ray-serve": {"target": [8, 12, 16, 18, 20, 24, 32, 64], "downscale_delay_s": [0.0, 15.0, 30.0, 60.0, 120.0, 600.0]},
    "hpa": {"target": [8, 12, 16, 18, 20, 24, 32, 64], "down_window_s": [0.0, 15.0, 30.0, 60.0, 300.0]},
    "production-stack": {"target": [0.01, 0.05, 0.1, 0.2, 0.5], "down_window_s": [300.0, 900.0, 1800.0, 3600.0]},
    "kserve-keda": {"target": [2, 8, 12, 16, 18, 20, 24, 32, 64], "down_window_s": [0.0, 15.0, 30.0, 60.0, 300.0]},
    "knative-kpa": {"target": [8, 12, 14, 16, 20, 24, 32], "stable_s": [6.0, 15.0, 30.0, 60.0, 180.0]},
    "kubeai": {"target": [4, 8, 12, 16, 18, 20, 24, 32, 64], "window_s": [10.0, 20.0, 30.0, 60.0, 180.0]},
    "aibrix-apa": {"target": [0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5], "window_s": [30.0, 60.0, 180.0]},
    "llm-d-wva-v1": {"kv_saturated": [0.02, 0.05, 0.1, 0.2, 0.4, 0.8], "kv_spare": [0.02, 0.05, 0.1, 0.2], "queue_spare": [1.0, 3.0, 4.0]},
    "llm-d-wva-v2": {"kv_share": [0.05, 0.1, 0.2, 0.4], "up_threshold": [0.15, 0.3, 0.6], "down_boundary": [0.1, 0.3, 0.7]},
    "llm-d-token-aware": {"prefill_s": [0.75, 1.5, 3.0, 6.0, 12.0], "kv_share": [0.2, 0.3, 0.4, 0.5, 0.6, 0.8]},
    "llm-d-slo-aware": {"high": [0.3, 0.4, 0.45, 0.5, 0.55, 0.7], "low": [0.1, 0.2, 0.3, 0.4]},
    "dynamo-throughput": {"interval_s": [60.0, 120.0, 180.0, 300.0, 600.0], "tpot_share": [0.39, 0.4, 0.41, 0.43], "predictor": ["constant", "linear"]},
    "dynamo-load": {"down_share": [0.2, 0.3, 0.4, 0.5, 0.6], "kv_max": [0.02, 0.05, 0.1, 0.3]},
    "dynamo-easy": {"up": [0.1, 0.2, 0.3, 0.4, 0.6, 1.0, 1.5, 2.5], "down": [0.05, 0.1, 0.2, 0.4, 0.6]},
    "tokenscale": {"headroom": [1.0, 1.4, 1.8, 2.2, 3.0, 4.0], "window_s": [30.0, 60.0, 180.0, 300.0, 600.0]},
    "chiron": {"busy_share": [0.15, 0.2, 0.333, 0.45, 0.6, 0.8], "busy_at": [0.15, 0.3, 0.5, 0.7, 0.9]},
    "sageserve": {"up": [0.01, 0.03, 0.1, 0.3], "tpot_share": [0.39, 0.4, 0.42, 0.46], "down": [0.0, 0.01, 0.05]},
    "preserve": {"kv_share": [0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8], "window_s": [60.0, 120.0, 300.0, 600.0]},
}  # fmt: skip


# Ends of a grid that are ends of what the rule can do: an optimum there is at no edge.
LIMITS: dict[tuple[str, str], dict[Any, str]] = {
    ("ray-serve", "downscale_delay_s"): {0.0: "no delay"},
    ("hpa", "down_window_s"): {0.0: "no window"},
    ("kserve-keda", "down_window_s"): {0.0: "no window"},
    ("production-stack", "down_window_s"): {3600.0: "the longest window that Kubernetes takes"},
    ("knative-kpa", "stable_s"): {6.0: "the shortest window that Knative takes"},
    ("sageserve", "down"): {0.0: "memory never lowers it"},
    ("dynamo-throughput", "tpot_share"): {0.39: "the step time of one request alone is 0.385 of the objective"},
}


def ends(policy: str, point: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return which parameters are at an end of their grid, and, apart from them, at a limit of the rule with its name."""
    last = {
        k: v for k, v in point.items() if not isinstance(v, str) and v in (GRIDS[policy][k][0], GRIDS[policy][k][-1])
    }
    limits = {k: LIMITS[policy, k][v] for k, v in last.items() if v in LIMITS.get((policy, k), {})}
    return [k for k in last if k not in limits], limits


@lru_cache(maxsize=2)
def trace(name: str, data: str, seed: int) -> Workload:
    """Return a trace of the benchmark by name."""
    r1 = Path(data) / "traces" / "servegen_deepseek_r1"
    if name in synthetic.BUILT_IN:
        return traces.load(name, seed=seed)
    if name.startswith("r1-"):
        low, high = name.removeprefix("r1-").removesuffix("h").split("-")
        return servegen.sample(r1, seed=seed, start_s=float(low) * 3600, end_s=float(high) * 3600)
    if name == "m-small-r1":
        day = servegen.sample(
            Path(data) / "traces" / "servegen_m_small", seed=seed, end_s=43_200.0, lengths=r1
        )  # fmt: skip
        return workload.scaled(day, rate=6.0 * 43_200.0 / len(day.arrival_s), seed=seed)
    if name == "azure-r1":
        azure = traces.read(Path(data) / "traces" / "azure2023" / "AzureLLMInferenceTrace_conv.csv")
        drawn = servegen.sample(r1, seed=seed, end_s=7200.0)
        rows = np.random.default_rng(seed).integers(0, len(drawn.arrival_s), len(azure.arrival_s))
        return workload.make(
            name, azure.arrival_s, drawn.prompt_tokens[rows], drawn.reasoning_tokens[rows], drawn.answer_tokens[rows]
        )
    raise SystemExit(f"no trace {name!r}")


@lru_cache(maxsize=64)
def begins(name: str, data: str, seed: int) -> int:
    """Return the number that every policy begins a trace with; a start takes as long as it likes."""
    return first_replicas(trace(name, data, seed), load_profile(PROFILE), Options(seed=seed))


def absent(names: Iterable[str], data: str) -> list[str]:
    """Return those of the traces whose folders are not under `data`."""
    folders = {"m-small-r1": ("servegen_m_small",), "azure-r1": ("azure2023",)}
    return [
        name
        for name in names
        if name not in synthetic.BUILT_IN
        and not all((Path(data) / "traces" / f).is_dir() for f in ("servegen_deepseek_r1", *folders.get(name, ())))
    ]


Job = tuple[str, str, str, float, int, str]  # trace, policy, its parameters as JSON, cold start, seed, data


def key(job: Job) -> str:
    """Return what a run is known by."""
    return "|".join(map(str, job[:5]))


def one(job: Job) -> dict[str, Any]:
    """Do one run."""
    name, policy, params, cold_s, seed, data = job
    work, profile = trace(name, data, seed), load_profile(PROFILE)
    options = Options(cold_start_s=cold_s, seed=seed, first_replicas=begins(name, data, seed))
    if policy == "lower-bound":
        found = bounds.bound_json(work, profile, options)
    elif policy == "clairvoyant":
        found = bounds.clairvoyant(work, profile, options).to_json()
    elif policy == "informed":
        found = bounds.informed(work, profile, options).to_json()
    elif policy == "static-peak":
        number, best = static_peak(work, profile, options, AIM)
        found = best.to_json() | {"policy": "static-peak", "replicas": number}
    else:
        made = policies.make(policy, setting_of(work, profile, options), json.loads(params))
        found = run(work, profile, made, options).to_json()
    found.pop("wall_s", None)
    return {
        "key": key(job),
        "trace": name,
        "named": policy,
        "params": json.loads(params),
        "cold_start_s": cold_s,
        "seed": seed,
    } | found


def do(jobs: Iterable[Job], keep: Path, processes: int | None = None) -> list[dict[str, Any]]:
    """Do the runs that are not kept yet, on all cores or so many; return all."""
    jobs = list(dict.fromkeys(jobs))
    keep.parent.mkdir(parents=True, exist_ok=True)
    had = [json.loads(line) for line in keep.read_text().splitlines()] if keep.exists() else []
    done = {row["key"]: row for row in had}
    todo = [job for job in jobs if key(job) not in done]
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool, keep.open("a") as file:
        running = [pool.submit(one, job) for job in todo]
        try:
            for n, future in enumerate(as_completed(running), 1):
                row = future.result()
                done[row["key"]] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                if sys.stderr.isatty():
                    print(f"\r{n} of {len(todo)}: {row['key'][:100]:<100}", end="", file=sys.stderr, flush=True)
                elif n % 50 == 0 or n == len(todo):
                    print(f"{n} of {len(todo)} runs", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"\n{keep}: what ran is kept; the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None
    return [done[key(job)] for job in jobs]


def tuned() -> dict[str, dict[str, Any]]:
    """Return the rivals' parameters as tuned; none where nobody tuned yet."""
    return json.loads(TUNED.read_text())["params"] if TUNED.exists() else {}


def tune(data: str, only: list[str] | None = None, processes: int | None = None) -> None:
    """Choose each rival's parameters: most traces at the aim, then fewest GPU-hours; where none is, the least missed."""
    names = [t for t in TUNE if t in synthetic.BUILT_IN or (Path(data) / "traces").is_dir()]
    points = {
        policy: [json.dumps(dict(zip(grid, values, strict=True))) for values in product(*grid.values())]
        for policy, grid in GRIDS.items()
        if only is None or policy in only
    }
    jobs: list[Job] = [(t, p, params, 120.0, 1, data) for p, rows in points.items() for t in names for params in rows]
    rows = do(jobs, RESULTS / "autoscalers-tune.jsonl", processes)
    found = {(r["trace"], r["named"], json.dumps(r["params"])): r for r in rows}
    before = json.loads(TUNED.read_text()) if TUNED.exists() else {"params": {}, "report": {}}
    chosen, report = before["params"], before["report"]
    for policy, params in points.items():

        def score(p: str, policy: str = policy) -> tuple[float, ...]:
            """Order the points; of two that do the same, the one farther from the grid's ends is first."""
            mine = [found[t, policy, p] for t in names]
            met = sum(r["attainment"] >= AIM for r in mine)
            missed = sum(min(0.0, r["attainment"] - AIM) for r in mine)
            # The logarithm, so that one large trace doesn't outvote the others.
            hours = sum(float(np.log(r["gpu_hours"])) for r in mine)
            return (-met, hours if met else -missed, -missed, hours, len(ends(policy, json.loads(p))[0]))

        best = min(params, key=score)
        chosen[policy] = json.loads(best)
        edge, limit = ends(policy, chosen[policy])
        report[policy] = {
            "points": len(params),
            "met": {t: found[t, policy, best]["attainment"] for t in names},
            "at_the_edge": edge,
            "at_a_limit": limit,
        }
    found_at = {
        "header": header("python -m bench.autoscalers tune"),
        "traces": names,
        "params": chosen,
        "report": report,
    }
    found_at["alone"] = alone(names)
    TUNED.write_text(json.dumps(found_at, indent=1) + "\n")
    print(f"{TUNED}: {len(points)} rules, {len(jobs)} runs")


def alone(names: list[str]) -> dict[str, Any]:
    """Return for each trace the cheapest point of any rival's grid that meets the aim there, for whatever else it does."""
    out = {}
    kept = RESULTS / "autoscalers-tune.jsonl"
    kept_rows = [json.loads(line) for line in kept.read_text().splitlines()]
    # Of grids that were once, what is in them no more doesn't count.
    rows = [
        r
        for r in kept_rows
        if (grid := GRIDS[r["named"]]).keys() == r["params"].keys() and all(r["params"][k] in grid[k] for k in grid)
    ]
    for name in names:
        good = [r for r in rows if r["trace"] == name and r["attainment"] >= AIM]
        if good:
            best = min(good, key=lambda r: float(r["gpu_hours"]))
            out[name] = {k: best[k] for k in ("named", "params", "gpu_hours", "attainment")}
    return out


def compare(
    names: list[str], colds: list[float], seeds: list[int], data: str, out: str, only: list[str] | None = None,
    processes: int | None = None, command: str = "quick",
) -> None:  # fmt: skip
    """Run ours, the rivals as shipped and as tuned, and the bounds; write JSON, a table and a plot."""
    settings = tuned()
    variants = [
        ("reasonscale", "{}"),
        ("static-peak", "{}"),
        ("clairvoyant", "{}"),
        ("informed", "{}"),
        ("lower-bound", "{}"),
    ]
    variants += [(p, "{}") for p in GRIDS] + [(p, json.dumps(v)) for p, v in settings.items()]
    if command == "quick":  # a search of its own for each trace, and half of the time
        variants.remove(("informed", "{}"))
    if only:
        variants = [(p, v) for p, v in variants if p in only or (v != "{}" and f"{p}:tuned" in only)]
    jobs: list[Job] = [(t, p, v, c, s, data) for t in names for c in colds for s in seeds for p, v in variants]
    unfinished = RESULTS / f"{out}.jsonl"
    ran = do(jobs, unfinished, processes)
    print(table(ran, names, colds))
    rows = added(RESULTS / f"{out}.json", ran, settings, f"python -m bench.autoscalers {command}")
    unfinished.unlink(missing_ok=True)
    first = [r for r in rows if r["seed"] == rows[0]["seed"]]  # rivals run with one seed: as many for all
    names = list(dict.fromkeys(r["trace"] for r in rows))
    colds = sorted({r["cold_start_s"] for r in rows}, key=lambda c: (c != MAIN_START_S, c))
    (RESULTS / f"{out}.md").write_text(table(first, names, colds))
    pareto(first, names, colds[0], Path("docs/img") / f"{out}.png")


def added(
    results: Path, rows: list[dict[str, Any]], settings: dict[str, dict[str, Any]], command: str
) -> list[dict[str, Any]]:
    """Add the runs to a file of results, in place of those of the same key or tuned otherwise; return all that it holds."""
    before = json.loads(results.read_text())["runs"] if results.exists() else []
    valid = [r for r in before if not r["params"] or r["params"] == settings.get(r["named"])]
    held = {row["key"]: row for row in (*valid, *rows)}
    if len(held) > len(rows):
        command = re.sub(r" --(traces|policies|cold-starts|seeds) \S+", "", command) + ", each run by its key"
    report = {"header": header(command), "profile": PROFILE, "runs": list(held.values())}
    results.write_text(json.dumps(report, indent=0) + "\n")
    return list(held.values())


def _mean(rows: list[dict[str, Any]], field: str) -> float:
    return float(np.mean([r[field] for r in rows]))


def table(rows: list[dict[str, Any]], names: list[str], colds: list[float]) -> str:
    """Return a Markdown table for each cold start: GPU-hours and attainment by policy and trace, mean over seeds."""
    lines = []
    for cold_s in colds:
        lines += [
            f"### A start takes {cold_s:g} s",
            "",
            "| policy | " + " | ".join(names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        seen = dict.fromkeys((r["named"], json.dumps(r["params"])) for r in rows)
        for policy, params in seen:
            cells = []
            for name in names:
                mine = [
                    r
                    for r in rows
                    if (r["trace"], r["named"], json.dumps(r["params"]), r["cold_start_s"])
                    == (name, policy, params, cold_s)
                ]
                if not mine:
                    cells.append("")
                    continue
                hours = f"{_mean(mine, 'gpu_hours'):.1f} h"
                if policy != "lower-bound":
                    met = _mean(mine, "attainment")
                    hours = f"**{hours}** at {met:.1%}" if met >= AIM else f"{hours} at {met:.1%}"
                cells.append(hours)
            label = policy if params == "{}" else f"{policy}, tuned"
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


# By policy: colour, marker, size, order of drawing.
_MARKS = {
    "reasonscale": ("#c0392b", "*", 110, 5), "clairvoyant": ("#222222", "^", 34, 4), "informed": ("#222222", "D", 24, 4),
    "static-peak": ("#222222", "s", 26, 3),
}  # fmt: skip
_MET = (0.0, 50.0, 90.0, 95.0, 99.0, 99.9)


def pareto(rows: list[dict[str, Any]], names: list[str], cold_s: float, path: Path) -> None:
    """Draw attainment against GPU-hours, one panel a trace; what is missed on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    wide = 2 if len(names) in (2, 4) else min(3, len(names))
    tall = -(-len(names) // wide)
    figure, axes = plt.subplots(tall, wide, figsize=(4.6 * wide, 3.8 * tall), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        here = [r for r in rows if r["trace"] == name and r["cold_start_s"] == cold_s]
        best = min((r["gpu_hours"] for r in here if r["named"] == "clairvoyant"), default=None)
        if best is None:
            axis.set_visible(False)
            continue
        for policy, params in dict.fromkeys((r["named"], json.dumps(r["params"])) for r in here):
            mine = [r for r in here if (r["named"], json.dumps(r["params"])) == (policy, params)]
            if policy == "lower-bound":
                continue
            rival = ("#1f5aa6" if params != "{}" else "#b9c7dc", "o", 26, 2)
            colour, marker, size, order = _MARKS.get(policy, rival)
            x, missed = _mean(mine, "gpu_hours") / best, max(0.1, 100.0 - 100.0 * _mean(mine, "attainment"))
            axis.scatter(x, missed, s=size, color=colour, marker=marker, zorder=order)
        axis.axhline(1.0, color="#888888", lw=0.6, ls="--")
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xscale("log", base=2)
        axis.set_xticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
        axis.set_xlim(0.4, 24)
        axis.set_yscale("log")
        axis.set_ylim(115.0, 0.085)
        axis.set_yticks([100.0 - m for m in _MET], [f"{m:g}" for m in _MET])
        axis.minorticks_off()
        axis.set_xlabel("GPU-hours / clairvoyant", fontsize=8)
        axis.set_ylabel("% of requests within all objectives", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    shown = {"rivals, tuned": ("#1f5aa6", "o", 26, 0), "rivals, as shipped": ("#b9c7dc", "o", 26, 0)}
    shown = {"reasonscale": _MARKS["reasonscale"], **shown, **{k: v for k, v in _MARKS.items() if k != "reasonscale"}}
    drawn = [Line2D([], [], color=m[0], marker=m[1], ls="", ms=m[2] ** 0.5, label=k) for k, m in shown.items()]
    figure.legend(handles=drawn, loc="upper left", ncols=6, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quick", "tune", "full"))
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--traces", help="only these, comma separated")
    parser.add_argument("--policies", help="only these, comma separated; NAME:tuned without the one as shipped")
    parser.add_argument("--out", default="autoscalers-full", help="name of the result files in bench/results")
    parser.add_argument("--cold-starts", default="10,30,120,420,900")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--processes", type=int, help="at once; all cores when left out")
    args = parser.parse_args()
    only = args.policies.split(",") if args.policies else None
    if args.what == "tune":
        tune(args.data, only, args.processes)
        return 0
    if args.what == "quick":
        compare(list(QUICK), [120.0], [1], args.data, "autoscalers-quick", processes=args.processes)
        return 0
    names = args.traces.split(",") if args.traces else [*SYNTHETIC, *REAL]
    if lacking := absent(names, args.data):
        if args.traces:
            parser.error(f"trace {', '.join(lacking)} is not under --data {args.data}")
        names = [n for n in names if n not in lacking]
        print(f"left out, not under --data {args.data}: {', '.join(lacking)}", file=sys.stderr)
    colds, seeds = ([kind(x) for x in text.split(",")] for kind, text in ((float, args.cold_starts), (int, args.seeds)))
    command = f"full --traces {','.join(names)} --cold-starts {args.cold_starts} --seeds {args.seeds} --out {args.out}"
    compare(names, colds, [int(s) for s in seeds], args.data, args.out, only, args.processes, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
