"""All that a ReasoningModel becomes in a cluster. Pure: the same in, the same out."""

from __future__ import annotations

from typing import Any

from reasonscale.api.models import ReasoningModel
from reasonscale.api.resolve import Resolved
from reasonscale.render.context import Context, Subject
from reasonscale.render.networkpolicy import networkpolicies
from reasonscale.render.pdb import disruption_budgets
from reasonscale.render.podmonitor import podmonitor
from reasonscale.render.rayservice import rayservice
from reasonscale.render.service import service


def children(model: ReasoningModel, resolved: Resolved, context: Context) -> list[dict[str, Any]]:
    """Return the manifests of a model's children, the RayService first."""
    subject = Subject(model, resolved, context)
    out = [rayservice(subject), service(subject), *disruption_budgets(subject)]
    if context.pod_monitor:
        out.append(podmonitor(subject))
    if context.network_policy:
        out += networkpolicies(subject)
    return out
