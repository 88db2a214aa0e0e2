"""When a decision acts at once, when it waits, and when it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.scaling.worlds import POLICY, World, bins, counts, observe

from reasonscale.api import constants as c
from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State, start_time_s
from reasonscale.scaling.types import Fleet, Freshness, Mode, Rates


def busy(world: World, ticks: int, requests: float = 8.0, rate: float = 2.5, **more):
    """A minute's load: `requests` in flight at various ages and as many coming as end."""
    for _ in range(ticks):
        share = requests / 4
        world.tick(
            medium=counts(
                {16: share, 100: share, 200: share, 390: share}, arrivals=rate,
                reached=bins({0: rate, 16: rate, 32: rate, 48: rate, 64: rate, 96: rate, 128: rate, 192: rate, 256: rate}),
                ended=bins({256: rate}), reasoning_tokens=rate * 300.0, **more,
            )
        )  # fmt: skip
    return world.decisions[-1]


def test_a_burst_that_has_ended_gives_its_replica_back_within_three_minutes():
    world = World()
    for _ in range(12):  # 1/s for a minute
        busy(world, 1, requests=14.0, rate=5.0)
    assert world.target >= 2
    high = world.target
    for _ in range(36):
        world.tick(medium=counts())
    assert world.decisions[-1].target == 1
    first_down = next(d for d in world.decisions[12:] if d.target < d.current)
    assert first_down.reason == c.REASON_CALM
    assert first_down.time - 60.0 <= 120.0
    assert first_down.message.startswith(f"{high} -> {high - 1}: ")


def test_one_noisy_tick_orders_nothing_and_two_do():
    world = World()
    assert busy(world, 1, requests=24.0, rate=8.0).target == 1
    assert busy(world, 1, requests=24.0, rate=8.0).target > 1


def test_a_queue_over_the_objective_is_answered_in_the_same_tick():
    world = World()
    busy(world, 1, requests=8.0)
    decision = world.tick(medium=counts({100: 8.0}, waiting=24.0, arrivals=2.0))
    assert decision.target >= 4
    assert decision.reason == c.REASON_QUEUE
    assert "24 waiting" in decision.message
    assert decision.act


def test_a_queue_that_the_free_seats_take_is_no_emergency():
    world = World(ready=2)
    decision = world.tick(medium=counts({100: 8.0}, waiting=3.0, arrivals=3.0))
    assert decision.reason != c.REASON_QUEUE
    assert decision.numbers.need_queue == 0.0


def test_preemptions_in_two_ticks_running_ask_for_one_more_though_the_forecast_does_not():
    world = World()
    for _ in range(3):
        world.tick(medium=counts({100: 2.0}))
    assert world.tick(medium=counts({100: 2.0}), preemptions=2.0).target == 1
    decision = world.tick(medium=counts({100: 2.0}), preemptions=2.0)
    assert (decision.target, decision.reason) == (2, c.REASON_PREEMPTION)
    assert "preemptions/s" in decision.message  # which the event and the status bear


def test_replicas_on_their_way_are_not_ordered_again():
    world = World(start_s=40.0)
    busy(world, 2, requests=12.0)
    ordered = world.target
    assert ordered > 1
    assert all(d.target == ordered for d in [busy(world, 1, requests=12.0) for _ in range(6)])


def test_a_replica_that_is_long_overdue_is_not_counted_on():
    world = World(start_s=1e9)
    busy(world, 2, requests=12.0)
    ordered = world.target
    busy(world, 20, requests=12.0)
    assert world.target > ordered


def test_kv_that_will_be_full_scales_up_though_seats_and_decode_time_are_plenty():
    policy = replace(POLICY, max_num_seqs=256, length_prior={"medium": 1500.0})
    world = World(policy)
    decision = None
    for _ in range(2):
        decision = world.tick(medium=counts({600: 6.0}, arrivals=0.0))
    assert decision is not None
    assert decision.target >= 2
    assert decision.reason == c.REASON_KV
    assert "KV" in decision.message


def test_a_kv_cache_that_is_nearly_full_is_believed_at_once_and_the_message_says_so():
    policy = replace(POLICY, max_num_seqs=256, length_prior={"medium": 1500.0})
    world = World(policy)
    assert world.tick(medium=counts({100: 1.0})).target == 1
    decision = world.tick(medium=counts({1000: 5.0}), kv_used=5000.0)
    assert (decision.target > 1, decision.reason, decision.act) == (True, c.REASON_KV, True)
    assert "KV" in decision.message
    # The same load in a cache with room is looked at twice.
    world = World(policy)
    world.tick(medium=counts({100: 1.0}))
    assert world.tick(medium=counts({1000: 5.0}), kv_used=4000.0).target == 1


def test_calm_must_last_before_a_replica_goes_and_they_go_one_by_one():
    world = World(replace(POLICY, rates=Rates(down_stable_s=30.0, down_interval_s=20.0)), ready=3)
    for _ in range(20):
        world.tick(medium=counts())
    downs = [d for d in world.decisions if d.target < d.current]
    assert [d.target for d in downs] == [2, 1]
    assert downs[0].time >= 5.0 + 30.0
    assert downs[1].time - downs[0].time >= 20.0


@pytest.mark.parametrize("freshness", [Freshness.STALE, Freshness.ABSENT])
def test_blindness_holds_says_so_and_starts_the_calm_anew(freshness):
    world = World(ready=3)
    for _ in range(5):
        world.tick(medium=counts())
    held = world.tick(freshness=freshness)
    assert (held.target, held.act, held.reason) == (3, False, c.REASON_SIGNALS)
    assert "holding" in held.message
    for _ in range(6):
        assert world.tick(medium=counts()).target == 3


def test_recommend_says_what_auto_would_do_and_does_not_act():
    auto, recommend = World(), World(replace(POLICY, mode=Mode.RECOMMEND))
    for world in (auto, recommend):
        busy(world, 2, requests=24.0, rate=8.0)
    assert recommend.decisions[-1].target == auto.decisions[-1].target > 1
    assert auto.decisions[-1].act
    assert not recommend.decisions[-1].act


@pytest.mark.parametrize(("mode", "reason"), [(Mode.MANUAL, c.REASON_MANUAL), (Mode.EXTERNAL, c.REASON_EXTERNAL)])
def test_manual_and_external_obey_spec_replicas_within_the_bounds(mode, reason):
    world = World(replace(POLICY, mode=mode, manual_replicas=3))
    decision = world.tick(medium=counts({100: 50.0}))
    assert (decision.target, decision.reason, decision.act) == (3, reason, True)
    world.policy = replace(world.policy, manual_replicas=99)
    decision = world.tick(freshness=Freshness.ABSENT)
    assert (decision.target, decision.limited) == (8, True)
    assert "99" in decision.message


def test_a_need_over_the_maximum_is_said():
    world = World(replace(POLICY, max_replicas=2))
    decision = busy(world, 3, requests=40.0, rate=10.0)
    assert decision.limited
    assert decision.target == 2
    assert "maxReplicas is 2" in decision.message


def test_one_decision_asks_for_no_more_than_the_rates_allow():
    world = World(replace(POLICY, max_replicas=50, rates=Rates(up_max_factor=2.0, up_max_step=2)))
    assert busy(world, 2, requests=200.0, rate=40.0).target == 3


def test_rises_that_help_nothing_end_the_climb():
    # The backlog stays and so do the tokens made, however many replicas there are: something else is the limit.
    world = World(replace(POLICY, max_replicas=50, rates=Rates(up_max_factor=1.0, up_max_step=1)))
    climbing, world.policy = world.policy, replace(world.policy, max_replicas=1)
    busy(world, 36, requests=400.0, rate=60.0)
    world.policy = climbing
    stuck = [busy(world, 1, requests=400.0, rate=60.0) for _ in range(60)]
    assert "have not helped" in stuck[-1].message
    assert world.target < 30 < stuck[-1].numbers.need_concurrency


def test_rises_that_help_go_on():
    world = World(replace(POLICY, max_replicas=50, rates=Rates(up_max_factor=1.0, up_max_step=1)))
    for _ in range(12):
        busy(world, 3, requests=400.0, rate=40.0 * min(world.ready, 20) / 20)
    assert not any("have not helped" in d.message for d in world.decisions)


def test_starts_are_measured_from_the_fleet_and_their_p90_is_the_horizon():
    world = World(start_s=20.0)
    busy(world, 12, requests=24.0, rate=8.0)
    assert world.state.starts_s
    assert all(20.0 <= s <= 25.0 for s in world.state.starts_s)
    assert world.decisions[-1].numbers.horizon_s == pytest.approx(start_time_s(world.state, POLICY) + POLICY.tick_s)
    ten = replace(State.new(), starts_s=tuple(float(s) for s in range(1, 11)))
    assert start_time_s(ten, POLICY) == 9.0
    assert start_time_s(State.new(), POLICY) == POLICY.start_prior_s


def test_a_target_outside_the_bounds_is_brought_back_even_without_signals():
    world = World(replace(POLICY, min_replicas=2))
    decision = world.tick(freshness=Freshness.ABSENT)
    assert (decision.target, decision.act, decision.reason) == (2, True, c.REASON_BOUNDS)


def test_an_empty_fleet_of_an_unknown_engine_is_decided_on_without_an_error():
    world = World(replace(POLICY, step_time=None, kv_capacity_tokens=None, length_prior={}, length_limit={}))
    world.ready = 0
    assert world.fleet() == Fleet(1, 0)
    assert 1 <= world.tick(medium=counts(waiting=5.0, arrivals=5.0)).target <= 8


def test_a_recommendation_to_go_down_stands_until_the_load_changes():
    rates = Rates(down_stable_s=20.0, down_interval_s=30.0)
    world = World(replace(POLICY, mode=Mode.RECOMMEND, rates=rates))
    world.target = world.ready = 3
    for _ in range(40):
        world.tick(medium=counts({128: 1.0}, arrivals=0.0))
    said = [d.target for d in world.decisions]
    assert said[-1] == 2
    assert 3 not in said[said.index(2) :]


def test_an_attainment_of_a_half_is_decided_for_too():
    world = World(replace(POLICY, objectives=replace(POLICY.objectives, attainment=0.5)))
    assert world.tick(medium=counts({128: 4.0}, arrivals=1.0)).target >= 1


def test_replicas_that_drain_hold_their_gpus_until_they_are_gone():
    def ordered(draining: int) -> tuple[int, str]:
        state, decision = State.new(), None
        for tick in range(1, 3):
            fleet = Fleet(target=2, ready=2, draining=draining)
            seen = observe(5.0 * tick, fleet, medium=counts({100: 40.0}, waiting=20.0, arrivals=8.0))
            decision, state = decide(seen, replace(POLICY, max_replicas=4), state)
        assert decision is not None
        return decision.target, decision.message

    assert ordered(0)[0] == 4
    target, message = ordered(1)
    assert target == 3
    assert "1 of maxReplicas 4 finish their chains first" in message
    assert ordered(5)[0] == 2  # and none that serves is taken for them
