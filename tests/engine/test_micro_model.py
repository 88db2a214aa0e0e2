"""The bundled model answers what it was never trained on, and thinks as long as it is allowed to."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from reasonscale.demo import tasks
from reasonscale.load.client import Outcome, send
from reasonscale.load.trace import Planned

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
EACH = 20


def held_out(skill: str) -> list[tasks.Task]:
    if skill == "collatz":
        return [tasks.collatz_task(n) for n in tasks.collatz_split()[1][:EACH]]
    rng = random.Random(11)
    return [tasks.random_sum(rng, 2 + i % 7, held_out=True) for i in range(EACH)]


def asked(service: Any, items: list[tasks.Task], effort: str | None = None) -> list[Outcome]:
    plans = [Planned(0.02 * i, t.question, t.answer, t.skill, effort=effort) for i, t in enumerate(items)]
    outcomes = asyncio.run(send(service.url, service.model, plans, timeout_s=240))
    assert [o.error for o in outcomes if o.failed] == []
    return outcomes


@pytest.mark.parametrize("skill", ["sum", "collatz"])
def test_it_is_right_on_questions_it_was_never_trained_on(service: Any, skill: str) -> None:
    items = held_out(skill)
    outcomes = asked(service, items)
    assert sum(bool(o.correct) for o in outcomes) >= 0.95 * EACH
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome.correct:  # one token a character, and the line breaks around the chain
            assert abs(outcome.reasoning_tokens - len(item.chain)) <= 3


def test_a_collatz_chain_cut_short_is_answered_all_the_same_but_less_well(service: Any) -> None:
    items = [t for t in held_out("collatz") if len(t.chain) > 200]
    outcomes = asked(service, items, effort="low")
    assert all(0 < o.reasoning_tokens <= 128 and o.answer_tokens > 0 for o in outcomes)
    assert sum(bool(o.correct) for o in outcomes) < 0.9 * len(items)


def test_the_length_of_a_chain_follows_a_sum_but_not_a_collatz_question() -> None:
    digits = {len(tasks.sum_task(a, b).chain) for a in (100, 345, 899) for b in (100, 555, 900)}
    assert max(digits) - min(digits) <= 6
    near = [len(tasks.collatz_task(n).chain) for n in range(90, 100)]
    assert max(near) > 5 * min(near)


def test_the_weights_are_small_enough_to_be_committed() -> None:
    folder = Path(__file__).parents[2] / "examples" / "micro-reasoner"
    assert sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) < 8 * 2**20
