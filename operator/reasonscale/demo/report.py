"""The demo's report: numbers, verdict, and one self-contained page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from reasonscale.api.constants import REASON_COT, REASON_KV
from reasonscale.autoscaler import Record
from reasonscale.demo.svg import Mark, Series, plot
from reasonscale.load.client import Outcome, summarize
from reasonscale.load.trace import SHIFT_BACK, SHIFT_FROM

COT_REASONS = (REASON_COT, REASON_KV)
RATE_WINDOW_S = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """What a demo run left behind. Times of records are unix seconds; `started` is the load's begin."""

    started: float
    load_s: float
    records: Sequence[Record]
    outcomes: Sequence[Outcome]
    cpu_percent: Sequence[tuple[float, float]]  # (s since start, share of all cores)
    pace_ms: float
    final_replicas: int
    min_replicas: int


def scale_events(run: Run) -> list[dict[str, Any]]:
    """Return each change of the number that was acted on, and what it rested on."""
    out = []
    for record in run.records:
        d = record.decision
        if not d.act or d.target == d.current:
            continue
        waiting = sum(k.waiting for k in record.observation.classes.values())
        out.append({
            "t": round(d.time - run.started, 1), "from": d.current, "to": d.target, "reason": d.reason, "message": d.message,
            "owed_tokens": round(d.numbers.owed_tokens), "waiting": round(waiting),
            "rate": round(d.numbers.arrival_rate, 2),
        })  # fmt: skip
    return out


def rates(run: Run) -> list[tuple[float, float]]:
    """Return the request rate in windows of 30 s: all that a request-rate scaler would have seen."""
    counts: dict[int, int] = {}
    for o in run.outcomes:
        counts[int(o.t // RATE_WINDOW_S)] = counts.get(int(o.t // RATE_WINDOW_S), 0) + 1
    return [
        ((i + 0.5) * RATE_WINDOW_S, counts.get(i, 0) / RATE_WINDOW_S) for i in range(int(run.load_s // RATE_WINDOW_S))
    ]


def build(run: Run) -> dict[str, Any]:
    """Return report.json."""
    summary = summarize(run.outcomes)
    events, seen = scale_events(run), [r for _, r in rates(run)]
    ready = [r.observation.fleet.ready for r in run.records]
    busy = [share for t, share in run.cpu_percent if 0 <= t <= run.load_s]
    report = {
        **summary,
        "scale_events": events,
        "max_replicas": max(ready, default=0),
        "final_replicas": run.final_replicas,
        "min_replicas": run.min_replicas,
        "streams_cut": sum(o.cut for o in run.outcomes),
        "request_rate": {
            "mean": round(sum(seen) / len(seen), 3) if seen else None,
            "lowest": round(min(seen), 3) if seen else None,
            "highest": round(max(seen), 3) if seen else None,
            "window_s": RATE_WINDOW_S,
        },
        "signal_age_s": {"highest": round(max((r.observation.age_s or 0.0 for r in run.records), default=0.0), 2)},
        "cpu_percent": {
            "mean": round(sum(busy) / len(busy), 1) if busy else None,
            "highest": round(max(busy), 1) if busy else None,
        },
        "pace_ms": run.pace_ms,
        "load_s": run.load_s,
    }
    return report | {"missing": verdict(report)}


def verdict(report: dict[str, Any]) -> list[str]:
    """Return what the run lacks to have passed; empty when it has."""
    missing = []
    if report["failed"]:
        missing.append(f"{report['failed']} of {report['requests']} requests failed")
    if not report["requests"] or report["correct"] < 0.9 * report["requests"]:
        missing.append(f"{report['correct']} of {report['requests']} answers were right; 90 % are wanted")
    if not any(e["to"] > e["from"] and e["reason"] in COT_REASONS for e in report["scale_events"]):
        missing.append("no scale-up rested on the thought still to come")
    if report["final_replicas"] != report["min_replicas"]:
        missing.append(f"{report['final_replicas']} replicas at the end; {report['min_replicas']} are wanted")
    return missing


def _rate_words(rate: dict[str, Any]) -> str:
    if rate["lowest"] == rate["highest"]:
        return f"{rate['mean']} requests/s"
    return f"{rate['lowest']} to {rate['highest']} requests/s"


def words(report: dict[str, Any]) -> list[str]:
    """Return the summary for a person."""
    r = report
    rate = r["request_rate"]
    lines = [
        f"requests          {r['requests']}, failed {r['failed']}, streams cut {r['streams_cut']}",
        f"right answers     {r['correct']} of {r['checked']}",
        f"tokens            {r['reasoning_tokens']} of thought, {r['answer_tokens']} of answers",
    ]
    for key, name, unit in (
        ("ttft_s", "first token", "s"),
        ("ttfat_s", "first of answer", "s"),
        ("tpot_ms", "per output token", "ms"),
    ):
        lines.append(f"{name:<17} p50 {r[key]['p50']} {unit}, p95 {r[key]['p95']} {unit}")
    lines.append(f"replicas          {r['min_replicas']} -> {r['max_replicas']} -> {r['final_replicas']}")
    for e in r["scale_events"]:
        basis = f"{e['owed_tokens']} tokens owed, {e['waiting']} requests waiting, {e['rate']} requests/s"
        lines.append(f"  {e['t']:6.1f} s  {e['from']} -> {e['to']}  {e['reason']}: {e['message']}  [{basis}]")
    lines.append(
        f"a scaler by request rate would have seen {_rate_words(rate)} from beginning to end: nothing to scale for"
    )
    lines.append(f"CPU               {r['cpu_percent']['mean']} % of all cores on average under load")
    lines.append(
        f"engines are held to {r['pace_ms']:g} ms a step in this demo: unpaced, so small a model fills a core before its batch"
    )
    return lines


_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#1c2733}svg{width:100%;height:auto;margin:.4em 0}"
    ".t{font-size:13px;font-weight:600}.u{font-weight:400;fill:#789}.y{font-size:11px;fill:#678;text-anchor:end}.x{font-size:11px;fill:#678;text-anchor:middle}"
    ".l{font-size:11px;fill:#345}.m{font-size:10.5px;fill:#666}.g{stroke:#e4e9ee}table{border-collapse:collapse;width:100%;font-size:13.5px}"
    "td,th{border-bottom:1px solid #e4e9ee;padding:.35em .5em;text-align:left;vertical-align:top}h1{font-size:1.5em;margin-bottom:.1em}"
    ".k{display:flex;flex-wrap:wrap;gap:.6em;margin:1em 0}.k div{background:#f3f6f9;border-radius:8px;padding:.5em .9em}.k b{display:block;font-size:1.35em}"
    ".ok{color:#0a7d42}.no{color:#b3261e}small{color:#678}"
)


def _plots(run: Run, report: dict[str, Any]) -> list[str]:
    def over(pick: Any) -> list[tuple[float, float]]:
        return [
            (max(0.0, r.observation.time - run.started), float(pick(r)))
            for r in run.records
            if r.observation.time >= run.started
        ]

    end = max([run.load_s, *(x for x, _ in over(lambda r: 0))])
    marks = [
        Mark(e["t"], f"{e['from']}→{e['to']}", "#c2410c" if e["to"] > e["from"] else "#0f766e")
        for e in report["scale_events"]
    ]
    phases = [
        Mark(run.load_s * SHIFT_FROM, "chains get longer"),
        Mark(run.load_s * SHIFT_BACK, "shorter again"),
        Mark(run.load_s, "load ends"),
    ]
    capacity = over(
        lambda r: (
            100
            * sum(x.kv_used_tokens for x in r.observation.replicas)
            / max(1.0, sum(x.kv_capacity_tokens or 0 for x in r.observation.replicas))
        )
    )
    good = [o for o in run.outcomes if not o.failed]
    return [
        plot("Requests per second", "what a rate scaler sees", [Series("rate", rates(run), "#64748b", "line")], end, phases, 1.0),
        plot("Chain of thought still to come", "tokens", [
            Series("owed", over(lambda r: r.decision.numbers.owed_tokens), "#7c3aed", "area"),
            Series("of waiting requests", over(lambda r: r.decision.numbers.queued_tokens), "#c2410c"),
        ], end, marks),
        plot("Replicas", "", [
            Series("asked for", over(lambda r: r.decision.target), "#94a3b8", "step"), Series("ready", over(lambda r: r.observation.fleet.ready), "#0f766e", "step"),
        ], end, marks, 3.0),
        plot("Requests waiting", "without their first token", [Series("waiting", over(lambda r: sum(k.waiting for k in r.observation.classes.values())), "#c2410c", "step")], end, marks, 4.0),
        plot("KV cache", "% of all replicas", [Series("used", capacity, "#2563eb")], end, marks, 100.0),
        plot("Time to first answer token", "s, each request at its arrival", [Series("answer", [(o.t, o.ttfat_s) for o in good if o.ttfat_s is not None], "#7c3aed", "dots"), Series("first token", [(o.t, o.ttft_s) for o in good if o.ttft_s is not None], "#0f766e", "dots")], end, marks),
        plot("Processor", "% of all cores", [Series("busy", [(t, v) for t, v in run.cpu_percent if 0 <= t <= end], "#64748b")], end, marks, 100.0),
    ]  # fmt: skip


def page(run: Run, report: dict[str, Any]) -> str:
    """Return report.html."""
    ok = not report["missing"]
    head = "passed" if ok else "not passed: " + "; ".join(report["missing"])
    tiles = [
        (report["requests"], "requests"), (report["failed"], "failed"), (f"{report['correct']}/{report['checked']}", "right answers"),
        (f"{report['reasoning_tokens']:,}", "tokens of thought"), (f"{report['min_replicas']}→{report['max_replicas']}→{report['final_replicas']}", "replicas"),
        (f"{report['ttft_s']['p95']} s", "first token, p95"), (f"{report['tpot_ms']['p50']} ms", "per token, p50"),
    ]  # fmt: skip
    events = "".join(
        f"<tr><td>{e['t']:.0f} s</td><td>{e['from']} → {e['to']}</td><td>{escape(e['reason'])}</td><td>{escape(e['message'])}</td><td>{e['owed_tokens']}</td><td>{e['waiting']}</td><td>{e['rate']}</td></tr>"
        for e in report["scale_events"]
    )
    rate = report["request_rate"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>reasonscale demo</title><style>{_STYLE}</style>'
        f'<h1>One reasoning model, scaled by its chain of thought</h1><p class="{"ok" if ok else "no"}">{escape(head)}</p>'
        f'<div class="k">{"".join(f"<div><b>{escape(str(v))}</b>{escape(n)}</div>" for v, n in tiles)}</div>'
        f"<p>Requests came at a constant rate, {_rate_words(rate)} in every window of {rate['window_s']:g} s; their chains of thought did not. A scaler by request rate would have seen nothing.</p>"
        f"{''.join(_plots(run, report))}"
        "<h2>Decisions</h2><table><tr><th>when</th><th>replicas</th><th>reason</th><th>in words</th><th>tokens owed</th><th>waiting</th><th>requests/s</th></tr>"
        f"{events}</table>"
        f"<p><small>Real vLLM on CPU under a local Ray, the bundled model of 0.8 M parameters, engines held to {report['pace_ms']:g} ms a step: unpaced, so small a model fills a core before its batch. "
        f"CPU {report['cpu_percent']['mean']} % of all cores on average under load. Oldest signal at a decision: {report['signal_age_s']['highest']} s.</small></p></html>"
    )
