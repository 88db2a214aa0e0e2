"""What the ingress and the servers are told through `user_config`: it changes without restarting an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reasonscale.api.families import Switch
from reasonscale.api.resolve import Resolved

CRASH_ENV = "REASONSCALE_TEST_CRASH_ON"  # for tests: an engine dies of a prompt that holds this text
MAX_BODY_BYTES = 4 * 1024 * 1024
# Parsers of vLLM's that have no marks, so that the engine can't count a chain.
_UNCOUNTED = frozenset({"openai_gptoss", "muse_glimmer"})


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
    hang_s: float = 60.0  # an engine with requests and no token for so long is taken as lost
    attempts: int = 3  # engines that a request is handed on to after its first
    hand_over_s: float = 1740.0  # what still runs so long after its replica was told to go is handed on, before the cap

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSettings:
        """Return the settings that `to_json` made."""
        values = dict(data)
        values["native_efforts"] = tuple(values["native_efforts"])
        values["field_names"] = tuple(values["field_names"])
        values["classes"] = tuple((name, header, tuple(options)) for name, header, options in values["classes"])
        return cls(**values)


def settings_of(resolved: Resolved) -> ModelSettings:
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
        hand_over_s=resolved.drain_s - min(60.0, resolved.drain_s / 4),
        max_in_flight=resolved.max_replicas * (resolved.max_num_seqs + max(64, 8 * resolved.max_num_seqs)),
    )
