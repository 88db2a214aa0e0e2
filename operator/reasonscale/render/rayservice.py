"""The RayService: a head that runs no replica, a fixed group for ingress, and one pod (or several) for each engine."""

from __future__ import annotations

import json
from typing import Any

from reasonscale.api import constants as c
from reasonscale.render.context import (
    GPUS_PER_POD,
    PORT_API,
    RAY_ENGINE,
    RAY_INGRESS,
    RAY_VERSION,
    ROLE_ENGINE,
    ROLE_HEAD,
    ROLE_INGRESS,
    Subject,
)
from reasonscale.render.pods import GRACE_S, template
from reasonscale.render.text import to_yaml
from reasonscale.serving.config import serve_app, serve_config

IDLE_S = 60  # a pod is idle once its replica's last chain has ended, so that a drain needs no more


def serve_config_v2(subject: Subject) -> str:
    """Return Serve's config: what follows a decision in place."""
    app = serve_app(
        [subject.resolved],
        {subject.name: subject.context.replicas},
        local=False,
        gpus=not subject.context.cpu,
        ingress_replicas=subject.context.ingress_replicas,
        ingress_resources={RAY_INGRESS: 1},
        engine_resources={RAY_ENGINE: 1},
        emptied={subject.name: subject.context.emptied},
        asleep={subject.name: subject.context.asleep},
    )
    config = serve_config(app, host="0.0.0.0", port=PORT_API, proxy_location="EveryNode")
    return to_yaml([config])


def _resources(**found: int) -> str:
    # KubeRay puts it into a shell's command line: JSON within quotes.
    return json.dumps(json.dumps(found, separators=(",", ":")))


def _groups(subject: Subject) -> list[dict[str, Any]]:
    resolved, gpus, pods = subject.resolved, subject.gpus, subject.pods_per_replica
    each, ingress = min(gpus, GPUS_PER_POD), subject.context.ingress_replicas
    params = {"num-cpus": str(2 + each), "num-gpus": str(each), "resources": _resources(**{RAY_ENGINE: 1})}
    return [
        {
            "groupName": ROLE_INGRESS,
            "replicas": ingress,
            "minReplicas": ingress,
            "maxReplicas": ingress,
            "rayStartParams": {"num-cpus": "1", "num-gpus": "0", "resources": _resources(**{RAY_INGRESS: 1})},
            "template": template(subject, ROLE_INGRESS, "ray-worker"),
        },
        {
            "groupName": ROLE_ENGINE,
            "replicas": subject.context.replicas,
            "minReplicas": resolved.min_replicas,
            "maxReplicas": resolved.max_replicas,
            **({"numOfHosts": pods} if pods > 1 else {}),
            "rayStartParams": params,
            "template": template(subject, ROLE_ENGINE, "ray-worker", each),
        },
    ]


def _metadata(subject: Subject) -> dict[str, Any]:
    found = subject.metadata(subject.name)
    if subject.context.spare:  # an operator that starts meanwhile does not count it
        found["annotations"][c.ANNOTATION_SPARE] = str(subject.context.spare)
    return found


def rayservice(subject: Subject) -> dict[str, Any]:
    """Return the RayService."""
    redis = subject.context.redis_address
    cluster: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "idleTimeoutSeconds": IDLE_S,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        },
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": template(subject, ROLE_HEAD, "ray-head"),
        },
        "workerGroupSpecs": _groups(subject),
    }
    if redis:
        cluster["gcsFaultToleranceOptions"] = {"redisAddress": redis}
        secret = subject.context.redis_password
        if secret is not None:
            found = {"valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
            cluster["gcsFaultToleranceOptions"]["redisPassword"] = found
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(subject),
        "spec": {
            "serveConfigV2": serve_config_v2(subject),
            # After an upgrade to a new cluster the old one's chains end first.
            "rayClusterDeletionDelaySeconds": int(subject.resolved.drain_s) + GRACE_S,
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": cluster,
        },
    }
