"""The micro reasoner's questions, chains and answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.demo.tasks import answer_to, collatz_split, collatz_task, random_sum, sum_is_held_out, sum_task


@given(st.integers(0, 10**8 - 1), st.integers(0, 10**8 - 1))
def test_a_sums_chain_ends_in_its_answer(a: int, b: int) -> None:
    task = sum_task(a, b)
    assert int(task.answer) == a + b == int(answer_to(task.question))
    assert task.chain.endswith("r" + task.answer[-len(str(max(a, b))) :])


def test_a_collatz_chain_counts_its_steps() -> None:
    assert collatz_task(27).answer == "111"
    assert collatz_task(6).chain == "0:6\n1:3\n2:01\n3:5\n4:61\n5:8\n6:4\n7:2\n8:1"


def test_what_is_held_out_is_never_trained_on() -> None:
    train, held_out = collatz_split()
    assert not set(train) & set(held_out)
    rng = random.Random(0)
    assert not any(
        sum_is_held_out(*map(int, random_sum(rng, 5, held_out=False).question.split("+"))) for _ in range(200)
    )


def test_another_question_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a sum"):
        answer_to("why")
