"""An engine that sleeps loses no request: whoever comes wakes it, and nobody who has requests falls asleep."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reasonscale.serving import asleep, gpus, place
from reasonscale.serving.asleep import ASLEEP, AWAKE, FALLING, HELD, HELD_S, STAY_S, Sleeper
from reasonscale.serving.errors import EngineLost


class Engine:
    """vLLM's client at the seam: it refuses what vLLM would break at."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.asleep = False
        self.go = asyncio.Event()
        self.go.set()
        self.fails = ""

    async def sleep(self, level: int) -> None:
        assert not self.asleep
        assert level == 1
        await self._do("sleep")
        self.asleep = True

    async def wake_up(self) -> None:
        assert self.asleep  # memory that is mapped already can't be mapped again
        await self._do("wake")
        self.asleep = False

    async def _do(self, what: str) -> None:
        self.calls.append(what)
        await self.go.wait()
        if self.fails:
            raise RuntimeError(self.fails)


class World:
    def __init__(self) -> None:
        self.engine, self.now, self.requests, self.starting = Engine(), 1000.0, 0, False
        self.sleeper = Sleeper(lambda: self.requests > 0, self.none_starts, lambda: self.now)
        self.sleeper.engine = self.engine

    @contextmanager
    def none_starts(self) -> Iterator[bool]:
        yield not self.starting

    async def request(self) -> None:
        self.requests += 1
        await self.sleeper.awake()
        assert not self.engine.asleep  # else it would wait for ever


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_it_sleeps_and_wakes_and_being_told_twice_changes_nothing() -> None:
    w = World()
    assert await w.sleeper.rest(True)
    assert await w.sleeper.rest(True)
    assert w.sleeper.stage == ASLEEP
    assert not await w.sleeper.rest(False)
    assert not await w.sleeper.rest(False)
    assert w.engine.calls == ["sleep", "wake"]
    assert w.sleeper.stage == AWAKE


async def test_who_has_requests_does_not_sleep_and_neither_does_who_had_one_a_moment_ago() -> None:
    w = World()
    await w.request()
    assert not await w.sleeper.rest(True)
    w.requests = 0
    w.now += STAY_S - 0.1
    assert not await w.sleeper.rest(True)
    w.now += 0.1
    assert await w.sleeper.rest(True)


async def test_a_request_that_reaches_one_that_sleeps_wakes_it_first_and_many_wake_it_once() -> None:
    w = World()
    await w.sleeper.rest(True)
    w.engine.go.clear()
    coming = [asyncio.ensure_future(w.request()) for _ in range(20)]
    await turns()
    assert not any(r.done() for r in coming)
    w.engine.go.set()
    await asyncio.gather(*coming)
    assert w.engine.calls == ["sleep", "wake"]


async def test_a_request_that_comes_while_it_falls_asleep_waits_until_it_has_woken_again() -> None:
    w = World()
    w.engine.go.clear()
    falling = asyncio.ensure_future(w.sleeper.rest(True))
    await turns()
    assert w.sleeper.stage == FALLING
    coming = asyncio.ensure_future(w.request())
    waking = asyncio.ensure_future(w.sleeper.rest(False))
    await turns()
    w.engine.go.set()
    await asyncio.gather(falling, coming, waking)
    assert w.engine.calls == ["sleep", "wake"]
    assert w.sleeper.stage == AWAKE


async def test_whoever_stops_waiting_leaves_no_engine_half_asleep() -> None:
    w = World()
    w.engine.go.clear()
    falling = asyncio.ensure_future(w.sleeper.rest(True))  # an ingress that goes
    await turns()
    falling.cancel()
    await turns()
    w.engine.go.set()
    await turns()
    assert w.sleeper.stage == ASLEEP
    w.engine.go.clear()
    coming = asyncio.ensure_future(w.request())  # a client that goes
    await turns()
    coming.cancel()
    await turns()
    w.engine.go.set()
    await turns()
    assert (w.sleeper.stage, w.engine.calls) == (AWAKE, ["sleep", "wake"])


async def test_an_engine_that_can_not_be_woken_is_lost_for_all_who_wait() -> None:
    w = World()
    await w.sleeper.rest(True)
    w.engine.fails = "CUDA out of memory"
    found = await asyncio.gather(*(w.request() for _ in range(3)), return_exceptions=True)
    assert [type(e) for e in found] == [EngineLost] * 3
    assert "could not be woken: CUDA out of memory" in str(found[0])
    assert isinstance(w.sleeper.lost, EngineLost)  # by which the replica goes


@pytest.mark.parametrize("falls", [True, False])
async def test_an_engine_that_never_says_that_it_fell_asleep_or_woke_is_lost(falls: bool) -> None:
    w = World()
    w.sleeper = Sleeper(lambda: False, w.none_starts, lambda: w.now, limit_s=0.01)
    w.sleeper.engine = w.engine
    if falls:
        w.engine.go.clear()
        with pytest.raises(EngineLost, match=r"could not go to sleep: it did not answer within 0\.01 s"):
            await w.sleeper.rest(True)
    else:
        await w.sleeper.rest(True)
        w.engine.go.clear()
        with pytest.raises(EngineLost, match=r"could not be woken: it did not answer within 0\.01 s"):
            await w.sleeper.awake()
    assert isinstance(w.sleeper.lost, EngineLost)


async def test_an_engine_that_waits_for_memory_leaves_the_lock_to_one_that_gives_it_by_falling_asleep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    room, held = [False], list[bool]()
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "has_room", lambda index, share: room[0])

    def wait(index: int, share: float) -> None:
        with place.none_starts(index) as free:  # the other falls asleep
            held.append(free)
            room[0] = len(held) > 1  # the first time somebody else took what came free

    monkeypatch.setattr(gpus, "wait_for_room", wait)
    config = type("Config", (), {"engine_kwargs": {}})()
    async with place.room(0, config):
        assert held == [True, True]
        with place.none_starts(0) as free:
            assert not free, "while it starts nobody else does"


async def test_an_engine_that_was_started_without_sleep_stays_awake() -> None:
    w = World()
    w.sleeper.engine = None
    assert not await w.sleeper.rest(True)
    assert not await w.sleeper.rest(False)
    await w.request()
    assert w.engine.calls == []


async def test_nobody_falls_asleep_or_wakes_while_another_starts_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asleep, "LOOK_S", 0.0)
    w = World()
    w.starting = True
    assert not await w.sleeper.rest(True)
    w.starting = False
    assert await w.sleeper.rest(True)
    w.starting = True
    coming = asyncio.ensure_future(w.request())
    await turns(20)
    assert (w.sleeper.stage, w.engine.calls) == (HELD, ["sleep"])
    w.now += 40.0
    w.starting = False
    await coming
    assert (w.sleeper.stage, w.engine.calls) == (AWAKE, ["sleep", "wake"])
    assert w.sleeper.woke_s == 0.0, "what it waited for another is not the engine's"


async def test_one_that_is_held_for_ever_by_another_s_start_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asleep, "LOOK_S", 0.0)
    w = World()
    await w.sleeper.rest(True)
    w.starting = True
    coming = asyncio.ensure_future(w.request())
    await turns(20)
    w.now += HELD_S + 1.0
    with pytest.raises(EngineLost, match="another has been starting on its GPU for 600 s"):
        await coming
    assert w.engine.calls == ["sleep"]


def test_the_lock_of_a_gpu_on_which_an_engine_starts_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    with gpus.starting(0):
        with place.none_starts(0) as free:
            assert not free
        with place.none_starts(1) as free:
            assert free
    with place.none_starts(0) as free, place.none_starts(0) as other:
        assert free
        assert other, "they measure nothing"
    with place.none_starts(None) as free:
        assert free
