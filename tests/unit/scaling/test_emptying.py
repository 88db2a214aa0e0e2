"""A replica is emptied by the routers before the number is lowered: whom, when it goes, and when it is taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scaling.worlds import POLICY, counts

from reasonscale.scaling.decide import decide
from reasonscale.scaling.emptying import SETTLE_S, plan, serving
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Decision, Fleet, Freshness, Mode, Observation, Policy, ReplicaCounts
from reasonscale.scaling.victims import Standing, victims


class Replicas:
    """A fleet that Serve keeps: it stops whom its rule names, and routers send as they are told. One replica a node."""

    def __init__(self, number: int, policy: Policy = POLICY, one_node: bool = False) -> None:
        self.policy, self.state, self.time = policy, State.new(), 0.0
        self.target, self.emptied, self.one_node = number, (), one_node
        self.has: dict[str, float] = {
            f"r{i}": 0.0 for i in range(number)
        }  # requests of each, the longest running first
        self.stopped: list[tuple[str, float]] = []  # who was told to go, and what it had then
        self.decisions: list[Decision] = []

    def fleet(self) -> Fleet:
        return Fleet(self.target, len(self.has), (), 0, self.emptied)

    def tick(self, arrivals: float = 0.0, freshness: Freshness = Freshness.FRESH) -> Decision:
        self.time += 5.0
        running = sum(self.has.values())
        seen = Observation(
            self.time, 5.0, freshness, 1.0, self.fleet(),
            {"medium": counts({100: running} if running else None, arrivals=arrivals)},
            tuple(
                ReplicaCounts(
                    f"w-{r}", kv_capacity_tokens=5120.0, running=n, replica=r, node="n" if self.one_node else f"n-{r}",
                    since_s=float(r[1:]),
                )
                for r, n in self.has.items()
            ),
        )  # fmt: skip
        decision, self.state = decide(seen, self.policy, self.state)
        asked = decision.target + len(decision.emptied)
        if asked < self.target:
            there = [Standing(r, "engine", "n" if self.one_node else f"n-{r}") for r in self.has]
            for r in victims(there, "engine", self.target - asked):
                self.stopped.append((r, self.has.pop(r)))
        self.target, self.emptied = asked, decision.emptied
        self.decisions.append(decision)
        return decision

    def until(self, condition, ticks: int = 100, freshness: Freshness = Freshness.FRESH) -> None:
        for _ in range(ticks):
            if condition():
                return
            self.tick(freshness=freshness)
        raise AssertionError([d.message for d in self.decisions[-3:]])


@pytest.mark.parametrize(("one_node", "first"), [(False, "r0"), (True, "r2")])
def test_the_replica_that_serve_would_stop_gets_nothing_more_and_goes_when_it_has_nothing(
    one_node: bool, first: str
) -> None:
    fleet = Replicas(3, one_node=one_node)
    fleet.has |= dict.fromkeys(fleet.has, 1.0)
    fleet.until(lambda: fleet.emptied)
    assert fleet.emptied == (first,)
    assert fleet.target == 3  # the number stays until it is empty
    assert fleet.decisions[-1].target == 2
    assert "1 more is emptied first" in fleet.decisions[-1].message
    for _ in range(3):
        fleet.tick()
    assert (fleet.target, fleet.stopped) == (3, [])
    fleet.has[first] = 0.0
    fleet.until(lambda: fleet.stopped)
    assert fleet.stopped == [(first, 0.0)]
    assert fleet.target == 2
    assert first not in fleet.emptied


def test_none_is_let_go_before_the_routers_had_time_to_hear_of_it() -> None:
    fleet = Replicas(2)
    fleet.until(lambda: fleet.emptied)
    told = fleet.time
    fleet.until(lambda: fleet.stopped)
    assert fleet.time - told > SETTLE_S


def test_need_that_comes_back_takes_back_what_is_emptied_and_starts_nothing() -> None:
    fleet = Replicas(2)
    fleet.has["r0"] = 1.0
    fleet.until(lambda: fleet.emptied)
    fleet.has["r1"] = 11.0
    for _ in range(3):
        fleet.tick(arrivals=3.0)
        if not fleet.emptied:
            break
    assert (fleet.emptied, fleet.target, fleet.stopped) == ((), 2, [])
    assert fleet.decisions[-1].target == 2


def test_steps_down_go_on_while_others_are_still_emptied() -> None:
    fleet = Replicas(8)
    fleet.has |= {"r0": 0.5, "r1": 0.5, "r7": 0.0}
    fleet.until(lambda: fleet.decisions and fleet.decisions[-1].target == 1)
    assert fleet.emptied[:2] == ("r0", "r1")
    assert fleet.stopped == []  # r0 is not done, and Serve would stop it first
    fleet.has |= {"r0": 0.0, "r1": 0.0}
    fleet.until(lambda: fleet.target == 1)
    assert [had for _, had in fleet.stopped] == [0.0] * 7


def test_a_chain_that_does_not_end_holds_its_replica_for_drain_max_and_no_longer() -> None:
    fleet = Replicas(2, replace(POLICY, drain_s=100.0))
    fleet.has["r0"] = 1.0
    fleet.until(lambda: fleet.emptied)
    told = fleet.time
    fleet.until(lambda: fleet.stopped)
    assert fleet.stopped == [("r0", 1.0)]  # and Serve drains it for as long again
    assert 100.0 <= fleet.time - told <= 110.0


def test_signals_that_grow_old_change_nothing_of_it() -> None:
    fleet = Replicas(2)
    fleet.has["r0"] = 1.0
    fleet.until(lambda: fleet.emptied)
    fleet.has["r0"] = 0.0
    for _ in range(10):
        fleet.tick(freshness=Freshness.STALE)
    assert (fleet.emptied, fleet.target) == (("r0",), 2)
    fleet.until(lambda: fleet.stopped)


def test_signals_that_stay_old_hold_what_is_emptied_for_drain_max_and_no_longer() -> None:
    fleet = Replicas(2, replace(POLICY, drain_s=100.0))
    fleet.has["r0"] = 1.0
    fleet.until(lambda: fleet.emptied)
    told = fleet.time
    fleet.until(lambda: not fleet.emptied, freshness=Freshness.STALE)
    assert 100.0 <= fleet.time - told <= 110.0


def seen_of(fleet: Fleet, *replicas: ReplicaCounts) -> Observation:
    return Observation(100.0, 5.0, Freshness.FRESH, 1.0, fleet, {}, replicas)


ONE = ReplicaCounts("a", running=1.0, replica="r0", node="n0", since_s=1.0)
TWO = ReplicaCounts("b", running=1.0, replica="r1", node="n1", since_s=2.0)


def test_where_nobody_knows_who_goes_the_number_is_lowered_at_once() -> None:
    two = Fleet(2, 2, emptied=())
    assert plan(seen_of(two, ONE, TWO), 1, POLICY, State.new())[0] == ("r0",)
    for seen in (
        seen_of(two, ONE, replace(TWO, replica=None)),  # an engine of older code
        seen_of(two, ONE),
        seen_of(replace(two, emptied=None), ONE, TWO),  # an actuator that can't
        # Those of the cluster that a rollout has replaced still report, and Serve will stop another.
        seen_of(two, ONE, TWO, replace(ONE, id="c", replica="r2"), replace(TWO, id="d", replica="r3")),
    ):
        assert plan(seen, 1, POLICY, State.new())[0] == ()


def test_replicas_that_start_go_first_and_nobody_is_emptied_for_them() -> None:
    seen = seen_of(Fleet(3, 2, (9.0,), emptied=()), ONE, TWO)
    assert plan(seen, 2, POLICY, State.new())[0] == ()
    assert plan(seen, 1, POLICY, State.new())[0] == ("r0",)


def test_recommend_and_sleep_empty_nobody() -> None:
    seen = seen_of(Fleet(2, 2, emptied=("r0",)), ONE, TWO)
    assert plan(seen, 1, replace(POLICY, mode=Mode.RECOMMEND), State.new())[0] == ()
    assert plan(seen, 0, POLICY, State.new())[0] == ()


def test_one_that_was_let_go_and_is_still_read_is_not_emptied_again() -> None:
    fleet = Replicas(3)
    fleet.until(lambda: fleet.stopped)
    gone = fleet.stopped[0][0]
    fleet.has = {gone: 0.0, **fleet.has}  # its ledger lingers
    fleet.tick()
    assert gone not in fleet.emptied


def test_what_is_emptied_counts_as_what_drains_for_all_who_ask_how_many_serve() -> None:
    assert serving(Fleet(3, 3, (), 1, ("r0", "r1"))) == Fleet(1, 1, (), 3, ("r0", "r1"))
    plain = Fleet(3, 2, (4.0,), 1)
    assert serving(plain) is plain


@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(1, 6), st.booleans(),
)  # fmt: skip
def test_whatever_comes_nobody_is_told_to_go_with_a_chain_and_bounds_are_kept(
    load: list[tuple[float, int]], number: int, one_node: bool
) -> None:
    fleet = Replicas(number, replace(POLICY, min_replicas=1, max_replicas=6), one_node)
    for arrivals, ends in load:
        open_to = [r for r in fleet.has if r not in fleet.emptied] or list(fleet.has)
        for i in range(round(arrivals)):
            fleet.has[open_to[i % len(open_to)]] += 1.0
        for r in list(fleet.has)[: max(1, ends)]:
            fleet.has[r] = max(0.0, fleet.has[r] - ends)
        before = set(fleet.has)
        decision = fleet.tick(arrivals=arrivals)
        assert 1 <= decision.target <= 6
        assert fleet.target <= max(6, number)
        assert set(decision.emptied) <= before
        for _ in range(fleet.target - len(fleet.has)):  # what was ordered is there at once
            fleet.has[f"r{100 + len(fleet.has) + round(fleet.time)}"] = 0.0
    assert [had for _, had in fleet.stopped if had] == []


def test_one_with_a_request_that_runs_and_one_that_waits_is_not_empty() -> None:
    state = State(emptied_since=(("r0", 0.0),))
    seen = seen_of(Fleet(2, 2, emptied=("r0",)), replace(ONE, waiting=1.0), TWO)
    assert plan(seen, 1, POLICY, state)[0] == ("r0",)
    gone = seen_of(Fleet(2, 2, emptied=("r0",)), replace(ONE, running=0.0), TWO)
    assert plan(gone, 1, POLICY, state)[0] == ()
