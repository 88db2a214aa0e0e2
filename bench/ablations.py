"""Ours with one part taken out, or with true lengths: `python -m bench.ablations`.

The decision is the product's; the part in question is replaced while it runs. Each line of the table is one simulated
run, at a start of 120 s and seed 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.autoscalers import PROFILE, absent, trace
from bench.forecast import header

from reasonscale.profiles.library import load as load_profile
from reasonscale.scaling import outlook
from reasonscale.scaling.arrivals import Arrivals, Rate, rate_of
from reasonscale.scaling.capacity import fit, token_time
from reasonscale.scaling.curve import EDGES, WIDTHS, Curve, curve_from
from reasonscale.scaling.forecast import BLOCK_ROUNDING_TOKENS, ClassLoad, Point, forecast
from reasonscale.scaling.outlook import curves_of, loads_of
from reasonscale.scaling.state import State
from reasonscale.scaling.trend import Trend
from reasonscale.scaling.types import Observation, Policy
from reasonscale.simulator import policies
from reasonscale.simulator.policies.ours import Reasonscale
from reasonscale.simulator.run import Options, run, setting_of

TRACES = ("cot-shift", "math-heavy", "rag", "agents", "flash-crowd", "azure-r1", "r1-1-2h")
KEYS = ("attainment", "gpu_hours", "preempted_per_1000", "refused", "peak_replicas")
# Rules that do best once they have our router: one by tokens as it ships, one by requests at three targets.
OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llm-d-wva-v2", {}), ("kubeai", {"target": 24, "window_s": 60.0}), ("kubeai", {"target": 32, "window_s": 60.0}),
    ("kubeai", {"target": 48, "window_s": 60.0}),
)  # fmt: skip
OUT = Path("bench/results/ablations.json")


class Ours(Reasonscale):
    """The product's policy; it keeps the fleet that it is shown, for the oracle."""

    cluster: Any = None

    def shown(self, cluster: Any) -> None:
        """Keep the fleet."""
        self.cluster = cluster


def _by_rate(seen: Observation, state: State, policy: Policy) -> list[ClassLoad]:
    """Return the loads with those in flight as many, and as old, as the rate alone would have them."""
    tpot_s = token_time(state.steps, fit(state.steps, policy), policy)
    out = []
    for found in loads_of(seen, state, policy):
        areas = [found.curve.at(edge)[1] for edge in EDGES]
        prompt = found.rate.prompt_tokens or 0.0
        there = [
            (0.5 * (EDGES[j] + EDGES[j + 1]), found.rate.per_s * tpot_s * (areas[j + 1] - areas[j]), prompt)
            for j in range(len(areas) - 1)
            if EDGES[j + 1] < found.curve.limit
        ]
        out.append(replace(found, running=[row for row in there if row[1] > 1e-9]))
    return out


def _memoryless(state: State, policy: Policy) -> dict[str, Curve]:
    """Return curves of the same means, on which a request has as much left at any age."""
    out = {}
    for name, curve in curves_of(state, policy).items():
        doubts = [b - a for a, b in zip(curve.doubt, curve.doubt[1:], strict=False)]
        out[name] = curve_from([w / curve.mean for w in WIDTHS], doubts, curve.limit)
    return out


def _kv_as_now(loads: Sequence[ClassLoad], times: Sequence[float], *rest: float) -> list[Point]:
    """Return the forecast with the KV tokens of now at all times."""
    points = forecast(loads, times, *rest)
    now = points[0]
    return [replace(p, kv_tokens=now.kv_tokens, kv_high_tokens=now.kv_tokens) for p in points]


def _nobody_comes(memory: Arrivals) -> Rate:
    """Return the rate of nobody."""
    return replace(rate_of(memory), per_s=0.0, variance=0.0)


def _oracle(ours: Ours) -> Callable[..., list[Point]]:
    """Return a forecast that knows how much each running request will make yet."""

    def known(loads: Sequence[ClassLoad], times: Sequence[float], tpot: float, *rest: float) -> list[Point]:
        points = forecast([replace(found, running=[]) for found in loads], times, tpot, *rest)
        made, left, prompt = ours.cluster.true_remains()
        out = []
        for point in points:
            p = point.after_s / tpot
            there = left > p
            n, kv = float(there.sum()), float((prompt + made + p + BLOCK_ROUNDING_TOKENS)[there].sum())
            out.append(
                replace(
                    point,
                    inflight=point.inflight + n,
                    inflight_high=point.inflight_high + n,
                    kv_tokens=point.kv_tokens + kv,
                    kv_high_tokens=point.kv_high_tokens + kv,
                )
            )
        return out

    return known


def _unprofiled(ours: Ours) -> None:
    """Take the profile away, as where a resource names none: step times are learnt from what engines report."""
    ours.policy = replace(ours.policy, step_time=None, kv_capacity_tokens=None)


def _no_excess(trend: Trend) -> float:
    """Return no growth beyond the forecast."""
    return 0.0


ROUTERS = {"router by least KV, no gate": "least-kv", "our router, no gate": "expected-load"}
VARIANTS: dict[str, Callable[[Ours], tuple[Any, ...] | None]] = {
    "ours": lambda ours: None,
    "no in-flight term": lambda ours: ("loads_of", _by_rate),
    "mean remaining, whatever the age": lambda ours: ("curves_of", _memoryless),
    "no KV forecast": lambda ours: ("forecast", _kv_as_now),
    "no arrival forecast": lambda ours: ("rate_of", _nobody_comes),
    "no growth beyond the forecast": lambda ours: (Trend, "growth", _no_excess),
    "no profile, as the operator begins": _unprofiled,
    **dict.fromkeys(ROUTERS, lambda ours: None),
    "oracle lengths": lambda ours: ("forecast", _oracle(ours)),
}


@contextmanager
def _replaced(what: tuple[Any, ...] | None) -> Iterator[None]:
    if what is None:
        yield
        return
    where, *rest = what if len(what) == 3 else (outlook, *what)
    with patch.object(where, *rest):
        yield


def one(name: str, variant: str, data: str, cold_s: float = 120.0, seed: int = 1) -> dict[str, Any]:
    """Return what came of a trace under a variant."""
    work, profile = trace(name, data, seed), load_profile(PROFILE)
    options = Options(cold_start_s=cold_s, seed=seed, router=ROUTERS.get(variant))
    ours = Ours(setting_of(work, profile, options))
    with _replaced(VARIANTS[variant](ours)):
        found = run(work, profile, ours, options).to_json()
    return {"trace": name, "variant": variant, "cold_start_s": cold_s, "seed": seed} | {k: found[k] for k in KEYS}


def behind_our_router(name: str, policy: str, params: dict[str, Any], data: str) -> dict[str, Any]:
    """Return what came of a trace under another rule, before whose fleet stand our router and gate."""
    work, profile = trace(name, data, 1), load_profile(PROFILE)
    options = Options(cold_start_s=120.0, seed=1, router="gated")
    found = run(work, profile, policies.make(policy, setting_of(work, profile, options), params), options).to_json()
    label = policy + (f", {', '.join(f'{k} {v:g}' for k, v in params.items())}" if params else "")
    return {"trace": name, "variant": label, "params": params} | {k: found[k] for k in KEYS}


def added(results: Path, new: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return what the file holds, with these traces in place of what it had of them; in the order of `TRACES`."""
    before = json.loads(results.read_text()) if results.exists() else {}
    names = {row["trace"] for row in new["runs"]}
    kept = {k: [row for row in before.get(k, []) if row["trace"] not in names] for k in new}
    place = {name: i for i, name in enumerate(TRACES)}
    return {k: sorted(kept[k] + new[k], key=lambda row: place.get(row["trace"], len(place))) for k in new}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown: variants down, traces across."""
    names = list(dict.fromkeys(r["trace"] for r in rows))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for variant in dict.fromkeys(r["variant"] for r in rows):
        mine = {r["trace"]: r for r in rows if r["variant"] == variant}
        cells = [f"{mine[n]['gpu_hours']:.1f} h at {mine[n]['attainment']:.1%}" for n in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--traces", default=",".join(TRACES))
    args = parser.parse_args()
    if lacking := absent(args.traces.split(","), args.data):
        parser.error(f"trace {', '.join(lacking)} is not under --data {args.data}")
    rows = []
    for name in args.traces.split(","):
        for variant in VARIANTS:
            rows.append(one(name, variant, args.data))
            print(rows[-1], file=sys.stderr, flush=True)
    others = [behind_our_router(t, p, params, args.data) for t in args.traces.split(",") for p, params in OTHERS]
    report = added(OUT, {"runs": rows, "behind_our_router": others})
    command = f"python -m bench.ablations --traces {','.join(dict.fromkeys(r['trace'] for r in report['runs']))}"
    OUT.write_text(json.dumps({"header": header(command), **report}, indent=1) + "\n")
    print(table(rows), table(others), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
