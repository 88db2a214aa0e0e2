"""Scaling on a real node: real load, real Prometheus, real replicas in real pods, and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from e2e.cluster.target import ROOT, Target, until
from e2e.load import Load, flaws, growing

from reasonscale.api import constants as c
from reasonscale.render.marks import app_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
NAME = "micro"
START_S = 300.0  # allowed for a start on two cores


def resource(**scaling: Any) -> dict[str, Any]:
    """Return the bundled model with engines held to 40 ms a step: unpaced, so small a model fills a core before its batch."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "micro-reasoner.yaml").read_text())
    found["metadata"]["name"] = NAME
    found["spec"]["pod"]["env"] = [{"name": "REASONSCALE_PACE_MS", "value": "40"}]
    found["spec"]["scaling"] |= {"maxReplicas": 2} | scaling
    return found


@pytest.fixture(scope="module")
def serving(installed: Target) -> Iterator[Target]:
    """Start the model and wait until it serves; it is deleted at the end."""
    installed.apply(resource())
    began = time.monotonic()
    try:
        until(lambda: installed.ready(NAME), 2 * START_S, "the model serves")
        print(f"e2e: a model serves after {time.monotonic() - began:.0f} s")
        yield installed
    except BaseException:
        print(installed.story(NAME))
        raise
    finally:
        installed.kubectl("delete", c.PLURAL, NAME, "--ignore-not-found", "--wait=false")
        until(lambda: not installed.pods(NAME), 120, "the pods go")


def wanted(target: Target) -> int:
    """Return the number of replicas in the RayService."""
    service = target.get("rayservice", NAME)
    assert service is not None
    return int(app_of(service)["deployments"][0]["num_replicas"])


def clusters(target: Target) -> list[str]:
    """Return the uids of the model's RayClusters."""
    return [x["metadata"]["uid"] for x in target.list("raycluster", f"ray.io/originated-from-cr-name={NAME}")]


def decided(target: Target) -> dict[str, Any]:
    """Return the last decision in the status."""
    found: dict[str, Any] = (target.model(NAME).get("status") or {}).get("lastDecision") or {}
    return found


def patch(target: Target, spec: dict[str, Any]) -> None:
    """Change the resource's spec."""
    target.kubectl("patch", c.PLURAL, NAME, "--type=merge", "-p", json.dumps({"spec": spec}))


def test_longer_chains_at_a_constant_rate_bring_a_replica_and_its_pod_and_their_end_takes_it_away(
    serving: Target,
) -> None:
    target, before = serving, clusters(serving)
    assert (wanted(target), len(target.pods(NAME, "engine"))) == (1, 1)
    load, began = Load(target.url(NAME), NAME, growing(0.7, 30)), time.monotonic()

    def passed(what: str) -> None:
        print(f"e2e: {time.monotonic() - began:5.0f} s  {what}; {len(load.done)} answered")

    try:
        until(
            lambda: target.query(f'sum(ray_{c.M_INFLIGHT}{{model="{NAME}"}}) > 4'), 180, "Prometheus shows the load", 3
        )
        passed("Prometheus shows more than 4 in flight")
        until(lambda: wanted(target) == 2, 240, "the operator asks for two replicas", 3)
        passed(f"asked for: {decided(target).get('message')}")
        said = decided(target)
        assert (said["from"], said["to"]) == (1, 2)
        assert said["reason"] in (c.REASON_COT, c.REASON_KV, c.REASON_QUEUE, c.REASON_PREFILL, c.REASON_PREEMPTION)
        until(lambda: target.replicas(NAME).get("ready") == 2, START_S, "two replicas serve", 3)
        passed("two replicas serve")
        assert len(target.pods(NAME, "engine")) == 2
        assert target.conditions(NAME)["Ready"]["message"] == "2 of 2 replicas serve"
    finally:
        outcomes = load.end()
    passed("the load has ended")
    assert not flaws(outcomes)
    assert sum(o.correct is False for o in outcomes) <= len(outcomes) // 20
    until(lambda: wanted(target) == 1, 240, "the operator asks for one replica", 3)
    passed(f"asked for: {decided(target).get('message')}")
    assert (decided(target)["from"], decided(target)["to"], decided(target)["reason"]) == (2, 1, c.REASON_CALM)
    until(lambda: len(target.pods(NAME, "engine")) == 1, 240, "the second pod goes", 3)
    passed("one pod with an engine")
    assert clusters(target) == before, "the same RayCluster throughout"
    steps = [(x["from"], x["to"]) for x in target.model(NAME)["status"]["history"]]
    assert steps[:2] == [(2, 1), (1, 2)]
