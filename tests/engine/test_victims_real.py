"""Serve's own choice of the replica that goes, on a Ray of several nodes, against the rule that we predict it by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reasonscale.local.ray_node import RAY_ENV, own_handlers
from reasonscale.serving.victims import Standing, victims

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
ENGINE, OTHER, APP = "Engine", "Other", "app"


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """A head and three nodes, each with room for two replicas; the head's id."""
    import os

    for name, value in RAY_ENV.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.cluster_utils import Cluster

    with own_handlers():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        for i in range(3):
            cluster.add_node(num_cpus=1, resources={"engine": 2.0, f"node{i}": 1.0})
        ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    head = next(n["NodeID"] for n in ray.nodes() if "engine" not in n["Resources"])
    yield head
    from ray import serve

    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


class Engine:
    """A deployment that needs another, as an ingress its engines."""

    def __init__(self, other: Any) -> None:
        self.other = other


class Other:
    """What runs beside it."""


def deploy(replicas: int, others: int) -> None:
    from ray import serve

    def of(cls: type, name: str, number: int, share: float) -> Any:
        options = {"num_cpus": 0, "resources": {"engine": share}}
        # One version: another would be rolled out and not scaled.
        return serve.deployment(cls, version="1").options(
            name=name, num_replicas=number, ray_actor_options=options, graceful_shutdown_timeout_s=1
        )

    other = of(Other, OTHER, others, 0.5)
    serve.run(of(Engine, ENGINE, replicas, 1.0).bind(other.bind()), name=APP, route_prefix=None)


def standing() -> list[Standing]:
    """Return what Serve's controller lists, in its order."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    app = ray.get(controller.get_serve_instance_details.remote())["applications"][APP]
    return [
        Standing(r["replica_id"], name, r["node_id"], r["state"] == "RUNNING")
        for name, deployment in app["deployments"].items()
        for r in deployment["replicas"]
        if r["state"] != "STOPPING"
    ]


def settled(holds: Callable[[list[Standing]], bool]) -> list[Standing]:
    deadline = time.monotonic() + 60
    while not holds(found := standing()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_serve_stops_the_replicas_that_we_predict(nodes: str) -> None:
    told = 0
    # One more each time, so that the order in which they began to run is known; then down by one and by two.
    for others, path in ((1, (1, 2, 3, 2, 3, 1)), (2, (1, 2, 3, 4, 5, 3, 2, 1))):
        for before, after in itertools.pairwise(path):
            deploy(before, others)
            there = settled(
                lambda found, n=before: len([r for r in found if r.running and r.deployment == ENGINE]) == n
            )  # type: ignore[misc]
            if after > before:
                continue
            predicted = set(victims(there, ENGINE, before - after, nodes))
            deploy(after, others)
            left = settled(lambda found, n=after: len([r for r in found if r.deployment == ENGINE]) == n)  # type: ignore[misc]
            gone = {r.replica for r in there if r.deployment == ENGINE} - {r.replica for r in left}
            assert gone == predicted, there
            newest = [r.replica for r in there if r.deployment == ENGINE][-1]
            told += newest not in gone
        deploy(1, others)
    assert told, "the newest went each time: these nodes show nothing"
