"""PodDisruptionBudgets: a drained node takes one engine pod at a time, and never the last ingress."""

from __future__ import annotations

from typing import Any

from reasonscale.api import constants as c
from reasonscale.render.context import ROLE_ENGINE, ROLE_INGRESS, Subject


def disruption_budgets(subject: Subject) -> list[dict[str, Any]]:
    """Return the budgets of ingress and engines.

    Only a whole `minAvailable` works: for `maxUnavailable` the disruption controller asks the pods' owner for its number, and a
    RayCluster has no scale subresource ("does not implement the scale subresource"), so that no pod could be evicted at all.
    """
    wanted = {
        ROLE_INGRESS: subject.context.ingress_replicas,
        ROLE_ENGINE: subject.context.replicas * subject.pods_per_replica,
    }
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": subject.metadata(f"{subject.name}-{role}", role),
            "spec": {
                "minAvailable": max(0, pods - 1),
                "selector": {"matchLabels": {c.LABEL_MODEL: subject.name, c.LABEL_ROLE: role}},
            },
        }
        for role, pods in wanted.items()
    ]
