"""The bundled model answers what it was never trained on, through the real engine, and thinks for it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from reasonscale.demo.tasks import MAX_DIGITS, Task, collatz_split, collatz_task, random_sum
from reasonscale.load.client import Outcome, send
from reasonscale.load.trace import Planned

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
FOLDER = Path(__file__).parents[2] / "examples" / "micro-reasoner"


def ask(service: Any, tasks: list[Task], effort: str | None = None) -> list[Outcome]:
    plans = [Planned(i * 0.1, t.question, t.answer, effort=effort) for i, t in enumerate(tasks)]
    return asyncio.run(send(service.url, service.model, plans))


def right(outcomes: list[Outcome]) -> float:
    assert [o.error for o in outcomes if o.failed] == []
    return sum(bool(o.correct) for o in outcomes) / len(outcomes)


def test_both_skills_are_right_on_inputs_never_trained_on(service: Any) -> None:
    rng = random.Random(5)
    sums = [random_sum(rng, d, held_out=True) for d in range(2, MAX_DIGITS + 1) for _ in range(4)]
    collatz = [collatz_task(n) for n in collatz_split()[1][:25]]
    assert right(ask(service, sums)) >= 0.95
    assert right(ask(service, collatz)) >= 0.95


def test_less_thought_gives_worse_answers_and_no_nonsense(service: Any) -> None:
    tasks = [collatz_task(n) for n in collatz_split()[1][25:45]]
    full, little, none = (ask(service, tasks, effort) for effort in ("medium", "low", "none"))
    assert right(full) > right(little)
    assert right(little) >= right(none) - 0.1
    assert sum(o.reasoning_tokens for o in none) == 0
    assert all(o.answer_tokens <= 12 for o in little)


def test_the_weights_are_small_enough_to_be_bundled() -> None:
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 8_000_000
