"""An engine runs requests of its own before its replica is ready: through every batch size, with and without budgets, to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from reasonscale.serving import warm


class Engine:
    """Makes a token of every running request at each step, and notes how many ran."""

    def __init__(self, seats: int, context: int = 4096, hangs: bool = False, dies: bool = False) -> None:
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=seats), model_config=SimpleNamespace(max_model_len=context)
        )
        self.asked: list[tuple[list[int], Any]] = []
        self.running, self.sizes = 0, set[int]()
        self.hangs, self.dies = hangs, dies

    async def generate(self, prompt: dict[str, list[int]], params: Any, request_id: str) -> AsyncIterator[int]:
        self.asked.append((prompt["prompt_token_ids"], params))
        self.running += 1
        try:
            for i in range(params.max_tokens):
                await (asyncio.Event().wait() if self.hangs else asyncio.sleep(0))
                if self.dies:
                    raise RuntimeError("the engine died")
                self.sizes.add(self.running)
                yield i
        finally:
            self.running -= 1


def run(engine: Engine, *, budgets: bool = True, limit_s: float = 10.0) -> float | None:
    return asyncio.run(warm.warm(engine, (3,), budgets=budgets, limit_s=limit_s))


def test_the_batch_goes_through_small_sizes_and_the_largest_of_them() -> None:
    engine = Engine(256)
    assert run(engine) is not None
    assert max(engine.sizes) == warm.MOST
    assert len(engine.sizes) > 10
    assert engine.running == 0


def test_requests_are_of_the_kinds_that_users_send() -> None:
    engine = Engine(16)
    run(engine)
    params = [p for _, p in engine.asked]
    assert {p.temperature for p in params} == {0.0, 0.6}
    assert {p.thinking_token_budget is None for p in params} == {True, False}
    assert all(ids[-1] == 3 for ids, _ in engine.asked)  # the chain is open


def test_an_engine_without_budgets_is_asked_for_none() -> None:
    engine = Engine(16)
    run(engine, budgets=False)
    assert all(p.thinking_token_budget is None for _, p in engine.asked)


@pytest.mark.parametrize(("seats", "context", "requests"), [(1, 4096, 1), (4, 4096, 4), (256, 40, 0)])
def test_it_asks_no_more_than_the_engine_has_room_for(seats: int, context: int, requests: int) -> None:
    engine = Engine(seats, context)
    assert run(engine) is not None
    assert len(engine.asked) == requests


def test_one_that_takes_too_long_is_left_and_nothing_of_it_runs_on() -> None:
    engine = Engine(8, hangs=True)
    assert run(engine, limit_s=0.01) is None
    assert engine.running == 0


def test_an_engine_that_dies_of_it_does_not_come_up() -> None:
    engine = Engine(8, dies=True)
    with pytest.raises(RuntimeError, match="died"):
        run(engine)
    assert engine.running == 0
