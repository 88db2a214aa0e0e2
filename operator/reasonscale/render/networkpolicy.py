"""NetworkPolicies: Ray's ports within the model's pods and from the two operators; the API and the metrics from everywhere."""

from __future__ import annotations

from typing import Any

from reasonscale.api import constants as c
from reasonscale.render.context import PORT_API, PORT_DASHBOARD, PORT_METRICS, ROLE_INGRESS, Subject


def _policy(subject: Subject, suffix: str, pods: dict[str, str], ingress: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": subject.metadata(f"{subject.name}-{suffix}"),
        "spec": {"podSelector": {"matchLabels": pods}, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _ports(*numbers: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": n} for n in numbers]


def networkpolicies(subject: Subject) -> list[dict[str, Any]]:
    """Return the NetworkPolicies."""
    ours = {c.LABEL_MODEL: subject.name}
    kuberay = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": subject.context.operator_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "reasonscale"}},
    }
    within = [
        {"from": [{"podSelector": {"matchLabels": ours}}]},
        {"from": [kuberay, operator], "ports": _ports(PORT_DASHBOARD, PORT_API, 6379)},
        {"ports": _ports(PORT_METRICS)},
    ]
    return [
        _policy(subject, "ray", ours, within),
        _policy(subject, "openai", ours | {c.LABEL_ROLE: ROLE_INGRESS}, [{"ports": _ports(PORT_API)}]),
    ]
