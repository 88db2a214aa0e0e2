"""A rollout of each strategy while chains run."""

from __future__ import annotations

import json
import time

import pytest
from e2e.cluster.target import Target, until
from e2e.load import Load, flaws, long_chains
from e2e.model import NAME, START_S, clusters, patch, resource

from reasonscale.render.marks import app_of

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1200)]


def seqs_that_serve(target: Target) -> int:
    """Return the batch that the RayService's rendering has; 0 while there is none."""
    service = target.get("rayservice", NAME)
    return int(app_of(service)["args"]["models"][0]["engine_kwargs"]["max_num_seqs"]) if service else 0


def change(target: Target, strategy: str, seqs: int) -> None:
    """Change a setting of the engines under a strategy; nothing but that, on two cores."""
    alone = {"replicas": 1, "scaling": {"mode": "Manual"}}
    patch(target, {**alone, "rollout": {"strategy": strategy}, "engine": {"args": {"max_num_seqs": str(seqs)}}})
    until(lambda: seqs_that_serve(target) == seqs, 180, "the new rendering is applied")


def active(target: Target) -> str:
    """Return the name of the RayCluster that serves."""
    service = target.get("rayservice", NAME)
    assert service is not None
    return str(service["status"].get("activeServiceStatus", {}).get("rayClusterName", ""))


def test_another_rendering_of_a_newer_operator_waits_and_no_engine_notices(serving: Target) -> None:
    target, before = serving, clusters(serving)
    engines = {(p["metadata"]["uid"], p["status"]["containerStatuses"][0]["restartCount"]) for p in target.pods(NAME)}
    target.upgrade("redisAddress=redis:6379")
    try:
        update = lambda: target.conditions(NAME)["UpdateAvailable"]  # noqa: E731
        said = until(lambda: (x := update())["status"] == "True" and x, 60, "it is said")
        assert "gcsFaultToleranceOptions" in said["message"]
        time.sleep(15)  # three turns, and KubeRay's
        assert clusters(target) == before
        assert engines == {(p["metadata"]["uid"], p["status"]["containerStatuses"][0]["restartCount"]) for p in target.pods(NAME)}  # fmt: skip
    finally:
        target.upgrade("redisAddress=")
    until(lambda: update()["status"] == "False", 60, "there is none any more")


def test_surge_builds_a_second_cluster_and_no_chain_is_cut(serving: Target) -> None:
    target, old, before = serving, active(serving), clusters(serving)
    load, began = Load(target.url(NAME), NAME, long_chains(10)), time.monotonic()
    try:
        time.sleep(8)
        change(target, "Surge", 7)
        until(lambda: "starts beside" in json.dumps(target.conditions(NAME)["Progressing"]), 60, "it is said")
        until(lambda: active(target) not in ("", old), 2 * START_S, "the new cluster serves", 3)
        print(f"e2e: Surge: the new cluster serves after {time.monotonic() - began:.0f} s")
        selector = lambda: (target.get("service", f"{NAME}-openai") or {})["spec"]["selector"]  # noqa: E731
        until(lambda: selector()["ray.io/cluster"] == active(target), 30, "the Service follows")
        until(lambda: len(clusters(target)) == 1, 400, "the old cluster goes", 3)
        print(f"e2e: Surge: the old cluster is gone after {time.monotonic() - began:.0f} s")
        time.sleep(10)
    finally:
        outcomes = load.end()
    assert not flaws(outcomes)
    print(f"e2e: Surge: {len(outcomes)} long chains meanwhile, none cut")
    assert clusters(target) != before


def test_in_place_ends_the_running_chain_before_the_only_engine_restarts(serving: Target) -> None:
    target, before = serving, clusters(serving)
    load, began = Load(target.url(NAME), NAME, long_chains(600)), time.monotonic()
    time.sleep(5)
    change(target, "InPlace", 6)
    until(lambda: "an outage of one engine start" in target.conditions(NAME)["Progressing"]["message"], 60, "its cost is said")  # fmt: skip
    outcomes = load.end()
    assert not flaws(outcomes)
    assert len(outcomes) == 1
    until(lambda: not target.ready(NAME), 180, "the only engine stops")
    until(lambda: target.ready(NAME), 2 * START_S, "it serves again", 3)
    print(f"e2e: InPlace with one replica: serves again after {time.monotonic() - began:.0f} s")
    assert clusters(target) == before


def test_recreate_makes_the_model_anew(serving: Target) -> None:
    target, before, began = serving, clusters(serving), time.monotonic()
    change(target, "Recreate", 5)
    until(lambda: clusters(target) and clusters(target) != before, 180, "another cluster is made", 3)
    until(lambda: target.ready(NAME), 2 * START_S, "it serves again", 3)
    print(f"e2e: Recreate: serves again after {time.monotonic() - began:.0f} s")
    target.apply(resource())
