"""What becomes of a difference between what runs and what is rendered now: applied, pinned, blocked or started anew. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reasonscale.api import constants as c
from reasonscale.api.effects import Effect
from reasonscale.api.models import ReasoningModel
from reasonscale.api.quantity import size_bytes
from reasonscale.controller.drift import differences
from reasonscale.render.marks import (
    Marks,
    app_hashed,
    cluster_hashed,
    digest,
    marked,
    marks_of,
    pinned,
    read_marks,
    surge_mark,
    with_surge_mark,
)

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is to be applied. `update`: what another rendering would change (None: nothing). `effect`: what applying it does."""

    manifest: dict[str, Any]
    marks: Marks
    effect: Effect = Effect.NOTHING
    update: str | None = None
    held_back: dict[str, Any] | None = None  # apply this instead while the rollout can't go on


def _what(live: dict[str, Any], new: dict[str, Any]) -> str:
    found = [f"rayClusterConfig.{p}" for p in differences(cluster_hashed(new), cluster_hashed(live))]
    if not found:
        return "serveConfigV2"
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def plan(live: dict[str, Any] | None, new: dict[str, Any], model: ReasoningModel, spec_seen: bool) -> Rollout:
    """Return what to do with a new rendering beside what runs.

    `spec_seen`: the resource as it is was acted on before; it speaks where what runs carries no marks.
    """
    asked = model.metadata.annotations.get(c.ANNOTATION_UPDATE, "")
    marks = marks_of(new, model, asked)
    if live is None:
        return Rollout(marked(new, marks), marks, Effect.CLUSTER)
    new = with_surge_mark(new, surge_mark(live))
    old = read_marks(live)
    if old is None:  # made by an operator without marks, or they were taken away
        there = (cluster_hashed(live), app_hashed(live))
        same = not list(differences([cluster_hashed(new), app_hashed(new)], list(there)))
        spec = marks.spec if spec_seen else ""
        old = marks if same else Marks(digest(there[0]), digest(there[1]), spec, marks.inplace, asked)
    if (old.cluster, old.engines) == (marks.cluster, marks.engines):
        return Rollout(marked(new, marks), marks)
    kept = pinned(live, new, old, marks)
    ours = old.spec == marks.spec  # the resource asks for nothing else: it is the operator that has changed
    if ours and asked in ("", old.update):
        if not asked and old.update:
            old = replace(old, update="")
            kept = pinned(live, new, old, marks)
        return Rollout(kept, old, Effect.NOTHING, _what(live, new))
    effect = Effect.CLUSTER if old.cluster != marks.cluster else Effect.ENGINES
    if model.spec.rollout.strategy == "Surge" and effect is Effect.ENGINES:
        new, effect = with_surge_mark(new, marks.engines), Effect.CLUSTER
    return Rollout(marked(new, marks), marks, effect, held_back=kept)


def _count(value: Any) -> float:
    try:
        return float(size_bytes(str(value)))
    except ValueError:
        return 0.0


def free_gpus(
    nodes: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]], resource: str, selector: Mapping[str, str]
) -> dict[str, float]:
    """Return how many of an extended resource are free on each node that the pods could go to."""
    free: dict[str, float] = {}
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        if node.get("spec", {}).get("unschedulable") or any(labels.get(k) != v for k, v in selector.items()):
            continue
        free[node["metadata"]["name"]] = _count((node.get("status", {}).get("allocatable") or {}).get(resource, 0))
    for pod in pods:
        name = pod.get("spec", {}).get("nodeName")
        if name in free and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            for container in pod["spec"].get("containers") or ():
                requests = (container.get("resources") or {}).get("requests") or {}
                free[name] -= _count(requests.get(resource, 0))
    return {name: max(0.0, x) for name, x in free.items()}


def blocked(strategy: str, needed: int, free: int | None) -> str | None:
    """Return why a new cluster beside the old one can't be had; None where it can, or where nobody knows."""
    if free is None or needed <= free:
        return None
    if strategy == "Surge":
        return f"Surge needs {needed} GPUs, {free} are free; use InPlace"
    return f"other pods need a new cluster of {needed} GPUs beside the old, {free} are free; use Recreate"
