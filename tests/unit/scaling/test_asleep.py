"""Replicas that are not needed sleep instead of being stopped: who, how many, and by which horizon they are woken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scaling.worlds import POLICY, counts

from reasonscale.scaling.decide import decide
from reasonscale.scaling.emptying import SETTLE_S, awake, plan, risen, serving
from reasonscale.scaling.state import State, wake_time_s
from reasonscale.scaling.types import Decision, Fleet, Freshness, Mode, Observation, Policy, ReplicaCounts
from reasonscale.scaling.victims import Standing, victims

ONE_SLEEPS = replace(POLICY, asleep=1)


class Replicas:
    """A fleet that obeys: Serve stops whom its rule names, engines sleep when they are told and have nothing. One replica a node."""

    def __init__(self, number: int, policy: Policy = ONE_SLEEPS, start_s: float = 40.0) -> None:
        self.policy, self.state, self.time, self.start_s = policy, State.new(), 0.0, start_s
        self.target = number
        self.emptied: tuple[str, ...] = ()
        self.asleep: tuple[str, ...] = ()
        self.sleeps: set[str] = set()  # whose engine sleeps
        self.has: dict[str, float] = {f"r{i}": 0.0 for i in range(number)}
        self.replacing, self.unable = False, set[str]()  # a rollout is under way; engines without sleep mode
        self.orders: list[float] = []
        self.stopped: list[tuple[str, float]] = []
        self.started = 0
        self.decisions: list[Decision] = []

    @property
    def serve(self) -> list[str]:
        return [r for r in self.has if r not in self.emptied]

    def seen(self, arrivals: float, freshness: Freshness, made: int) -> Observation:
        running = sum(self.has.values())
        starting = tuple(self.time - at for at in self.orders)
        return Observation(
            self.time, 5.0, freshness, 1.0,
            Fleet(self.target, len(self.has), starting, 0, self.emptied, self.asleep, self.replacing),
            {"medium": counts({made: running} if running else None, arrivals=arrivals)},
            tuple(
                ReplicaCounts(
                    f"w-{r}", kv_capacity_tokens=5120.0, running=n, replica=r, node=f"n-{r}", since_s=float(r[1:]),
                    asleep=r in self.sleeps, can_sleep=r not in self.unable,
                )
                for r, n in self.has.items()
            ),
        )  # fmt: skip

    def tick(self, arrivals: float = 0.0, freshness: Freshness = Freshness.FRESH, made: int = 100) -> Decision:
        self.time += 5.0
        for at in [at for at in self.orders if self.time - at >= self.start_s]:
            self.orders.remove(at)
            self.has[f"r{1000 + self.started}"] = 0.0
            self.started += 1
        decision, self.state = decide(self.seen(arrivals, freshness, made), self.policy, self.state)
        asked = decision.target + len(decision.emptied)
        self.orders += [self.time] * max(0, asked - self.target)
        fewer = self.target - asked
        while fewer > 0 and self.orders:
            self.orders.pop()
            fewer -= 1
        there = [Standing(r, "engine", f"n-{r}") for r in self.has]
        for r in victims(there, "engine", max(0, fewer)):
            self.stopped.append((r, self.has.pop(r)))
        self.target, self.emptied, self.asleep = asked, decision.emptied, decision.asleep
        self.sleeps = {r for r in self.has if r in self.asleep and not self.has[r]}
        self.decisions.append(decision)
        return decision

    def until(self, condition, ticks: int = 100, **tick) -> None:
        for _ in range(ticks):
            if condition():
                return
            self.tick(**tick)
        raise AssertionError([d.message for d in self.decisions[-3:]])


def test_one_that_is_not_needed_finishes_what_it_has_and_then_sleeps_and_is_not_stopped() -> None:
    fleet = Replicas(3)
    fleet.has["r1"] = 1.0
    fleet.until(lambda: fleet.emptied)
    fleet.until(lambda: fleet.stopped)
    assert fleet.stopped == [("r0", 0.0)]
    assert not fleet.asleep
    fleet.has["r1"] = 0.0
    for _ in range(30):
        fleet.tick()
    assert len(fleet.stopped) == 1  # one of three serves, one sleeps, one was too many
    assert (fleet.target, len(fleet.asleep), len(fleet.serve)) == (2, 1, 1)
    assert fleet.sleeps == set(fleet.asleep)
    assert fleet.decisions[-1].target == 1
    assert "1 more is asleep" in fleet.decisions[-1].message


def test_none_is_put_to_sleep_before_the_routers_had_time_to_hear_of_it() -> None:
    fleet = Replicas(2)
    fleet.until(lambda: fleet.emptied)
    assert not fleet.asleep
    told = fleet.time
    fleet.until(lambda: fleet.asleep)
    assert fleet.time - told > SETTLE_S


def test_a_chain_that_does_not_end_holds_its_replica_for_drain_max_and_no_longer() -> None:
    fleet = Replicas(2, replace(ONE_SLEEPS, drain_s=100.0))
    fleet.has["r0"] = 1.0
    fleet.until(lambda: fleet.emptied)
    told = fleet.time
    fleet.until(lambda: fleet.stopped)
    assert fleet.stopped == [("r0", 1.0)]
    assert 100.0 <= fleet.time - told <= 110.0


def asleep_of(number: int, sleeping: int, policy: Policy = ONE_SLEEPS, **more) -> Replicas:
    fleet = Replicas(number, replace(policy, asleep=sleeping), **more)
    fleet.until(lambda: len(fleet.sleeps) == sleeping)
    return fleet


def test_need_wakes_who_sleeps_and_starts_nobody() -> None:
    fleet = asleep_of(2, 1)
    fleet.has[fleet.serve[0]] = 12.0
    fleet.until(lambda: not fleet.asleep, 3, arrivals=3.0)
    assert (fleet.target, fleet.emptied, fleet.orders, fleet.stopped) == (2, (), [], [])
    assert fleet.decisions[-1].target == 2


LONG_CHAINS = replace(
    POLICY, start_prior_s=120.0, kv_capacity_tokens=200_000.0, length_prior={"medium": 2000.0},
    length_limit={"medium": 8192.0},
)  # fmt: skip


def test_what_is_needed_only_after_a_start_wakes_nobody_yet_and_orders_nobody() -> None:
    """Ten chains of 2,000 tokens come in 100 s: in the 125 s of a start they want a second replica, in the 15 s of a wake not yet."""
    fleet, without = asleep_of(2, 1, LONG_CHAINS), Replicas(1, LONG_CHAINS)
    first: dict[str, float] = {}
    said, running = [], 0.0
    for step in range(40):
        running += 0.5
        for name, world in (("asleep", fleet), ("without", without)):
            world.has[world.serve[0]] = running
            decision = world.tick(arrivals=0.5)
            if decision.target > 1:
                first.setdefault(name, step)
            if name == "asleep":
                said.append(decision)
    assert first["asleep"] > first["without"] + 4
    waited = [d for d in said if "need 2 replicas in 125 s" in d.message]
    assert waited
    assert all(d.target == 1 and d.asleep and d.numbers.need_awake <= 1.02 for d in waited)


def test_who_is_wanted_beyond_those_that_sleep_is_ordered_at_the_horizon_of_a_start_and_all_are_woken() -> None:
    fleet = asleep_of(2, 1)
    fleet.has[fleet.serve[0]] = 40.0
    fleet.until(lambda: fleet.orders, 4, arrivals=10.0)
    assert fleet.decisions[-1].target > 2
    assert fleet.asleep == ()


def test_one_that_was_woken_by_a_request_serves_and_is_named_no_more() -> None:
    fleet = asleep_of(2, 1)
    (name,) = fleet.asleep
    fleet.has[name] = 1.0  # an ingress that would have refused somebody roused it
    fleet.tick()
    assert (fleet.asleep, fleet.emptied, fleet.decisions[-1].target) == ((), (), 2)


@pytest.mark.parametrize("has", [{"running": 1.0}, {"waiting": 1.0}])
def test_whoever_has_a_request_running_or_waiting_is_up(has: dict[str, float]) -> None:
    fleet = Fleet(3, 3, (), 0, ("r0", "r1"), ("r0", "r1"))
    one, two = (ReplicaCounts(r, replica=r, asleep=True) for r in ("r0", "r1"))
    seen = Observation(1.0, 5.0, Freshness.FRESH, 1.0, fleet, {}, (replace(one, **has), two))
    assert risen(seen).fleet == replace(fleet, emptied=("r1",), asleep=("r1",))


def test_those_that_sleep_already_stay_asleep_and_others_are_had_back() -> None:
    fleet = Replicas(3, replace(POLICY, asleep=2))
    fleet.has["r0"] = 1.0
    fleet.until(lambda: fleet.sleeps)
    assert fleet.sleeps == {"r1"}
    assert set(fleet.emptied) == {"r0", "r1"}
    fleet.has["r2"] = 11.0
    fleet.until(lambda: len(fleet.emptied) < 2, 4, arrivals=3.0)
    assert fleet.emptied == ("r1",)  # r0 is awake: it takes requests at once


def test_one_that_sleeps_takes_the_place_of_one_that_is_lost_and_nobody_has_to_start_for_it() -> None:
    fleet = asleep_of(3, 1, replace(POLICY, min_replicas=2))
    (sleeper,), lost = fleet.asleep, fleet.serve[0]
    del fleet.has[lost]
    fleet.orders.append(fleet.time)
    fleet.tick()
    assert (fleet.asleep, fleet.target, fleet.orders, fleet.stopped) == ((), 2, [], [])
    assert sleeper in fleet.serve
    fleet.tick()
    assert fleet.state.starts_s == (), "it was woken, and nothing started"


@pytest.mark.parametrize("stopped", ["sleeps", "serves"])
def test_while_a_rollout_replaces_engines_the_start_of_a_successor_is_not_taken_back(stopped: str) -> None:
    """Of two, one asleep, Serve has stopped one. Were its successor not waited for, the other would be stopped when nobody else serves."""
    fleet = asleep_of(2, 1)
    del fleet.has[fleet.asleep[0] if stopped == "sleeps" else fleet.serve[0]]
    fleet.orders.append(fleet.time)
    fleet.replacing = True
    fleet.tick()
    assert (fleet.target, len(fleet.orders), fleet.emptied) == (2, 1, ())
    assert fleet.decisions[-1].message.endswith("2 stay while a rollout replaces engines")
    fleet.until(lambda: not fleet.orders)
    fleet.replacing = False
    fleet.until(lambda: fleet.sleeps)
    assert (fleet.target, fleet.stopped) == (2, [])


def test_an_engine_that_a_rollout_has_not_reached_yet_and_that_can_not_sleep_is_not_taken_for_one_that_does() -> None:
    fleet = Replicas(3)
    fleet.unable = set(fleet.has)
    fleet.until(lambda: fleet.target == 1)
    assert not any(d.asleep for d in fleet.decisions)
    fleet = Replicas(3)
    fleet.unable = {"r1"}
    fleet.until(lambda: fleet.sleeps)
    assert fleet.sleeps == {"r2"}


def test_signals_that_grow_old_leave_everybody_as_he_is() -> None:
    fleet = asleep_of(2, 1)
    before = fleet.asleep
    for _ in range(1000):  # longer than drain.max
        fleet.tick(freshness=Freshness.STALE)
    assert (fleet.asleep, fleet.target, fleet.stopped) == (before, 2, [])


def test_at_zero_those_that_sleep_go_with_the_last() -> None:
    fleet = asleep_of(2, 1, replace(POLICY, min_replicas=0, zero_after_s=60.0))
    fleet.policy = replace(fleet.policy, min_replicas=0, zero_after_s=60.0)

    def tick() -> Decision:
        fleet.time += 5.0
        seen = replace(fleet.seen(0.0, Freshness.FRESH, 100), held_requests=0.0, ingress_requests=0.0)
        decision, fleet.state = decide(seen, fleet.policy, fleet.state)
        return decision

    found = [tick() for _ in range(30)]
    assert (found[-1].target, found[-1].emptied, found[-1].asleep) == (0, (), ())


def test_how_long_a_wake_takes_is_learnt_from_looks() -> None:
    fleet = asleep_of(2, 1)
    assert wake_time_s(fleet.state, fleet.policy) == 10.0
    fleet.has[fleet.serve[0]] = 12.0
    fleet.until(lambda: not fleet.asleep, 3, arrivals=3.0)
    fleet.tick(arrivals=3.0)
    assert wake_time_s(fleet.state, fleet.policy) == 5.0  # one look later
    assert fleet.tick(arrivals=3.0).numbers.wake_horizon_s == 10.0


def test_one_that_is_told_to_sleep_on_before_it_has_woken_is_learnt_as_no_wake() -> None:
    fleet = asleep_of(2, 1)
    (name,) = fleet.asleep
    fleet.has[fleet.serve[0]] = 12.0
    fleet.until(lambda: not fleet.asleep, 3, arrivals=3.0)
    fleet.sleeps = {name}  # its engine is held, or the ingress has not heard of it
    busy = next(r for r in fleet.has if r != name)
    fleet.has[busy] = 0.0
    fleet.target, fleet.emptied, fleet.asleep = 2, (name,), (name,)
    fleet.policy = replace(fleet.policy, mode=Mode.MANUAL, manual_replicas=1)
    for _ in range(10):
        fleet.tick()
    assert fleet.asleep == (name,)
    fleet.policy = replace(fleet.policy, manual_replicas=2)
    fleet.tick()
    fleet.tick()
    assert fleet.state.wakes_s == (5.0,)


def test_maxreplicas_counts_those_that_sleep() -> None:
    seen = Observation(
        100.0, 5.0, Freshness.FRESH, 1.0, Fleet(3, 3, emptied=("r0", "r1"), asleep=("r0", "r1")), {},
        tuple(ReplicaCounts(f"w{i}", replica=f"r{i}", node=f"n{i}", since_s=float(i), asleep=i < 2) for i in range(3)),
    )  # fmt: skip
    emptied, asleep, after = plan(
        seen, 1, replace(POLICY, asleep=2, max_replicas=2), State(emptied_since=(("r0", 0.0), ("r1", 0.0)))
    )
    assert emptied == asleep == ("r1",), "with the one that serves they are two"
    assert after.let_go == (("r0", 100.0),)


def test_manual_and_recommend() -> None:
    fleet = Replicas(2, replace(POLICY, asleep=1, mode=Mode.MANUAL, manual_replicas=1))
    fleet.until(lambda: fleet.sleeps)
    assert (fleet.target, fleet.stopped) == (2, [])
    fleet.policy = replace(fleet.policy, manual_replicas=2)
    fleet.tick()
    assert (fleet.asleep, fleet.target) == ((), 2)


def test_who_sleeps_counts_neither_as_serving_nor_as_draining_and_its_kv_cache_not_at_all() -> None:
    fleet = Fleet(4, 4, (), 1, ("r0", "r1"), ("r1",))
    assert replace(serving(fleet), emptied=None, asleep=()) == Fleet(2, 2, (), 2)
    seen = Observation(
        1.0, 5.0, Freshness.FRESH, 1.0, fleet, {}, tuple(ReplicaCounts(r, replica=r) for r in ("r0", "r1", "r2"))
    )
    assert [r.id for r in awake(seen)] == ["r0", "r2"]


@pytest.mark.parametrize("asleep", [0, 1, 2, 5])
@given(
    load=st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(0, 9)), min_size=1, max_size=60), number=st.integers(1, 6)
)
def test_whatever_comes(asleep: int, load: list[tuple[float, int]], number: int) -> None:
    """Never more asleep than the policy says, never the last that serves, nobody with a request, no more asked for than maxReplicas."""
    fleet = Replicas(number, replace(POLICY, max_replicas=6, asleep=asleep))
    for arrivals, ends in load:
        there = fleet.serve or list(fleet.has)
        for i in range(round(arrivals)):
            fleet.has[there[i % len(there)]] += 1.0
        for r in list(fleet.has)[: max(1, ends)]:
            fleet.has[r] = max(0.0, fleet.has[r] - ends)
        busy = {r for r, n in fleet.has.items() if n}
        decision = fleet.tick(arrivals=arrivals)
        assert len(decision.asleep) <= asleep
        assert set(decision.asleep) <= set(decision.emptied) <= set(fleet.has)
        assert not busy & set(decision.asleep)
        assert fleet.serve
        assert fleet.target >= decision.target + len(decision.asleep)
        assert fleet.target <= 6
    assert [had for _, had in fleet.stopped if had] == []


def test_a_wake_that_takes_longer_than_a_start_is_looked_ahead_to_as_well():
    policy = replace(ONE_SLEEPS, start_prior_s=30.0, wake_prior_s=300.0)
    seen = Replicas(3, policy).seen(arrivals=40.0, freshness=Freshness.FRESH, made=100)
    numbers = decide(seen, policy, State.new())[0].numbers
    assert numbers.wake_horizon_s == 305.0
    assert numbers.need_awake > numbers.need_kv > 0.0
