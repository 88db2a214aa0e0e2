"""The counters of recorded fleets, of H200s and H100s, correct any shipped profile, or none, within four minutes, most of which show little load."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import fidelity
from bench.gpu import recorded

from reasonscale.profiles.library import shipped

DATA = Path(__file__).parents[2] / "data"
FLEET, CHANGED_S, ENDED_S = DATA / "gpu-fleet", 90.0, 310.0
LATER = (DATA / "gpu-fleet-h100", 150.0, 630.0)  # another GPU, and a newer vLLM


@pytest.mark.parametrize("prior", [None, *sorted(shipped())])
@pytest.mark.parametrize(("fleet", "within_s"), [((FLEET, CHANGED_S, ENDED_S), 20.0), (LATER, 45.0)])
def test_capacity_is_within_a_twentieth_of_the_measured_one(
    fleet: tuple[Path, float, float], within_s: float, prior: str | None
) -> None:
    found = recorded.compare(*fleet, [prior])["rows"][0]
    assert found["within_5_percent_after_s"] <= fleet[1] + (within_s if prior else 80.0)


def test_most_of_them_were_far_off_at_first() -> None:
    rows = recorded.compare(FLEET, CHANGED_S, ENDED_S, [None, *sorted(shipped())])["rows"]
    assert sum(abs(row["prior_share"] - 1) > 0.15 for row in rows) >= 4


def test_the_measured_capacity_is_of_looks_on_both_sides_of_the_aim() -> None:
    real = fidelity.of_gpu(FLEET)
    steps = [
        r.step_seconds / r.steps for record in real.records if record.observation.time > real.begin + CHANGED_S
        for r in record.observation.replicas if r.steps > 100 and r.step_batch / r.steps > 200
    ]  # fmt: skip
    aim = recorded.AIM * real.records[-1].policy.objectives.tpot_s
    assert min(steps) < aim < max(steps)
