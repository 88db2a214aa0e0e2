"""Why replicas don't come: each cause by its word, with the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from reasonscale.api import constants as c
from reasonscale.controller.causes import cause_of, engine_error, engines_update, of_refusal, rolling_of, waiting_of
from reasonscale.controller.watched import of_pod

NOW = 1_800_000_000.0
MADE = "2027-01-15T07:59:00Z"  # a minute before NOW


def pod(status: dict[str, Any], made: str = MADE, node: str | None = None) -> dict[str, Any]:
    meta = {"name": "p", "creationTimestamp": made, "labels": {c.LABEL_ROLE: "engine"}}
    return {"metadata": meta, "spec": {"nodeName": node} if node else {}, "status": status}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {
        "containerStatuses": [
            {"name": "ray-worker", "image": "r/i:1", "state": {"waiting": {"reason": reason, "message": message}}}
            | more
        ]
    }


UNPLACED = {
    "type": "PodScheduled",
    "status": "False",
    "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
}
TRACE = """Traceback (most recent call last):
  File "x.py", line 3, in start
ValueError: To serve at least one request with the model's max seq len (32768), 4.0 GiB KV cache is needed
"""


def service(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "m"}, "status": {"activeServiceStatus": status}}


@pytest.mark.parametrize(
    ("reason", "words", "pods", "held"),
    [
        ("NoGPU", "4 Insufficient nvidia.com/gpu; free some", [pod({"conditions": [UNPLACED]})], None),
        ("Unschedulable", "nodeSelector", [pod({"conditions": [UNPLACED | {"message": "0/4 nodes: didn't match node selector"}]})], None),
        ("ImagePull", "can't pull r/i:1: not found", [pod(waiting("ErrImagePull", "not found"))], None),
        ("PodConfig", 'secret "hf" not found', [pod(waiting("CreateContainerConfigError", 'secret "hf" not found'))], None),
        ("Crashing", "code 1 3 times", [pod(waiting("CrashLoopBackOff", lastState={"terminated": {"exitCode": 1}}, restartCount=3))], None),
        ("OutOfMemory", "killed for memory", [pod(waiting("CrashLoopBackOff", lastState={"terminated": {"reason": "OOMKilled"}}))], None),
        ("StartTimeout", "longer than scaling.startTimeout, 30 s", [pod({"conditions": [UNPLACED]})], None),
        ("StartTimeout", "not ready after 30 s", [pod({"phase": "Running"}, node="n")], None),
        ("Quota", "ResourceQuota", [], service(rayClusterStatus={"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "pods is forbidden: exceeded quota: q"}]})),
        ("NamespaceTerminating", "being deleted", [], service(rayClusterStatus={"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "because it is being terminated"}]})),
        ("EngineFailed", "ValueError: To serve at least one request", [], service(applicationStatuses={"m": {"serveDeploymentStatuses": {"LLMServer:m": {"status": "DEPLOY_FAILED", "message": TRACE}}}})),
        ("EngineFailed", "ImportError: no module", [], service(applicationStatuses={"m": {"status": "DEPLOY_FAILED", "message": "Traceback\nImportError: no module"}})),
    ],
)  # fmt: skip
def test_a_cause_is_named_with_its_remedy(reason: str, words: str, pods: list[dict[str, Any]], held: Any) -> None:
    found = cause_of(held, pods, 30.0 if reason == "StartTimeout" else 900.0, NOW)
    assert found is not None
    assert found.reason == reason
    assert words in found.message
    whole = [p | {"spec": p["spec"] | {"containers": [{"name": "ray-worker"}]}} for p in pods]
    assert cause_of(held, map(of_pod, whole), 30.0 if reason == "StartTimeout" else 900.0, NOW) == found


def test_nothing_wrong_is_no_cause() -> None:
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    assert cause_of(service(), [pod(ready, node="n"), pod({"phase": "Pending"})], 900.0, NOW) is None
    assert cause_of(None, [], 900.0, NOW) is None


def test_the_engine_s_own_error_is_the_innermost() -> None:
    wrapped = TRACE + "\nray.exceptions.RayTaskError(ValueError): ray::x\nRayActorError: The actor died\n"
    assert engine_error(wrapped).startswith("ValueError: To serve")
    assert engine_error("out of\n  luck") == "out of luck"


def test_what_pods_do_is_counted() -> None:
    pods = [pod({"phase": "Pending"}), pod({"phase": "Pending"}, node="n"), pod({"phase": "Running"}, node="n")]
    assert waiting_of(pods) == "engine pods: 1 without a node, 1 pulling images or starting containers, 1 loading"
    assert waiting_of(list(map(of_pod, pods))) == waiting_of(pods)
    assert waiting_of([]) is None
    assert waiting_of(pods, fetching=1) == "engine pods: 1 without a node, 1 pulling images or starting containers, 1 downloading weights"  # fmt: skip
    assert waiting_of(pods, fetching=3) == waiting_of(pods, fetching=1), "no more than there are"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("unable to create new content in namespace x because it is being terminated", "NamespaceTerminating"),
        (".spec.excludeHeadPodFromServeSvc: field not declared in schema", "CRDTooOld"),
        ("services is forbidden: exceeded quota: q", "Quota"),
        ('rayservices.ray.io is forbidden: User "x" cannot patch', "Forbidden"),
        ("something else", "NotApplied"),
    ],
)
def test_a_refusal_of_the_api_server_has_its_cause(said: str, reason: str) -> None:
    assert of_refusal(said).reason == reason


def test_a_rollout_that_we_began_says_what_it_costs_and_new_settings_of_engines_are_none() -> None:
    def service(engines: str, ingress: str, **more: Any) -> dict[str, Any]:
        held = {"LLMServer:m": {"status": engines}, "Ingress": {"status": ingress}}
        active = {"rayClusterName": "m-a", "applicationStatuses": {"m": {"serveDeploymentStatuses": held}}}
        return {"status": {"activeServiceStatus": active, **more}}

    assert rolling_of(service("UPDATING", "UPDATING"), "x") == "Serve replaces the engines one after another; x"
    assert rolling_of(service("UPDATING", "UPDATING"), None) is None
    assert engines_update(service("UPDATING", "HEALTHY"))
    assert not engines_update(service("HEALTHY", "UPDATING"))
    assert not engines_update(service("UPSCALING", "HEALTHY"))
    assert not engines_update(None)
    beside = service("HEALTHY", "HEALTHY", pendingServiceStatus={"rayClusterName": "m-b"})
    assert rolling_of(beside, "x") == "cluster m-b starts beside the one that serves"
    assert rolling_of({"status": {"pendingServiceStatus": {"rayClusterName": "m-b"}}}, "x") is None, "a first start"
    assert rolling_of(None, "x") is None
