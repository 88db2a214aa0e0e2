"""The router sends to the least work in tokens, adds what it sent itself, and takes the late and the full last."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.serving.routing import (
    AT,
    BY,
    KV_CAPACITY,
    KV_TOKENS,
    PREEMPTED,
    REQUESTS,
    RESTS,
    STALE_S,
    WAITING_PROMPT,
    Loads,
    Takes,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def stats(kv: float = 0, requests: int = 0, prompt: float = 0, at: float = 1.0, **more: Any) -> dict[str, Any]:
    return {KV_TOKENS: kv, KV_CAPACITY: 100_000.0, WAITING_PROMPT: prompt, REQUESTS: requests, AT: at} | more


def test_the_least_work_comes_first_and_a_prompt_not_yet_read_weighs_more_than_what_is_held() -> None:
    loads = Loads(Clock())
    loads.report("held", stats(kv=30_000, requests=5))
    loads.report("prompts", stats(prompt=8_000, requests=5))
    loads.report("idle", stats())
    assert loads.order(["held", "prompts", "idle"]) == ["idle", "held", "prompts"]


def test_requests_sent_between_two_reports_go_to_different_replicas() -> None:
    loads = Loads(Clock())
    for name in "abc":
        loads.report(name, stats())
    went = []
    for _ in range(6):
        first = loads.order("abc")[0]
        loads.sent(first, 500)
        went.append(first)
    assert sorted(went) == ["a", "a", "b", "b", "c", "c"]


def test_a_report_replaces_what_was_sent_long_before_it_and_not_what_it_may_have_missed() -> None:
    clock = Clock()
    loads = Loads(clock)
    loads.report("a", stats(at=1.0))
    loads.sent("a", 100)
    clock.now += 0.9
    loads.sent("a", 100)
    clock.now += 0.1
    loads.report("a", stats(requests=1, at=2.0))
    assert loads.work("a") == 2000 * 2 + 5 * 100
    loads.report("a", stats(requests=1, at=2.0))  # the same one, read again
    assert loads.work("a") == 2000 * 2 + 5 * 100


def test_one_that_is_late_or_full_is_taken_last_and_one_to_avoid_only_where_no_other_is_there() -> None:
    clock = Clock()
    loads = Loads(clock)
    loads.report("silent", stats())
    clock.now += STALE_S + 1
    loads.report("full", stats(kv=96_000))
    loads.report("preempts", stats(kv=60_000, **{PREEMPTED: True}))
    loads.report("busy", stats(kv=90_000, requests=40))
    loads.report("hangs", stats())
    loads.avoid("hangs", 60)
    assert loads.order(["silent", "full", "preempts", "busy", "hangs"]) == [
        "busy",
        "preempts",
        "full",
        "silent",
    ]
    assert loads.order(["hangs"]) == ["hangs"]
    clock.now += 61
    loads.report("hangs", stats(at=2.0))
    assert loads.order(["hangs"]) == ["hangs"]


def test_a_session_stays_where_it_was_while_that_is_not_overloaded() -> None:
    clock = Clock()
    loads = Loads(clock)
    loads.report("a", stats(kv=1_000))
    loads.report("b", stats())
    loads.sent("a", 0, "chat")
    assert loads.order("ab", "chat") == ["a", "b"]
    assert loads.order("ab", "another") == ["b", "a"]
    clock.now += 5
    loads.report("a", stats(kv=60_000, requests=20, at=2.0))
    loads.report("b", stats(at=2.0))
    assert loads.order("ab", "chat") == ["b", "a"]


@given(st.integers(1, 6), st.integers(0, 200), st.lists(st.booleans(), min_size=200, max_size=200))
def test_two_routers_that_see_only_their_own_requests_between_reports_still_spread_them(
    replicas: int, arrivals: int, by_first: list[bool]
) -> None:
    names = [str(i) for i in range(replicas)]
    routers = [Loads(Clock()), Loads(Clock())]
    for router in routers:
        for name in names:
            router.report(name, stats(kv=5_000))
    sent = dict.fromkeys(names, 0)
    for i in range(arrivals):
        to = routers[by_first[i]].order(names)[0]
        routers[by_first[i]].sent(to, 0)
        sent[to] += 1
    assert max(sent.values()) - min(sent.values()) <= 2


def test_replicas_that_are_gone_are_forgotten() -> None:
    loads = Loads(Clock())
    loads.report("a", stats(kv=50))
    loads.keep(["b"])
    assert loads.work("a") == 0


def test_there_is_room_where_seats_are_free_and_none_where_the_cache_is_full_or_one_preempts_or_hangs() -> None:
    clock = Clock()
    loads = Loads(clock)
    assert loads.takes(8, "me") is None
    loads.report("free", stats(**{BY: {"me": 2, "other": 3}}))
    assert loads.takes(8, "me") == Takes(5, 2, 0.0)  # two that are there and three more
    loads.report("new", {})
    assert loads.takes(8, "me").in_all == 13  # type: ignore[union-attr]
    full = {
        "full": stats(kv=96_000),
        "filling": stats(kv=60_000, prompt=40_000),
        "preempts": stats(**{PREEMPTED: True}),
    }
    for name, report in full.items():
        loads.report(name, report | {BY: {"me": 1}})
    loads.report("hangs", stats(**{BY: {"me": 1}}))
    loads.avoid("hangs", 60)
    found = loads.takes(8, "me")
    assert found is not None
    assert found.in_all == 13 + 4  # they keep what they have
    clock.now += 2.0
    loads.report("preempts", stats(at=2.0, **{BY: {"me": 1}}))
    assert loads.takes(8, "me").in_all == 13 + 3 + 8  # type: ignore[union-attr]
    assert loads.takes(8, "me").oldest_s == float("inf")  # type: ignore[union-attr]
    loads.keep(["free"])
    assert loads.takes(4, "other") == Takes(2, 3, 2.0)  # over its seats: none is sent until some end


def test_what_is_emptied_gets_nothing_its_sessions_included_and_keeps_what_it_has() -> None:
    loads = Loads(Clock())
    for name in "ab":
        loads.report(name, stats(requests=4, **{BY: {"me": 4}}))
    loads.sent("a", 10, "chat")
    loads.empty(["a"], 100.0)
    assert loads.order("ab", "chat") == ["b"]
    assert loads.takes(8, "me") == Takes(in_all=4 + 8, mine=8, oldest_s=0.0)
    assert loads.order("a") == ["a"]  # where no other is there
    loads.empty([], 100.0)
    assert loads.order("ab", "chat")[0] == "a"
    assert loads.takes(8, "me") == Takes(in_all=16, mine=8, oldest_s=0.0)


def test_a_replica_goes_from_when_it_is_emptied_and_not_while_it_has_to_serve() -> None:
    clock = Clock()
    loads = Loads(clock)
    for name in "ab":
        loads.report(name, stats(**{BY: {}}))
    loads.empty(["a"], 100.0)
    clock.now += 9.0
    for name in "ab":
        loads.report(name, stats(at=2.0, **{BY: {}}))
    loads.empty(["a"], 100.0)  # named again: it goes on
    assert (loads.goes_for_s("a"), loads.goes_for_s("b")) == (9.0, 0.0)
    loads.avoid("b", 10.0)  # the only other is lost
    assert loads.goes_for_s("a") == 0.0
    loads.keep("b")  # told to go in the end
    clock.now += 4.0
    assert loads.goes_for_s("a") == 4.0
    loads.empty([], 100.0)
    loads.keep("ab")
    assert loads.goes_for_s("a") == 0.0


def test_what_is_emptied_takes_requests_where_the_others_are_lost_or_silent() -> None:
    clock = Clock()
    loads = Loads(clock)
    for name in "ab":
        loads.report(name, stats(requests=0, **{BY: {}}))
    loads.empty(["a"], 1000.0)
    loads.avoid("b", 60.0)
    assert loads.takes(8, "me").in_all == 8  # type: ignore[union-attr]
    assert loads.order("ab") == ["a"]
    clock.now += 61.0
    loads.report("a", stats(requests=0, at=2.0, **{BY: {}}))
    assert loads.takes(8, "me").in_all == 8, "b has said nothing for a minute"  # type: ignore[union-attr]
    assert loads.order("ab")[0] == "a"
    loads.report("b", stats(requests=0, at=2.0, **{BY: {}}))
    assert loads.order("ab") == ["b"]


def test_what_is_emptied_is_used_again_when_nobody_lets_it_go_however_often_it_is_named() -> None:
    clock = Clock()
    loads = Loads(clock)
    for name in "ab":
        loads.report(name, stats(**{BY: {}}))
    loads.empty(["a"], 100.0)
    clock.now += 60.0
    loads.empty(["a"], 100.0)
    for name in "ab":
        loads.report(name, stats(at=2.0, **{BY: {}}))
    assert loads.order("ab") == ["b"]
    clock.now += 50.0
    for name in "ab":
        loads.report(name, stats(at=3.0, **{BY: {}}))
    assert sorted(loads.order("ab")) == ["a", "b"]


TIMES = itertools.count(2.0)


def asleep(loads: Loads, *names: str, stage: int = 1) -> None:
    for name in names:
        loads.report(name, {AT: next(TIMES), RESTS: stage})


def test_one_that_is_to_sleep_is_told_until_it_says_so_and_woken_once_it_is_named_no_more() -> None:
    clock = Clock()
    loads = Loads(clock)
    asleep(loads, "a", "b", stage=0)
    loads.empty(["b"], 60.0, ["b"])
    assert loads.to_tell() == [("b", True)]
    assert loads.order(["a", "b"]) == ["a"]
    asleep(loads, "b", stage=2)
    assert loads.to_tell() == []
    clock.now += 7200.0  # nobody has to say it again
    asleep(loads, "a", stage=0)
    asleep(loads, "b")
    assert loads.to_tell() == []
    assert loads.order(["a", "b"]) == ["a"]
    loads.empty([], 60.0)
    assert loads.to_tell() == [("b", False)]
    assert sorted(loads.order(["a", "b"])) == ["a", "b"]


def test_one_that_is_named_no_more_before_it_said_that_it_sleeps_is_woken_all_the_same() -> None:
    loads = Loads(Clock())
    asleep(loads, "a", "b", stage=0)
    loads.empty(["b"], 60.0, ["b"])
    loads.to_tell()
    loads.empty([], 60.0)
    assert loads.to_tell() == [("b", False)]
    assert loads.to_tell() == []


def test_where_the_last_one_awake_is_lost_those_that_sleep_are_woken() -> None:
    loads = Loads(Clock())
    asleep(loads, "a", stage=0)
    asleep(loads, "b")
    loads.empty(["b"], 60.0, ["b"])
    assert loads.to_tell() == []
    loads.avoid("a", 600.0)
    assert loads.to_tell() == [("b", False)]
    assert loads.order(["a", "b"]) == ["b"]


def test_rousing_wakes_all_that_sleep_until_others_are_named() -> None:
    loads = Loads(Clock())
    asleep(loads, "a", stage=0)
    asleep(loads, "b", "c")
    loads.empty(["b", "c"], 60.0, ["b"])
    assert loads.takes(8, "me").in_all == 8
    assert loads.rouse()
    assert not loads.rouse()  # it is done
    assert ("b", False) in loads.to_tell()
    assert loads.takes(8, "me").in_all == 16  # c is emptied, and goes
    loads.empty(["b", "c"], 60.0, ["b"])  # the same, said again with another number
    assert loads.order(["a", "b"]) == ["a", "b"]
    loads.empty([], 60.0)
    loads.empty(["b"], 60.0, ["b"])
    assert loads.order(["a", "b"]) == ["a"]


def test_of_two_ingresses_one_that_rouses_and_one_that_does_not_do_not_tell_a_replica_to_and_fro_without_end() -> None:
    clock, told = Clock(), list[tuple[str, bool]]()
    ingresses = Loads(clock), Loads(clock)
    stage = 1
    for loads in ingresses:
        loads.empty(["b"], 60.0, ["b"])
    for second in range(600):
        for loads in ingresses:
            asleep(loads, "a", stage=0)
            asleep(loads, "b", stage=stage)
        if second == 10:
            assert ingresses[0].rouse()
        now = [one for loads in ingresses for one in loads.to_tell()]
        told += now
        if now:  # idle: it does as it is told
            stage = 1 if now[-1][1] else 0
        clock.now += 1.0
    assert told == [("b", False), ("b", True)]
    assert not ingresses[0]._roused


def test_one_that_is_roused_sleeps_again_when_nobody_has_waited_for_a_minute() -> None:
    clock = Clock()
    loads = Loads(clock)
    asleep(loads, "a", stage=0)
    asleep(loads, "b")
    loads.empty(["b"], 60.0, ["b"])
    assert loads.rouse()
    for _ in range(3):
        clock.now += 40.0
        loads.rouse()  # somebody waits again
    asleep(loads, "a", "b", stage=0)
    assert ("b", True) not in loads.to_tell()
    clock.now += 61.0
    asleep(loads, "a", "b", stage=0)
    assert loads.to_tell() == [("b", True)]


def test_one_that_slept_and_is_emptied_now_has_its_time_to_end_its_chains() -> None:
    clock = Clock()
    loads = Loads(clock)
    asleep(loads, "a", stage=0)
    asleep(loads, "b")
    loads.empty(["b"], 60.0, ["b"])
    clock.now += 3600.0
    asleep(loads, "a", "b", stage=0)
    loads.empty(["b"], 60.0)  # a request had woken it
    clock.now += 1.0
    assert loads.goes_for_s("b") == 1.0


@pytest.mark.parametrize("stage", [2, 3], ids=["falls", "held"])
def test_one_that_falls_asleep_or_can_not_wake_yet_is_taken_last_until_it_is_awake_again(stage: int) -> None:
    loads = Loads(Clock())
    asleep(loads, "a", stage=0)
    asleep(loads, "b", stage=stage)
    loads.sent("a", 500.0)
    assert loads.order(["a", "b"]) == ["a", "b"]
    assert loads.takes(8, "me").in_all == 8
