"""The way out: a model that is deleted with --cascade=orphan leaves a RayService that goes on answering."""

from __future__ import annotations

import time

import pytest
from e2e.cluster.target import Target, until
from e2e.load import Load, flaws, long_chains
from e2e.model import NAME, clusters

from reasonscale.api import constants as c

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_an_orphaned_model_keeps_answering_and_goes_with_its_rayservice(serving: Target) -> None:
    target, before = serving, clusters(serving)
    load = Load(target.url(NAME), NAME, long_chains(5))
    try:
        time.sleep(6)
        target.kubectl("delete", c.PLURAL, NAME, "--cascade=orphan")
        time.sleep(30)  # several turns of the operator, and the garbage collector's
        assert clusters(target) == before
        service = target.get("rayservice", NAME)
        assert service is not None
        assert not service["metadata"].get("ownerReferences")
    finally:
        outcomes = load.end()
    assert not flaws(outcomes)
    assert len(outcomes) >= 6
    target.kubectl("delete", "rayservice,service,pdb,networkpolicy", "-l", f"{c.LABEL_MODEL}={NAME}")
    until(lambda: not target.pods(NAME), 60, "the pods go")
