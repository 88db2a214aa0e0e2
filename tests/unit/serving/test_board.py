"""Several ingress replicas take turns and count losses together, and each alone where nobody can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import pytest
from tests.unit.serving.test_takeover import play

from reasonscale.serving.board import Board, LossesOf, SharedDeaths
from reasonscale.serving.turns import MANY_DEATHS, TURN_S


class Remote:
    """An actor's method: called here, answered later."""

    def __init__(self, method: Callable[..., Awaitable[Any]]) -> None:
        self._method = method

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._method(*args))


class Handle:
    """An actor's handle."""

    def __init__(self, board: Board) -> None:
        self.note, self.take, self.give = Remote(board.note), Remote(board.take), Remote(board.give)
        self.here = Remote(board.here)


class Gone:
    """The handle of an actor that died."""

    def __getattr__(self, name: str) -> Any:
        async def dead(*args: Any) -> None:
            raise RuntimeError("the actor died")

        return Remote(dead)


def two(handle: Any) -> tuple[SharedDeaths, SharedDeaths]:
    return SharedDeaths("m", lambda: handle), SharedDeaths("m", lambda: handle)


def test_the_oldest_of_all_ingress_replicas_goes_first_and_each_alone() -> None:
    async def main() -> None:
        handle = Handle(Board())
        ones, others = two(handle)
        went: list[float] = []
        together = 0

        async def one(losses: SharedDeaths, age: float) -> None:
            nonlocal together
            await losses.turns.take(age, age)
            assert losses.turns.holds(age)
            together += 1
            assert together == 1
            went.append(age)
            await asyncio.sleep(1)
            together -= 1
            losses.turns.give(age)

        first = asyncio.create_task(one(ones, 9.0))
        await asyncio.sleep(0.1)
        await asyncio.gather(first, *(one((ones, others)[i % 2], age) for i, age in enumerate((5.0, 1.0, 7.0, 3.0))))
        assert went == [9.0, 1.0, 3.0, 5.0, 7.0]

    play(main())


def test_losses_that_each_ingress_saw_a_part_of_turn_it_off_for_all_who_ask() -> None:
    async def main() -> None:
        ones, others = two(Handle(Board()))
        for i in range(MANY_DEATHS):
            (ones, others)[i % 2].note(f"r{i}")
            (ones, others)[i % 2].note(f"r{i}")  # seen by another request
        await asyncio.sleep(0.1)
        assert others.off
        await ones.turns.take("a", 1.0)
        assert ones.off

    play(main())


def test_one_that_goes_away_while_it_waits_holds_up_nobody() -> None:
    async def main() -> None:
        ones, others = two(Handle(Board()))
        await ones.turns.take("a", 1.0)
        waits = asyncio.create_task(others.turns.take("b", 2.0))
        await asyncio.sleep(0.1)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        later = asyncio.create_task(others.turns.take("c", 3.0))
        await asyncio.sleep(0.1)
        ones.turns.give("a")
        await asyncio.wait_for(later, 0.5)

    play(main())


def test_a_turn_ends_by_itself() -> None:
    async def main() -> None:
        ones, others = two(Handle(Board()))
        await ones.turns.take("a", 1.0)
        await asyncio.wait_for(others.turns.take("b", 2.0), TURN_S + 1)
        assert not ones.turns.holds("a")

    play(main())


def test_without_a_board_each_ingress_takes_turns_alone() -> None:
    async def main() -> None:
        ones, _ = two(Gone())
        ones.note("r")
        await ones.turns.take("a", 1.0)
        assert ones.turns.holds("a")
        waits = asyncio.create_task(ones.turns.take("b", 2.0))
        await asyncio.sleep(0.1)
        assert not waits.done()
        ones.turns.give("a")
        await asyncio.wait_for(waits, 0.5)

    play(main())


def test_a_board_that_is_gone_is_looked_for_before_anything_is_lost() -> None:
    async def main() -> None:
        board, found = Board(), []
        losses = LossesOf()

        def another() -> Any:
            found.append(len(found))
            return Gone() if len(found) == 1 else Handle(board)

        with patch("reasonscale.serving.board.find", another):
            losses.share(True)
            for _ in range(3):
                await losses.look()
        assert found == [0, 1], "made anew once, and kept while it answers"

    asyncio.run(main())
