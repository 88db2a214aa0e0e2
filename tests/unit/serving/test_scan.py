"""Budgets are counted as vLLM counts them, without reading a chain anew at each step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

from reasonscale.serving import scan

WORD, OTHER = 7, 8
MARKS = {"one token a mark": ([1], [2]), "marks of several tokens": ([1, 3], [2, 4, 4])}
Update = Callable[[Any, dict[str, Any]], None]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Update, Update]]:
    """vLLM's own upkeep of a request's state, and the wrapped one; vLLM's class is left as it was."""
    plain = Holder._update_think_state
    scan.register()
    wrapped = Holder._update_think_state
    assert wrapped is not plain
    yield plain, wrapped
    Holder._update_think_state = plain
    del Holder._reasonscale_scan


def holder(marks: str) -> Any:
    start, end = MARKS[marks]
    return Holder(
        SimpleNamespace(reasoning_start_token_ids=start, reasoning_end_token_ids=end), 8, 0, "cpu", False
    )  # fmt: skip


@pytest.mark.parametrize("marks", MARKS)
@given(data=st.data())
def test_every_state_is_the_one_that_vllm_comes_to(
    both: tuple[Update, Update], marks: str, data: st.DataObject
) -> None:
    plain, wrapped = both
    kept = holder(marks)
    token = st.sampled_from([1, 2, 3, 4, WORD, OTHER])
    prompt = data.draw(st.lists(token, max_size=6) | st.just([WORD, *MARKS[marks][0]]))
    state = kept._init_state_entry(prompt, data.draw(st.integers(0, 12)))
    state["output_tok_ids"] = []
    other = copy.deepcopy(state)
    for _ in range(data.draw(st.integers(1, 40))):
        state["force_index"], other["force_index"] = [], []
        plain(kept, state)
        wrapped(kept, other)
        assert {k: v for k, v in state.items() if k != "scan_offset"} == {
            k: v for k, v in other.items() if k != "scan_offset"
        }
        forced = state["in_end"] and state["force_index"]
        # Most chains are long: words, and a mark now and then.
        made = kept.think_end_token_ids[state["end_count"] % len(kept.think_end_token_ids)] if forced else data.draw(
            st.sampled_from([WORD] * 6 + [1, 2, 3, 4])
        )  # fmt: skip
        for each in (state, other):
            each["output_tok_ids"].append(made)


@pytest.mark.parametrize("marks", MARKS)
def test_a_token_that_was_a_placeholder_a_step_long_is_still_seen(both: tuple[Update, Update], marks: str) -> None:
    _, wrapped = both
    kept = holder(marks)
    state = kept._init_state_entry([WORD, *MARKS[marks][0]], 1000)
    output = state["output_tok_ids"] = []
    for token in [*[WORD] * 50, *MARKS[marks][1], WORD]:
        output.append(-1)  # asynchronous scheduling: the step before is not read yet
        wrapped(kept, state)
        output[-1] = token
    wrapped(kept, state)
    assert not state["in_think"]


def test_a_chain_is_read_once(both: tuple[Update, Update], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, wrapped = both
    kept, read = holder("one token a mark"), [0]
    find = Holder._find_last_sequence_index

    def counted(tokens: list[int], mark: list[int]) -> int:
        read[0] += len(tokens)
        return int(find(tokens, mark))

    monkeypatch.setattr(Holder, "_find_last_sequence_index", staticmethod(counted))

    def tokens_read(update: Update, steps: int) -> int:
        state = kept._init_state_entry([WORD, 1], 10**6)
        state["output_tok_ids"], read[0] = [], 0
        for _ in range(steps):
            update(kept, state)
            state["output_tok_ids"].append(WORD)
        return read[0]

    assert tokens_read(wrapped, 2000) < 10 * 2000
    assert tokens_read(plain, 2000) > 500 * 2000, "vLLM mends this itself by now: serving/scan.py can go"


@pytest.mark.parametrize("names", [("update_state",), ("_update_think_state",)])
def test_a_vllm_that_keeps_its_state_otherwise_is_left_to_itself(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    called = []
    other = type("Other", (), {name: lambda self, state: called.append(state) for name in names})
    monkeypatch.setattr("vllm.v1.sample.thinking_budget_state.ThinkingBudgetStateHolder", other)
    scan.register()
    state = {"output_tok_ids": [WORD] * 9, "start_thinking": 0, "end_thinking": -1}
    kept: Any = other()
    kept.think_start_token_ids, kept.think_end_token_ids, kept.num_spec_tokens = [1], [2], 0
    getattr(kept, names[0])(dict(state))
    assert called == [state]
