"""Default budgets shrink under pressure, in steps, to their floor, and come back; nobody else's does, and no one's unasked."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.serving.test_budgets_of_requests import GPT_OSS, QWEN, R1, chat

from reasonscale.serving.budget import apply, apply_completion
from reasonscale.serving.pressure import Pressure, shrunk


def played(queue: list[float], steps: int = 4) -> list[int]:
    pressure, out = Pressure(), []
    for second, share in enumerate(queue):
        pressure.see(float(second), share, steps)
        out.append(pressure.step)
    return out


def test_a_queue_that_stays_long_shrinks_step_by_step_and_one_that_goes_gives_it_back() -> None:
    steps = played([0.0] * 5 + [0.8] * 12 + [0.4] * 20 + [0.0] * 60)
    assert max(steps) == 4
    assert steps[:6] == [0] * 6
    assert all(abs(b - a) <= 1 for a, b in itertools.pairwise(steps))
    assert set(steps[20:36]) == {4}  # between the marks it stays
    assert steps[-1] == 0


def test_a_short_burst_shrinks_nothing() -> None:
    assert set(played([0.0, 0.9, 0.9, 0.0] * 20)) == {0}


def test_where_the_resource_says_nothing_it_never_shrinks() -> None:
    assert set(played([5.0] * 100, steps=0)) == {0}


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(1, 16))
def test_each_step_is_smaller_and_the_last_is_the_floor(default: int, floor: int, steps: int) -> None:
    budgets = [shrunk(default, floor, step, steps) for step in range(steps + 1)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[0] == default
    assert budgets[-1] == min(default, floor)
    assert min(budgets) >= min(default, floor)


@pytest.mark.parametrize("settings", [QWEN, R1, replace(R1, engine_budget=False)], ids=["engine", "r1", "counted"])
def test_only_a_request_that_named_no_budget_thinks_less(settings: object) -> None:
    plain = apply(settings, chat(), {}, 300)  # type: ignore[arg-type]
    assert plain.label.removeprefix("counted:") == "300"
    assert plain.shrunk
    for named in ({"thinking_token_budget": 900}, {"reasoning_effort": "medium"}, {"reasoning_effort": "high"}):
        whole, now = apply(settings, chat(**named), {}), apply(settings, chat(**named), {}, 300)  # type: ignore[arg-type]
        assert now == whole
        assert not now.shrunk


def test_a_completion_shrinks_too_and_a_model_with_efforts_of_its_own_does_not() -> None:
    assert apply_completion(QWEN, {"model": "m", "prompt": "x"}, {}, 300).shrunk
    assert apply(GPT_OSS, chat(), {}, 300) == apply(GPT_OSS, chat(), {})


def test_a_default_that_the_answer_leaves_no_room_for_was_not_shrunk_by_pressure() -> None:
    assert not apply(QWEN, chat(max_tokens=100), {}, 300).shrunk
