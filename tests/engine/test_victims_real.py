"""Serve's own choice of the replica that goes, on a Ray of several nodes, against the rule that we predict it by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from reasonscale.local.ray_node import RAY_ENV, own_handlers
from reasonscale.scaling.victims import Standing, victims

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


def controller() -> Any:
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


def deploy() -> None:
    """Start one replica of each deployment."""
    from ray import serve

    def of(cls: type, name: str, share: float) -> Any:
        options = {"num_cpus": 0, "resources": {"engine": share}}
        return serve.deployment(cls).options(name=name, ray_actor_options=options, graceful_shutdown_timeout_s=1)

    other = of(Other, OTHER, 0.5)
    engine = of(Engine, ENGINE, 1.0).bind(other.bind())
    serve.run(engine, name=APP, route_prefix=None, external_scaler_enabled=True)


def scale(deployment: str, number: int) -> list[Standing]:
    """Set a deployment's number as a config does, in place; return what there is when it is reached."""
    import ray
    from ray.serve._private.common import DeploymentID

    ray.get(controller().update_deployment_replicas.remote(DeploymentID(deployment, APP), number))
    deadline = time.monotonic() + 90
    while True:
        found = standing()
        mine = [r for r in found if r.deployment == deployment]
        if len(mine) == number and all(r.running for r in mine):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def standing() -> list[Standing]:
    """Return what Serve's controller lists, in its order."""
    import ray

    app = ray.get(controller().get_serve_instance_details.remote())["applications"][APP]
    return [
        Standing(r["replica_id"], name, r.get("node_id"), r["state"] == "RUNNING")
        for name, deployment in app["deployments"].items()
        for r in deployment["replicas"]
        if r["state"] != "STOPPING"
    ]


def guesses(there: list[Standing], number: int, head: str) -> list[set[str]]:
    """Return who may go: where nodes tie, Serve goes by which deployment had a replica first, which it does not show."""
    out: list[set[str]] = []
    for first in (ENGINE, OTHER):
        found = set(victims(sorted(there, key=lambda r: r.deployment != first), ENGINE, number, head))
        if found not in out:
            out.append(found)
    return out


def test_serve_stops_the_replicas_that_we_predict(nodes: str) -> None:
    deploy()
    not_newest = known = 0
    # Up by one each time, so that all begin to run in a known order; down by one and by two. First one a node, then more.
    for others, path in ((1, (1, 2, 3, 2, 3, 1)), (2, (1, 2, 3, 4, 2, 1))):
        scale(OTHER, others)
        for before, after in itertools.pairwise(path):
            there = scale(ENGINE, before)
            predicted = guesses(there, before - after, nodes) if after < before else [set()]
            left = scale(ENGINE, after)
            gone = {r.replica for r in there if r.deployment == ENGINE} - {r.replica for r in left}
            known += after < before and len(predicted) == 1
            assert gone in predicted, [
                f"{r.deployment} {r.replica} on {r.node[-4:] if r.node else None}" for r in there
            ]
            newest = [r.replica for r in there if r.deployment == ENGINE][-1]
            not_newest += bool(gone) and newest not in gone
    assert not_newest, "the newest went each time: these nodes show nothing"
    assert known >= 3, "hardly a choice was known for sure: these nodes show nothing"
