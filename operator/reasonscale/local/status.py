"""What `up` shows and what `top` reads: one model's state as plain values, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reasonscale.autoscaler import Record
from reasonscale.scaling.emptying import awake, serving


def model_status(record: Record) -> dict[str, Any]:
    """Return a record as the JSON that `top` reads."""
    seen, decision = record.observation, record.decision
    numbers, fleet = decision.numbers, serving(seen.fleet)
    there, resting = awake(seen), len(seen.fleet.asleep)
    capacity = sum(r.kv_capacity_tokens or 0 for r in there)
    return {
        "model": record.model,
        "mode": record.policy.mode.value,
        "queued_tokens": round(numbers.queued_tokens),
        "owed_tokens": round(numbers.owed_tokens),
        "waiting": round(sum(k.waiting for k in seen.classes.values())),
        "held": round(seen.held_requests or 0.0),
        "asleep": seen.fleet.target == 0 and seen.fleet.ready == 0,
        "reasoning": round(sum(sum(k.reasoning) for k in seen.classes.values())),
        "answering": round(sum(sum(k.answering) for k in seen.classes.values())),
        "kv_percent": round(100 * sum(r.kv_used_tokens for r in there) / capacity) if capacity else None,
        "kv_full_in_s": numbers.kv_full_in_s,
        "ready": fleet.ready,
        "starting": len(fleet.starting_s),
        "draining": fleet.draining,
        "replicas_asleep": resting,
        "asleep_host_bytes": None if record.policy.asleep_bytes is None else resting * record.policy.asleep_bytes,
        "drain_owed_tokens": round(numbers.drain_owed_tokens),
        "drain_expected_s": numbers.drain_expected_s,
        "target": decision.target,
        "min": record.policy.min_replicas,
        "max": record.policy.max_replicas,
        "reason": decision.reason,
        "message": decision.message,
        "acted": decision.act,
        "signals": seen.freshness.value,
        "signal_age_s": seen.age_s,
        "problem": record.problem,
        "time": decision.time,
    }


def tokens(n: float | None) -> str:
    """Return a number of tokens for a person: 950, 14.2k, 1.9M."""
    if n is None:
        return "-"
    if n < 1000:
        return f"{n:.0f}"
    return f"{n / 1000:.1f}k" if n < 1_000_000 else f"{n / 1_000_000:.1f}M"


def _resting(m: Mapping[str, Any]) -> str:
    """Return how many replicas sleep and what they hold, as a person would say it; empty where none does."""
    number, held = m["replicas_asleep"], m["asleep_host_bytes"]
    if not number:
        return ""
    memory = f" and {held / 2**30:.1f} GiB of host memory" if held is not None else ""
    return f"{number} asleep, {'its GPU' if number == 1 else 'their GPUs'}{memory} held"


def view(models: Sequence[Mapping[str, Any]], title: str, events: Sequence[str]) -> RenderableType:
    """Return the live view: a row for each model, then what happened last."""
    table = Table(title=title, title_justify="left", expand=False)
    for name in (
        "model",
        "CoT owed",
        "queued",
        "waiting",
        "thinking",
        "answering",
        "KV",
        "full in",
        "replicas",
        "signals",
    ):
        table.add_column(name, justify="left" if name in ("model", "replicas", "signals") else "right")
    for m in models:
        replicas = "asleep" if m["asleep"] and not m["target"] else f"{m['ready']} of {m['target']}"
        replicas += f", {m['starting']} starting" if m["starting"] else ""
        replicas += f", {m['draining']} draining" if m["draining"] else ""
        replicas += f", {_resting(m)}" if m["replicas_asleep"] else ""
        age = "" if m["signal_age_s"] is None else f" {m['signal_age_s']:.1f} s"
        full = "-" if m["kv_full_in_s"] is None else f"{m['kv_full_in_s']:.0f} s"
        kv = "-" if m["kv_percent"] is None else f"{m['kv_percent']} %"
        table.add_row(
            m["model"], tokens(m["owed_tokens"]), tokens(m["queued_tokens"]), str(m["waiting"] + m["held"]), str(m["reasoning"]),
            str(m["answering"]), kv, full, replicas, m["signals"] + age,
        )  # fmt: skip
    lines = [Text(f"{m['model']}: {m['message']}") for m in models if m["message"]]
    return Group(table, *lines, *(Text(e, style="dim") for e in events))


def plain(m: Mapping[str, Any]) -> str:
    """Return one model's state as one line."""
    if m["asleep"] and not m["target"]:
        return f"{m['model']}: asleep at zero replicas, {m['held']} held"
    full = "" if m["kv_full_in_s"] is None else f", full in {m['kv_full_in_s']:.0f} s"
    kv = "" if m["kv_percent"] is None else f", KV {m['kv_percent']} %{full}"
    return (
        f"{m['model']}: {tokens(m['owed_tokens'])} tokens owed, {m['waiting']} waiting, {m['reasoning']} thinking, {m['answering']} answering{kv}, "
        f"replicas {m['ready']} of {m['target']}"
        + (f" ({m['starting']} starting)" if m["starting"] else "")
        + (f" ({m['draining']} draining)" if m["draining"] else "")
        + (f" ({_resting(m)})" if m["replicas_asleep"] else "")
        + (f", {m['held']} held until one is ready" if m["held"] else "")
    )
