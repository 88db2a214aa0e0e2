"""How fast a wrong profile is corrected by the counters of a real fleet: `python -m bench.gpu.recorded`.

The looks of `bench.gpu fleet` (tests/data/gpu-fleet) are told to the decision's memory in their order, from another GPU's or
another model's profile or from none. Capacity is what the decision makes of it; the measured one is what the counters say of
looks near the aim.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import fidelity
from bench.gpu.correct import WITHIN, taken

from reasonscale.profiles.library import load, shipped
from reasonscale.profiles.prior import prior_of
from reasonscale.scaling.capacity import AIM, fit
from reasonscale.scaling.state import State, learn
from reasonscale.simulator import workload

LOOKS = (0, 15, 30, 60, 100, 120, 180, 300, 400)


def load_of(real: fidelity.Recording, first_s: float, last_s: float) -> workload.Workload:
    """Return the requests that came in between."""
    rows = [a for a in real.asked if a.ok and first_s < a.at < last_s]
    return workload.make(
        "recorded", np.array([a.at for a in rows]), np.array([a.prompt for a in rows]), np.array([a.reasoning for a in rows]),
        np.array([a.answer for a in rows]), [a.cls for a in rows],
    )  # fmt: skip


def measured(real: fidelity.Recording, first_s: float) -> float:
    """Return the requests at which a replica's steps take the aim: the line through its looks within 12 % of it."""
    aim = AIM * real.records[-1].policy.objectives.tpot_s
    near = [
        (r.step_seconds / r.steps / aim, r.step_batch / r.steps)
        for record in real.records if record.observation.time > real.begin + first_s
        for r in record.observation.replicas if r.steps > 100 and abs(r.step_seconds / r.steps / aim - 1) < 0.12
    ]  # fmt: skip
    slope, at_zero = np.polyfit([t for t, _ in near], [n for _, n in near], 1)
    return float(slope + at_zero)


def corrected(real: fidelity.Recording, prior: str | None, work: workload.Workload) -> list[tuple[float, float]]:
    """Return (seconds, requests that a replica is taken for) at each look, from one profile or from none."""
    policy, state = replace(real.records[-1].policy, step_time=prior_of(load(prior)) if prior else None), State()
    out = []
    for record in real.records:
        state = learn(state, record.observation, policy)
        out.append((record.observation.time - real.begin, taken(fit(state.steps, policy), policy, work)))
    return out


def compare(folder: Path, changed_s: float, ended_s: float, priors: Sequence[str | None]) -> dict[str, Any]:
    """Return what each profile becomes; `changed_s`, `ended_s`: when the chains grew and shrank again."""
    real = fidelity.of_gpu(folder)
    work, truth = load_of(real, changed_s, ended_s), measured(real, changed_s)
    policy, rows = real.records[-1].policy, []
    for prior in priors:
        found = corrected(real, prior, work)
        late = [t for t, n in found if abs(n / truth - 1) > WITHIN]
        begin = replace(policy, step_time=prior_of(load(prior)) if prior else None)
        rows.append({
            "prior": prior, "prior_share": round(taken(fit(State().steps, begin), begin, work) / truth, 4),
            "share_at_s": {str(s): round(min(found, key=lambda row: abs(row[0] - s))[1] / truth, 4) for s in LOOKS},
            "within_5_percent_after_s": next((round(t, 1) for t, _ in found if not late or t > late[-1]), None),
        })  # fmt: skip
    return {"measured_capacity": round(truth, 1), "chains_grow_at_s": changed_s, "header": real.header, "rows": rows}


def main() -> int:
    """Compute, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("tests/data/gpu-fleet"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu-correction-recorded.json"))
    args = parser.parse_args()
    phases = json.loads((args.folder / "gpu-loop.json").read_text())["phases"]
    changed = float(phases[0][0])
    found = compare(args.folder, changed, changed + float(phases[1][0]), [None, *sorted(shipped())])
    args.out.write_text(json.dumps({"command": "python -m bench.gpu.recorded", **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
