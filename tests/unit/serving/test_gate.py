"""The gate: who is let in starts in time, who is refused is told a true time, nothing is lost, no seat stays empty."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.serving.engines import Asked, World, high

from reasonscale.serving.gate import Gate, Rules, Ticket

MEAN = 100.0
RULES = Rules(seats=8, max_queue_s=3.0, tpot_s=0.1, expected={"a": MEAN, "b": MEAN})


def capacity(world: World) -> float:
    """Requests per second that the replicas can serve."""
    return world.seats * world.speed / MEAN


def load(world: World, times: float, until_s: float, *, seed: int = 1, back: bool = False) -> list[Asked]:
    world.poisson("a", times * capacity(world), MEAN, world.now, until_s, random.Random(seed), back=back)
    world.run(until_s)
    return world.asked


def test_what_comes_while_there_is_room_goes_at_once() -> None:
    world = World(RULES)
    asked = [world.ask("a", 100) for _ in range(16)]
    assert [a.waited_s for a in asked] == [0.0] * 16
    assert not any(a.refused for a in asked)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_at_three_times_the_capacity_who_is_let_in_starts_within_the_longest_queue(seed: int) -> None:
    world = World(RULES)
    asked = load(world, 3.0, 120.0, seed=seed)
    waits = [a.waited_s for a in asked if a.sent_s is not None]
    assert high(waits) <= RULES.max_queue_s * 1.05
    assert world.busy_s / world.seats / 120.0 > 0.95
    assert world.idle_while_waiting_s == 0.0  # who waits, waits for a seat
    assert world.deepest <= 3.0 * capacity(world) * RULES.max_queue_s


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_comes_back_when_told_is_let_in(seed: int) -> None:
    world = World(RULES)
    asked = load(world, 3.0, 120.0, seed=seed, back=True)
    returned = [a for a in asked if a.tries > 1]
    assert len(returned) > 200
    assert sum(len(a.refused) == 1 for a in returned) >= 0.8 * len(returned)
    assert high([a.waited_s for a in asked if a.sent_s is not None]) <= 1.3 * RULES.max_queue_s


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_asked_for_is_counted_once_however_often_it_comes_back(seed: int) -> None:
    world = World(RULES)
    asked = load(world, 3.0, 120.0, seed=seed, back=True)
    tries = sum(a.tries for a in asked)
    assert tries > 1.2 * len(asked)
    assert world.new_asks == pytest.approx(len(asked), rel=0.03)


def test_with_two_ingresses_each_takes_its_share_and_those_that_come_back_are_let_in() -> None:
    rules = Rules(seats=32, max_queue_s=6.0, tpot_s=0.1, expected={"a": MEAN})
    world = World(rules, gates=2)
    for g in (0, 1):
        world.poisson("a", 1.5 * capacity(world), MEAN, 0.0, 90.0, random.Random(g), back=True, g=g)
    world.run(90.0)
    returned = [a for a in world.asked if a.tries > 1]
    assert sum(len(a.refused) == 1 for a in returned) >= 0.8 * len(returned) > 100
    assert world.busy_s / world.seats / 90.0 > 0.95
    assert world.idle_while_waiting_s / world.seats / 90.0 < 0.02  # a seat that the other left is seen with its report


def test_where_lengths_are_alike_and_all_began_at_once_who_is_let_in_still_starts_in_time() -> None:
    """Seats come free in waves, 28 s apart: by a steady rate requests were let in between two of them, and waited up to 3.7 s of 3."""
    returned = []
    for seed in range(3):
        rng = random.Random(seed)
        world = World(Rules(seats=64, max_queue_s=3.0, tpot_s=0.12, expected={"a": 750.0}), 1, 1 / 0.15)
        for _ in range(64):
            world.ask("a", round(rng.gauss(190, 30)))
        world.run(60.0)
        when = 60.0
        while (when := when + rng.expovariate(7.3)) < 180.0:
            tokens, back = round(rng.gauss(190, 30)), rng.random() < 0.5
            world.at(when, lambda world=world, tokens=tokens, back=back: world.ask("a", tokens, back=back))  # type: ignore[misc]
        world.run(180.0)
        asked = world.asked[64:]
        returned += [a for a in asked if a.tries > 1]
        assert high([a.waited_s for a in asked if a.sent_s is not None]) <= 3.0
    assert sum(len(a.refused) == 1 for a in returned) >= 0.8 * len(returned) > 200


def test_while_some_are_refused_the_pressure_grows_and_then_it_goes_away() -> None:
    """The longest queue is 7 requests of 64 that run: half of it never waits, whatever comes."""
    rules = Rules(seats=64, max_queue_s=3.0, tpot_s=0.12, expected={"a": 190.0}, pressure_steps=2)
    world, rng = World(rules, 1, 1 / 0.15), random.Random(1)
    world.poisson("a", 7.0, 190.0, 0.0, 60.0, rng)
    world.run(60.0)
    assert world.gates[0].pressure.step == 2
    world.run(140.0)
    assert world.gates[0].pressure.step == 0


def test_who_comes_too_early_keeps_his_place() -> None:
    world = World(replace(RULES, expected={"a": 4000.0}))
    for _ in range(16):
        world.ask("a", 4000)
    while not world.asked[-1].refused:
        world.ask("a", 100)
    told = world.asked[-1].refused[0].retry_after_s
    assert told >= 3
    early = [world.ask("a", 100, key=world.asked[-1].key) for _ in range(5)]
    assert {a.refused[0].retry_after_s for a in early} == {told}
    assert len(world.gates[0].bookings) == 1


def test_after_a_burst_from_idleness_the_time_told_is_the_time_that_it_takes() -> None:
    """A hundred requests at once on idle engines: the last place is far, and neither 1 s nor 60 s away."""
    world = World(RULES)
    for _ in range(120):
        world.ask("a", 100, back=True)
    refused = [a for a in world.asked if a.refused]
    assert len(refused) > 80
    world.run(120.0)
    assert sum(len(a.refused) == 1 for a in refused) >= 0.9 * len(refused)
    # 120 requests of 5 s on 16 seats take 37.5 s of work.
    assert 25 <= max(r.retry_after_s for a in refused for r in a.refused) <= 60
    assert max(a.done_s or 1e9 for a in world.asked) < 60.0


@pytest.mark.parametrize("after_s", [0.3, 0.8, 1.5])
def test_while_the_first_prompts_of_a_burst_are_being_read_nobody_is_told_that_engines_are_slow(after_s: float) -> None:
    """Engines that have made nothing yet are not slow: 64 seats at 6.7 tokens/s, whose first tokens take a second."""
    rules = Rules(seats=64, max_queue_s=600.0, tpot_s=0.05, expected={"a": 500.0})
    world = World(rules, replicas=1, speed=1 / 0.15, prefill_s=1.0)
    for _ in range(64):
        world.ask("a", 500)
    world.run(after_s)
    asked = [world.ask("a", 500) for _ in range(136)]
    assert not any(a.refused for a in asked)


def test_short_answers_to_long_prompts_are_forecast_with_the_time_that_their_prompts_take() -> None:
    """Five seconds of tokens behind three of prefill: what is counted is what eight seconds bring."""
    world = World(RULES, prefill_s=3.0)
    world.poisson("a", 3.0 * world.seats / 8.0, MEAN, 0.0, 120.0, random.Random(1), back=True)
    world.run(120.0)
    returned = [a for a in world.asked if a.tries > 1]
    assert sum(len(a.refused) == 1 for a in returned) >= 0.8 * len(returned) > 100
    assert high([a.waited_s for a in world.asked if a.sent_s is not None]) <= 1.3 * RULES.max_queue_s


def test_a_flood_that_never_comes_back_leaves_no_seat_empty_for_those_who_come_after() -> None:
    world = World(RULES)
    load(world, 10.0, 10.0)
    world.run(30.0)
    after = len(world.asked)
    load(world, 0.6, 60.0, seed=9)
    late = world.asked[after:]
    assert sum(bool(a.refused) for a in late) <= 0.05 * len(late)
    assert high([a.waited_s for a in late if a.sent_s is not None], 0.9) < 1.0


def test_a_new_replica_takes_what_waits() -> None:
    world = World(Rules(seats=8, max_queue_s=100.0, tpot_s=0.1, expected={"a": MEAN}), replicas=1)
    asked = [world.ask("a", 400) for _ in range(20)]
    world.run(1.0)
    assert sum(a.sent_s is not None for a in asked) == 8
    world.seats += 8
    world.run(1.2)
    assert sum(a.sent_s is not None for a in asked) == 16


@pytest.mark.parametrize(("weight", "share"), [(1, 0.5), (3, 0.75)])
def test_two_classes_that_both_want_all_get_tokens_by_weight_however_long_their_chains(
    weight: int, share: float
) -> None:
    world = World(Rules(seats=16, max_queue_s=20.0, tpot_s=0.1, expected={"a": 40, "b": 40}, weights={"a": weight}))
    rng = random.Random(5)
    world.poisson("a", 8.0, 80.0, 0.0, 200.0, rng)
    world.poisson("b", 4.0, 400.0, 0.0, 200.0, rng)  # expected 40: it is learnt otherwise
    world.run(200.0)
    made = {
        cls: sum(a.tokens for a in world.asked if a.cls == cls and a.done_s is not None and a.done_s > 40.0)
        for cls in "ab"
    }
    assert abs(made["a"] / (made["a"] + made["b"]) - share) < 0.06
    assert world.idle_while_waiting_s < 0.05 * world.seats * 200.0


def test_one_that_floods_leaves_the_others_their_first_token() -> None:
    rules = Rules(seats=64, max_queue_s=5.0, tpot_s=0.2, expected={"few": 60.0, "flood": 150.0})

    def waits(flood: bool) -> tuple[float, float, int]:
        world = World(rules, replicas=1, speed=10.0)
        rng = random.Random(3)
        world.poisson("few", 1.5, 60.0, 0.0, 300.0, rng)
        if flood:
            world.poisson("flood", 6.0, 150.0, 0.0, 300.0, rng)  # ten times the others' tokens
        world.run(300.0)
        few = [a for a in world.asked if a.cls == "few" and a.came_s > 20.0]
        refused = sum(bool(a.refused) for a in few)
        return high([a.waited_s for a in few if a.sent_s is not None]), world.busy_s / world.seats / 300.0, refused

    alone, _, _ = waits(False)
    beside, busy, refused = waits(True)
    assert alone == 0.0
    assert beside < 0.05  # against a first token of 0.1 s and more
    assert refused == 0
    assert busy > 0.93


@pytest.mark.parametrize("seed", [0, 1])
def test_a_flood_of_a_length_not_known_yet_leaves_the_others_their_first_token(seed: int) -> None:
    world = World(Rules(seats=128, max_queue_s=3.0, tpot_s=0.15), replicas=1, speed=1 / 0.15)
    rng, flood, when = random.Random(seed), 10 * 0.12 * 128 / 0.15, 0.0
    while (when := when + rng.expovariate(flood / 165)) < 80.0:
        tokens = 25 * max(rng.randint(3, 8), rng.randint(3, 8))
        world.at(when, lambda tokens=tokens: world.ask("flood", tokens))  # type: ignore[misc]
    world.poisson("few", flood / 10 / 75, 75.0, 0.0, 80.0, rng)
    world.run(80.0)
    few = [a for a in world.asked if a.cls == "few" and a.came_s > 20.0]
    assert high([a.waited_s for a in few if a.sent_s is not None]) < 0.1
    assert sum(bool(a.refused) for a in few) <= 0.02 * len(few)


def test_who_is_below_his_share_is_let_in_where_a_seat_is_kept_for_him_however_many_others_wait() -> None:
    gate = Gate(Rules(seats=40, max_queue_s=0.3, tpot_s=0.1, expected={"few": MEAN, "flood": MEAN}))
    first = Ticket("few")
    assert gate.ask(first, 0.0) is None
    assert gate.due(0.0) == [first]
    gate.leave(first, 1.0, 10)
    while gate.ask(Ticket("flood"), 1.0) is None:
        gate.due(1.0)
    assert (len(gate.running), gate.room) == (38, 2)  # two are kept
    assert len(gate.waiting) == 2
    few = Ticket("few")
    assert gate.ask(few, 1.0) is None
    assert gate.due(1.0) == [few]


def crowded_by_a_flood() -> tuple[Gate, list[Ticket]]:
    """All but one of 40 seats taken, of two that are kept, and the flood waiting; return what runs of it."""
    gate = Gate(Rules(seats=40, max_queue_s=1000.0, tpot_s=0.1, expected={"few": MEAN, "flood": 10.0}))
    for cls, number in (("few", 1), ("flood", 60), ("few", 1)):
        for _ in range(number):
            assert gate.ask(Ticket(cls), 0.0) is None
        gate.due(0.0)
    assert (gate.room, len(gate.waiting)) == (1, 23)
    return gate, [t for t in gate.running if t.cls == "flood"]


def test_those_below_their_share_who_find_the_kept_seats_taken_have_the_next_ones() -> None:
    """By turns of tokens the second of them waited until ten of the flood had gone, since the first of them was charged."""
    gate, flood = crowded_by_a_flood()
    few = [Ticket("few") for _ in range(3)]
    for ticket in few:
        assert gate.ask(ticket, 1.0) is None
    went = gate.due(1.0)
    assert went == few[:1]
    for ticket in flood[:2]:
        gate.leave(ticket, 2.0, 10)
        went += gate.due(2.0)
    assert went == few


def test_more_of_a_class_than_seats_are_kept_take_turns_with_the_others_until_few_are_left() -> None:
    """Who comes at once with a share's worth of requests does not pass all of those that were told that they will start in time."""
    gate, flood = crowded_by_a_flood()
    for _ in range(10):
        assert gate.ask(Ticket("few"), 1.0) is None
    went = [t.cls for t in gate.due(1.0)]
    for ticket in flood[:20]:
        gate.leave(ticket, 2.0, 10)
        went += [t.cls for t in gate.due(2.0)]
    assert went[0] == "few"
    assert went.count("flood") >= 15


def test_requests_that_take_a_share_of_the_seats_each_pass_nobody_whose_turn_it_is() -> None:
    gate = Gate(Rules(seats=64, max_queue_s=1000.0, tpot_s=0.1, expected={"wide": 64 * MEAN, "one": MEAN}))
    went: list[str] = []
    now = 0.0
    for _ in range(64):
        gate.ask(Ticket("one"), now)
    for _ in range(2):
        gate.ask(Ticket("wide", seats=64), now)
    while now < 300.0:
        went += [t.cls for t in gate.due(now)]
        now += 1.0
        ticket = min(gate.running, key=lambda t: t.sent_s or 0.0)
        gate.leave(ticket, now, int(ticket.cost))
        gate.ask(Ticket(ticket.cls, seats=ticket.seats), now)
    later = went[128:]
    assert later.count("one") > 32 * later.count("wide") > 0


def test_a_class_alone_has_all_seats() -> None:
    world = World(Rules(seats=64, max_queue_s=5.0, expected={"a": MEAN}), replicas=1)
    asked = [world.ask("a", 100) for _ in range(64)]
    assert all(a.sent_s == 0.0 for a in asked)


def test_a_client_that_reads_slowly_keeps_no_seat_that_its_engine_has_left() -> None:
    gate = Gate(Rules(seats=2, max_queue_s=100.0))
    tickets = [Ticket("a") for _ in range(3)]
    for ticket in tickets:
        assert gate.ask(ticket, 0.0) is None
    assert gate.due(0.0) == tickets[:2]
    gate.see(2, in_engines=1)  # one is done, and its client has not read it yet
    assert gate.due(1.0) == tickets[2:]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), st.sampled_from(["end", "gone", "pass"])),
        max_size=150,
    ),
    st.integers(0, 12),
)
def test_whatever_happens_each_is_sent_at_most_once_and_none_is_lost(steps: list[object], takes: int) -> None:
    gate = Gate(Rules(seats=4, max_queue_s=2.0, most_held=40, expected={"a": 50, "b": 50}))
    gate.see(takes)
    now, inside, sent, refused = 0.0, set(), [], 0
    for step in steps:
        now += 0.1
        if isinstance(step, tuple):
            ticket = Ticket(step[0], key=str(len(sent)), seats=step[1])
            if gate.ask(ticket, now) is None:
                inside.add(ticket)
            else:
                refused += 1
        elif step == "pass":
            gate.tick(now)
        elif inside:
            ticket = min(inside, key=lambda t: t.arrived_s)
            inside.remove(ticket)
            gate.leave(ticket, now, 30 if step == "end" else None)
            gate.leave(ticket, now, None)  # twice is once
        sent += gate.due(now)
        assert len(set(map(id, sent))) == len(sent)
        assert {*gate.running, *gate.waiting} == inside
        assert len(inside) <= 40
        assert not len(gate.waiting) or gate.room <= 0
    for ticket in list(inside):
        gate.leave(ticket, now, None)
    assert gate.room == takes
    assert not gate.running


def test_before_anything_is_known_of_replicas_one_of_them_is_filled() -> None:
    gate = Gate(Rules(seats=3, max_queue_s=100.0))
    for _ in range(5):
        assert gate.ask(Ticket("a"), 0.0) is None
    assert len(gate.due(0.0)) == 3


def test_who_was_let_in_before_is_not_refused_again_and_waits_its_turn() -> None:
    gate = Gate(Rules(seats=2, max_queue_s=0.1, most_held=3))
    tickets = [Ticket("a", accepted=True) for _ in range(50)]
    assert [gate.ask(ticket, 0.0) for ticket in tickets] == [None] * 50
    assert gate.due(0.0) == tickets[:2]
    assert gate.ask(Ticket("a"), 0.0) is not None
    gate.leave(tickets[0], 1.0, 10)
    assert gate.due(1.0) == tickets[2:3]


def test_no_more_are_held_than_memory_allows() -> None:
    gate = Gate(Rules(seats=3, max_queue_s=1e6, most_held=4))
    answers = [gate.ask(Ticket("a"), 0.0) for _ in range(6)]
    assert [a is None for a in answers] == [True] * 4 + [False] * 2
    assert answers[-1] is not None
    assert answers[-1].full
    # Three seats that make 500 tokens at 40 a second each: one ends in 4 s; the second that is refused may come after the first.
    gate = Gate(Rules(seats=3, max_queue_s=1e6, most_held=3))
    told = [gate.ask(Ticket("a", key=str(i)), 0.0) for i in range(6)][3:]
    assert [answer.retry_after_s for answer in told if answer is not None] == [6, 11, 16]
