"""How fast a wrong profile is corrected: `python -m bench.gpu.correct`.

The simulated fleet has the step times of one GPU; the decision starts with another GPU's. Capacity is what the decision
makes of it: requests in flight, of the mean length in the KV cache and with the load's own prompts between, at which a step
takes the aim.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from reasonscale.profiles.library import load
from reasonscale.profiles.prior import prior_of
from reasonscale.profiles.profile import Profile
from reasonscale.scaling.capacity import AIM, fit
from reasonscale.scaling.types import Decision, Objectives, StepTime
from reasonscale.simulator import run, traces, workload
from reasonscale.simulator.engine import BATCH, KV, PREFILL, SECONDS
from reasonscale.simulator.policies.base import Setting, View
from reasonscale.simulator.policies.ours import Reasonscale

TPOT_S = 0.015  # an objective at which the batch binds before the seats: with 50 ms a 7B seats 256 of 1,100


def by_formula(step: StepTime, aim_s: float, context: float, prompts: float) -> float:
    """Return the requests n in flight at which a + (b + c context + d prompts) n is the aim; `prompts`: tokens of them for each that is made."""
    return (aim_s - step.a) / (step.b + step.c * context + step.d * prompts)


def measured(profile: Profile, work: workload.Workload, aim_s: float) -> float:
    """Return the requests in flight at which one replica's steps take the aim, as its counters say of seconds under more and more of the load."""
    points = []
    for scale in np.geomspace(0.3, 6.0, 10):
        load_ = workload.scaled(work, rate=float(scale), time=1.0, seed=1)
        options = run.Options(cold_start_s=60.0, min_replicas=1, max_replicas=1, objectives=Objectives(tpot_s=TPOT_S))
        alone = Told(run.setting_of(load_, profile, options), None)
        run.run(load_, profile, alone, options)
        points += [(float(sums[SECONDS] / n), float(sums[BATCH] / n)) for n, sums in alone.counts if n >= 50]
    near = [n for t, n in points if abs(t / aim_s - 1) < 0.05]
    return float(np.median(near))


class Told(Reasonscale):
    """Ours with another GPU's step time for a prior; keeps what it takes a replica's capacity for."""

    def __init__(self, setting: Setting, prior: StepTime | None) -> None:
        super().__init__(setting)
        from dataclasses import replace

        if prior is not None:
            self.policy = replace(self.policy, step_time=prior)
        self.rows: list[tuple[float, StepTime]] = []
        self.steps: list[tuple[float, float, float]] = []  # seconds, predicted over seen: corrected, and by the prior
        self.counts: list[tuple[float, Any]] = []  # steps, and the sums over them
        self.prior = prior

    def _note(self, view: View, decision: Decision) -> None:
        step = fit(self.state.steps, self.policy)
        self.rows.append((view.now, step))
        count, sums = float(view.last.steps.sum()), view.last.sums.sum(axis=0)
        if count:
            self.counts.append((count, sums))
        if count >= 50 and self.prior is not None:
            load = [1.0, sums[BATCH] / count, sums[KV] / count, sums[PREFILL] / count]
            seen = float(sums[SECONDS] / count)

            def said(t: StepTime) -> float:
                return float(np.dot([t.a, t.b, t.c, t.d], load)) / seen

            self.steps.append((view.now, said(step), said(self.prior)))


def converge(true: str, prior: str, trace: str, scale: float, seconds: float) -> dict[str, Any]:
    """Return the capacity over time, as a share of the measured one, and when it stays within 5 %."""
    real = load(true)
    work = workload.scaled(workload.between(traces.load(trace, seed=1), 0.0, seconds), rate=scale, time=1.0, seed=1)
    options = run.Options(cold_start_s=60.0, max_replicas=16, objectives=Objectives(tpot_s=TPOT_S))
    ours = Told(run.setting_of(work, real, options), prior_of(load(prior)))
    run.run(work, real, ours, options)
    aim = AIM * options.objectives.tpot_s
    context = float((work.prompt_tokens + work.output_tokens / 2).mean())
    prompts = float(work.prompt_tokens.sum() / work.output_tokens.sum())
    truth = measured(real, work, aim)
    shares = [(t, by_formula(step, aim, context, prompts) / truth) for t, step in ours.rows]
    late = [t for t, share in shares if abs(share - 1) > 0.05]
    after = next((t for t, _ in shares if not late or t > late[-1]), None)
    return {
        "true": true, "prior": prior, "tpot_objective_s": TPOT_S, "trace": trace, "scale": scale, "context_tokens": round(context),
        "measured_capacity": round(truth, 1), "prior_share": round(by_formula(prior_of(load(prior)), aim, context, prompts) / truth, 4),
        "share_at_s": {str(s): round(min(shares, key=lambda row: abs(row[0] - s))[1], 4) for s in (30, 60, 120, 300, 600)},
        "within_5_percent_after_s": after,
        "step_time_off_percent": {
            f"{a}-{b}s": {
                name: round(100 * float(np.mean([abs(row[i] - 1) for row in ours.steps if a <= row[0] < b] or [np.nan])), 2)
                for i, name in ((1, "corrected"), (2, "prior"))
            }
            for a, b in ((0, 60), (60, 120), (120, 300), (300, 600), (600, 900))
        },
    }  # fmt: skip


def main() -> int:
    """Compute, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default="cot-shift")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu-correction.json"))
    args = parser.parse_args()
    pair = ("qwen2-7b-h100", "qwen2-7b-h200")
    runs = [
        converge(true, prior, args.trace, scale, args.seconds)
        for true, prior in (pair, pair[::-1])
        for scale in (1.0, 4.0)
    ]
    args.out.write_text(json.dumps({"command": "python -m bench.gpu.correct", "runs": runs}, indent=1) + "\n")
    print(json.dumps(runs, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
