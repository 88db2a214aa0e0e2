"""Requests at zero replicas: held within limits, woken for, let on in order. Replicas are played, in virtual time."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.serving.virtual_time import clock, play

from reasonscale.api.resolve import ResolvedSleep
from reasonscale.serving.hold import LATE_S, LOOK_S, Hold, NotHeld, Pass
from reasonscale.serving.settings import MAX_BODY_BYTES, HoldLimits, hold_limits

REQUEST = contextvars.ContextVar("REQUEST", default="none")
LIMITS = HoldLimits(requests=100, size_bytes=1_000_000, wait_s=600.0, start_s=120.0, seats=8)


class Model:
    """Plays a model: one replica is ready `start_s` after a call has begun to wait for it; each request takes `run_s`."""

    def __init__(
        self, limits: HoldLimits = LIMITS, start_s: float = 60.0, run_s: float = 1.0, replicas: int | None = 0
    ):
        self.start_s, self.run_s, self.replicas = start_s, run_s, replicas
        self.calls, self.fails, self.starts = 0, 0, []
        self.requests: set[str] = set()  # in whose context it was woken
        self.hold = Hold(limits, lambda: self.replicas, self.wake, self.starts.append, clock)
        self.order: list[tuple[int, float]] = []
        self.at_once = self.most_at_once = 0

    async def wake(self) -> None:
        self.calls += 1
        self.requests.add(REQUEST.get())
        if self.fails:
            self.fails -= 1
            raise ConnectionError("the replica died while it loaded")
        await asyncio.sleep(self.start_s)
        self.replicas = max(1, self.replicas or 0)

    async def ask(self, i: int = 0, after_s: float = 0.0, size: int = 100) -> str:
        await asyncio.sleep(after_s)
        REQUEST.set(f"request {i}")
        try:
            mine = await self.hold.enter(size)
        except NotHeld as error:
            return f"{error.code} {error.retry_after_s}"
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.order.append((i, clock()))
        try:
            await asyncio.sleep(self.run_s)  # until its first token
            mine.begun()
        finally:
            self.at_once -= 1
            mine.over()
        return f"served {mine.held_s:.0f}"

    def left(self) -> tuple[int, int, int, int]:
        return self.hold.held, self.hold.held_bytes, self.hold.inside, self.hold._turns


async def all_of(model: Model, number: int, apart_s: float = 0.01) -> list[str]:
    return await asyncio.gather(*(model.ask(i, i * apart_s) for i in range(number)))


def test_fifty_at_zero_wake_one_replica_by_one_call_and_are_served_in_order():
    async def main() -> None:
        model = Model()
        answers = await all_of(model, 50)
        assert Counter(a.split()[0] for a in answers) == {"served": 50}
        assert [i for i, _ in model.order] == list(range(50))
        assert model.order[0][1] == pytest.approx(60.0, abs=2 * LOOK_S)
        assert model.calls == 1
        assert model.requests == {
            "none"
        }  # not in the name of the first: Serve's router would take one call for the other
        assert model.starts == [pytest.approx(60.0, abs=2 * LOOK_S)]
        assert model.left() == (0, 0, 0, 0)

    play(main())


def test_of_a_thousand_a_hundred_are_held_and_the_rest_is_told_when_the_replica_should_be_ready():
    async def main() -> None:
        model = Model()
        answers = await all_of(model, 1000, apart_s=0.02)
        assert Counter(a.split()[0] for a in answers) == {"served": 100, "hold_full": 900}
        told = [int(a.split()[1]) for a in answers if a.startswith("hold_full")]
        # Until one was measured, what the resource's start is taken to be; less what has passed.
        assert (told[0], told[-1]) == (118, 101)
        assert sorted(told, reverse=True) == told
        model.replicas = 0
        again = await all_of(model, 200)
        told = [int(a.split()[1]) for a in again if a.startswith("hold_full")]
        assert told[0] == 60, "the second time the start was measured"
        assert model.left() == (0, 0, 0, 0)

    play(main())


def test_what_a_batch_has_no_seat_for_keeps_its_order_here_and_not_in_an_engines_queue():
    async def main() -> None:
        model = Model(run_s=10.0)
        asking = asyncio.create_task(all_of(model, 40))
        await asyncio.sleep(61.0)
        assert (model.most_at_once, model.hold.held) == (8, 32)
        # One that comes when a replica is ready goes behind those that wait.
        late = asyncio.create_task(model.ask(99))
        model.replicas = 2
        await asyncio.gather(asking, late)
        assert [i for i, _ in model.order] == [*range(40), 99]
        assert model.most_at_once == 16

    play(main())


def test_where_a_replica_is_ready_and_nobody_waits_a_request_passes_at_once_and_nobody_is_woken():
    async def main() -> None:
        model = Model(replicas=1)
        assert await all_of(model, 500, apart_s=0.0) == ["served 0"] * 500
        assert (model.calls, model.left()) == (0, (0, 0, 0, 0))

    play(main())


def test_bytes_are_limited_as_well():
    async def main() -> None:
        model = Model()
        answers = await asyncio.gather(
            *(model.ask(i, size=400_000) for i in range(4)), model.ask(9, 0.001, size=200_000)
        )
        assert [a.split()[0] for a in answers] == ["served", "served", "hold_full", "hold_full", "served"]

    play(main())


def test_one_that_waits_too_long_is_told_so_and_makes_room():
    async def main() -> None:
        model = Model(replace(LIMITS, requests=1, wait_s=30.0), start_s=200.0)
        assert await model.ask() == "hold_timeout 90"
        assert model.left() == (0, 0, 0, 0)
        asyncio.get_running_loop().call_later(10.0, setattr, model, "replicas", 1)
        assert await model.ask() == "served 10"

    play(main())


def test_a_start_that_lasts_longer_than_any_before_is_not_promised_for_the_past():
    async def main() -> None:
        model = Model(replace(LIMITS, requests=1), start_s=500.0)
        first = asyncio.create_task(model.ask())
        assert await model.ask(after_s=300.0) == f"hold_full {LATE_S}"
        assert await first == "served 500"

    play(main())


def test_a_client_that_goes_gives_its_place_back_and_the_replica_is_still_woken():
    async def main() -> None:
        model = Model(replace(LIMITS, requests=2))
        one, two = (asyncio.create_task(model.ask(i)) for i in (1, 2))
        await asyncio.sleep(1.0)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert model.left()[:3] == (1, 100, 1)
        assert await model.ask(3) == "served 59"
        assert await two == "served 60"
        assert [i for i, _ in model.order] == [2, 3]

    play(main())


def test_a_wake_that_nobody_waited_for_is_not_measured_hours_later():
    async def main() -> None:
        model = Model()
        gone = asyncio.create_task(model.ask(1))
        await asyncio.sleep(1.0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await asyncio.sleep(100.0)  # it has woken for nobody
        assert await model.ask(2) == "served 0"
        await asyncio.sleep(7200.0)
        model.replicas = 0  # and sleeps again
        assert await model.ask(3) == "served 60"
        assert model.starts == [pytest.approx(60.0, abs=1.0)]

    play(main())


def test_one_whose_client_goes_after_its_turn_came_does_not_keep_the_others_waiting():
    async def main() -> None:
        model = Model(replace(LIMITS, seats=1), run_s=1000.0)
        asking = [asyncio.create_task(model.ask(i, i * 0.01)) for i in range(3)]
        await asyncio.sleep(70.0)
        assert len(model.order) == 1
        asking[0].cancel()
        await asyncio.sleep(1.0)
        assert [i for i, _ in model.order] == [0, 1]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert model.left() == (0, 0, 0, 0)

    play(main())


def test_a_replica_that_dies_while_it_loads_is_called_for_again():
    async def main() -> None:
        model = Model()
        model.fails = 3
        assert (await model.ask()).startswith("served 6")
        assert model.calls == 4

    play(main())


def test_before_the_router_has_said_anything_a_request_waits_for_it_and_no_start_is_measured():
    async def main() -> None:
        model = Model(replicas=None)
        asyncio.get_running_loop().call_later(0.3, setattr, model, "replicas", 1)
        assert await model.ask() == "served 0"
        assert model.starts == []

    play(main())


def test_new_limits_hold_from_the_next_request_on():
    async def main() -> None:
        model = Model(replace(LIMITS, requests=1))
        first = asyncio.create_task(model.ask())
        await asyncio.sleep(1.0)
        assert (await model.ask()).startswith("hold_full")
        model.hold.limits = replace(LIMITS, requests=2)
        assert await asyncio.gather(first, model.ask()) == ["served 60", "served 59"]

    play(main())


@given(
    st.lists(st.tuples(st.floats(0, 90), st.floats(0.1, 40), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 5), st.integers(1, 20), st.lists(st.tuples(st.floats(0, 200), st.integers(0, 3)), max_size=5),
)  # fmt: skip
def test_whatever_comes_and_goes_the_limits_hold_and_nothing_is_left(
    requests: list[tuple[float, float, bool]], seats: int, most: int, fleet: list[tuple[float, int]]
):
    async def main() -> None:
        model = Model(HoldLimits(most, 10**9, 500.0, 30.0, seats), start_s=20.0)

        async def go(i: int, at: float, goes_after: float, goes: bool) -> Any:
            await asyncio.sleep(at)
            asking = asyncio.create_task(model.ask(i))
            if goes:
                await asyncio.sleep(goes_after)
                asking.cancel()
            [answer] = await asyncio.gather(asking, return_exceptions=True)
            assert model.hold.held <= most
            return answer

        for at, n in fleet:
            asyncio.get_running_loop().call_later(at, setattr, model, "replicas", n)
        answers = await asyncio.gather(*(go(i, *request) for i, request in enumerate(requests)))
        assert all(isinstance(a, (str, asyncio.CancelledError)) for a in answers)
        assert model.left() == (0, 0, 0, 0)
        held = sorted((i for i, _ in model.order), key=lambda i: requests[i][0])
        assert sorted(held) == sorted(set(held)), "each goes on once"

    play(main())


def test_a_pass_is_over_once_however_often_it_is_said():
    async def main() -> None:
        model = Model()
        asking = asyncio.create_task(model.hold.enter(10))
        await asyncio.sleep(61.0)
        mine: Pass = await asking
        assert model.left() == (0, 0, 1, 1)
        for _ in range(3):
            mine.begun()
            mine.over()
        assert model.left() == (0, 0, 0, 0)

    play(main())


@pytest.mark.parametrize(
    ("requests", "size", "ingresses", "share"),
    [(100, 64 * 2**20, 2, (50, 32 * 2**20)), (101, 2**30, 4, (25, 2**28)), (1, 8 * 2**20, 3, (1, MAX_BODY_BYTES))],
)
def test_ingresses_share_the_limits_and_each_can_hold_one(
    requests: int, size: int, ingresses: int, share: tuple[int, int]
):
    class Resolved:
        sleep, max_num_seqs = ResolvedSleep(900.0, requests, size, 600.0), 8

    found = hold_limits(Resolved(), ingresses, 45.0)  # type: ignore[arg-type]
    assert found is not None
    assert (found.requests, found.size_bytes) == share
    Resolved.sleep = None  # type: ignore[assignment]
    assert hold_limits(Resolved(), ingresses, 45.0) is None  # type: ignore[arg-type]
