"""The Service of the OpenAI API: it selects the ingress pods alone, those of the cluster that serves."""

from __future__ import annotations

from typing import Any

from reasonscale.api import constants as c
from reasonscale.render.context import PORT_API, ROLE_INGRESS, Subject


def service(subject: Subject) -> dict[str, Any]:
    """Return the Service.

    Two clusters run beside each other during a rollout. The new one's pods serve nothing yet, and the old one's chains shall end:
    a request that reached it later would be cut when it is deleted.
    """
    cluster = {"ray.io/cluster": subject.context.active_cluster} if subject.context.active_cluster else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": subject.metadata(f"{subject.name}-openai"),
        "spec": {
            "selector": {c.LABEL_MODEL: subject.name, c.LABEL_ROLE: ROLE_INGRESS, **cluster},
            "ports": [{"name": "http", "port": PORT_API, "targetPort": PORT_API, "protocol": "TCP"}],
        },
    }
