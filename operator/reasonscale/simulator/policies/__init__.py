"""Scaling policies: ours, and the rules of the autoscalers that a user would pick instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reasonscale.simulator.policies import concurrency, models, ours, tokens
from reasonscale.simulator.policies.base import BadPolicy, Policy, Setting, Static

_ALL: dict[str, type[Policy]] = {
    p.name: p
    for p in (
        ours.Reasonscale, concurrency.RayServe, concurrency.Hpa, concurrency.ProductionStack, concurrency.KserveKeda,
        concurrency.KnativeKpa, concurrency.KubeAi, tokens.AibrixApa, tokens.WvaV1, tokens.WvaV2, tokens.TokenAware,
        tokens.SloAware, models.DynamoThroughput, models.DynamoLoad, models.DynamoEasy, models.TokenScale,
        models.Chiron, models.SageServe, models.PreServe,
    )
}  # fmt: skip


def names() -> list[str]:
    """Return the names of all policies, ours first; `static:N` comes beside them."""
    return list(_ALL)


def make(name: str, setting: Setting, params: Mapping[str, Any] | None = None) -> Policy:
    """Return a policy by name with its defaults, but for `params`; BadPolicy lists what exists."""
    if name.startswith("static:"):
        number = name.removeprefix("static:")
        if not number.isdigit() or int(number) < 1:
            raise BadPolicy(f"policy {name!r}: must be static:N, N a whole number from 1 on")
        return Static(setting, {"replicas": int(number)})
    if name not in _ALL:
        raise BadPolicy(
            f"policy {name!r}: no such name; there are {', '.join(names())}, static:N, clairvoyant, informed, lower-bound"
        )
    return _ALL[name](setting, params)


__all__ = ["BadPolicy", "Policy", "Setting", "Static", "make", "names"]
