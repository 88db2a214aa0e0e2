"""A request goes on in another engine: its client gets each character once, whatever was under way when the first was lost."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.serving import events
from reasonscale.serving.continuation import Continuation, NotTheSame, packed, unpacked, what_binds
from reasonscale.serving.events import Piece

NAMES = ("reasoning", "reasoning_content")
USAGE = '{"completion_tokens": 3}'


def _event(delta: dict[str, Any], finish: str | None = None) -> tuple[str, str, events.Said]:
    data = {"id": "x", "created": 1, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return events.rewrite_event(f"data: {json.dumps(data)}\n\n", NAMES, False, 0, 7)


def stream(chain: str, answer: str, cuts: list[int], made: int = 0) -> list[Piece]:
    """Return an engine's stream of a chain and an answer, one token a character, cut into events at `cuts`.

    Of the first `made` tokens no ids come: another engine made them.
    """
    kind, text, said = _event({"role": "assistant", "content": ""})
    out: list[Piece] = [(events.ALIVE, {"prompt": 99}, [], ()), (kind, text, [], said)]
    everything, at = chain + answer, 0
    for end in [*sorted({c for c in cuts if 0 < c < len(everything)}), len(everything)]:
        part = everything[at:end]
        delta: dict[str, Any] = {}
        if part[: max(0, len(chain) - at)]:
            delta["reasoning"] = part[: max(0, len(chain) - at)]
        if part[max(0, len(chain) - at) :]:
            delta["content"] = part[max(0, len(chain) - at) :]
        kind, text, said = _event(delta, "stop" if end == len(everything) else None)
        out.append((kind, text, [1000 + i for i in range(at, end) if i >= made], said))
        at = end
    kind, text, said = events.rewrite_event(
        f'data: {{"id": "x", "created": 1, "choices": [], "usage": {USAGE}}}\n\n', NAMES, False, 0, 7
    )
    out += [(kind, text, [], said), (events.OTHER, events.DONE, [], ())]
    return out


class Client:
    """Reads what a client gets."""

    def __init__(self) -> None:
        self.chain = self.answer = ""
        self.roles = self.ends = self.usages = self.dones = 0

    def get(self, found: tuple[str, Any] | None) -> None:
        if found is None or not found[1]:
            return
        if found[1] == events.DONE:
            self.dones += 1
            return
        data = json.loads(found[1][6:])
        assert data["created"] == 7
        self.usages += "usage" in data
        if not data["choices"]:
            return
        delta = data["choices"][0]["delta"]
        assert delta.get("reasoning") == delta.get("reasoning_content")
        self.roles += "role" in delta
        self.chain += delta.get("reasoning") or ""
        self.answer += delta.get("content") or ""
        self.ends += data["choices"][0]["finish_reason"] is not None


TEXT = st.text('abcdefgh \n"\\é漢😀', min_size=0, max_size=12)
CUTS = st.lists(st.integers(1, 24), max_size=10)


@given(TEXT, TEXT, st.lists(st.tuples(CUTS, st.integers(0, 16)), max_size=3), CUTS)
def test_each_character_comes_once_however_often_and_wherever_engines_are_lost(
    chain: str, answer: str, losses: list[tuple[list[int], int]], last: list[int]
) -> None:
    if not chain + answer:
        return
    kept, client = Continuation(None), Client()
    for cuts, lost_after in losses:
        pieces = stream(chain, answer, cuts, made=len(kept.kept))
        for piece in pieces[: min(lost_after, len(pieces) - 1)]:  # never `[DONE]`: then nothing is lost
            client.get(kept.take(piece))
        kept.restart()
    for piece in stream(chain, answer, last, made=len(kept.kept)):
        client.get(kept.take(piece))
    assert (client.chain, client.answer) == (chain, answer)
    assert (client.roles, client.ends, client.usages, client.dones) == (1, 1, 1, 1)
    assert kept.ids == [1000 + i for i in range(len(chain + answer))]


def test_an_engine_that_is_lost_after_the_end_was_told_tells_it_no_second_time() -> None:
    for had in (1, 2):  # the end, and the usage behind it
        kept, client = Continuation(None), Client()
        pieces = stream("ab", "c", [1])
        for piece in pieces[: len(pieces) - 3 + had]:
            client.get(kept.take(piece))
        assert (client.ends, client.usages) == (1, had - 1)
        kept.restart()
        for piece in stream("ab", "c", [2], made=3):
            client.get(kept.take(piece))
        assert (client.chain, client.answer, client.ends, client.usages, client.dones) == ("ab", "c", 1, 1, 1)


def _call(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": arguments}
    call: dict[str, Any] = {"index": index, "function": function}
    if name is not None:
        call |= {"id": f"random-{name}", "type": "function"}
        function["name"] = name
    return call


def test_a_tools_arguments_come_once_and_its_name_is_not_given_twice() -> None:
    kept = Continuation(None)
    first = [
        _event({"tool_calls": [_call(0, "add", "")]}), _event({"tool_calls": [_call(0, None, '{"a": 1')]}),
    ]  # fmt: skip
    for kind, text, said in first:
        assert kept.take((kind, text, [1], said)) is not None
    kept.restart()
    kind, text, said = _event({"tool_calls": [_call(0, "add", '{"a": 12, "b"')]})
    found = kept.take((kind, text, [], said))
    assert found is not None
    (call,) = json.loads(found[1][6:])["choices"][0]["delta"]["tool_calls"]
    assert call == {"index": 0, "function": {"arguments": '2, "b"'}}


def test_another_prompt_is_noticed_before_a_word_of_it_is_sent() -> None:
    kept = Continuation(None)
    kept.take((events.ALIVE, {"prompt": 1}, [5], ()))
    kept.restart()
    with pytest.raises(NotTheSame):
        kept.take((events.ALIVE, {"prompt": 2}, [], ()))


def test_what_is_bound_to_its_engine_may_start_over_until_its_client_has_some_of_it() -> None:
    kept = Continuation("seed")
    role, chain = _event({"role": "assistant", "content": ""}), _event({"reasoning": "a"})
    kept.take((role[0], role[1], [], role[2]))
    assert kept.resumable
    kept.restart()
    assert kept.kept == []
    assert kept.take((role[0], role[1], [], role[2])) is None  # the client has that already
    kept.take((chain[0], chain[1], [3], chain[2]))
    assert not kept.resumable
    assert kept.kept == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2), ("logprobs", True), ("prompt_logprobs", 1), ("seed", 1), ("presence_penalty", 0.5), ("frequency_penalty", -0.1),
        ("structured_outputs", {"regex": "a"}), ("response_format", SimpleNamespace(type="json_schema")), ("use_beam_search", True),
        ("bad_words", ["no"]), ("prompt", ["a", "b"]), ("prompt_embeds", b"x"),
    ],
)  # fmt: skip
def test_what_binds_a_request_to_its_engine_is_named(field: str, value: object) -> None:
    assert what_binds(SimpleNamespace(**{field: value})) == field


def test_nothing_binds_a_plain_request_nor_a_seed_that_draws_nothing() -> None:
    plain = SimpleNamespace(
        n=1, logprobs=False, seed=3, temperature=0, presence_penalty=0.0, response_format=SimpleNamespace(type="text"),
        tools=["f"], tool_choice="auto", prompt=[1, 2, 3],
    )  # fmt: skip
    assert what_binds(plain) is None
    assert what_binds(SimpleNamespace(tools=["f"], tool_choice="required")) == "tool_choice"


@given(st.lists(st.integers(0, 2**31)))
def test_token_ids_survive_their_way_as_text(ids: list[int]) -> None:
    assert unpacked(packed(ids)) == ids
