"""How fast a wrong profile is corrected: `python -m bench.gpu.correct`.

The simulated fleet has the step times of one GPU or model; the decision starts with another's profile, or with none, as the
operator does. Capacity is what the decision makes of it: requests in flight on one replica, of the load's own lengths and
with its own prompts between, at which a step takes the aim.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from reasonscale.profiles.library import load
from reasonscale.profiles.prior import prior_of
from reasonscale.profiles.profile import Profile
from reasonscale.scaling.capacity import AIM, Prompts, capacity_of, fit
from reasonscale.scaling.types import BENDS_AT, Decision, Objectives, StepTime
from reasonscale.scaling.types import Policy as ScalingPolicy
from reasonscale.simulator import run, traces, workload
from reasonscale.simulator.engine import BATCH, KV, PREFILL, SECONDS
from reasonscale.simulator.policies.base import Setting, View
from reasonscale.simulator.policies.ours import Reasonscale
from reasonscale.simulator.tables import tables_of

# Objectives at which the batch binds before the seats: with 50 ms a 7B seats 256 of 1,100.
TPOT_S = {"qwen2-1.5b-h200": 0.010, "qwen2-7b-h200": 0.015, "qwen2-7b-h100": 0.015, "qwen2-32b-h200": 0.040}
RATES = "1,4"  # times the trace's
REPLICAS = "1.5,3,6"  # at the aim, that a load is worth in the mean
WITHIN = 0.05


@cache
def load_of(trace: str, seconds: float) -> workload.Workload:
    """Return the trace's first `seconds`."""
    return workload.between(traces.load(trace, seed=1), 0.0, seconds)


def mix(work: workload.Workload) -> tuple[float, float]:
    """Return the tokens that a request in flight has in the cache in the mean, and the prompt tokens for each that is made.

    Who makes more tokens is in flight for longer, and counts for so many requests.
    """
    prompt, output = work.prompt_tokens.astype(float), work.output_tokens.astype(float)
    return float((output * (prompt + output / 2)).sum() / output.sum()), float(prompt.sum() / output.sum())


def taken(step: StepTime, policy: ScalingPolicy, work: workload.Workload) -> float:
    """Return the requests in flight for which the decision takes one replica to be just enough, seats aside."""
    context, prompts = mix(work)
    capacity = capacity_of(step, replace(policy, max_num_seqs=100_000), [])

    def need(n: float) -> float:
        share = n * prompts * step.d / capacity.aim_s
        return capacity.concurrency_need(n, n * context, Prompts(share, 0.0))

    low, high = 0.0, 100_000.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if need(middle) < 1.0 else (low, middle)
    return low


@cache
def measured(true: str, trace: str, seconds: float) -> float:
    """Return the requests in flight at which one replica's steps take the aim, as its counters say.

    It has a steady load of the trace's requests for a quarter of an hour, at one rate after the other; the line through the rates
    at which a step takes between 0.85 and 1.15 of the aim.
    """
    profile, work, tpot_s = load(true), load_of(trace, seconds), TPOT_S[true]
    tables, options = (
        tables_of(profile),
        run.Options(min_replicas=1, max_replicas=1, objectives=Objectives(tpot_s=tpot_s)),
    )
    context, tokens = mix(work)[0], float(work.output_tokens.mean())
    points = []
    for i, batch in enumerate(np.geomspace(40.0, 240.0, 60)):
        rng = np.random.default_rng(i)
        rate = batch / (tokens * (tables.base[int(batch)] + tables.slope[int(batch)] * batch * context))
        came = rng.poisson(900.0 * rate)
        rows = rng.integers(0, len(work.arrival_s), came)
        steady = workload.make(
            "steady", rng.uniform(0.0, 900.0, came), work.prompt_tokens[rows], work.reasoning_tokens[rows], work.answer_tokens[rows]
        )  # fmt: skip
        alone = Told(run.setting_of(steady, profile, options), None)
        run.run(steady, profile, alone, options)
        sums = sum(s for now, s in alone.counts if 100.0 < now < 900.0)
        seats_full = sums[1 + BATCH] > 0.98 * profile.max_num_seqs * sums[0]
        if not seats_full:
            points.append((sums[1 + SECONDS] / sums[0] / (AIM * tpot_s), sums[1 + BATCH] / sums[0]))
    near = np.array([p for p in points if abs(p[0] - 1.0) < 0.15])
    slope, at_zero = np.polyfit(near[:, 0], near[:, 1], 1)
    return float(slope + at_zero)


def worth(true: str, trace: str, seconds: float) -> float:
    """Return the replicas at the aim that the trace is worth in the mean."""
    tokens_per_s = float(load_of(trace, seconds).output_tokens.sum()) / seconds
    return tokens_per_s * AIM * TPOT_S[true] / measured(true, trace, seconds)


class Told(Reasonscale):
    """Ours with another GPU's step time for a prior, or none; keeps what it takes a step to be, and what steps were."""

    def __init__(self, setting: Setting, prior: StepTime | None) -> None:
        super().__init__(setting)
        self.policy = replace(self.policy, step_time=prior)
        self.rows: list[tuple[float, StepTime]] = []
        self.counts: list[tuple[float, Any]] = []  # steps, and the sums over them
        self.prior = fit(self.state.steps, self.policy)

    def _note(self, view: View, decision: Decision) -> None:
        self.rows.append((view.now, fit(self.state.steps, self.policy)))
        self.counts.append((view.now, np.array([float(view.last.steps.sum()), *view.last.sums.sum(axis=0)])))

    def most_seen(self) -> float:
        """Return the most requests in a batch, in the mean over a tick of the fleet."""
        return max(float(s[1 + BATCH] / s[0]) for _, s in self.counts if s[0] >= 50)

    def off_percent(self, start_s: float, end_s: float) -> float | None:
        """Return how far the step time is off what is seen, in the mean over the ticks of that time."""
        off = []
        for (now, step), (_, s) in zip(self.rows, self.counts, strict=True):
            if start_s <= now < end_s and s[0] >= 50:
                steps = s[0]
                said = step.a + (step.b * s[1 + BATCH] + step.c * s[1 + KV] + step.d * s[1 + PREFILL]) / steps
                said += step.bend * max(0.0, s[1 + BATCH] / steps - BENDS_AT)
                off.append(abs(said * steps / s[1 + SECONDS] - 1))
        return round(100 * float(np.mean(off)), 2) if off else None


def course(shares: Sequence[tuple[float, float]], looks: Sequence[int]) -> dict[str, Any]:
    """Return shares of the measured capacity at some seconds, and from when on they stay within 5 % of it."""
    late = [t for t, share in shares if abs(share - 1) > WITHIN]
    return {
        "share_at_s": {str(s): round(min(shares, key=lambda row: abs(row[0] - s))[1], 4) for s in looks},
        "within_5_percent_after_s": next((t for t, _ in shares if not late or t > late[-1]), None),
    }


def converge(true: str, prior: str | None, trace: str, scale: float, seconds: float) -> dict[str, Any]:
    """Return the capacity over time, as a share of the measured one, and when it stays within 5 %."""
    real: Profile = load(true)
    mean_load = load_of(trace, seconds)
    truth = measured(true, trace, seconds)
    work = workload.scaled(mean_load, rate=scale, time=1.0, seed=1)
    options = run.Options(cold_start_s=60.0, max_replicas=24, objectives=Objectives(tpot_s=TPOT_S[true]))
    ours = Told(run.setting_of(work, real, options), prior_of(load(prior)) if prior else None)
    found = run.run(work, real, ours, options)
    shares = [(t, taken(step, ours.policy, mean_load) / truth) for t, step in ours.rows if t <= seconds]
    return {
        "true": true, "prior": prior, "tpot_objective_s": TPOT_S[true], "trace": trace,
        "scale": round(scale, 3), "replicas_of_load": round(scale * worth(true, trace, seconds), 2),
        "context_tokens": round(mix(mean_load)[0]), "measured_capacity": round(truth, 1), "most_in_a_batch": round(ours.most_seen(), 1),
        "prior_share": round(taken(ours.prior, ours.policy, mean_load) / truth, 4),
        **course(shares, (30, 60, 120, 300, 600)),
        "step_time_off_percent": {f"{a}-{b}s": ours.off_percent(a, b) for a, b in ((0, 60), (60, 120), (120, 300), (300, 600), (600, 900))},
        "gpu_hours": round(found.gpu_hours, 3), "attainment": round(found.attainment, 5),
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """Return the shares after ten minutes as Markdown: fleets down, priors across, a cell's loads one after the other."""
    priors = list(dict.fromkeys(r["prior"] for r in runs))
    lines = ["| fleet | measured | " + " | ".join(p or "none" for p in priors) + " |", "|---" * (len(priors) + 2) + "|"]
    for true in dict.fromkeys(r["true"] for r in runs):
        cells = []
        for prior in priors:
            mine = [r["share_at_s"]["600"] for r in runs if (r["true"], r["prior"]) == (true, prior)]
            cells.append(", ".join(f"{share:.0%}" for share in mine))
        truth = next(r["measured_capacity"] for r in runs if r["true"] == true)
        lines.append(f"| {true} | {truth:.0f} | " + " | ".join(cells) + " |")
    off = [abs(r["share_at_s"]["600"] - 1) for r in runs]
    counts = ", ".join(f"within {w:.0%}: {sum(x <= w for x in off)} of {len(off)}" for w in (WITHIN, 2 * WITHIN))
    return "\n".join([*lines, "", counts])


def main() -> int:
    """Compute, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default="cot-shift")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--rates", default=RATES, help=f"times the trace's; {RATES}")
    parser.add_argument("--replicas", default=REPLICAS, help=f"loads by the replicas that they are worth; {REPLICAS}")
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu-correction.json"))
    args = parser.parse_args()
    pairs = [(true, prior) for true in TPOT_S for prior in (None, *TPOT_S)]
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, loads in (("rates", args.rates), ("replicas", args.replicas)):
        found[kind] = rows = []
        for true, prior in pairs:
            for value in (float(v) for v in loads.split(",") if v):
                scale = value if kind == "rates" else value / worth(true, args.trace, args.seconds)
                rows.append(converge(true, prior, args.trace, scale, args.seconds))
        if rows:
            print(f"{kind} {loads}, after ten minutes", table(rows), sep="\n\n", end="\n\n", flush=True)
    args.out.write_text(json.dumps({"command": "python -m bench.gpu.correct", **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
