"""Many models on fake nodes, with a real KubeRay and a real Prometheus: all converge, and one that nobody touches costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.fleet import measure

pytestmark = [pytest.mark.kube, pytest.mark.kuberay, pytest.mark.prometheus, pytest.mark.fleet]


@pytest.mark.parametrize(
    ("models", "minutes"),
    [
        pytest.param(6, 1.0, marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
        pytest.param(200, 10.0, marks=[pytest.mark.soak, pytest.mark.timeout(5400)]),
    ],
)
def test_all_converge_and_a_model_that_nobody_touches_is_written_at_most_once_in_ten_minutes(
    models: int, minutes: float, tmp_path: Path
) -> None:
    found = measure(models, minutes, tmp_path)
    assert found["converged"] == models
    # A shorter time would multiply a single write: what counts is that there was no second.
    assert found["untouched"]["writes_to_one_model_most"] <= 1
    assert found["untouched"]["rayservices_changed"] == 0
    assert (found["changed"]["others_changed"], found["changed"]["new_clusters"]) == (0, 0)
    assert (found["operator_killed"]["rayservices_changed"], found["operator_killed"]["new_clusters"]) == (0, 0)
