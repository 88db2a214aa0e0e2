"""What a change of each field of the spec does to what runs: one table, from which docs/reference.md is made and rollouts are judged.

Held by a test that changes every field and compares what is rendered. A longer path goes before a shorter one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Effect(StrEnum):
    """From harmless to dear."""

    NOTHING = "nothing"
    IN_PLACE = "in place"
    ENGINES = "engines"
    CLUSTER = "new cluster"


SAID: Final[dict[Effect, str]] = {
    Effect.NOTHING: "nothing that runs changes: the operator alone reads it",
    Effect.IN_PLACE: "running replicas take it up as they are; no request notices",
    Effect.ENGINES: "every engine restarts, by `rollout.strategy`",
    Effect.CLUSTER: "other pods, so KubeRay starts a new cluster beside the old, or after it with Recreate",
}

EFFECTS: Final[dict[str, Effect]] = {
    "spec.model.uri": Effect.ENGINES,
    "spec.model.name": Effect.ENGINES,
    "spec.model.maxModelLen": Effect.ENGINES,
    "spec.model.tokenSecretRef": Effect.CLUSTER,
    "spec.model.cache": Effect.CLUSTER,
    "spec.engine.name": Effect.ENGINES,
    "spec.engine.image": Effect.CLUSTER,
    "spec.engine.args": Effect.ENGINES,
    "spec.engine.reasons": Effect.ENGINES,  # no field: whether reasoning.mode leaves the parser in
    "spec.parallelism.tensor": Effect.CLUSTER,
    "spec.parallelism.pipeline": Effect.CLUSTER,
    "spec.parallelism.data": Effect.CLUSTER,
    "spec.parallelism.expert": Effect.ENGINES,
    "spec.accelerator.fraction": Effect.ENGINES,
    "spec.accelerator.profile": Effect.NOTHING,
    "spec.accelerator": Effect.CLUSTER,
    "spec.reasoning.parser": Effect.ENGINES,
    "spec.reasoning.mode": Effect.IN_PLACE,
    "spec.reasoning.budget": Effect.IN_PLACE,
    "spec.reasoning.efforts": Effect.IN_PLACE,
    "spec.reasoning.expose": Effect.IN_PLACE,
    "spec.reasoning.fieldNames": Effect.IN_PLACE,
    "spec.reasoning.underPressure": Effect.IN_PLACE,
    "spec.replicas": Effect.IN_PLACE,
    "spec.scaling.maxReplicas": Effect.IN_PLACE,
    "spec.scaling.minReplicas": Effect.IN_PLACE,
    "spec.scaling.mode": Effect.NOTHING,
    "spec.scaling.objectives": Effect.NOTHING,
    "spec.scaling.objectives.maxQueue": Effect.IN_PLACE,
    "spec.scaling.objectives.tpot": Effect.IN_PLACE,  # what the ingress takes a token to last until it has seen some
    "spec.scaling.kvHeadroomPercent": Effect.NOTHING,
    "spec.scaling.scaleToZero": Effect.IN_PLACE,
    "spec.scaling.scaleToZero.after": Effect.NOTHING,
    "spec.scaling.sleeps": Effect.ENGINES,  # no field: whether scaleToZero is there
    "spec.scaling.asleep": Effect.NOTHING,
    "spec.scaling.sleepMode": Effect.ENGINES,  # no field: whether asleep is above 0
    "spec.scaling.rates": Effect.NOTHING,
    "spec.scaling.startTimeout": Effect.NOTHING,
    "spec.classes": Effect.IN_PLACE,
    "spec.drain": Effect.CLUSTER,  # the pods' time to end is part of them
    "spec.resume": Effect.IN_PLACE,
    "spec.rollout": Effect.NOTHING,
    "spec.pod": Effect.CLUSTER,
}

EXCEPTIONS: Final[dict[str, str]] = {
    "spec.model.uri": "from one claim of a `pvc://` to another, or to or from `pvc://`: new cluster",
    "spec.reasoning.mode": "to or from `Never`: engines, since the parser goes or comes",
    "spec.scaling.scaleToZero": "where it comes or goes: engines, since Serve then keeps the number in another way; `minReplicas` 1 and 0 change in place",
    "spec.scaling.asleep": "from or to 0: engines, since those that can sleep are started otherwise; on CPU nothing",
    "spec.engine.args": "with `rollout.strategy: Surge` whatever says engines starts a new cluster beside the old",
    "spec.accelerator.fraction": "on CPU nothing: there is no GPU to share",
    "spec.accelerator.product": "on CPU nothing: there is no GPU to choose",
}


def effect_of(path: str) -> Effect | None:
    """Return what a change of the field does, itself or as a part of a greater one; None where it is only a parent of such fields."""
    steps = path.split(".")
    for n in range(len(steps), 0, -1):
        found = EFFECTS.get(".".join(steps[:n]))
        if found is not None:
            return found
    return None
