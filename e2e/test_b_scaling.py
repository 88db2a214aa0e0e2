"""Scaling on a real node: real load, real Prometheus, real replicas in real pods, and back."""

from __future__ import annotations

import time

import httpx
import pytest
from e2e.cluster.target import Target, until
from e2e.load import Load, flaws, growing
from e2e.model import NAME, START_S, clusters, decided, patch, version, wanted
from tests.unit.charts.test_dashboard_reads import filled, queries

from reasonscale.api import constants as c

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


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
        print(target.kubectl("get", c.SHORT_NAME), target.kubectl("describe", c.SHORT_NAME, NAME))
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


def _has_data(target: Target, query: str) -> bool:
    """Tell whether a query returns a number; NaN says something of two gauges alone: never full, and never asleep."""
    values = [row["value"][1] for row in target.query(filled(query))]
    may_be_nan = query.startswith(("reasonscale_held", "reasonscale_decision_kv_full_in_s"))
    return any(value != "NaN" or may_be_nan for value in values)


def test_every_query_of_the_dashboard_has_data_of_a_model_that_is_asked_too_much(serving: Target) -> None:
    target, url, before = serving, serving.url(NAME), version(serving)
    patch(target, {"replicas": 1, "scaling": {"mode": "Manual", "objectives": {"maxQueue": "1s"}}})
    short = {"model": NAME, "messages": [{"role": "user", "content": "collatz 27"}], "reasoning_effort": "low"}
    load, lacking, deadline = Load(url, NAME, growing(1.5, 0)), set(queries()), time.monotonic() + 240
    try:
        target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=2")
        until(lambda: wanted(target) == 2, 60, "two replicas are asked for")
        target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=1")
        while lacking and time.monotonic() < deadline:
            httpx.post(
                f"{url}/v1/chat/completions", json=short, trust_env=False, timeout=120
            )  # its budget is exhausted
            lacking = {query for query in lacking if not _has_data(target, query)}
    finally:
        outcomes = load.end()
        patch(target, {"scaling": {"objectives": {"maxQueue": "10m"}}})
    assert not lacking
    assert {o.status for o in outcomes} <= {200, 429}
    until(lambda: version(target) == before, 60, "all is as it was")
