"""The tables of docs/benchmark.md from the results: `python -m bench.page` writes them between the page's marks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from bench.ablations import table as ablations_table
from bench.autoscalers import AIM, TUNED, table

RESULTS, PAGE = Path("bench/results"), Path("docs/benchmark.md")
FILES = ("autoscalers-production.json", "autoscalers-short.json")
BOUNDS = ("clairvoyant", "informed", "lower-bound")
WHAT = {
    "r1-0-12h": "DeepSeek-R1, 12 h at full rate",
    "m-small-r1": "another service's rates, R1's lengths, 12 h",
    "azure-r1": "Azure's conversations, R1's lengths, 57 min",
    "r1-day": "built in: a day's swing in 12 h",
    "cot-shift": "built in: chains grow fourfold in five minutes",
    "math-heavy": "built in: chains of 8,000 tokens",
    "rag": "built in: prompts of 8k to 64k",
    "agents": "built in: closed loop, 120 users",
    "flash-crowd": "built in: five times the requests within a minute",
}
Row = dict[str, Any]


def rows_of(folder: Path = RESULTS) -> list[Row]:
    """Return all runs."""
    return [row for name in FILES for row in json.loads((folder / name).read_text())["runs"]]


def found(rows: list[Row], **given: Any) -> list[Row]:
    """Return the rows with these values."""
    return [r for r in rows if all(r[k] == v for k, v in given.items())]


def best_rival(rows: list[Row]) -> Row | None:
    """Return the rival with fewest GPU-hours among those that reach the aim, as shipped, tuned, or a constant number."""
    good = [r for r in rows if r["named"] not in (*BOUNDS, "reasonscale") and r["attainment"] >= AIM]
    return min(good, key=lambda r: float(r["gpu_hours"]), default=None)


def _label(row: Row) -> str:
    name = f"a constant {row['replicas']}" if row["named"] == "static-peak" else row["named"]
    return f"{name}{', tuned' if row['params'] else ''}, {row['gpu_hours']:.1f} h"


def _ours(row: Row) -> str:
    hours, met = f"{row['gpu_hours']:.1f} h", f"{row['attainment']:.1%}"
    return f"**{hours}** at {met}" if row["attainment"] >= AIM else f"{hours} at **{met}: missed**"


def _ratio(row: Row, bound: Row | None) -> str:
    """Return ours over a bound; nothing where ours missed the aim, since it is not the same service."""
    both = bound is not None and row["attainment"] >= AIM and (bound["attainment"] or 1.0) >= AIM
    return f"{row['gpu_hours'] / bound['gpu_hours']:.2f}" if bound and both else ""


def _bound(rows: list[Row], name: str) -> Row | None:
    here = found(rows, named=name)
    return here[0] if here else None


def _hours(row: Row | None) -> str:
    if row is None:
        return ""
    missed = row["attainment"] is not None and row["attainment"] < AIM
    return f"{row['gpu_hours']:.1f} h" + (f" at {row['attainment']:.1%}" if missed else "")


def headline(rows: list[Row]) -> str:
    """Return the table of all traces at a start of 120 s."""
    head = ["trace", "requests", "reasonscale", "best rival at 99 %", "fewer", "clairvoyant", "x U", "informed", "x N", "x L",
            "static peak", "preempted of 1,000", "refused of 1,000"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, what in WHAT.items():
        here = found(rows, trace=name, cold_start_s=120.0, seed=1)
        ours, rival = found(here, named="reasonscale")[0], best_rival(here)
        u, n, low = (_bound(here, b) for b in ("clairvoyant", "informed", "lower-bound"))
        fewer = f"{1 - ours['gpu_hours'] / rival['gpu_hours']:.0%}" if rival and ours["attainment"] >= AIM else ""
        lines.append(
            f"| `{name}`: {what} | {ours['requests']:,} | {_ours(ours)} | {_label(rival) if rival else 'none'} | {fewer} | {_hours(u)} |"
            f" {_ratio(ours, u)} | {_hours(n)} | {_ratio(ours, n)} | {_ratio(ours, low)} | {_hours(_bound(here, 'static-peak'))} |"
            f" {ours['preempted_per_1000']:.1f} | {1000 * ours['refused'] / ours['requests']:.1f} |"
        )
    return "\n".join(lines)


def starts(rows: list[Row]) -> str:
    """Return ours, the best rival and the clairvoyant by start."""
    lines = [
        "| trace | start | reasonscale | best rival at 99 % of those run | clairvoyant | x U | informed | x N |",
        "|---" * 8 + "|",
    ]
    for name in WHAT:
        for cold in (10.0, 30.0, 120.0, 420.0, 900.0):
            here = found(rows, trace=name, cold_start_s=cold, seed=1)
            ours = found(here, named="reasonscale")
            if not ours or (cold == 120.0 and len(found(rows, trace=name, named="reasonscale")) == 1):
                continue
            # A constant number starts nothing, so that it is the same at any start.
            constant = found(rows, trace=name, cold_start_s=120.0, seed=1, named="static-peak")
            rival, u, n = best_rival(here + constant), _bound(here, "clairvoyant"), _bound(here, "informed")
            lines.append(
                f"| {name} | {cold:g} s | {_ours(ours[0])} | {_label(rival) if rival else 'none'} | {_hours(u)} |"
                f" {_ratio(ours[0], u)} | {_hours(n)} | {_ratio(ours[0], n)} |"
            )
    return "\n".join(lines)


def seeds(rows: list[Row]) -> str:
    """Return ours at a start of 120 s by seed."""
    lines = ["| trace | seed 1 | seed 2 | seed 3 | mean |", "|---" * 5 + "|"]
    for name in WHAT:
        mine = {r["seed"]: r for r in found(rows, trace=name, cold_start_s=120.0, named="reasonscale")}
        if len(mine) < 3:
            continue
        hours, met = (float(np.mean([r[k] for r in mine.values()])) for k in ("gpu_hours", "attainment"))
        cells = " | ".join(_ours(mine[s]) for s in sorted(mine))
        lines.append(f"| {name} | {cells} | {hours:.1f} h at {met:.1%} |")
    return "\n".join(lines)


def everything(rows: list[Row]) -> str:
    """Return every policy on every trace at 120 s."""
    at = found(rows, cold_start_s=120.0, seed=1)
    names = list(WHAT)
    return "\n\n".join(
        table([r for r in at if r["trace"] in part], part, [120.0]).split("\n", 2)[2].rstrip()
        for part in (names[:4] + names[8:], names[4:8])
    )


def alone(best: dict[str, Any], ours: list[Row]) -> str:
    """Return ours against the cheapest point of any rival's grid on the trace itself."""
    lines = ["| trace | reasonscale | cheapest rival, tuned on that trace alone | fewer |", "|---" * 4 + "|"]
    for name, row in best.items():
        mine = next(r for r in ours if r["trace"] == name and r["variant"] == "ours")
        params = ", ".join(f"{k} {v}" for k, v in row["params"].items())
        lines.append(
            f"| {name} | {_ours(mine)} | {row['named']} ({params}): {row['gpu_hours']:.1f} h at {row['attainment']:.1%} |"
            f" {1 - mine['gpu_hours'] / row['gpu_hours']:.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Write the page's tables."""
    rows, page = rows_of(), PAGE.read_text()
    ablations = json.loads((RESULTS / "ablations.json").read_text())
    made = {
        "headline": headline(rows),
        "starts": starts(rows),
        "seeds": seeds(rows),
        "everything": everything(rows),
        "alone": alone(json.loads(TUNED.read_text())["alone"], ablations["runs"]),
        "ablations": ablations_table(ablations["runs"]),
        "behind-our-router": ablations_table(ablations["behind_our_router"]),
    }
    for name, text in made.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        page, n = re.subn(f"(?s){re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", page)  # noqa: B023
        if n != 1:
            raise SystemExit(f"{PAGE}: {begin} is there {n} times")
    PAGE.write_text(page)
    print(made["headline"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
