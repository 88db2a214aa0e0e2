"""What the ingress and the servers are told through `user_config`: it changes without restarting an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from reasonscale.api.families import Switch
from reasonscale.api.resolve import Resolved
from reasonscale.scaling.policy import length_priors

CRASH_ENV = "REASONSCALE_TEST_CRASH_ON"  # for tests: an engine dies of a prompt that holds this text
MAX_BODY_BYTES = 4 * 1024 * 1024
# A replica from order to ready, until one has been measured: on a GPU, and a small model on two cores.
START_PRIOR_S, LOCAL_START_PRIOR_S = 120.0, 45.0
# Parsers of vLLM's that have no marks, so that the engine can't count a chain.
_UNCOUNTED = frozenset({"openai_gptoss", "muse_glimmer"})


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """What one ingress keeps of the requests for a model without a replica: its share of the model's limits."""

    requests: int
    size_bytes: int
    wait_s: float
    start_s: float  # a replica takes so long to start, until one has been measured
    seats: int  # requests in a replica's batch


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How requests for one model are governed. Budgets are thinking tokens."""

    model: str
    max_model_len: int
    reasons: bool  # there is a parser, and the resource does not say Never
    engine_budget: bool  # the engine can enforce a thinking budget
    always: bool  # mode Always
    switch: str  # how the chain is switched off: never, template, native
    template_key: str | None
    template_default: bool
    native_efforts: tuple[str, ...]
    budget_default: int
    budget_max: int
    answer_reserve: int
    efforts: Mapping[str, int | str]
    hidden: bool
    field_names: tuple[str, ...]
    classes: tuple[tuple[str, str, tuple[str, ...]], ...]  # name, header in lower case, its values
    max_waiting: int  # requests waiting for their first token that one replica accepts
    max_in_flight: int = 4096  # requests that one ingress holds; the rest is refused
    seats: int = 256  # sequences that one replica runs at once
    max_queue_s: float = 10.0  # who would wait longer for an engine is refused
    tpot_s: float = 0.05  # the objective: what a token takes until it has been seen
    weights: Mapping[str, float] = field(default_factory=dict)  # shares of classes; 1 where not named
    expected: Mapping[str, float] = field(default_factory=dict)  # output tokens by class until some have been seen
    pressure_floor: int | None = None  # the default budget shrinks to it under pressure; None: never
    pressure_steps: int = 0
    hang_s: float = 60.0  # an engine with requests and no token for so long is taken as lost
    attempts: int = 3  # engines that a request is handed on to after its first
    hold: HoldLimits | None = None  # of a model that may sleep at zero replicas
    hand_over_s: float = 1740.0  # what still runs so long after its replica was told to go is handed on, before the cap

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        out = asdict(self)
        if self.hold is None:
            del out["hold"]
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSettings:
        """Return the settings that `to_json` made."""
        values = dict(data)
        values["hold"] = HoldLimits(**values["hold"]) if values.get("hold") else None
        values["native_efforts"] = tuple(values["native_efforts"])
        values["field_names"] = tuple(values["field_names"])
        values["classes"] = tuple((name, header, tuple(options)) for name, header, options in values["classes"])
        return cls(**values)


def hold_limits(resolved: Resolved, ingress_replicas: int, start_s: float) -> HoldLimits | None:
    """Return each ingress' share of what is held for a model; None where it never sleeps.

    Shares are fixed: what one ingress has free the other can't use. Together they never exceed the limits, but that
    each may hold one request, as large as any.
    """
    sleep = resolved.sleep
    if sleep is None:
        return None
    return HoldLimits(
        requests=max(1, sleep.hold_requests // ingress_replicas),
        size_bytes=max(MAX_BODY_BYTES, sleep.hold_bytes // ingress_replicas),
        wait_s=sleep.hold_s,
        start_s=start_s,
        seats=resolved.max_num_seqs,
    )


def seats_of(resolved: Resolved) -> int:
    """Return the sequences that one replica runs at once: each of its data-parallel engines has a batch of its own."""
    return resolved.max_num_seqs * resolved.data


def settings_of(resolved: Resolved, *, ingress_replicas: int = 1, start_s: float = START_PRIOR_S) -> ModelSettings:
    """Return what the ingress is told of a model."""
    reasoning = resolved.reasoning
    family = reasoning.family
    return ModelSettings(
        model=resolved.served_name,
        max_model_len=resolved.max_model_len,
        reasons=reasoning.parser is not None and reasoning.mode != "Never",
        engine_budget=family.budget and reasoning.parser is not None and reasoning.parser not in _UNCOUNTED,
        always=reasoning.mode == "Always",
        switch=str(family.switch.value if isinstance(family.switch, Switch) else family.switch),
        template_key=family.template_key,
        template_default=family.template_default,
        native_efforts=tuple(family.native_efforts),
        budget_default=reasoning.budget_default,
        budget_max=reasoning.budget_max,
        answer_reserve=reasoning.answer_reserve,
        efforts=dict(reasoning.efforts),
        hidden=reasoning.expose == "Hidden",
        field_names=tuple(reasoning.field_names),
        classes=tuple((c.name, c.header, c.values) for c in resolved.classes),
        max_waiting=max(64, 8 * resolved.max_num_seqs),
        hold=hold_limits(resolved, ingress_replicas, start_s),
        hang_s=resolved.hang_s,
        attempts=resolved.resume_attempts,
        hand_over_s=resolved.drain_s - min(60.0, resolved.drain_s / 4),
        max_in_flight=resolved.max_replicas * (resolved.max_num_seqs + max(64, 8 * resolved.max_num_seqs)),
        seats=seats_of(resolved),
        max_queue_s=resolved.max_queue_s,
        tpot_s=resolved.tpot_s,
        weights={c.name: float(c.weight) for c in resolved.classes},
        expected=length_priors(resolved),
        pressure_floor=reasoning.pressure_floor,
        pressure_steps=reasoning.pressure_steps if reasoning.pressure_floor is not None else 0,
    )
