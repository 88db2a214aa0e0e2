"""What becomes of another rendering: whose change it is decides, and no decision of ours starts a cluster."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.api import constants as c
from reasonscale.api.effects import Effect
from reasonscale.api.load import parse
from reasonscale.api.models import ReasoningModel
from reasonscale.api.resolve import resolve
from reasonscale.controller.rollout import blocked, free_gpus, plan
from reasonscale.render.children import children
from reasonscale.render.context import Context, SecretKey
from reasonscale.render.marks import app_of, cluster_hashed, digest, read_marks, surge_mark
from reasonscale.render.text import to_yaml

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen3-32B", "maxModelLen": 32768},
    "parallelism": {"tensor": 2},
    "scaling": {"mode": "Manual", "maxReplicas": 12},
    "replicas": 1,
}
CONTEXT = Context(namespace="n", replicas=1, image="i:1", code_image="j:1")


def model_of(spec: dict[str, Any], **annotations: str) -> ReasoningModel:
    meta = {"name": "m", "annotations": {f"{c.GROUP}/{k}": v for k, v in annotations.items()}}
    return parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": meta, "spec": spec})


def rendered(model: ReasoningModel, **changes: Any) -> dict[str, Any]:
    """Return a RayService; `later` stands for a later operator, whose code renders another cluster and other settings."""
    later = changes.pop("later", 0)
    out = children(model, resolve(model), replace(CONTEXT, **changes))[0]
    if later:
        out["spec"]["rayClusterConfig"]["rayVersion"] = f"2.60.{later}"
        config = yaml.safe_load(out["spec"]["serveConfigV2"])
        for deployment in config["applications"][0]["deployments"]:
            deployment["user_config"] |= {f"new_in_{later}": 1}
        config["applications"][0]["args"]["later"] = later
        out["spec"]["serveConfigV2"] = to_yaml([config])
    return out


def first(model: ReasoningModel) -> dict[str, Any]:
    return plan(None, rendered(model), model, False).manifest


STEPS = st.one_of(
    st.tuples(st.just("replicas"), st.integers(1, 12)),
    st.tuples(st.just("later"), st.integers(0, 3)),
    st.tuples(st.just("code_image"), st.sampled_from(["j:1", "j:2", "j:3"])),
    st.tuples(st.just("image"), st.sampled_from(["i:1", "i:2"])),
    st.tuples(st.just("redis_address"), st.sampled_from([None, "redis:6379"])),
    st.tuples(st.just("redis_password"), st.sampled_from([None, SecretKey("redis")])),
    st.tuples(st.just("default"), st.sampled_from([512, 4096])),
    st.tuples(st.just("max"), st.integers(2, 12)),
    st.tuples(st.just("emptied"), st.sampled_from([(), ("r0",), ("r0", "r1")])),
    st.tuples(st.just("asleep"), st.sampled_from([(), ("r0",)])),
    st.tuples(st.just("spare"), st.sampled_from([0, 1])),
)


@given(st.lists(STEPS, min_size=1, max_size=12))
def test_no_sequence_of_decisions_and_operator_versions_changes_the_cluster(steps: list[tuple[str, Any]]) -> None:
    spec, context = copy.deepcopy(SPEC), {}
    live = first(model_of(spec))
    there = digest(cluster_hashed(live))
    args = app_of(live)["args"]
    for kind, value in steps:
        if kind == "default":
            spec["reasoning"] = {"budget": {"default": value}}
        elif kind == "max":
            spec["scaling"]["maxReplicas"] = value
        else:
            context[kind] = value
        model = model_of(spec)
        context["replicas"] = min(context.get("replicas", 1), spec["scaling"]["maxReplicas"])
        found = plan(live, rendered(model, **context), model, True)
        assert found.effect is Effect.NOTHING
        live = found.manifest
        assert digest(cluster_hashed(live)) == there
        assert app_of(live)["args"] == args
        assert app_of(live)["deployments"][0]["num_replicas"] == context["replicas"]
        for key in ("emptied", "asleep"):
            told = app_of(live)["deployments"][-1]["user_config"].get(key, {}).values()
            assert list(told) == ([list(context[key])] if context.get(key) else [])
        settings = app_of(live)["deployments"][0]["user_config"]
        assert kind != "default" or settings["budget_default"] == value
        newest = {k for k in settings if k.startswith("new_in_")}
        assert found.update is None or newest == set(), "older code takes no settings that it does not know"


def test_a_later_operator_is_pinned_and_says_what_it_would_change() -> None:
    model = model_of(SPEC)
    live = first(model)
    found = plan(live, rendered(model, later=1), model, True)
    assert found.update == "rayClusterConfig.rayVersion"
    assert found.marks.revision == read_marks(live).revision  # type: ignore[union-attr]
    assert cluster_hashed(found.manifest) == cluster_hashed(live)


def test_update_now_is_obeyed_once() -> None:
    told = model_of(SPEC, update="now")
    live = first(model_of(SPEC))
    found = plan(live, rendered(told, later=1), told, True)
    assert (found.update, found.effect) == (None, Effect.CLUSTER)
    again = plan(found.manifest, rendered(told, later=2), told, True)
    assert again.update is not None, "an annotation that stays on is no leave for every later release"
    untold = plan(again.manifest, rendered(model_of(SPEC), later=2), model_of(SPEC), True)
    more = plan(untold.manifest, rendered(told, later=2), told, True)
    assert (more.update, more.effect) == (None, Effect.CLUSTER)


def test_the_engines_own_settings_bring_a_later_rendering_in() -> None:
    live = first(model_of(SPEC))
    other = model_of(SPEC | {"engine": {"args": {"seed": "7"}}})
    found = plan(live, rendered(other, later=1), other, False)
    assert (found.update, found.effect) == (None, Effect.CLUSTER)
    assert found.manifest["spec"]["rayClusterConfig"]["rayVersion"] == "2.60.1"


@pytest.mark.parametrize("seen", [True, False])
def test_what_an_operator_without_marks_made_goes_on_until_its_resource_changes(seen: bool) -> None:
    model = model_of(SPEC)
    live = rendered(model)
    assert plan(live, rendered(model), model, seen).update is None
    found = plan(live, rendered(model, later=1), model, seen)
    assert (found.update is not None) is seen


def test_in_place_and_surge_differ_by_a_mark_in_the_pods() -> None:
    live = first(model_of(SPEC))
    change = {"engine": {"args": {"seed": "7"}}}
    inplace, surge = model_of(SPEC | change), model_of(SPEC | change | {"rollout": {"strategy": "Surge"}})
    found = plan(live, rendered(inplace), inplace, False)
    assert (found.effect, surge_mark(found.manifest)) == (Effect.ENGINES, None)
    found = plan(live, rendered(surge), surge, False)
    assert found.effect is Effect.CLUSTER
    mark = surge_mark(found.manifest)
    assert mark
    # The mark stays: neither another number, nor a strategy that is changed alone, starts a cluster.
    after = plan(found.manifest, rendered(surge, replicas=3), surge, True)
    assert (after.effect, surge_mark(after.manifest)) == (Effect.NOTHING, mark)
    back = plan(after.manifest, rendered(inplace), inplace, False)
    assert (back.effect, surge_mark(back.manifest)) == (Effect.NOTHING, mark)


def test_a_blocked_rollout_holds_back_the_engines_and_not_the_numbers() -> None:
    live = first(model_of(SPEC))
    other = model_of(SPEC | {"pod": {"labels": {"a": "b"}}, "rollout": {"strategy": "Surge"}})
    found = plan(live, rendered(other, replicas=5), other, False)
    assert found.held_back is not None
    assert cluster_hashed(found.held_back) == cluster_hashed(live)
    assert app_of(found.held_back)["deployments"][0]["num_replicas"] == 5
    # It is tried again: what was held back has not become what runs.
    assert plan(found.held_back, rendered(other, replicas=5), other, True).held_back is not None


def test_too_few_gpus_are_said_in_numbers() -> None:
    assert blocked("Surge", 32, 8) == "Surge needs 32 GPUs, 8 are free; use InPlace"
    assert (
        blocked("InPlace", 32, 8) == "other pods need a new cluster of 32 GPUs beside the old, 8 are free; use Recreate"
    )
    assert blocked("Surge", 8, 8) is None
    assert blocked("Surge", 8, None) is None, "who may not see the nodes does not block"


def test_free_gpus_are_those_of_nodes_that_take_the_pods() -> None:
    def node(name: str, gpus: int, **more: Any) -> dict[str, Any]:
        labels = {"nvidia.com/gpu.product": "H100"} | more.pop("labels", {})
        return {
            "metadata": {"name": name, "labels": labels},
            "spec": more,
            "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}},
        }

    def pod(on: str, gpus: int, phase: str = "Running") -> dict[str, Any]:
        container = {"resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}
        return {"spec": {"nodeName": on, "containers": [container]}, "status": {"phase": phase}}

    nodes = [
        node("a", 8),
        node("b", 8),
        node("cordoned", 8, unschedulable=True),
        node("l", 8, labels={"nvidia.com/gpu.product": "L4"}),
    ]
    pods = [pod("a", 6), pod("b", 8, "Succeeded"), pod("l", 1)]
    assert free_gpus(nodes, pods, "nvidia.com/gpu", {"nvidia.com/gpu.product": "H100"}) == {"a": 2, "b": 8}
