"""The Service of the OpenAI API: it selects the ingress pods alone."""

from __future__ import annotations

from typing import Any

from reasonscale.api import constants as c
from reasonscale.render.context import PORT_API, ROLE_INGRESS, Subject


def service(subject: Subject) -> dict[str, Any]:
    """Return the Service."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": subject.metadata(f"{subject.name}-openai"),
        "spec": {
            "selector": {c.LABEL_MODEL: subject.name, c.LABEL_ROLE: ROLE_INGRESS},
            "ports": [{"name": "http", "port": PORT_API, "targetPort": PORT_API, "protocol": "TCP"}],
        },
    }
