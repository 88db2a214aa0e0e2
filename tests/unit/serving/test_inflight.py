"""What an engine has in its hands: each request's choices are counted once, from their coming to their end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reasonscale.api import constants as c
from reasonscale.serving.inflight import InFlight, row_id

THINK, CLOSE = 7, 8


@pytest.fixture
def inflight() -> InFlight:
    made = InFlight()
    made.start_ids, made.end_ids = (THINK,), (CLOSE,)
    return made


def begun(
    inflight: InFlight, rid: str = "chatcmpl-a", *, choices: int = 1, delta: bool = True, **headers: str
) -> list[str]:
    """Have a request come and reach the engine; return its rows."""
    plain = rid.removeprefix("chatcmpl-")
    asked = inflight.enter(plain, headers)
    asked.arriving = False
    asked.sequences += choices
    keys = [row_id(rid, n) for n in range(choices)]
    inflight.begin(keys, asked, [1, 2, 3], True, delta)
    return keys


@pytest.mark.parametrize(
    ("prompt", "open_"),
    [([1, 2], True), ([1, THINK], True), ([1, THINK, 2, CLOSE], False), ([CLOSE, THINK], True), ([], True)],
)
def test_a_chain_is_open_but_where_the_prompt_closes_it_after_it_began(
    inflight: InFlight, prompt: list[int], open_: bool
) -> None:
    assert inflight.thinks(prompt) is open_


def test_without_a_mark_nobody_thinks() -> None:
    assert not InFlight().thinks([1, 2])


def test_a_burst_waits_while_its_prompts_are_made_and_each_is_counted_once(inflight: InFlight) -> None:
    for n in range(5):
        inflight.enter(str(n), {})
    assert (inflight.waiting, inflight.any) == (5, True)
    asked = inflight.get("0")
    assert asked is not None
    asked.arriving = False
    inflight.begin(["cmpl-0"], asked, [1], False, True)
    assert inflight.waiting == 5
    inflight.progress("cmpl-0", [4], True)
    assert inflight.waiting == 4
    for n in range(5):
        inflight.finish(f"cmpl-{n}", 0, None, ended=False)
        inflight.leave(str(n), f"cmpl-{n}")
    assert (inflight.waiting, inflight.any) == (0, False)


def test_what_several_choices_came_to_is_added_up_and_their_prompt_counts_once(inflight: InFlight) -> None:
    one, two = begun(inflight, choices=2)
    inflight.progress(one, [4, 4, CLOSE], True)
    inflight.progress(one, [5], True)
    inflight.progress(two, [4], True)
    assert inflight.reasoned("chatcmpl-a") == 3
    inflight.finish(one, 0, None, ended=True)
    inflight.finish(two, 1, None, ended=False)
    inflight.finish(two, 1, None, ended=False)  # once more is nothing
    assert inflight.counts("chatcmpl-a") == {
        "prompt_tokens": 3, "reasoning_tokens": 3, "answer_tokens": 2, "budget_exhausted": False,
    }  # fmt: skip
    assert inflight.ledger.rows == {}


def test_a_budget_is_used_up_where_the_end_mark_was_its_last_token(inflight: InFlight) -> None:
    (key,) = begun(inflight)
    inflight.progress(key, [4, 4, CLOSE], True)
    inflight.finish(key, 0, 3, ended=True)
    assert inflight.counts("chatcmpl-a")["budget_exhausted"]


def test_an_id_that_begins_as_another_s_is_another_request(inflight: InFlight) -> None:
    for rid in ("chatcmpl-a", "chatcmpl-ab"):
        (key,) = begun(inflight, rid)
        inflight.progress(key, [4], True)
        inflight.finish(key, 0, None, ended=True)
    assert inflight.counts("chatcmpl-a")["reasoning_tokens"] == 1
    assert inflight.counts("chatcmpl-ab")["reasoning_tokens"] == 1


def test_of_an_answer_that_comes_at_once_the_tokens_are_read_from_the_engine_and_kept_for_the_ingress(
    inflight: InFlight,
) -> None:
    (key,) = begun(inflight, delta=False, **{c.HEADER_KEEP: "1"})
    asked = inflight.get("a")
    assert asked is not None
    assert asked.mark is not None
    ids: list[int] = [4]
    state: Any = SimpleNamespace(
        external_req_id=key,
        request_id="x",
        request_index=0,
        prompt_len=3,
        detokenizer=SimpleNamespace(output_token_ids=ids),
    )
    client = SimpleNamespace(output_processor=SimpleNamespace(request_states={"x": state}))
    inflight.look(client)
    ids += [4, 5]
    inflight.look(client)
    inflight.look(client)
    assert (inflight.generated(key), asked.fresh) == (3, [4, 4, 5])
    inflight.progress(key, [4, 4, 5, 6], False)  # its end, with all of it
    assert (inflight.generated(key), asked.fresh) == (4, [4, 4, 5, 6])
    inflight.finish(key, 0, None, ended=True)
    assert inflight.generated(key) is None


def test_what_is_here_is_told_by_the_ingress_that_sent_it_with_all_of_its_choices(inflight: InFlight) -> None:
    begun(inflight, "chatcmpl-a", choices=3, **{c.HEADER_INGRESS: "one"})
    begun(inflight, "chatcmpl-b", **{c.HEADER_INGRESS: "two"})
    inflight.enter("c", {c.HEADER_INGRESS: "two"})  # its prompt is being made
    assert inflight.by_ingress() == {"one": 3, "two": 2}
