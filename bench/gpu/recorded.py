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
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from bench import fidelity
from bench.gpu.correct import course, taken

from reasonscale.profiles.library import load, shipped
from reasonscale.profiles.prior import prior_of
from reasonscale.scaling.capacity import AIM, fit
from reasonscale.scaling.state import State, learn
from reasonscale.scaling.types import Policy
from reasonscale.simulator import workload

LOOKS = (0, 15, 30, 60, 100, 120, 180, 300, 400)


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


def corrected(real: fidelity.Recording, policy: Policy, work: workload.Workload) -> list[tuple[float, float]]:
    """Return (seconds, requests that a replica is taken for) from the policy's prior on: before the first look, and at each."""
    state = State()
    out = [(-inf, taken(fit(state.steps, policy), policy, work))]
    for record in real.records:
        state = learn(state, record.observation, policy)
        out.append((round(record.observation.time - real.begin, 1), taken(fit(state.steps, policy), policy, work)))
    return out


def compare(folder: Path, changed_s: float, ended_s: float, priors: Sequence[str | None]) -> dict[str, Any]:
    """Return what each profile becomes; `changed_s`, `ended_s`: when the chains grew and shrank again."""
    real = fidelity.of_gpu(folder)
    work = fidelity.workload_of([a for a in real.asked if a.ok and changed_s < a.at < ended_s])
    truth, rows = measured(real, changed_s), []
    for prior in priors:
        policy = replace(real.records[-1].policy, step_time=prior_of(load(prior)) if prior else None)
        (_, first), *looks = [(t, n / truth) for t, n in corrected(real, policy, work)]
        rows.append({"prior": prior, "prior_share": round(first, 4), **course(looks, LOOKS)})
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
    args.out.write_text(
        json.dumps({"command": f"python -m bench.gpu.recorded {args.folder}", **found}, indent=1) + "\n"
    )
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
