"""Thinking budgets and classes: from what a request asks for to what is applied. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reasonscale.api import constants
from reasonscale.api.families import Switch
from reasonscale.api.scaling_spec import EFFORT_NAMES
from reasonscale.serving.settings import ModelSettings

_CLASS_OF_EFFORT = {
    "none": constants.CLASS_OFF, "minimal": constants.CLASS_LOW, "low": constants.CLASS_LOW, "medium": constants.CLASS_MEDIUM,
    "high": constants.CLASS_HIGH, "xhigh": constants.CLASS_HIGH, "max": constants.CLASS_HIGH,
}  # fmt: skip

# What a chat template and a parser read as "do not think".
_THINKING_KEYS = ("enable_thinking", "thinking")
# Fields of a request that send tokens beside the text.
_SHOWS_TOKENS = ("logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids")


class BadRequest(ValueError):
    """A request that its client has to change; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True, slots=True)
class Applied:
    """A request as the engine gets it, and what was applied to it."""

    body: dict[str, Any]
    budget: int | None  # thinking tokens; None: no budget (it does not think, or governs itself)
    cls: str
    label: str  # for the response header: tokens, `off`, `counted:<tokens>` or `native:<effort>`
    most_output: int | None = None  # where the engine can't count a chain: thought and answer together end here
    shrunk: bool = False  # it named no budget, and the default is a smaller one for now


def said(value: Any) -> str:
    """Return a value as an error message quotes it: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _whole(body: Mapping[str, Any], name: str, least: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(f"{name} was {said(value)}; it must be a whole number of tokens", name)
    if value < least:
        unlimited = ", or -1 for the most that the model allows" if least == -1 else ""
        raise BadRequest(f"{name} was {said(value)}; it must be at least {max(least, 0)}{unlimited}", name)
    return value


def _effort(body: Mapping[str, Any]) -> str | None:
    value = body.get("reasoning_effort")
    if value is None:
        return None
    if not isinstance(value, str) or value not in EFFORT_NAMES:
        raise BadRequest(
            f"reasoning_effort was {said(value)}; it must be one of {', '.join(EFFORT_NAMES)}", "reasoning_effort"
        )
    return str(value)


def _template_kwargs(body: Mapping[str, Any]) -> dict[str, Any]:
    value = body.get("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"chat_template_kwargs was {said(value)}; it must be a map", "chat_template_kwargs")
    return dict(value)


def max_output(body: Mapping[str, Any]) -> int | None:
    """Return the most tokens that the client wants; BadRequest where it is no whole number."""
    asked = [v for v in (_whole(body, "max_tokens", 1), _whole(body, "max_completion_tokens", 1)) if v is not None]
    return min(asked) if asked else None


def class_of(
    settings: ModelSettings, headers: Mapping[str, str], effort: str | None, budget: int | None, thinks: bool
) -> str:
    """Return a request's class: a configured header's first, else by how much it may think."""
    for name, header, values in settings.classes:
        if headers.get(header) in values:
            return name
    if not thinks or budget == 0:
        return constants.CLASS_OFF
    if effort is not None:
        return _CLASS_OF_EFFORT[effort]
    if budget is None:
        return constants.CLASS_MEDIUM
    steps = {name: value for name, value in settings.efforts.items() if isinstance(value, int)}
    if budget <= steps.get("low", settings.budget_default // 4):
        return constants.CLASS_LOW
    return constants.CLASS_MEDIUM if budget <= steps.get("medium", settings.budget_default) else constants.CLASS_HIGH


def _within(settings: ModelSettings, budget: int, most: int | None) -> int:
    """Clamp a budget to what the resource allows and to what leaves room for an answer."""
    budget = min(budget, settings.budget_max)
    if most is not None:
        room = most - settings.answer_reserve if most > 2 * settings.answer_reserve else most // 2
        budget = min(budget, room)
    return max(0, budget)


def _native(settings: ModelSettings, effort: str | None, explicit: int | None) -> str:
    """Return the model's own effort that is nearest to what was asked."""
    if explicit is not None:
        wanted = settings.budget_max if explicit == -1 else explicit
        step = 0 if wanted < settings.budget_default / 2 else 1 if wanted <= settings.budget_default * 2 else 2
        return settings.native_efforts[min(step, len(settings.native_efforts) - 1)]
    if effort in settings.native_efforts:
        return str(effort)
    if effort in ("none", "minimal"):
        return settings.native_efforts[0]
    if effort in ("xhigh", "max"):
        return settings.native_efforts[-1]
    return "medium" if "medium" in settings.native_efforts else settings.native_efforts[0]


def _chosen(
    settings: ModelSettings, effort: str | None, explicit: int | None, most: int | None, default: int | None = None
) -> int:
    """Return the thinking tokens of a request that thinks: as asked, else by its effort, else the default; clamped.

    `default`: the default for now, where it is not the resource's.
    """
    if explicit is not None:
        return _within(settings, settings.budget_max if explicit == -1 else explicit, most)
    if effort == "none" and settings.always:
        # It can't be switched off: the least that the resource names.
        least = [n for n in settings.efforts.values() if isinstance(n, int) and n > 0]
        return _within(settings, min(least, default=settings.budget_default), most)
    wanted = settings.efforts.get(effort) if effort is not None else None
    if isinstance(wanted, int):
        return _within(settings, wanted, most)
    return _within(settings, settings.budget_default if default is None or effort is not None else default, most)


def _counted(
    settings: ModelSettings, body: dict[str, Any], effort: str | None, explicit: int | None, most: int | None, headers: Mapping[str, str],
    default: int | None = None,
) -> Applied:  # fmt: skip
    """Return a request to an engine that can't tell a chain from its answer: we count its output instead.

    What it may make in all is its budget and the answer's reserve; it ends there as by max_tokens.
    """
    budget, whole = (_chosen(settings, effort, explicit, most, now) for now in (default, None))
    cls = class_of(settings, headers, effort, budget if explicit is not None else None, True)
    return Applied(body, None, cls, f"counted:{budget}", budget + settings.answer_reserve, budget < whole)


def check_hidden(settings: ModelSettings, body: Mapping[str, Any], *, chat: bool) -> None:
    """Refuse what would show a chain that the resource hides."""
    if not (settings.hidden and settings.reasons):
        return
    if not chat:
        raise BadRequest(
            "this model hides its chain of thought, which a completion would show; use /v1/chat/completions",
            None,
            code="chain_hidden",
        )
    for name in _SHOWS_TOKENS:
        if body.get(name):
            raise BadRequest(
                f"{name} would show the chain of thought, which this model hides; leave it out",
                name,
                code="chain_hidden",
            )


def apply_completion(
    settings: ModelSettings, body: Mapping[str, Any], headers: Mapping[str, str], default: int | None = None
) -> Applied:
    """Return a text completion with its budget applied: the engine counts where the prompt or the output opens a chain."""
    out = dict(body)
    effort, explicit, most = _effort(body), _whole(body, "thinking_token_budget", -1), max_output(body)
    out.pop("thinking_token_budget", None)
    out.pop("reasoning_effort", None)
    if not settings.reasons:
        return Applied(out, None, class_of(settings, headers, None, None, False), "off")
    if not settings.engine_budget:
        return _counted(settings, out, effort, explicit, most, headers, default)
    budget, whole = (_chosen(settings, effort, explicit, most, now) for now in (default, None))
    out["thinking_token_budget"] = budget
    cls = class_of(settings, headers, effort, None if explicit is None else budget, True)
    return Applied(out, budget, cls, str(budget), shrunk=budget < whole)


def apply(
    settings: ModelSettings, body: Mapping[str, Any], headers: Mapping[str, str], default: int | None = None
) -> Applied:
    """Return a chat request with its budget applied; BadRequest, naming the field, where it asks for what is none."""
    out = dict(body)
    effort, explicit, most = _effort(body), _whole(body, "thinking_token_budget", -1), max_output(body)
    kwargs = _template_kwargs(body)
    out.pop("thinking_token_budget", None)
    out.pop("reasoning_effort", None)
    if not settings.reasons:
        return Applied(out, None, class_of(settings, headers, None, None, False), "off")
    if settings.switch == Switch.NATIVE:
        native = _native(settings, effort, explicit)
        out["reasoning_effort"] = native
        return Applied(out, None, class_of(settings, headers, native, None, True), f"native:{native}")
    if settings.switch == Switch.TEMPLATE and settings.template_key:
        said = kwargs.get(settings.template_key)
        off = explicit == 0 if explicit is not None else effort == "none" or (said is False and effort is None)
        if off and not settings.always:
            out["chat_template_kwargs"] = kwargs | {settings.template_key: False}
            return Applied(out, None, class_of(settings, headers, None, None, False), "off")
        asked = effort is not None or explicit is not None or said is True or settings.always
        if not asked and not settings.template_default:
            return Applied(out, None, class_of(settings, headers, None, None, False), "off")
        if said is not None or not settings.template_default or settings.always:
            out["chat_template_kwargs"] = kwargs | {settings.template_key: True}
    if settings.switch == Switch.NEVER and kwargs:
        # A parser that is told of no thinking hands the chain on as the answer: shown where hidden, and never counted.
        out["chat_template_kwargs"] = {k: v for k, v in kwargs.items() if k not in _THINKING_KEYS}
    budget, whole = (_chosen(settings, effort, explicit, most, now) for now in (default, None))
    cls = class_of(settings, headers, effort, budget if explicit is not None else None, True)
    if not settings.engine_budget:
        return _counted(settings, out, effort, explicit, most, headers, default)
    out["thinking_token_budget"] = budget
    return Applied(out, budget, cls, str(budget), shrunk=budget < whole)
