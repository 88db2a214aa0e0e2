"""Who goes on where, and when: engines are played, time is the loop's own and never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.unit.serving.virtual_time import clock, play

from reasonscale.serving import events
from reasonscale.serving.continuation import Continuation
from reasonscale.serving.errors import EngineLost, GaveUp
from reasonscale.serving.takeover import MANY_DEATHS, OFF_S, PASSED_TOKENS, Deaths, Takeover, Turns


class Stream:
    """Plays one engine's stream of a request: tokens, a second each; then a loss, silence, or the end."""

    def __init__(self, tokens: int, then: str, name: str = "a") -> None:
        self.tokens, self.then, self.name = tokens, then, name

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield [(events.ALIVE, {}, [], ())]
        for token in range(self.tokens):
            await asyncio.sleep(1)
            yield [(events.ANSWER, f"data: {token}\n\n", [token], ())]
        if self.then == "dies":
            raise EngineLost(self.name)
        if self.then == "wrong":
            raise ValueError("a request was wrong")
        if self.then == "hangs":
            await asyncio.sleep(1e9)

    def cancel(self) -> None:
        pass


class Scene:
    """One request and the engines that it meets in turn."""

    def __init__(self, *streams: Stream, deaths: Deaths | None = None, binds: str | None = None) -> None:
        self.streams, self.at = list(streams), ("", 0.0)
        self.opened, self.avoided, self.pauses = 0, [], []  # type: ignore[var-annotated]
        self.deaths = deaths or Deaths(clock)
        self.kept = Continuation(binds)
        self.takeover = Takeover(
            self.kept, 0.0, self.deaths, hang_s=60.0, attempts=3, open_stream=self.open, placed=lambda: self.at,
            avoid=self.avoided.append, resumed=self.pauses.append, clock=clock,
        )  # fmt: skip

    def open(self) -> Stream:
        stream = self.streams[self.opened]
        self.opened += 1
        self.at = (stream.name, clock())
        return stream

    async def run(self) -> int:
        return len([1 async for kind, text in self.takeover.pieces() if text])


def test_a_lost_engines_request_goes_on_in_the_next_and_its_pause_is_told() -> None:
    async def main() -> None:
        scene = Scene(Stream(5, "dies", "a"), Stream(7, "ends", "b"))
        assert await scene.run() == 12
        assert (scene.opened, scene.takeover.times, len(scene.pauses)) == (2, 1, 1)
        assert 1.0 <= scene.pauses[0] < 1.2

    play(main())


def test_an_error_that_is_no_loss_is_not_tried_again() -> None:
    async def main() -> None:
        scene = Scene(Stream(1, "wrong"), Stream(7, "ends"))
        with pytest.raises(ValueError, match="wrong"):
            await scene.run()
        assert scene.opened == 1

    play(main())


def test_a_replica_that_says_nothing_for_a_minute_is_left_and_named() -> None:
    async def main() -> None:
        scene = Scene(Stream(3, "hangs", "stopped"), Stream(2, "ends", "b"))
        assert await scene.run() == 5
        assert scene.avoided == ["stopped"]
        assert 60 <= clock() < 70

    play(main())


def test_a_prompt_that_kills_its_engines_kills_two_and_is_told_so() -> None:
    async def main() -> None:
        scene = Scene(Stream(0, "dies", "a"), Stream(0, "dies", "b"), Stream(9, "ends", "c"))
        with pytest.raises(GaveUp) as found:
            await scene.run()
        assert (found.value.status, found.value.code, scene.opened) == (500, "engine_crash_suspect", 2)

    play(main())


def test_a_lost_replica_that_is_met_again_before_it_is_gone_is_no_second_death() -> None:
    async def main() -> None:
        dying = [Stream(0, "dies", "a") for _ in range(5)]
        scene = Scene(Stream(2, "dies", "a"), *dying, Stream(3, "ends", "b"))
        assert await scene.run() == 5
        assert (scene.takeover.times, set(scene.avoided)) == (1, {"a"})

    play(main())


def test_one_whose_turn_has_passed_is_no_suspect_when_its_next_engine_dies_too() -> None:
    async def main() -> None:
        scene = Scene(Stream(2, "dies", "a"), Stream(PASSED_TOKENS + 1, "dies", "b"), Stream(3, "ends", "c"))
        assert await scene.run() == 2 + PASSED_TOKENS + 1 + 3

    play(main())


def test_a_request_is_handed_on_three_times_and_no_more() -> None:
    async def main() -> None:
        scene = Scene(*(Stream(PASSED_TOKENS + 1, "dies", name) for name in "abcde"))
        with pytest.raises(GaveUp) as found:
            await scene.run()
        assert (found.value.code, scene.opened) == ("engine_lost", 4)

    play(main())


def test_what_only_its_engine_can_go_on_with_ends_in_words_that_name_the_field() -> None:
    async def main() -> None:
        scene = Scene(Stream(2, "dies"), Stream(2, "ends"), binds="logprobs")
        with pytest.raises(GaveUp, match="logprobs"):
            await scene.run()
        before = Scene(Stream(0, "dies"), Stream(2, "ends"), binds="logprobs")
        assert await before.run() == 2  # its client had nothing of it yet

    play(main())


def test_the_oldest_goes_first_and_each_alone() -> None:
    async def main() -> None:
        turns, went, together = Turns(), [], 0

        async def one(age: float) -> None:
            nonlocal together
            await turns.take(age, age)
            together += 1
            assert together == 1
            went.append(age)
            await asyncio.sleep(1)
            together -= 1
            turns.give(age)

        first = asyncio.create_task(one(9.0))
        await asyncio.sleep(0)
        await asyncio.gather(first, *(one(age) for age in (5.0, 1.0, 7.0, 3.0)))
        assert went == [9.0, 1.0, 3.0, 5.0, 7.0]

    play(main())


def test_one_that_waits_and_goes_away_holds_up_nobody() -> None:
    async def main() -> None:
        turns = Turns()
        await turns.take("a", 1.0)
        gone = asyncio.create_task(turns.take("b", 2.0))
        later = asyncio.create_task(turns.take("c", 3.0))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        turns.give("a")
        await asyncio.wait_for(later, 1)
        assert turns.holds("c")

    play(main())


def test_one_whose_engine_never_says_a_word_does_not_keep_the_others_waiting_for_ever() -> None:
    async def main() -> None:
        turns = Turns()
        await turns.take("a", 1.0)
        await asyncio.wait_for(turns.take("b", 2.0), 60)

    play(main())


def test_engines_that_die_again_and_again_turn_it_off_and_peace_turns_it_on() -> None:
    now = [0.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    deaths = Deaths(clock)
    for i in range(MANY_DEATHS - 1):
        deaths.note(f"r{i}")
        deaths.note(f"r{i}")  # the same one, seen by another request
    assert not deaths.off
    deaths.note("last")
    assert deaths.off
    now[0] += OFF_S + 1
    assert not deaths.off
