"""Holds the simulated fleet against a recorded loop: `python -m bench.fidelity FOLDER`.

FOLDER is the log folder of `reasonscale up` or `reasonscale demo` (`access.jsonl`, `decisions.jsonl`), or what
`bench.gpu loop` wrote. The same arrivals and lengths go through the simulated fleet, under the same `scaling.decide` with
the very policy of the record. What a step takes is what the replicas' own counters say, or `--profile FILE`, fitted from
measurements of that GPU beforehand; how long a start takes is what the record shows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench.forecast import header

from reasonscale.autoscaler import Record
from reasonscale.profiles.library import load
from reasonscale.profiles.profile import Profile
from reasonscale.scaling.decide import decide
from reasonscale.scaling.record import from_json
from reasonscale.scaling.types import Decision
from reasonscale.simulator import run, workload
from reasonscale.simulator.policies.base import Setting, View
from reasonscale.simulator.policies.ours import Reasonscale
from reasonscale.simulator.tables import tables_of

Floats = npt.NDArray[np.float64]
TICK_S = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One recorded request; times in seconds, `at` since the recording began."""

    at: float
    prompt: int
    reasoning: int
    answer: int
    cls: str
    ttft_s: float
    ttfat_s: float | None
    e2e_s: float
    ok: bool

    @property
    def tokens(self) -> int:
        return self.reasoning + self.answer


@dataclass(frozen=True, slots=True)
class Recording:
    """What a loop decided, and what its clients saw. `begin`: unix time."""

    begin: float
    asked: tuple[Asked, ...]
    records: tuple[Record, ...]
    header: dict[str, Any]


def rows(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of lines, or of the same file compressed."""
    packed = file.with_name(f"{file.name}.gz")
    with gzip.open(packed, "rt") if packed.exists() else file.open() as lines:
        return [json.loads(line) for line in lines if line.strip()]


def records(file: Path) -> tuple[Record, ...]:
    """Return a loop's records."""
    return tuple(from_json(Record, row) for row in rows(file))


def of_logs(folder: Path) -> Recording:
    """Return the recording of a log folder: requests that came after the loop's first decision."""
    found = records(folder / "decisions.jsonl")
    begin = found[0].observation.time
    asked = [
        Asked(
            row["time"] - begin, row["prompt_tokens"], row["reasoning_tokens"], row["answer_tokens"], row["cls"],
            row["ttft_s"] or row["e2e_s"], row["ttfat_s"], row["e2e_s"], row["status"] == 200,
        )
        for row in rows(folder / "access.jsonl")
        if row["time"] >= begin and row["reasoning_tokens"] + row["answer_tokens"] > 0
    ]  # fmt: skip
    return Recording(
        begin, tuple(sorted(asked, key=lambda a: a.at)), found, header(f"python -m bench.fidelity {folder}")
    )


def of_gpu(folder: Path) -> Recording:
    """Return the recording of `bench.gpu loop`."""
    with gzip.open(folder / "loop-raw.json.gz", "rt") as file:
        raw = json.load(file)
    found = records(folder / "loop-decisions.jsonl")
    counts = [k for r in found for k in r.observation.classes.values() if k.arrivals >= 1]
    prompt = round(float(np.median([k.prompt_tokens / k.arrivals for k in counts] or [110])))
    classes = [r.observation.classes for r in found]
    cls = max((k for c in classes for k in c), key=lambda k: sum(sum(c[k].reasoning) for c in classes if k in c))
    asked = [
        Asked(t, prompt, tokens, 0, cls, s["first"] - s["due"], None, s["last"] - s["due"], not s["error"])
        for (t, tokens), s in zip(raw["plan"], raw["seen"], strict=True)
    ]
    head = json.loads((folder / "gpu-loop.json").read_text()).get("header", {})
    return Recording(float(raw["start"]), tuple(asked), found, head)


def of(folder: Path) -> Recording:
    """Return the recording of either."""
    return of_gpu(folder) if _of_a_gpu(folder) else of_logs(folder)


def _of_a_gpu(folder: Path) -> bool:
    return (folder / "loop-raw.json.gz").exists()


def starts(found: Sequence[Record], begin: float) -> list[float]:
    """Return how long replicas took from order to ready: the age at which one stopped starting and was ready."""
    out, before = [], found[0].observation
    for record in found[1:]:
        now = record.observation
        came = now.fleet.ready - before.fleet.ready
        if now.time > begin and came > 0 and before.fleet.starting_s:
            ages = sorted(before.fleet.starting_s, reverse=True)[:came]
            out += [age + (now.time - before.time) / 2 for age in ages]
        before = now
    return out


def step_seconds(found: Sequence[Record]) -> tuple[float, float]:
    """Return the mean step of busy replicas, and a replica's KV cache in tokens."""
    rows = [r for record in found for r in record.observation.replicas]
    steps = sum(r.steps for r in rows)
    return sum(r.step_seconds for r in rows) / max(1.0, steps), max(r.kv_capacity_tokens or 0.0 for r in rows)


def steps_against(real: Recording, profile: Profile, fresh_s: float = 20.0) -> dict[str, float]:
    """Return how far the replicas' mean steps over each look were from the profile's, in percent of what was seen; not of engines `fresh_s` young.

    A profile knows its step of one batch and cache; of a look only their means are known, and that its prompts were of the median length.
    """
    tables, off = tables_of(profile), []
    prompt = float(np.median([a.prompt for a in real.asked]))
    for record in real.records:
        for r in record.observation.replicas:
            if r.steps < 50 or r.since_s is None or record.observation.time - r.since_s < fresh_s:
                continue
            batch, kv = round(r.step_batch / r.steps), r.step_kv_tokens / r.steps
            rise = tables.linear[int(prompt) + batch] - tables.linear[batch] + tables.overhead
            said = tables.base[batch] + tables.slope[batch] * kv + r.step_prefill_tokens / r.steps / prompt * rise
            off.append(100 * (said / (r.step_seconds / r.steps) - 1))
    return {
        "looks": len(off),
        "mean_percent": round(float(np.mean(off)), 2),
        "mean_absolute_percent": round(float(np.mean(np.abs(off))), 2),
    }


class Recorded(Reasonscale):
    """Ours under the record's own policy; keeps its decisions and what of the fleet is alive."""

    def __init__(self, setting: Setting, found: Sequence[Record], begin: float) -> None:
        super().__init__(setting)
        self.policy = found[-1].policy
        self.seen: list[tuple[float, Decision, int]] = []
        for record in found:  # what the loop had learnt when the recording began, of a warm-up say
            at = record.observation.time - begin - TICK_S
            if at <= -TICK_S:
                _, self.state = decide(replace(record.observation, time=at), record.policy, self.state)

    def _note(self, view: View, decision: Decision) -> None:
        self.seen.append((view.now, decision, view.ready + len(view.starting_s) + view.draining))


def profile_of(found: Sequence[Record], seats: int, batched: int, measured: Profile | None = None) -> Profile:
    """Return the replicas' profile: the measured one with their own cache, else what their counters say; under a pace no load changes a step."""
    step, kv = step_seconds(found)
    if measured is not None:
        return replace(measured, kv_tokens=int(kv), max_num_seqs=seats, max_num_batched_tokens=batched)
    ms = round(1000 * step, 4)
    return Profile(
        name="recorded", model="recorded", kv_tokens=int(kv), block_tokens=16, max_num_seqs=seats,
        max_num_batched_tokens=batched, gpus_per_replica=1, decode=((1, ms, 0.0), (seats, ms, 0.0)),
        prefill=((1, ms), (batched, ms)), prefill_overhead_ms=0.0, attention_ms_per_pair=0.0,
    )  # fmt: skip


def workload_of(asked: Sequence[Asked]) -> workload.Workload:
    """Return recorded requests as the simulator takes them."""
    return workload.make(
        "recorded", np.array([a.at for a in asked]), np.array([a.prompt for a in asked]), np.array([a.reasoning for a in asked]),
        np.array([a.answer for a in asked]), [a.cls for a in asked],
    )  # fmt: skip


def simulated(
    real: Recording, start_s: float, ready: int, measured: Profile | None = None
) -> tuple[run.Outcome, Recorded]:
    """Return what the simulator makes of the same arrivals."""
    policy, work = real.records[-1].policy, workload_of(real.asked)
    profile = profile_of(real.records, policy.max_num_seqs, policy.max_num_batched_tokens, measured)
    options = run.Options(
        cold_start_s=start_s, scrape_s=TICK_S, min_replicas=policy.min_replicas, max_replicas=policy.max_replicas,
        objectives=policy.objectives, first_replicas=ready,
    )  # fmt: skip
    ours = Recorded(run.setting_of(work, profile, options), real.records, real.begin)
    return run.run(work, profile, ours, options), ours


def attainment(real: Recording) -> dict[str, float]:
    """Return the share of recorded requests that met each objective, by the simulator's own rules."""
    o = real.records[-1].policy.objectives
    met = []
    for a in real.asked:
        allowed = o.ttft_s + o.ttft_per_prompt_token_s * a.prompt
        ttft = a.ok and a.ttft_s <= allowed
        tpot = a.ok and a.e2e_s - a.ttft_s <= o.tpot_s * (a.tokens - 1) + run.STREAM_SLACK_S
        stretched = run.STRETCH * o.tpot_s
        ttfat = a.ok and (a.ttfat_s is None or a.ttfat_s <= allowed + stretched * a.reasoning)
        met.append((ttft, tpot, ttft and tpot and ttfat and a.e2e_s <= allowed + stretched * a.tokens))
    return {name: sum(m[i] for m in met) / len(met) for i, name in enumerate(("ttft", "tpot", "joint"))}


def series(at: Floats, times: Sequence[float], values: Sequence[float]) -> Floats:
    """Return values that hold until the next, at the times asked for."""
    index = np.clip(np.searchsorted(np.array(times), at, side="right") - 1, 0, len(times) - 1)
    return np.asarray(np.array(values, dtype=np.float64)[index])


def _off(real: Floats, sim: Floats) -> dict[str, float]:
    """Return both means, their difference and the mean distance at each moment, in percent of the real mean."""
    mean = float(real.mean())
    return {
        "real": round(mean, 3), "simulated": round(float(sim.mean()), 3),
        "off_percent": round(100 * (float(sim.mean()) / mean - 1), 2) if mean else 0.0,
        "distance_percent": round(100 * float(np.abs(real - sim).mean()) / mean, 2) if mean else 0.0,
    }  # fmt: skip


def compare(real: Recording, measured: Profile | None = None, after_s: float = 0.0) -> dict[str, Any]:
    """Return the comparison over the load's time; `plot` has both series. `measured`: the engines' profile, if there is one.

    Replicas, tokens owed and KV are compared from `after_s` on.
    """
    found, begin = real.records, real.begin
    span = max(a.at for a in real.asked)
    took = starts(found, begin)
    before = [r for r in found if r.observation.time <= begin]
    ready = before[-1].observation.fleet.ready if before else 1
    outcome, ours = simulated(real, float(np.mean(took)) if took else 60.0, ready, measured)
    times = [r.observation.time - begin for r in found]
    alive = [
        r.observation.fleet.ready + len(r.observation.fleet.starting_s) + r.observation.fleet.draining for r in found
    ]
    at = np.arange(0.0, span, 1.0)
    sim_times = [t for t, *_ in ours.seen]
    pairs = {
        "replicas": (series(at, times, alive), series(at, sim_times, [n for *_, n in ours.seen])),
        "owed_tokens": (
            series(at, times, [r.decision.numbers.owed_tokens for r in found]),
            series(at, sim_times, [d.numbers.owed_tokens for _, d, _ in ours.seen]),
        ),
        "kv_tokens": (
            series(at, times, [r.decision.numbers.kv_now_tokens for r in found]),
            series(at, sim_times, [d.numbers.kv_now_tokens for _, d, _ in ours.seen]),
        ),
        "target": (
            series(at, times, [r.decision.target for r in found]), series(at, sim_times, [d.target for _, d, _ in ours.seen]),
        ),
    }  # fmt: skip
    seen, late, objective = attainment(real), at >= after_s, found[-1].policy.objectives.ttft_s
    held = {name: (a[late], b[late]) for name, (a, b) in pairs.items()}
    return {
        "span_s": round(span, 1), "after_s": after_s, "requests": len(real.asked), "starts_s": [round(t, 1) for t in took],
        "step_ms": round(1000 * step_seconds(found)[0], 3),
        **({"steps_of_the_profile": steps_against(real, measured)} if measured is not None else {}),
        "gpu_seconds": _off(held["replicas"][0] * late.sum(), held["replicas"][1] * late.sum()),
        **{name: _off(*pair) for name, pair in held.items()},
        "attainment": {
            name: {"real": round(value, 4), "simulated": round(float(outcome.met[name].mean()), 4)} for name, value in seen.items()
        },
        "refused": {"real": sum(not a.ok for a in real.asked), "simulated": int((~np.isfinite(outcome.ttft_s)).sum())},
        "late_first_tokens": {
            "real": sum(a.ok and a.ttft_s > objective for a in real.asked),
            "simulated": int((np.isfinite(outcome.ttft_s) & (outcome.ttft_s > objective)).sum()),
        },
        "ttft_s": _quantiles([a.ttft_s for a in real.asked if a.ok], outcome.ttft_s),
        "e2e_s": _quantiles([a.e2e_s for a in real.asked if a.ok], outcome.e2e_s),
        "decisions": {
            "real": [_said(r.decision, begin) for r in found if r.decision.act and r.decision.target != r.decision.current],
            "simulated": [{"t": round(t, 1), "to": to, "why": why} for t, to, why, _ in ours.reasons],
        },
        "plot": {"t": at.tolist(), **{name: [a.tolist(), b.tolist()] for name, (a, b) in pairs.items()}},
    }  # fmt: skip


def _quantiles(real: Sequence[float], sim: Floats) -> dict[str, Any]:
    """Return mean, p50 and p95 of both."""
    both = {"real": np.array(real), "simulated": sim[np.isfinite(sim)]}
    return {
        name: {"mean": round(float(v.mean()), 3), "p50": round(float(np.quantile(v, 0.5)), 3), "p95": round(float(np.quantile(v, 0.95)), 3)}
        for name, v in both.items()
    }  # fmt: skip


def _said(decision: Decision, begin: float) -> dict[str, Any]:
    return {"t": round(decision.time - begin, 1), "to": decision.target, "why": decision.reason}


def draw(found: dict[str, Any], path: Path, title: str) -> None:
    """Draw the record and the simulation over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True)
    for axis, (name, label) in zip(
        axes, (("replicas", "replicas"), ("owed_tokens", "tokens owed"), ("kv_tokens", "KV tokens held")), strict=True
    ):
        real, simulated_ = found["plot"][name]
        axis.plot(found["plot"]["t"], real, label="real", lw=1.8)
        axis.plot(found["plot"]["t"], simulated_, label="simulated", lw=1.4, ls="--")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    axes[0].set_title(title, fontsize=10)
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Compare, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", help="a shipped profile, or a file, of the GPU that the recording is of")
    parser.add_argument(
        "--after", type=float, default=0.0, help="compare replicas, tokens owed and KV from this second on"
    )
    parser.add_argument("--out", type=Path, help="a file for the figures, which are printed too")
    parser.add_argument("--plot", type=Path, help="a file for the picture")
    args = parser.parse_args()
    real, gpu = of(args.folder), _of_a_gpu(args.folder)
    found = compare(real, load(args.profile) if args.profile else None, args.after)
    where = f"three engines on one {real.header.get('gpu', 'GPU')}" if gpu else "real engines on a CPU"
    if args.profile:
        where = f"three engines, each on one {real.header.get('gpu', 'GPU')}"
    if args.plot:
        draw(found, args.plot, f"one load: {where}, and the simulator")
    kept = {k: v for k, v in found.items() if k != "plot"}
    if args.out:
        args.out.write_text(json.dumps({"header": real.header, **kept}, indent=1) + "\n")
    print(json.dumps(kept, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
