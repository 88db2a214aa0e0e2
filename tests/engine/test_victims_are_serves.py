"""Our rule for the replica that goes against Serve's own code, over many fleets; on real nodes in test_victims_real.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.scaling.victims import Standing, victims

pytestmark = pytest.mark.engine
HEAD = "head"
ROWS = st.lists(
    st.tuples(st.sampled_from(["engine", "other"]), st.sampled_from([HEAD, "a", "b", "c", None])), max_size=14
)


def by_serve(there: list[Standing], number: int) -> set[str]:
    """Return whom Serve's scheduler would stop, told of these replicas in this order."""
    from ray.serve._private.common import DeploymentID, ReplicaID
    from ray.serve._private.deployment_scheduler import DeploymentScheduler

    nodes: Any = SimpleNamespace(get_node_labels=lambda node: {})
    scheduler = DeploymentScheduler(nodes, HEAD, lambda *args, **kwargs: None)
    plain: Any = SimpleNamespace(label_selector=None, bundle_label_selector=None)
    for name in ("engine", "other"):
        scheduler._deployments[DeploymentID(name, "app")] = plain
    for r in there:
        deployment = DeploymentID(r.deployment, "app")
        replica = ReplicaID(r.replica, deployment)
        if r.running and r.node is not None:
            scheduler._running_replicas[deployment][replica] = r.node
        else:
            scheduler._launching_replicas[deployment][replica] = SimpleNamespace()  # type: ignore[assignment]
    return {r.unique_id for r in scheduler._get_replicas_to_stop(DeploymentID("engine", "app"), number)}


@given(ROWS, st.integers(1, 6))
def test_we_predict_what_serves_own_code_chooses(rows: list[tuple[str, str | None]], number: int) -> None:
    there = [Standing(f"r{i}", deployment, node, node is not None) for i, (deployment, node) in enumerate(rows)]
    # Serve keeps replicas by deployment; the deployment comes first that had one first.
    order = list(dict.fromkeys(r.deployment for r in there if r.running))
    there = [r for name in order for r in there if r.deployment == name and r.running] + [
        r for r in there if not r.running
    ]
    starting = sum(1 for r in there if not r.running and r.deployment == "engine")
    if 0 < number < starting:
        return  # those that do not run yet have no order among themselves
    assert by_serve(there, number) == set(victims(there, "engine", number, HEAD))
