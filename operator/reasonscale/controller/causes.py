"""Why replicas don't come: from their pods and from what KubeRay and Serve say. Each cause with its remedy. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from reasonscale.api import constants as c
from reasonscale.render.context import ROLE_ENGINE


class Cause(NamedTuple):
    """A constant word, and a sentence with the remedy."""

    reason: str
    message: str


_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
IN_PLACE = "Serve replaces the engines one after another"  # what is said of a rollout in place, before what it costs
_VERSIONS = re.compile(r"IncompatibleRuntime: (.+)")
_ERROR = re.compile(r"^\s*(?:[\w.]*\.)?(\w*(?:Error|Exception|Timeout)): (.+)$", re.MULTILINE)


def age_s(item: Mapping[str, Any], now: float) -> float:
    """Return the seconds since an object was made."""
    try:
        made = datetime.fromisoformat(str(item["metadata"]["creationTimestamp"]).replace("Z", "+00:00"))
    except (KeyError, ValueError):
        return 0.0
    return max(0.0, now - made.timestamp())


def engine_error(text: str) -> str:
    """Return an engine's own last error out of what Serve tells of a deployment: a traceback's last line that says something."""
    found = _ERROR.findall(text)
    # Ray and Serve wrap it; the innermost says what was wrong.
    own = [(kind, words) for kind, words in found if kind not in ("RayTaskError", "RayActorError", "ActorDiedError")]
    if own or found:
        kind, words = (own or found)[-1]
        return f"{kind}: {words.strip()}"[:500]
    return " ".join(text.split())[-500:]


def _statuses(pod: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _of_pod(pod: Mapping[str, Any]) -> Cause | None:
    name = pod["metadata"]["name"]
    for found in (pod.get("status") or {}).get("conditions") or ():
        if found.get("type") == "PodScheduled" and found.get("status") == "False":
            said = str(found.get("message", "")).rstrip(".")
            if "Insufficient" in said and (
                "gpu" in said.lower() or "nvidia" in said.lower() or "amd.com" in said.lower()
            ):
                return Cause("NoGPU", f"pod {name} waits for GPUs: {said}; free some, add nodes, or lower maxReplicas")
            return Cause(
                "Unschedulable",
                f"pod {name} finds no node: {said}; look at nodeSelector, tolerations and resources under spec.pod",
            )
    for status in _statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        why, said = waiting.get("reason"), waiting.get("message") or ""
        if why in _PULL:
            return Cause(
                "ImagePull",
                f"pod {name} can't pull {status.get('image')}: {said or why}; check the name, the tag and spec.pod.imagePullSecrets",
            )
        if why in _CONFIG:
            return Cause(
                "PodConfig",
                f"pod {name} can't be made: {said or why}; a Secret, ConfigMap or volume that spec names is missing",
            )
        last = (
            ((status.get("lastState") or {}).get("terminated")) or ((status.get("state") or {}).get("terminated")) or {}
        )
        if last.get("reason") == "OOMKilled":
            return Cause(
                "OutOfMemory",
                f"pod {name}: {status.get('name')} was killed for memory; raise spec.pod.resources.limits.memory",
            )
        if why == "CrashLoopBackOff":
            return Cause(
                "Crashing",
                f"pod {name}: {status.get('name')} ended with code {last.get('exitCode')} {status.get('restartCount', 0)} times; kubectl logs {name} --previous",
            )
    return None


def _cluster_statuses(service: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    status = service.get("status") or {}
    return [x for x in (status.get("pendingServiceStatus"), status.get("activeServiceStatus")) if x]


def _failed(what: str, text: str) -> Cause:
    """Return the cause in what Serve tells of something that does not start."""
    found = _VERSIONS.search(text)
    if found:
        return Cause("IncompatibleRuntime", found[1].strip()[:500])
    return Cause("EngineFailed", f"{what} does not start: {engine_error(text)}")


def _of_service(service: Mapping[str, Any]) -> Cause | None:
    for part in _cluster_statuses(service):
        for found in (part.get("rayClusterStatus") or {}).get("conditions") or ():
            if found.get("type") == "ReplicaFailure" and found.get("status") == "True":
                said = str(found.get("message", ""))
                if "exceeded quota" in said:
                    return Cause(
                        "Quota", f"a pod was refused: {said}; raise the namespace's ResourceQuota or lower maxReplicas"
                    )
                if "being terminated" in said:
                    return Cause(
                        "NamespaceTerminating", f"the namespace is being deleted, nothing new can be made in it: {said}"
                    )
                return Cause("PodRefused", f"a pod was refused: {said}; what refuses is named there")
        for app in (part.get("applicationStatuses") or {}).values():
            for deployment, held in (app.get("serveDeploymentStatuses") or {}).items():
                if held.get("status") in ("UNHEALTHY", "DEPLOY_FAILED") and held.get("message"):
                    return _failed(deployment, str(held["message"]))
            if app.get("status") == "DEPLOY_FAILED" and app.get("message"):
                return _failed("the application", str(app["message"]))
    return None


def cause_of(
    service: Mapping[str, Any] | None, pods: Iterable[Mapping[str, Any]], start_timeout_s: float, now: float
) -> Cause | None:
    """Return what replicas wait for, the clearest first; None where nothing is wrong."""
    pods = list(pods)
    for pod in sorted(pods, key=lambda p: str(p["metadata"]["name"])):
        found = _of_pod(pod)
        if found is not None:
            if age_s(pod, now) > start_timeout_s and not _ready(pod):
                return Cause(
                    "StartTimeout",
                    f"{found.message}; this has lasted longer than scaling.startTimeout, {start_timeout_s:.0f} s",
                )
            return found
    found = _of_service(service) if service is not None else None
    if found is not None:
        return found
    engines = [p for p in pods if (p["metadata"].get("labels") or {}).get(c.LABEL_ROLE) == ROLE_ENGINE]
    late = [p for p in engines if not _ready(p) and age_s(p, now) > start_timeout_s]
    if late:
        oldest = max(late, key=lambda p: age_s(p, now))
        return Cause(
            "StartTimeout",
            f"pod {oldest['metadata']['name']} is not ready after {start_timeout_s:.0f} s, scaling.startTimeout; look at its log, "
            "and raise startTimeout if the weights take that long to load",
        )
    return None


def _engines(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the pods with engines that are not on their way out."""
    return [
        p
        for p in pods
        if (p["metadata"].get("labels") or {}).get(c.LABEL_ROLE) == ROLE_ENGINE
        and not p["metadata"].get("deletionTimestamp")
    ]


def running_pods(pods: Iterable[Mapping[str, Any]]) -> int:
    """Return how many pods with engines run and are ready."""
    return sum(1 for p in _engines(pods) if _ready(p))


def late_pods(pods: Iterable[Mapping[str, Any]], asked: int, start_timeout_s: float, now: float) -> int:
    """Return how many of the pods with engines that are asked for have not been placed and started within the time for it.

    Beyond those are a rollout's spare replica, and what is on its way out: nobody lacks them.
    """
    engines = _engines(pods)
    late = sum(1 for p in engines if not _ready(p) and age_s(p, now) > start_timeout_s)
    return max(0, late - max(0, len(engines) - asked))


def waiting_of(pods: Iterable[Mapping[str, Any]], fetching: int = 0) -> str | None:
    """Return in words what pods with engines do before they are ready; None where all are.

    `fetching`: replicas that say that they fetch weights.
    """
    engines = [p for p in pods if (p["metadata"].get("labels") or {}).get(c.LABEL_ROLE) == ROLE_ENGINE]
    starting = [p for p in engines if not _ready(p) and not p["metadata"].get("deletionTimestamp")]
    if not starting:
        return None
    loading = sum(1 for p in starting if (p.get("status") or {}).get("phase") == "Running")
    creating = sum(1 for p in starting if (p.get("spec") or {}).get("nodeName")) - loading
    parts = {
        "without a node": len(starting) - loading - creating,
        "pulling images or starting containers": creating,
        "downloading weights": min(fetching, loading),
        "loading": max(0, loading - fetching),
    }
    return "engine pods: " + ", ".join(f"{n} {what}" for what, n in parts.items() if n)


def rolling_of(service: Mapping[str, Any] | None, cost: str | None) -> str | None:
    """Return in words what a rollout under way does; None where there is none.

    `cost`: of one in place that we began; None where we began none. Serve's status alone does not tell: it says UPDATING, too,
    where engines only take new settings.
    """
    status = (service or {}).get("status") or {}
    active, pending = (status.get(f"{which}ServiceStatus") or {} for which in ("active", "pending"))
    if not active.get("rayClusterName"):
        return None
    if pending.get("rayClusterName"):
        return f"cluster {pending['rayClusterName']} starts beside the one that serves"
    return None if cost is None else f"{IN_PLACE}; {cost}"


def engines_update(service: Mapping[str, Any] | None) -> bool:
    """Tell whether Serve says of engines that it updates them."""
    return _engines_are("UPDATING", service)


def engines_fail(service: Mapping[str, Any] | None) -> bool:
    """Tell whether Serve says of engines that they are lost, or don't start."""
    return _engines_are("UNHEALTHY", service) or _engines_are("DEPLOY_FAILED", service)


def _engines_are(word: str, service: Mapping[str, Any] | None) -> bool:
    apps = (((service or {}).get("status") or {}).get("activeServiceStatus") or {}).get("applicationStatuses") or {}
    return any(
        name != c.DEPLOYMENT_INGRESS and held.get("status") == word
        for app in apps.values()
        for name, held in (app.get("serveDeploymentStatuses") or {}).items()
    )


def _ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(x.get("type") == "Ready" and x.get("status") == "True" for x in conditions)


def of_refusal(problem: str) -> Cause:
    """Return the cause behind an API server's refusal of our own writes."""
    if "being terminated" in problem:
        return Cause(
            "NamespaceTerminating", f"the namespace is being deleted, nothing new can be made in it: {problem}"
        )
    if "strict decoding" in problem or "unknown field" in problem or "field not declared in schema" in problem:
        return Cause(
            "CRDTooOld",
            f"KubeRay's definition of the RayService lacks a field: {problem}; install the CRDs of KubeRay 1.6 or later",
        )
    if "forbidden" in problem.lower() and "quota" in problem:
        return Cause("Quota", f"{problem}; raise the namespace's ResourceQuota")
    if "forbidden" in problem.lower():
        return Cause("Forbidden", f"the operator may not do it: {problem}; renew the chart's role")
    return Cause("NotApplied", f"the API server refused what the model needs: {problem}")
