"""The simulated fleet under the arrivals of loops that ran on real engines, a demo's and a GPU's: what they saw, decided and gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench import fidelity

DATA = Path(__file__).parents[2] / "data"
DEMO = DATA / "demo"


@pytest.fixture(scope="module", params=["a demo on a CPU", "three engines on a GPU"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    on_gpu = request.param != "a demo on a CPU"
    return fidelity.compare(fidelity.of_gpu(DATA / "gpu-loop") if on_gpu else fidelity.of_logs(DEMO))


def test_replicas_and_attainment_are_within_a_tenth(found: dict[str, Any]) -> None:
    assert abs(found["gpu_seconds"]["off_percent"]) <= 10
    for share in found["attainment"].values():
        assert abs(share["real"] - share["simulated"]) <= 0.1


@pytest.mark.parametrize("what", ["owed_tokens", "kv_tokens"])
def test_what_the_decision_looks_at_is_within_fifteen_hundredths(found: dict[str, Any], what: str) -> None:
    assert abs(found[what]["off_percent"]) <= 15


def test_the_same_changes_are_decided_in_the_same_order(found: dict[str, Any]) -> None:
    span = found["span_s"]
    real, simulated = ([d["to"] for d in found["decisions"][side] if d["t"] <= span] for side in ("real", "simulated"))
    assert real == simulated


def test_a_loop_that_served_worse_than_it_could_shows() -> None:
    slow = fidelity.of_logs(DEMO)
    asked = tuple(fidelity.replace(a, ttft_s=a.ttft_s + 20.0, e2e_s=a.e2e_s + 20.0) for a in slow.asked)
    worse = fidelity.compare(fidelity.replace(slow, asked=asked))
    assert worse["attainment"]["ttft"]["simulated"] - worse["attainment"]["ttft"]["real"] > 0.5
