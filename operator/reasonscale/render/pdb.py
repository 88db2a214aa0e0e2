"""PodDisruptionBudgets: a drained node takes one engine at a time, and never the last ingress."""

from __future__ import annotations

from typing import Any

from reasonscale.api import constants as c
from reasonscale.render.context import ROLE_ENGINE, ROLE_INGRESS, Subject


def disruption_budgets(subject: Subject) -> list[dict[str, Any]]:
    """Return the budgets of ingress and engines."""
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": subject.metadata(f"{subject.name}-{role}", role),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": {c.LABEL_MODEL: subject.name, c.LABEL_ROLE: role}},
            },
        }
        for role in (ROLE_INGRESS, ROLE_ENGINE)
    ]
