"""The way out: a model that is deleted with --cascade=orphan leaves a RayService that goes on answering; one deleted as usual leaves nothing, with an operator or without."""

from __future__ import annotations

import time

import pytest
from e2e.cluster.target import Target, until
from e2e.load import Load, flaws, long_chains
from e2e.model import NAME, START_S, clusters, resource

from reasonscale.api import constants as c

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def owned(target: Target) -> bool:
    """Tell whether the RayService belongs to the model that there is now."""
    service = target.get("rayservice", NAME)
    assert service is not None
    uid = target.model(NAME)["metadata"]["uid"]
    return any(x["uid"] == uid for x in service["metadata"].get("ownerReferences") or ())


def orphan(target: Target) -> None:
    """Delete the model alone, and see that nothing of what it made goes or changes."""
    before = clusters(target)
    target.kubectl("delete", c.PLURAL, NAME, "--cascade=orphan")
    time.sleep(30)  # several turns of the operator, and the garbage collector's
    assert clusters(target) == before
    service = target.get("rayservice", NAME)
    assert service is not None
    assert not service["metadata"].get("ownerReferences")


def test_an_orphaned_model_keeps_answering_is_taken_back_and_is_deleted_without_an_operator(serving: Target) -> None:
    target, before = serving, clusters(serving)
    load = Load(target.url(NAME), NAME, long_chains(5))
    try:
        time.sleep(6)
        orphan(target)
        target.apply(resource())
        until(lambda: owned(target), 60, "the RayService belongs to the model again")
        until(lambda: target.ready(NAME), 60, "it serves as before")
        assert clusters(target) == before
    finally:
        outcomes = load.end()
    assert not flaws(outcomes)
    assert len(outcomes) >= 6
    target.sh("kubectl -n reasonscale scale deploy/reasonscale --replicas=0")
    until(lambda: not target.list("pods", "app.kubernetes.io/name=reasonscale", "reasonscale"), 60, "no operator runs")
    try:
        began = time.monotonic()
        target.kubectl("delete", c.PLURAL, NAME)
        until(lambda: not target.left(NAME), 60, "everything is gone")
        print(f"e2e: without an operator everything is gone after {time.monotonic() - began:.0f} s")
    finally:
        target.sh("kubectl -n reasonscale scale deploy/reasonscale --replicas=1")
        target.sh("kubectl -n reasonscale rollout status deploy/reasonscale --timeout=120s", 130)
    time.sleep(10)  # two turns
    assert not target.left(NAME), "it is not made again"


@pytest.mark.soak
def test_an_orphaned_model_goes_with_its_rayservice(serving: Target) -> None:
    target = serving
    target.apply(resource())
    until(lambda: target.ready(NAME), 2 * START_S, "the model serves")
    orphan(target)
    target.kubectl("delete", "rayservice,service,pdb,networkpolicy", "-l", f"{c.LABEL_MODEL}={NAME}")
    until(lambda: not target.pods(NAME), 60, "the pods go")
