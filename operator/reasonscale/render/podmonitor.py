"""The PodMonitor: how a Prometheus operator finds the ledger."""

from __future__ import annotations

from typing import Any

from reasonscale.api import constants as c
from reasonscale.render.context import Subject


def podmonitor(subject: Subject) -> dict[str, Any]:
    """Return the PodMonitor."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": subject.metadata(subject.name),
        "spec": {
            "selector": {"matchLabels": {c.LABEL_MODEL: subject.name}},
            "podTargetLabels": [c.LABEL_MODEL],  # whose ledger it is, where two resources serve the same name
            "podMetricsEndpoints": [{"port": "metrics", "interval": "5s", "scrapeTimeout": "4s"}],
        },
    }
