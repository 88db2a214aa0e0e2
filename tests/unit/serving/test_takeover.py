"""Who goes on where, and when: engines are played, time is the loop's own and never waited for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.unit.serving.virtual_time import clock, play

from reasonscale.serving import events
from reasonscale.serving.continuation import Continuation
from reasonscale.serving.errors import EngineLost, GaveUp
from reasonscale.serving.takeover import PASSED_TOKENS, ROOM_S, Takeover, Way
from reasonscale.serving.turns import MANY_DEATHS, OFF_S, TURN_S, Deaths, Gone, Turns


class Stream:
    """Plays one engine's stream of a request: tokens, a second each; then a loss, silence, or the end."""

    def __init__(self, tokens: int, then: str, name: str = "a", says: str | None = None) -> None:
        self.tokens, self.then, self.name, self.says = tokens, then, name, says

    async def __aiter__(self) -> AsyncIterator[Any]:
        if self.then == "never":
            await asyncio.sleep(1e9)
        yield [(events.ALIVE, {"replica": self.says}, [], ())]
        for token in range(self.tokens):
            await asyncio.sleep(1)
            yield [(events.ANSWER, f"data: {token}\n\n", [token], ())]
        if self.then == "dies":
            raise EngineLost(self.name)
        if self.then == "refuses":
            yield [(events.ERROR, 'data: {"error": {"message": "too long", "code": 400}}', [], ())]
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
        self.leaving: set[str] = set()
        self.full_until, self.moved = 0.0, 0
        self.deaths = deaths or Deaths(clock)
        self.kept = Continuation(binds)
        way = Way(
            self.open, placed=lambda: self.at, avoid=self.avoided.append, leaves=self.leaving.__contains__,
            room=lambda tokens: clock() >= self.full_until, resumed=self.pauses.append, moved=self.was_moved,
        )  # fmt: skip
        self.takeover = Takeover(self.kept, 0.0, self.deaths, way, hang_s=60.0, attempts=3, back_s=100.0, clock=clock)

    def was_moved(self) -> None:
        self.moved += 1

    def open(self) -> Stream:
        stream = self.streams[self.opened]
        self.opened += 1
        if stream.name:
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


def test_the_replica_that_a_request_is_in_is_the_one_that_says_so() -> None:
    async def main() -> None:
        # The router gave it to `b` first, which was slow to answer, and then again to the one that dies.
        scene = Scene(Stream(2, "dies", "a", "a"), Stream(0, "dies", "b", "a"), Stream(3, "ends", "b", "b"))
        assert await scene.run() == 5
        assert (scene.takeover.times, set(scene.avoided)) == (1, {"a"})

    play(main())


def test_a_replica_that_is_about_to_be_stopped_hands_its_requests_on_one_by_one_and_runs_them_until_then() -> None:
    async def main() -> None:
        deaths = Deaths(clock)
        scenes = [Scene(Stream(60, "ends", "a", "a"), Stream(30, "ends", "b", "b"), deaths=deaths) for _ in range(3)]
        running = [asyncio.create_task(scene.run()) for scene in scenes]
        await asyncio.sleep(10.5)
        for scene in scenes:
            scene.leaving.add("a")
        await asyncio.gather(*running)
        assert [(s.opened, s.moved, s.takeover.times, s.pauses) for s in scenes] == [(2, 1, 0, [])] * 3
        made = sorted(len(s.kept.ids) - 30 for s in scenes)
        # The next leaves when the one before has made four tokens elsewhere.
        assert 11 <= made[0] <= 12
        assert all(4 <= later - sooner <= 5 for sooner, later in itertools.pairwise(made))

    play(main())


def test_a_request_that_is_bound_to_a_replica_that_will_be_stopped_stays_to_the_end() -> None:
    async def main() -> None:
        scene = Scene(Stream(20, "ends", "a", "a"), binds="logprobs")
        scene.leaving.add("a")
        assert await scene.run() == 20

    play(main())


def test_one_that_was_only_moved_is_no_suspect_when_its_next_engine_dies() -> None:
    async def main() -> None:
        scene = Scene(Stream(9, "ends", "a", "a"), Stream(0, "dies", "b", "b"), Stream(4, "ends", "c", "c"))
        scene.leaving.add("a")
        assert await scene.run() == 5
        assert (scene.opened, scene.takeover.times) == (3, 1)

    play(main())


def test_an_engine_that_refuses_what_it_is_to_go_on_with_ends_it_in_clear_words() -> None:
    async def main() -> None:
        scene = Scene(Stream(5, "dies", "a"), Stream(0, "refuses", "b"))
        with pytest.raises(GaveUp, match="refused it: too long") as found:
            await scene.run()
        assert (found.value.status, found.value.code) == (503, "engine_lost")

    play(main())


def test_where_no_other_engine_comes_a_request_is_given_up_in_the_end() -> None:
    async def main() -> None:
        scene = Scene(Stream(5, "dies", "a"), Stream(0, "never", ""))
        with pytest.raises(GaveUp, match="no other came in 100 s"):
            await scene.run()

    play(main())


def test_a_resume_waits_for_room_in_a_kv_cache_and_not_for_ever() -> None:
    async def main() -> None:
        scene = Scene(Stream(1, "dies", "a"), Stream(1, "ends", "b"))
        scene.full_until = 10.0
        await scene.run()
        assert 10 <= clock() < 13
        never = Scene(Stream(1, "dies", "a"), Stream(1, "ends", "b"))
        never.full_until = 1e9
        began = clock()
        await never.run()
        assert ROOM_S <= clock() - began < ROOM_S + 5

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


def test_one_whose_turn_it_is_and_who_takes_it_again_does_not_wait_for_itself() -> None:
    async def main() -> None:
        turns = Turns()
        await turns.take("a", 1.0)
        await asyncio.sleep(TURN_S - 1)
        await asyncio.wait_for(turns.take("a", 1.0), 0.1)
        await asyncio.sleep(TURN_S - 1)
        assert turns.holds("a")  # it began again

    play(main())


def test_one_that_waited_elsewhere_and_has_gone_is_passed_over() -> None:
    async def main() -> None:
        turns = Turns()
        await turns.take("a", 1.0)
        gone = asyncio.create_task(turns.take("b", 2.0))
        await asyncio.sleep(0)
        turns.leave("b")
        with pytest.raises(Gone):
            await gone
        turns.leave("a")
        await asyncio.wait_for(turns.take("c", 3.0), 0.1)

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
