"""Who says how many: the mode, kubectl scale, an autoscaler of Kubernetes' own, a hold, a freeze."""

from __future__ import annotations

import time

import pytest
from e2e.cluster.target import Target, until
from e2e.load import Load, flaws, growing
from e2e.model import NAME, clusters, decided, patch, version, wanted

from reasonscale.api import constants as c

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_recommend_says_what_it_would_do_and_writes_nothing(serving: Target) -> None:
    target, before = serving, version(serving)
    patch(target, {"scaling": {"mode": "Recommend"}})
    load = Load(target.url(NAME), NAME, growing(0.8, 0))
    try:
        until(lambda: decided(target).get("to") == 2, 240, "it recommends two replicas", 3)
        print(f"e2e: recommended: {decided(target)['message']}")
        held = target.conditions(NAME)["ScalingActive"]
        assert (held["status"], held["reason"]) == ("False", "Recommend")
        time.sleep(15)  # three turns
        assert version(target) == before
    finally:
        outcomes = load.end()
    assert not flaws(outcomes)


def test_kubectl_scale_sets_the_number_in_manual_mode_and_a_hold_keeps_it(serving: Target) -> None:
    target, before = serving, clusters(serving)
    patch(target, {"replicas": 1, "scaling": {"mode": "Manual"}})
    target.kubectl("annotate", c.PLURAL, NAME, f"{c.ANNOTATION_HOLD}=true", "--overwrite")
    target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=2")
    until(lambda: target.conditions(NAME)["ScalingActive"]["reason"] == "Held", 30, "the condition names the hold")
    time.sleep(10)
    assert wanted(target) == 1
    target.kubectl("annotate", c.PLURAL, NAME, f"{c.ANNOTATION_HOLD}-")
    until(lambda: wanted(target) == 2, 30, "two replicas are asked for")
    until(lambda: len(target.pods(NAME, "engine")) == 2, 60, "Ray's autoscaler makes a pod")
    assert decided(target)["reason"] == c.REASON_MANUAL
    target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=1")
    until(lambda: wanted(target) == 1, 30, "one replica is asked for")
    assert clusters(target) == before


def test_an_autoscaler_of_kubernetes_attaches_in_external_mode(serving: Target) -> None:
    target = serving
    patch(target, {"replicas": 1, "scaling": {"mode": "External"}})
    until(lambda: target.conditions(NAME)["ScalingActive"]["reason"] == "External", 30, "the mode is taken up")
    reference = {"apiVersion": c.API_VERSION, "kind": c.KIND, "name": NAME}
    metric = {"type": "External", "external": {"metric": {"name": "none"}, "target": {"type": "Value", "value": "1"}}}
    bounds = {"minReplicas": 2, "maxReplicas": 2}  # it keeps to its bounds without a metric
    scaler = {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": NAME, "namespace": "default"},
        "spec": {"scaleTargetRef": reference, "metrics": [metric], **bounds},
    }  # fmt: skip
    target.apply(scaler)
    try:
        until(lambda: target.model(NAME)["spec"]["replicas"] == 2, 90, "the HPA writes the scale subresource")
        until(lambda: wanted(target) == 2, 30, "two replicas are asked for")
        assert decided(target)["reason"] == c.REASON_EXTERNAL
    finally:
        target.kubectl("delete", "hpa", NAME)
    target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=1")
    until(lambda: wanted(target) == 1, 30, "one replica is asked for")


def test_a_frozen_operator_holds_every_model(serving: Target) -> None:
    target = serving
    target.upgrade("freeze=true")
    try:
        target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=2")
        until(
            lambda: target.conditions(NAME)["ScalingActive"]["reason"] == "Frozen", 60, "the condition names the freeze"
        )
        time.sleep(10)
        assert wanted(target) == 1
    finally:
        target.kubectl("scale", c.SHORT_NAME, NAME, "--replicas=1")
        target.upgrade("freeze=false")
    patch(target, {"scaling": {"mode": "Auto"}})
    until(lambda: target.conditions(NAME)["ScalingActive"]["reason"] == "Auto", 60, "it acts again")
    assert wanted(target) == 1
