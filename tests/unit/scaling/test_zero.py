"""To no replica and back, in virtual time: what is unknown never leads there, and what is held always leads back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scaling.test_what_always_holds import histories, observations, state_after
from tests.unit.scaling.worlds import POLICY, counts, observe

from reasonscale.api import constants as c
from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Decision, Fleet, Freshness, Mode, Observation, Policy

SLEEPS = replace(POLICY, min_replicas=0, zero_after_s=60.0)
ONE, NONE = Fleet(target=1, ready=1), Fleet(target=0, ready=0)


def idle(
    time: float, fleet: Fleet = ONE, held: float | None = 0.0, inside: float | None = 0.0, **more: Any
) -> Observation:
    seen = observe(time, fleet, **({"medium": counts()} | more))
    return replace(seen, held_requests=held, ingress_requests=inside)


def played(seen: list[Observation], policy: Policy = SLEEPS) -> list[Decision]:
    state, out = State.new(), []
    for one in seen:
        decision, state = decide(one, policy, state)
        out.append(decision)
    return out


def first_zero(seen: list[Observation], policy: Policy = SLEEPS) -> float | None:
    return next((d.time for d in played(seen, policy) if d.target == 0), None)


def ticks(until: float, **more: Any) -> list[Observation]:
    return [idle(5.0 * i, **more) for i in range(int(until / 5.0))]


def test_the_last_replica_goes_once_nothing_was_asked_for_so_long():
    decisions = played(ticks(100.0))
    assert [d.target for d in decisions] == [1] * 12 + [0] * 8
    gone = decisions[12]
    assert (gone.reason, gone.act, gone.message) == (c.REASON_IDLE, True, "1 -> 0: no request for 60 s")


@pytest.mark.parametrize(
    "disturbed",
    [
        pytest.param(idle(30.0, medium=counts({100: 1.0})), id="one runs"),
        pytest.param(idle(30.0, medium=counts(waiting=1.0)), id="one waits"),
        pytest.param(idle(30.0, medium=counts(arrivals=1.0)), id="one came and went since the last look"),
        pytest.param(idle(30.0, inside=1.0), id="one is between ingress and engine"),
        pytest.param(idle(30.0, held=1.0, inside=1.0), id="one is held"),
        pytest.param(idle(30.0, held=None, inside=None), id="nobody knows what the ingress has"),
        pytest.param(replace(idle(30.0), freshness=Freshness.STALE), id="the ledger is old"),
        pytest.param(replace(idle(30.0), freshness=Freshness.ABSENT, classes={}), id="there is no ledger"),
        pytest.param(idle(30.0, Fleet(target=1, ready=0, starting_s=(9.0,))), id="the replica still loads"),
    ],
)
def test_whatever_says_otherwise_or_nothing_starts_the_time_anew(disturbed: Observation):
    seen = ticks(150.0)
    seen[6] = disturbed
    assert first_zero(seen) == 35.0 + 60.0


def test_a_model_that_loads_is_never_put_to_sleep_however_long_it_takes():
    loading = [
        replace(idle(5.0 * i, Fleet(target=1, ready=0, starting_s=(5.0 * i,))), freshness=fresh)
        for i, fresh in enumerate([Freshness.FRESH, Freshness.ABSENT, Freshness.STALE] * 200)
    ]
    assert first_zero(loading) is None


def test_without_the_wish_nothing_sleeps():
    assert first_zero(ticks(900.0), POLICY) is None
    assert first_zero(ticks(900.0), replace(SLEEPS, zero_after_s=None)) is None
    assert first_zero(ticks(900.0), replace(SLEEPS, mode=Mode.MANUAL, manual_replicas=1)) is None


def test_a_recommendation_to_sleep_is_only_said():
    last = played(ticks(100.0), replace(SLEEPS, mode=Mode.RECOMMEND))[-1]
    assert (last.target, last.act) == (0, False)


def test_several_replicas_go_one_by_one_before_the_last():
    policy = replace(SLEEPS, rates=replace(POLICY.rates, down_stable_s=20.0, down_interval_s=10.0))
    state, target, was = State.new(), 3, []
    for i in range(60):
        decision, state = decide(idle(5.0 * i, Fleet(target=target, ready=target)), policy, state)
        target = decision.target
        was.append(target)
    assert sorted(was, reverse=True) == was
    assert set(was) == {3, 2, 1, 0}


@pytest.mark.parametrize(("held", "replicas"), [(1, 1), (8, 1), (9, 2), (20, 3), (50, 4), (1000, 4)])
def test_what_is_held_wakes_as_many_as_have_seats_for_it_at_once(held: float, replicas: int):
    [decision] = played([idle(0.0, NONE, held=held, inside=held)])
    # Eight seats each, by the policy; four at once, by its rates.
    assert (decision.target, decision.act, decision.reason) == (replicas, True, c.REASON_WAKE)
    few = "1 request" if held == 1 else f"{held} requests"
    assert decision.message == f"0 -> {replicas}: {few} held until a replica is ready, a replica takes 40 s"


def test_it_sleeps_on_while_nothing_is_held_and_while_nobody_knows():
    known = played([idle(0.0, NONE)])[0]
    assert (known.target, known.act, known.reason) == (0, False, c.REASON_IDLE)
    blind = replace(idle(0.0, NONE, held=None, inside=None), freshness=Freshness.ABSENT, classes={})
    unknown = played([blind])[0]
    assert (unknown.target, unknown.act, unknown.reason) == (0, False, c.REASON_SIGNALS)


def test_more_that_come_while_it_loads_get_more_replicas_and_fewer_never_take_one_away():
    loading = Fleet(target=1, ready=0, starting_s=(10.0,))
    absent = {"freshness": Freshness.ABSENT, "classes": {}}
    more, fewer = (replace(idle(t, loading, held=h, inside=h), **absent) for t, h in ((0.0, 20.0), (5.0, 1.0)))
    first, second = played([more, fewer])
    assert (first.target, first.reason) == (3, c.REASON_WAKE)
    assert (second.target, second.act) == (1, False)
    assert second.message == "1: 1 request held until a replica is ready, 1 starting, a replica takes 40 s"


def test_a_replica_that_serve_woke_while_nobody_decided_is_taken_over():
    woken = replace(idle(0.0, Fleet(target=0, ready=1), medium=counts({100: 3.0})), ingress_requests=3.0)
    assert played([woken])[0].target == 1


def test_a_minimum_of_one_wakes_what_sleeps():
    absent = replace(idle(0.0, NONE, held=None, inside=None), freshness=Freshness.ABSENT, classes={})
    for seen in (absent, idle(0.0, NONE)):
        [decision] = played([seen], POLICY)
        assert (decision.target, decision.act) == (1, True)


def test_the_arrivals_that_woke_it_are_not_spread_over_the_night():
    """The rate is what it was asked for of late: hours of sleep are known to be empty, not unseen."""
    seen = [idle(5.0 * i, NONE) for i in range(2000)]
    seen.append(idle(10_000.0, ONE, medium=counts({0: 5.0}, arrivals=20.0)))
    state = State.new()
    for one in seen:
        decision, state = decide(one, SLEEPS, state)
    assert decision.numbers.arrival_rate > 0.05


@given(histories, observations, st.sampled_from(Freshness))
def test_zero_is_never_reached_but_from_one_idle_replica(history: Any, last: Observation, freshness: Freshness):
    state = state_after(history, SLEEPS)
    last = replace(last, time=1000.0, freshness=freshness)
    decision, after = decide(last, SLEEPS, state)
    if decision.target == 0 and last.fleet.target > 0:
        assert last.fleet.target == 1
        assert last.fleet.ready > 0
        assert freshness is Freshness.FRESH
        assert last.held_requests == last.ingress_requests == 0.0
        assert after.idle_since is not None
