"""What becomes of the engine's events: fields of the chain, hiding, counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reasonscale.serving import events

BOTH = ("reasoning", "reasoning_content")


def event(**delta: Any) -> str:
    return f"data: {json.dumps({'id': 'x', 'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]})}\n\n"


def delta_of(text: str) -> dict[str, Any]:
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    found = json.loads(text[6:])["choices"][0]["delta"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("source", BOTH)
@pytest.mark.parametrize("names", [BOTH, ("reasoning",), ("reasoning_content",), ("thinking",)])
def test_the_chain_comes_in_the_fields_that_are_named_and_in_no_other(source: str, names: tuple[str, ...]) -> None:
    rewritten = events.rewrite_event(event(**{source: "a\nb"}), names, False, 3)
    assert rewritten is not None
    assert rewritten[0] == events.REASONING
    assert delta_of(rewritten[1]) == dict.fromkeys(names, "a\nb")


def test_a_hidden_chain_is_not_sent_and_is_still_seen_as_reasoning() -> None:
    assert events.rewrite_event(event(reasoning="secret"), BOTH, True, 3) == (events.REASONING, "", ())


def test_an_event_with_the_chains_last_and_the_answers_first_words_keeps_the_answer() -> None:
    rewritten = events.rewrite_event(event(reasoning="secret", content="42"), BOTH, True, 3)
    assert rewritten is not None
    assert rewritten[0] == events.ANSWER
    assert delta_of(rewritten[1]) == {"content": "42"}


def test_a_hidden_event_that_ends_the_stream_is_still_sent() -> None:
    data = {"choices": [{"index": 0, "delta": {"reasoning": "secret"}, "finish_reason": "length"}]}
    rewritten = events.rewrite_event(f"data: {json.dumps(data)}\n\n", BOTH, True, 3)
    assert rewritten is not None
    assert "secret" not in rewritten[1]
    assert json.loads(rewritten[1][6:])["choices"][0]["finish_reason"] == "length"


def test_usage_of_a_stream_tells_the_reasoning_tokens() -> None:
    data = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}}
    rewritten = events.rewrite_event(f"data: {json.dumps(data)}\n\n", BOTH, False, 7)
    assert rewritten is not None
    assert json.loads(rewritten[1][6:])["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}


def test_a_whole_answer_has_the_fields_and_the_counts_and_hides_the_same() -> None:
    def answer() -> dict[str, Any]:
        message = {"role": "assistant", "content": "42", "reasoning": "6*7"}
        return {"choices": [{"message": message}], "usage": {"completion_tokens": 9, "completion_tokens_details": None}}

    shown = events.rewrite_response(answer(), BOTH, False, 4)
    assert shown["choices"][0]["message"] == {
        "role": "assistant", "content": "42", "reasoning": "6*7", "reasoning_content": "6*7"
    }  # fmt: skip
    hidden = events.rewrite_response(answer(), BOTH, True, 4)
    assert hidden["choices"][0]["message"] == {"role": "assistant", "content": "42"}
    for data in (shown, hidden):
        assert data["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


def test_what_is_no_delta_passes_unchanged() -> None:
    assert events.rewrite_event(events.DONE, BOTH, True, 0) == (events.OTHER, events.DONE, ())
    error = 'data: {"error": {"message": "m", "code": 500}}\n\n'
    assert events.rewrite_event(error, BOTH, False, 0) == (events.ERROR, error, ())


def test_a_text_completion_s_tokens_are_the_answer() -> None:
    found = events.rewrite_event('data: {"choices": [{"index": 0, "text": "hello"}]}\n\n', BOTH, False, 0)
    assert found is not None
    assert found[0] == events.ANSWER
    empty = events.rewrite_event('data: {"choices": [{"index": 0, "text": ""}]}\n\n', BOTH, False, 0)
    assert empty is not None
    assert empty[0] == events.OTHER
