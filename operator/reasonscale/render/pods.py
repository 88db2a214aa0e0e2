"""Pod templates: what every pod of a model's cluster has, and what only engines have."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.api.pod_rules import DEFAULT_REQUESTS
from reasonscale.render.context import (
    CODE,
    PORT_API,
    PORT_DASHBOARD,
    PORT_METRICS,
    ROLE_ENGINE,
    ROLE_HEAD,
    ROLE_INGRESS,
    Subject,
)
from reasonscale.serving.config import COMMON_ENV, ROUTER_ENV
from reasonscale.serving.proxy import IMPORT_PATH as PROXY

_CODE_SOURCE: Final = "/opt/reasonscale"
# Pod Security's profile `restricted`.
RESTRICTED: Final[dict[str, Any]] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
RESTRICTED_POD: Final[dict[str, Any]] = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 100, "fsGroup": 100, "seccompProfile": {"type": "RuntimeDefault"}}  # fmt: skip
# KubeRay's own takes a pod out of the Service after a single check of 2 s, in which two programs start: little on a busy node.
_PROBE: Final[dict[str, Any]] = {"httpGet": {"path": "/-/healthz", "port": PORT_API}, "initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3}  # fmt: skip
GRACE_S: Final = 60
HEAD_GRACE_S: Final = 20


def _env(subject: Subject, role: str) -> list[dict[str, Any]]:
    found = {**COMMON_ENV, "PYTHONPATH": str(CODE), "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": PROXY}
    # Gauges that are not written for 20 s vanish, and a decision wants them fresh.
    found["RAY_metrics_report_interval_ms"] = "1000"
    if role == ROLE_INGRESS:
        found |= ROUTER_ENV  # the proxy's
    out: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in found.items()]
    if role != ROLE_ENGINE:
        return out
    secret = subject.model.spec.model.token_secret_ref
    if secret is not None:
        out.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}})
    if subject.model.spec.model.cache is not None:
        out.append({"name": "HF_HOME", "value": "/cache"})
    return out + [dict(item) for item in subject.model.spec.pod.env]


def _volumes(subject: Subject, role: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return volumes and mounts."""
    spec = subject.model.spec
    volumes: list[dict[str, Any]] = [{"name": "reasonscale-code", "emptyDir": {"sizeLimit": "64Mi"}}]
    mounts: list[dict[str, Any]] = [{"name": "reasonscale-code", "mountPath": str(CODE), "readOnly": True}]
    if role != ROLE_ENGINE:
        return volumes, mounts
    volumes.append({"name": "reasonscale-shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.pod.shm_size}})
    mounts.append({"name": "reasonscale-shm", "mountPath": "/dev/shm"})
    if spec.model.uri.startswith("pvc://"):
        claim = spec.model.uri.removeprefix("pvc://").partition("/")[0]
        volumes.append({"name": "reasonscale-model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        mounts.append({"name": "reasonscale-model", "mountPath": "/models", "readOnly": True})
    cache = spec.model.cache
    if cache is not None and cache.persistent_volume_claim is not None:
        volumes.append(
            {
                "name": "reasonscale-cache",
                "persistentVolumeClaim": {"claimName": cache.persistent_volume_claim.claim_name},
            }
        )
    if cache is not None and cache.node_local is not None:
        volumes.append(
            {"name": "reasonscale-cache", "hostPath": {"path": cache.node_local.path, "type": "DirectoryOrCreate"}}
        )
    if cache is not None:
        mounts.append({"name": "reasonscale-cache", "mountPath": "/cache"})
    return volumes + [dict(v) for v in spec.pod.volumes], mounts + [dict(m) for m in spec.pod.volume_mounts]


def _resources(subject: Subject, role: str, gpus: int) -> dict[str, Any]:
    if role != ROLE_ENGINE:
        return (subject.context.head if role == ROLE_HEAD else subject.context.ingress).resources()
    given = subject.model.spec.pod.resources
    out: dict[str, Any] = {
        "requests": {**DEFAULT_REQUESTS, **given.get("requests", {})},
        "limits": dict(given.get("limits", {})),
    }
    if gpus:
        name = subject.model.spec.accelerator.resource_name
        out["requests"][name] = out["limits"][name] = str(gpus)
    return out


def _security(subject: Subject, role: str) -> dict[str, Any]:
    """Return a container's security context: restricted, but for RDMA, which registers memory that must not be swapped."""
    if role == ROLE_ENGINE and subject.context.rdma and subject.pods_per_replica > 1:
        return RESTRICTED | {"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}
    return RESTRICTED


def _ports(role: str) -> list[dict[str, Any]]:
    found = {"metrics": PORT_METRICS}
    found |= {"gcs-server": 6379, "dashboard": PORT_DASHBOARD, "client": 10001} if role == ROLE_HEAD else {}
    found |= {} if role == ROLE_ENGINE else {"serve": PORT_API}
    return [{"name": name, "containerPort": port} for name, port in found.items()]


def _engine_fields(subject: Subject) -> dict[str, Any]:
    """Return what the resource's `pod` says of the pods with engines; what it leaves out is left out."""
    pod, product = subject.model.spec.pod, subject.model.spec.accelerator.product
    selector = dict(pod.node_selector)
    if product and not subject.context.cpu:
        selector.setdefault("nvidia.com/gpu.product", product)
    found = {
        "nodeSelector": selector,
        "tolerations": [dict(x) for x in pod.tolerations],
        "affinity": dict(pod.affinity),
        "topologySpreadConstraints": [dict(x) for x in pod.topology_spread_constraints],
        "priorityClassName": pod.priority_class_name,
        "schedulerName": pod.scheduler_name,
        "runtimeClassName": pod.runtime_class_name,
    }
    return {name: value for name, value in found.items() if value}


def _grace_s(subject: Subject, role: str) -> int:
    """Return how long a pod that is told to end may take.

    No layer below may end a pod whose chains still run. A head has none: and its autoscaler, which does not heed the signal, waits
    for the GCS that has gone already; the pod of a deleted model was there for 115 s.
    """
    return HEAD_GRACE_S if role == ROLE_HEAD else int(subject.resolved.drain_s) + GRACE_S


def template(subject: Subject, role: str, container: str, gpus: int = 0) -> dict[str, Any]:
    """Return the pod template of a role."""
    model, pod = subject.model, subject.model.spec.pod
    volumes, mounts = _volumes(subject, role)
    code = {
        "name": "reasonscale-code",
        "image": subject.context.code_image,
        "command": ["cp", "-r", f"{_CODE_SOURCE}/.", str(CODE)],
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "volumeMounts": [{"name": "reasonscale-code", "mountPath": str(CODE)}],
    }
    main: dict[str, Any] = {
        "name": container,
        "image": model.spec.engine.image or subject.context.image,
        "env": _env(subject, role),
        "ports": _ports(role),
        "resources": _resources(subject, role, gpus),
        "volumeMounts": mounts,
        "securityContext": _security(subject, role),
    }
    engine = role == ROLE_ENGINE
    if role == ROLE_INGRESS:
        main["readinessProbe"] = _PROBE
    if engine and pod.env_from:
        main["envFrom"] = [dict(x) for x in pod.env_from]
    spec: dict[str, Any] = {
        "initContainers": [code],
        "containers": [main],
        "volumes": volumes,
        "securityContext": RESTRICTED_POD | (dict(pod.security_context) if engine else {}),
        "terminationGracePeriodSeconds": _grace_s(subject, role),
    }
    if pod.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": s.name} for s in pod.image_pull_secrets]
    if engine and pod.service_account_name:  # the head's is KubeRay's, for Ray's autoscaler
        spec["serviceAccountName"] = pod.service_account_name
    elif role != ROLE_HEAD:
        spec["automountServiceAccountToken"] = False  # neither engines nor ingress speak to the API server
    if engine:
        spec |= _engine_fields(subject)
    elif role != ROLE_HEAD:
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        spec["topologySpreadConstraints"] = [spread | {"labelSelector": {"matchLabels": subject.labels(role)}}]
    labels = (dict(pod.labels) if engine else {}) | subject.labels(role)
    metadata: dict[str, Any] = {"labels": labels}
    notes = dict(pod.annotations) if engine else {}
    if engine and pod.tolerations:
        # KubeRay 1.6 takes a cluster with other tolerations for the same one: they would never come.
        given = json.dumps([dict(x) for x in pod.tolerations], sort_keys=True)
        notes[c.ANNOTATION_TOLERATIONS] = hashlib.sha256(given.encode()).hexdigest()[:12]
    if notes:
        metadata["annotations"] = notes
    return {"metadata": metadata, "spec": spec}
