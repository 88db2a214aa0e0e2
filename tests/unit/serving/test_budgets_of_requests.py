"""From what a request asks for to what is applied: budgets, classes, and who may think at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.api import constants as c
from reasonscale.serving.budget import BadRequest, apply, apply_completion, check_hidden
from reasonscale.serving.settings import ModelSettings

QWEN = ModelSettings(
    model="m",
    max_model_len=8192,
    reasons=True,
    engine_budget=True,
    always=False,
    switch="template",
    template_key="enable_thinking",
    template_default=True,
    native_efforts=(),
    budget_default=1000,
    budget_max=4000,
    answer_reserve=200,
    efforts={"none": 0, "minimal": 60, "low": 250, "medium": 1000, "high": 4000, "xhigh": 4000, "max": 4000},
    hidden=False,
    field_names=("reasoning", "reasoning_content"),
    classes=(("batch", "x-tenant", ("etl", "nightly")),),
    max_waiting=64,
)
R1 = replace(QWEN, switch="never", template_key=None)
GPT_OSS = replace(R1, switch="native", engine_budget=False, native_efforts=("low", "medium", "high"))
V3 = replace(R1, reasons=False, engine_budget=False)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "1+1"}]} | fields


@pytest.mark.parametrize(
    ("asked", "budget", "cls"),
    [
        ({}, 1000, c.CLASS_MEDIUM),
        ({"reasoning_effort": "low"}, 250, c.CLASS_LOW),
        ({"reasoning_effort": "high"}, 4000, c.CLASS_HIGH),
        ({"thinking_token_budget": 17}, 17, c.CLASS_LOW),
        ({"thinking_token_budget": 99_999}, 4000, c.CLASS_HIGH),
        ({"thinking_token_budget": -1}, 4000, c.CLASS_HIGH),
        ({"thinking_token_budget": 300, "reasoning_effort": "high"}, 300, c.CLASS_HIGH),
        ({"max_tokens": 700}, 500, c.CLASS_MEDIUM),
        ({"max_completion_tokens": 100}, 50, c.CLASS_MEDIUM),
        ({"max_tokens": 700, "max_completion_tokens": 100}, 50, c.CLASS_MEDIUM),
    ],
)
def test_a_budget_is_what_was_asked_within_what_the_resource_allows(
    asked: dict[str, Any], budget: int, cls: str
) -> None:
    for settings in (QWEN, R1):
        applied = apply(settings, chat(**asked), {})
        assert (applied.budget, applied.cls, applied.label) == (budget, cls, str(budget))
        assert applied.body["thinking_token_budget"] == budget
        assert "reasoning_effort" not in applied.body


@pytest.mark.parametrize("asked", [{"reasoning_effort": "none"}, {"thinking_token_budget": 0}])
def test_no_effort_switches_the_chain_off_by_the_template_where_there_is_a_switch(asked: dict[str, Any]) -> None:
    applied = apply(QWEN, chat(**asked), {})
    assert applied.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "thinking_token_budget" not in applied.body
    assert (applied.label, applied.cls) == ("off", c.CLASS_OFF)


@pytest.mark.parametrize("asked", [{"reasoning_effort": "none"}, {"thinking_token_budget": 0}])
def test_no_effort_is_a_budget_of_zero_where_the_family_always_thinks(asked: dict[str, Any]) -> None:
    applied = apply(R1, chat(**asked), {})
    assert applied.body["thinking_token_budget"] == 0
    assert (applied.label, applied.cls) == ("0", c.CLASS_OFF)


def test_mode_always_keeps_the_chain_on_whatever_the_client_says() -> None:
    always = replace(QWEN, always=True)
    applied = apply(always, chat(chat_template_kwargs={"enable_thinking": False, "other": 1}), {})
    assert applied.body["chat_template_kwargs"] == {"enable_thinking": True, "other": 1}
    assert applied.budget == 1000


def test_mode_always_gives_the_least_effort_to_a_client_that_wants_none() -> None:
    always = replace(QWEN, always=True)
    applied = apply(always, chat(reasoning_effort="none"), {})
    assert applied.body["chat_template_kwargs"] == {"enable_thinking": True}
    assert applied.budget == min(n for n in QWEN.efforts.values() if isinstance(n, int) and n > 0)


def test_an_explicit_budget_wins_over_an_effort_of_none() -> None:
    applied = apply(QWEN, chat(reasoning_effort="none", thinking_token_budget=500), {})
    assert applied.budget == 500


def test_a_family_that_always_thinks_cannot_be_told_that_it_does_not() -> None:
    # The parser of such a family would hand the chain on as the answer.
    applied = apply(R1, chat(chat_template_kwargs={"enable_thinking": False, "thinking": False, "x": 1}), {})
    assert applied.body["chat_template_kwargs"] == {"x": 1}


def test_a_family_that_thinks_only_when_told_to_is_told_by_any_effort() -> None:
    shy = replace(QWEN, template_key="thinking", template_default=False)
    assert apply(shy, chat(), {}).label == "off"
    asked = apply(shy, chat(reasoning_effort="low"), {})
    assert asked.body["chat_template_kwargs"] == {"thinking": True}
    assert asked.budget == 250


@pytest.mark.parametrize(
    ("asked", "native"),
    [
        ({}, "medium"),
        ({"reasoning_effort": "none"}, "low"),
        ({"reasoning_effort": "max"}, "high"),
        ({"thinking_token_budget": 100}, "low"),
        ({"thinking_token_budget": 1000}, "medium"),
        ({"thinking_token_budget": 4000}, "high"),
    ],
)
def test_a_model_with_efforts_of_its_own_gets_the_nearest_and_never_a_budget(
    asked: dict[str, Any], native: str
) -> None:
    applied = apply(GPT_OSS, chat(**asked), {})
    assert applied.body["reasoning_effort"] == native
    assert "thinking_token_budget" not in applied.body
    assert applied.label == f"native:{native}"


def test_a_model_that_never_reasons_takes_every_request_and_gets_no_budget() -> None:
    # The engine answers a budget with an error where no reasoning is configured: not the user's fault.
    applied = apply(V3, chat(reasoning_effort="high", thinking_token_budget=500), {})
    assert applied.body == chat()
    assert (applied.label, applied.cls) == ("off", c.CLASS_OFF)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thinking_token_budget", -2),
        ("thinking_token_budget", 1.5),
        ("thinking_token_budget", True),
        ("thinking_token_budget", "many"),
        ("reasoning_effort", "hard"),
        ("reasoning_effort", ["low"]),
        ("max_tokens", 0),
        ("max_completion_tokens", "9"),
        ("chat_template_kwargs", [1]),
    ],
)
@pytest.mark.parametrize("settings", [QWEN, R1, GPT_OSS, V3])
def test_a_wrong_value_is_refused_by_the_name_of_its_field(settings: ModelSettings, field: str, value: object) -> None:
    with pytest.raises(BadRequest, match="must be") as caught:
        apply(settings, chat(**{field: value}), {})
    assert caught.value.param == field
    assert caught.value.status == 400
    assert str(caught.value).startswith(field)


def test_a_refusal_never_sends_a_long_value_back() -> None:
    with pytest.raises(BadRequest) as caught:
        apply(QWEN, chat(reasoning_effort="x" * 1_000_000), {})
    assert len(str(caught.value)) < 300


def test_a_configured_header_decides_the_class_first() -> None:
    assert apply(QWEN, chat(reasoning_effort="high"), {"x-tenant": "etl"}).cls == "batch"
    assert apply(V3, chat(), {"x-tenant": "nightly"}).cls == "batch"
    assert apply(QWEN, chat(), {"x-tenant": "web"}).cls == c.CLASS_MEDIUM


def test_a_text_completion_is_budgeted_too() -> None:
    body = {"model": "m", "prompt": "1+1<think>"}
    assert apply_completion(QWEN, body, {}).body == body | {"thinking_token_budget": 1000}
    assert apply_completion(QWEN, body | {"thinking_token_budget": 9000}, {}).budget == 4000
    assert apply_completion(V3, body | {"thinking_token_budget": 9000}, {}).body == body
    assert apply_completion(GPT_OSS, body | {"reasoning_effort": "low"}, {}).body == body


@pytest.mark.parametrize("field", ["logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids"])
def test_nothing_shows_a_chain_that_is_hidden(field: str) -> None:
    hidden = replace(QWEN, hidden=True)
    with pytest.raises(BadRequest) as caught:
        check_hidden(hidden, chat(**{field: 3}), chat=True)
    assert caught.value.param == field
    with pytest.raises(BadRequest, match="chat/completions"):
        check_hidden(hidden, {"prompt": "1+1"}, chat=False)
    check_hidden(hidden, chat(), chat=True)
    check_hidden(QWEN, chat(**{field: 3}), chat=True)
    check_hidden(replace(V3, hidden=True), chat(**{field: 3}), chat=True)


_ASKED = st.fixed_dictionaries(
    {},
    optional={
        "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
        "thinking_token_budget": st.integers(-1, 100_000),
        "max_tokens": st.integers(1, 100_000),
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "x"]), st.booleans()),
    },
)


@given(settings=st.sampled_from([QWEN, R1, GPT_OSS, V3, replace(QWEN, always=True)]), asked=_ASKED)
def test_a_budget_never_leaves_its_bounds_and_leaves_room_for_an_answer(
    settings: ModelSettings, asked: dict[str, Any]
) -> None:
    applied = apply(settings, chat(**asked), {})
    budget = applied.body.get("thinking_token_budget")
    assert budget == applied.budget
    if budget is not None:
        assert settings.engine_budget
        assert 0 <= budget <= settings.budget_max
        if "max_tokens" in asked:
            assert budget <= asked["max_tokens"] - min(settings.answer_reserve, asked["max_tokens"] // 2)
    assert applied.cls in c.EFFORT_CLASSES
    assert applied.body["messages"] == chat()["messages"]


@given(less=st.integers(0, 50_000), more=st.integers(0, 50_000))
def test_asking_for_more_never_gives_less(less: int, more: int) -> None:
    low, high = sorted((less, more))
    first, second = (apply(R1, chat(thinking_token_budget=b), {}).budget for b in (low, high))
    assert first is not None
    assert second is not None
    assert first <= second


def test_settings_survive_their_way_through_json() -> None:
    import json

    assert ModelSettings.from_json(json.loads(json.dumps(QWEN.to_json()))) == QWEN


MARKLESS = replace(R1, engine_budget=False)


@pytest.mark.parametrize(
    ("asked", "budget"),
    [({}, 1000), ({"reasoning_effort": "low"}, 250), ({"thinking_token_budget": 17}, 17), ({"max_tokens": 700}, 500)],
)
def test_where_the_engine_cannot_count_a_chain_we_count_its_output(asked: dict[str, Any], budget: int) -> None:
    for applied in (apply(MARKLESS, chat(**asked), {}), apply_completion(MARKLESS, {"prompt": "1"} | asked, {})):
        assert applied.label == f"counted:{budget}"
        assert applied.most_output == budget + MARKLESS.answer_reserve
        assert "thinking_token_budget" not in applied.body
        assert applied.body.get("max_tokens") == asked.get("max_tokens"), "what the client asked for stays as it was"
