"""Samples become one observation: increments, resets, lost replicas, and three kinds of freshness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.api import constants as c
from reasonscale.scaling.types import Fleet, Freshness, Observation
from reasonscale.signals.assemble import READ, Memory, Sample, assemble, read_of

ONE = Fleet(target=1, ready=1)
BIN64 = c.TOKEN_BINS.index(64)


def ledger(
    worker: str,
    at: float,
    *,
    arrivals: float = 0,
    reached: float = 0,
    waiting: float = 0,
    reasoning: float = 0,
    steps: float = 0,
    model: str = "m",
) -> list[Sample]:
    base = {"model": model, "WorkerId": worker}
    cls = base | {"cls": "medium"}
    return [
        Sample(c.M_LEDGER_TIME, base, at),
        Sample(c.M_KV_CAPACITY, base, 5120),
        Sample(c.M_KV_USED, base, 512),
        Sample(c.M_STEPS, base, steps),
        Sample(c.M_ARRIVALS, cls, arrivals),
        Sample(c.M_PROMPT_TOKENS, cls, 20 * arrivals),
        Sample(c.M_REACHED, cls | {"bin": "64"}, reached),
        Sample(c.M_WAITING, cls, waiting),
        Sample(c.M_INFLIGHT, cls | {"bin": "64", "phase": "reasoning"}, reasoning),
    ]


def see(samples: list[Sample], now: float, before: Memory = Memory(), fleet: Fleet = ONE) -> tuple[Observation, Memory]:  # noqa: B008
    return assemble(samples, "m", fleet, now, before, limit_s=6)


def test_gauges_are_summed_over_replicas() -> None:
    seen, _ = see(
        ledger("a", 99, waiting=2, reasoning=3) + ledger("b", 99, waiting=1, reasoning=4), 100, fleet=Fleet(2, 2)
    )
    assert seen.freshness is Freshness.FRESH
    assert seen.classes["medium"].waiting == 3
    assert seen.classes["medium"].reasoning[BIN64] == 7
    assert [r.kv_capacity_tokens for r in seen.replicas] == [5120, 5120]


def test_the_first_observation_counts_lengths_and_no_arrivals() -> None:
    seen, _ = see(ledger("a", 99, arrivals=1000, reached=900, steps=5000), 100)
    assert seen.classes["medium"].arrivals == 0
    assert seen.classes["medium"].reached[BIN64] == 900
    assert seen.replicas[0].steps == 0
    assert seen.window_s == 0


def test_counters_become_increments() -> None:
    _, memory = see(ledger("a", 99, arrivals=10, reached=9), 100)
    seen, _ = see(ledger("a", 104, arrivals=13, reached=11), 105, memory)
    assert (seen.classes["medium"].arrivals, seen.classes["medium"].reached[BIN64], seen.window_s) == (3, 2, 5)


def test_a_process_that_starts_again_counts_from_zero() -> None:
    _, memory = see(ledger("a", 99, arrivals=10), 100)
    seen, _ = see(ledger("a", 104, arrivals=4), 105, memory)
    assert seen.classes["medium"].arrivals == 4


def test_a_new_process_counts_whole() -> None:
    _, memory = see(ledger("a", 99, arrivals=10), 100)
    seen, _ = see(ledger("a", 104, arrivals=10) + ledger("b", 104, arrivals=5), 105, memory, Fleet(2, 2))
    assert seen.classes["medium"].arrivals == 5


def test_a_process_that_was_away_for_a_while_goes_on_where_it_was() -> None:
    _, memory = see(ledger("a", 99, arrivals=10) + ledger("b", 99, arrivals=50), 100, fleet=Fleet(2, 2))
    _, memory = see(ledger("a", 104, arrivals=10), 105, memory, Fleet(2, 2))
    seen, _ = see(ledger("a", 109, arrivals=10) + ledger("b", 109, arrivals=51), 110, memory, Fleet(2, 2))
    assert seen.classes["medium"].arrivals == 1


def test_a_series_that_appears_late_began_at_zero() -> None:
    _, memory = see(ledger("a", 99)[:4], 100)
    seen, _ = see(ledger("a", 104, arrivals=2), 105, memory)
    assert seen.classes["medium"].arrivals == 2


def test_a_lost_replicas_lingering_gauges_do_not_count() -> None:
    seen, _ = see(ledger("alive", 99, reasoning=1) + ledger("dead", 80, reasoning=9), 100)
    assert seen.classes["medium"].reasoning[BIN64] == 1
    assert [r.id for r in seen.replicas] == ["alive"]
    assert seen.freshness is Freshness.FRESH


def test_absent_stale_and_zero_are_three_things() -> None:
    absent, _ = see([], 100)
    stale, _ = see(ledger("a", 80), 100)
    zero, _ = see(ledger("a", 99), 100)
    assert (absent.freshness, absent.age_s) == (Freshness.ABSENT, None)
    assert (stale.freshness, stale.age_s) == (Freshness.STALE, 20)
    assert (zero.freshness, zero.age_s) == (Freshness.FRESH, 1)
    assert zero.classes["medium"].waiting == 0


def test_another_models_series_are_none_of_ours() -> None:
    seen, _ = see(ledger("a", 99, model="other"), 100)
    assert seen.freshness is Freshness.ABSENT


def test_a_replica_that_has_just_become_ready_may_lack_a_ledger_for_a_moment() -> None:
    two = Fleet(2, 2)
    seen, memory = see(ledger("a", 99), 100, fleet=two)
    assert seen.freshness is Freshness.FRESH
    seen, memory = see(ledger("a", 109), 110, memory, two)
    assert seen.freshness is Freshness.FRESH
    seen, _ = see(ledger("a", 119), 120, memory, two)
    assert seen.freshness is Freshness.STALE


@given(st.lists(st.integers(0, 20), min_size=2, max_size=20), st.integers(1, 3))
def test_increments_add_up_to_what_was_counted(gains: list[int], workers: int) -> None:
    totals, memory, counted = [0.0] * workers, Memory(), 0.0
    for i, gain in enumerate(gains):
        totals = [t + gain for t in totals]
        samples = [s for w, t in enumerate(totals) for s in ledger(f"w{w}", i * 5, arrivals=t)]
        seen, memory = see(samples, i * 5, memory, Fleet(workers, workers))
        counted += seen.classes["medium"].arrivals
    assert counted == workers * sum(gains[1:])


def test_a_first_look_that_fails_leaves_the_lifetime_counters_unlearnt() -> None:
    _, memory = assemble([], "m", ONE, 100.0, Memory(), limit_s=6.0)
    first, memory = assemble(ledger("w", 104.0, arrivals=86_400, steps=9e6), "m", ONE, 105.0, memory, limit_s=6.0)
    assert first.classes["medium"].arrivals == 0
    assert first.replicas[0].steps == 0
    second, _ = assemble(ledger("w", 109.0, arrivals=86_405), "m", ONE, 110.0, memory, limit_s=6.0)
    assert (second.classes["medium"].arrivals, second.window_s) == (5, 5.0)


def test_what_was_counted_while_signals_were_stale_belongs_to_the_next_fresh_look() -> None:
    _, memory = assemble(ledger("w", 100.0, arrivals=10), "m", ONE, 100.0, Memory(), limit_s=6.0)
    stale, memory = assemble(ledger("w", 100.0, arrivals=40), "m", ONE, 130.0, memory, limit_s=6.0)
    assert stale.freshness is Freshness.STALE
    assert sum(found.arrivals for found in stale.classes.values()) == 0
    fresh, _ = assemble(ledger("w", 160.0, arrivals=70), "m", ONE, 160.0, memory, limit_s=6.0)
    assert (fresh.classes["medium"].arrivals, fresh.window_s) == (60, 60.0)


def test_scrapes_that_fail_stretch_the_window_over_what_the_counters_cover() -> None:
    _, memory = assemble(ledger("w", 100.0, arrivals=10), "m", ONE, 100.0, Memory(), limit_s=6.0)
    for i in range(1, 7):
        _, memory = assemble([], "m", ONE, 100.0 + 5 * i, memory, limit_s=6.0)
    found, _ = assemble(ledger("w", 135.0, arrivals=45), "m", ONE, 135.0, memory, limit_s=6.0)
    assert (found.classes["medium"].arrivals, found.window_s) == (35, 35.0)


def ingress(worker: str, at: float, held: float = 0, inside: float = 0, model: str = "m") -> list[Sample]:
    base = {"model": model, "WorkerId": worker}
    return [
        Sample(c.M_INGRESS_TIME, base, at),
        Sample(c.M_HELD, base, held),
        Sample(c.M_INGRESS_REQUESTS, base, inside),
    ]


ZERO = Fleet(target=0, ready=0)


def test_what_ingresses_hold_is_summed_and_unknown_where_none_is_heard_of() -> None:
    both = ingress("a", 99, 3, 5) + ingress("b", 98, 1, 1) + ingress("gone", 60, 9, 9) + ingress("x", 99, 7, 7, "other")
    seen, _ = see(both, 100, fleet=ZERO)
    assert (seen.held_requests, seen.ingress_requests) == (4, 6)
    for old in ([], ingress("a", 60, 3, 5)):
        seen, _ = see(old, 100, fleet=ZERO)
        assert (seen.held_requests, seen.ingress_requests, seen.freshness) == (None, None, Freshness.ABSENT)


def test_at_zero_there_is_no_ledger_and_the_ingress_is_all_there_is_to_know() -> None:
    seen, memory = see(ingress("a", 99, held=2), 100, fleet=ZERO)
    assert (seen.freshness, seen.age_s, seen.replicas) == (Freshness.FRESH, 1, ())
    # The engine that starts then is a new process: it counts whole.
    seen, _ = see(ingress("a", 104) + ledger("b", 104, arrivals=2), 105, memory)
    assert seen.classes["medium"].arrivals == 2


def test_a_replica_that_is_wanted_and_silent_is_absent_whatever_the_ingress_says() -> None:
    seen, _ = see(ingress("a", 99, held=2), 100, fleet=Fleet(target=1, ready=0, starting_s=(9.0,)))
    assert (seen.freshness, seen.held_requests) == (Freshness.ABSENT, 2)


def gate(worker: str, at: float, *, waiting: float = 0, entered: float = 0, sent: float = 0) -> list[Sample]:
    base = {"model": "m", "WorkerId": worker}
    cls = base | {"cls": "medium"}
    return [
        Sample(c.M_GATE_TIME, base, at),
        Sample(c.M_GATE_WAITING, cls, waiting),
        Sample(c.M_GATE_PROMPT, cls, 20 * waiting),
        Sample(c.M_GATE_ENTERED, cls, entered),
        Sample(c.M_GATE_SENT, cls, sent),
    ]


def test_what_waits_at_the_gates_is_added_to_what_waits_in_the_engines_and_is_no_ledger() -> None:
    seen, _ = see(ledger("a", 99, waiting=2) + gate("i", 99, waiting=5) + gate("j", 99.5, waiting=1), 100)
    assert seen.freshness is Freshness.FRESH
    assert seen.classes["medium"].waiting == 8
    assert seen.classes["medium"].waiting_prompt_tokens == 120
    assert [r.id for r in seen.replicas] == ["a"]


def test_a_gate_that_has_written_nothing_of_late_holds_nothing() -> None:
    seen, _ = see(ledger("a", 99, waiting=2) + gate("gone", 80, waiting=500), 100)
    assert seen.classes["medium"].waiting == 2


def test_gates_alone_are_no_signal() -> None:
    seen, _ = see(gate("i", 99, waiting=5), 100)
    assert seen.freshness is Freshness.ABSENT


def test_a_request_arrives_once_when_it_comes_to_the_gate() -> None:
    _, memory = see(ledger("a", 99) + gate("i", 99), 100)
    # Ten come, four go on to the engine.
    seen, memory = see(ledger("a", 104, arrivals=4) + gate("i", 104, waiting=6, entered=10, sent=4), 105, memory)
    assert seen.classes["medium"].arrivals == 10
    # The others follow, and one more comes and goes at once.
    seen, memory = see(ledger("a", 109, arrivals=11) + gate("i", 109, entered=11, sent=11), 110, memory)
    assert seen.classes["medium"].arrivals == 1
    seen, _ = see(ledger("a", 114, arrivals=11) + gate("i", 114, entered=11, sent=11), 115, memory)
    assert seen.classes["medium"].arrivals == 0


def test_who_is_refused_arrives_too_and_not_again_when_he_comes_back() -> None:
    _, memory = see(ledger("a", 99) + gate("i", 99), 100)
    # Ten come, four are let in and sent, six refused; then five of these come back and are let in, and one comes new.
    seen, memory = see(ledger("a", 104, arrivals=4) + gate("i", 104, entered=10, sent=4), 105, memory)
    assert (seen.classes["medium"].arrivals, seen.classes["medium"].waiting) == (10, 0)
    seen, memory = see(ledger("a", 109, arrivals=10) + gate("i", 109, entered=11, sent=10), 110, memory)
    assert seen.classes["medium"].arrivals == 1


def test_who_is_on_his_way_to_a_new_replica_has_arrived_before() -> None:
    """On H100s a hundred that waited went to a replica whose ledger was not read yet: none were seen to come, then twice as many as did."""
    _, memory = see(ledger("a", 99) + gate("i", 99), 100)
    seen, memory = see(ledger("a", 104, arrivals=10) + gate("i", 104, waiting=90, entered=100, sent=10), 105, memory)
    assert seen.classes["medium"].arrivals == 100
    # The ninety are sent, and fifty more come; no ledger has them yet.
    seen, memory = see(ledger("a", 109, arrivals=10) + gate("i", 109, entered=150, sent=150), 110, memory)
    assert (seen.classes["medium"].arrivals, seen.classes["medium"].prompt_tokens) == (50, 50 * 20)
    seen, _ = see(ledger("a", 114, arrivals=220) + gate("i", 114, entered=220, sent=220), 115, memory)
    assert seen.classes["medium"].arrivals == 70


def test_a_gate_that_is_read_later_than_the_ledgers_brings_nobody_twice() -> None:
    _, memory = see(ledger("a", 99), 100)
    seen, memory = see(ledger("a", 104, arrivals=10), 105, memory)
    assert seen.classes["medium"].arrivals == 10
    seen, memory = see(ledger("a", 109, arrivals=15) + gate("i", 109, entered=15, sent=15), 110, memory)
    assert seen.classes["medium"].arrivals == 5


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=12), st.booleans())
def test_whenever_ledgers_are_read_by_a_look_late_who_entered_counts_in_the_look_in_which_he_came(
    looks: list[tuple[int, int]], late: bool
) -> None:
    _, memory = see(ledger("a", 0) + gate("i", 0), 0)
    # One that is known, so that there is a mean of prompts.
    _, memory = see(ledger("a", 5, arrivals=1) + gate("i", 5, entered=1, sent=1), 5, memory)
    entered = sent = before = 1.0
    for i, (new, room) in enumerate([*looks, (0, 240), (0, 240)], 2):
        entered += new
        before, sent = sent, min(entered, sent + room)
        now, counted = 5.0 * i, before if late else sent
        samples = gate("i", now, waiting=entered - sent, entered=entered, sent=sent)
        seen, memory = see(ledger("a", now, arrivals=counted) + samples, now, memory)
        assert (seen.classes["medium"].arrivals, seen.classes["medium"].prompt_tokens) == (new, 20 * new)


def test_a_gate_whose_page_failed_in_the_first_look_brings_no_flood() -> None:
    _, memory = see(ledger("a", 99, arrivals=50_000), 100)
    seen, memory = see(ledger("a", 104, arrivals=50_010) + gate("i", 104, entered=50_010, sent=50_010), 105, memory)
    assert (seen.classes["medium"].arrivals, seen.classes["medium"].prompt_tokens) == (10, 200)
    seen, _ = see(ledger("a", 109, arrivals=50_020) + gate("i", 109, entered=50_020, sent=50_020), 110, memory)
    assert seen.classes["medium"].arrivals == 10


@pytest.mark.parametrize(("since", "counted"), [(50.0, 10), (1000.0, 50_010)])
def test_an_engine_whose_page_failed_in_the_first_look_brings_no_flood(since: float, counted: float) -> None:
    """One that has run for long was there; one that has started since counts whole."""
    who = {"model": "m", "WorkerId": "b", "serve_replica": "r1", "ray_node": "n"}
    here = Sample(c.M_REPLICA, who, since)
    _, memory = see(ledger("a", 999), 1000)
    first, memory = see([*ledger("a", 1004), *ledger("b", 1004, arrivals=50_000), here], 1005, memory, Fleet(2, 2))
    seen, _ = see([*ledger("a", 1009), *ledger("b", 1009, arrivals=50_010), here], 1010, memory, Fleet(2, 2))
    assert first.classes["medium"].arrivals + seen.classes["medium"].arrivals == counted


def test_who_is_sent_and_never_comes_to_an_engine_hides_nobody_later() -> None:
    """An engine answers 400, say: a tenth of a class for an hour."""
    _, memory = see(ledger("a", 0) + gate("i", 0), 0)
    came = []
    for i in range(1, 721):
        now = 5.0 * i
        seen, memory = see(ledger("a", now, arrivals=45 * i) + gate("i", now, entered=50 * i, sent=50 * i), now, memory)
        came.append(seen.classes["medium"].arrivals)
    assert set(came[20:]) == {45}
    # Then each request is eight sequences, of which a gate counts one.
    base, later = 45 * 720, []
    for i in range(1, 5):
        now = 3600.0 + 5.0 * i
        samples = gate("i", now, entered=36_000 + 10 * i, sent=36_000 + 10 * i)
        seen, memory = see(ledger("a", now, arrivals=base + 80 * i) + samples, now, memory)
        later.append(seen.classes["medium"].arrivals)
    assert later[0] >= 30
    assert later[1:] == [80, 80, 80]


def test_a_class_that_engines_call_by_another_name_counts_once() -> None:
    def folded(at: float, n: int) -> list[Sample]:
        other = {"model": "m", "WorkerId": "a", "cls": "other"}
        return [
            *ledger("a", at), Sample(c.M_ARRIVALS, other, n), Sample(c.M_PROMPT_TOKENS, other, 20 * n),
            *gate("i", at, entered=n, sent=n),
        ]  # fmt: skip

    memory, came = see(folded(0, 0), 0)[1], []
    for i in range(1, 10):
        seen, memory = see(folded(5.0 * i, 10 * i), 5.0 * i, memory)
        came.append(sum(k.arrivals for k in seen.classes.values()))
    assert came == [10] * 9


def test_the_tokens_of_those_who_were_early_are_counted_when_they_are_known() -> None:
    _, memory = see(ledger("a", 0) + gate("i", 0), 0)
    _, memory = see(ledger("a", 5, arrivals=1) + gate("i", 5, entered=1, sent=1), 5, memory)
    first, memory = see(ledger("a", 10, arrivals=1) + gate("i", 10, entered=101, sent=101), 10, memory)
    long = [s for s in ledger("a", 15, arrivals=101) if s.name != c.M_PROMPT_TOKENS]
    long.append(Sample(c.M_PROMPT_TOKENS, {"model": "m", "WorkerId": "a", "cls": "medium"}, 20 + 100 * 8000))
    second, _ = see(long + gate("i", 15, entered=101, sent=101), 15, memory)
    told = [seen.classes["medium"] for seen in (first, second)]
    assert [k.arrivals for k in told] == [100, 0]
    assert sum(k.prompt_tokens for k in told) == 100 * 8000


def test_what_replicas_have_that_go_is_counted_by_itself_and_still_counts_in_the_whole() -> None:
    going = [Sample(c.M_DRAINING, {"model": "m", "WorkerId": "a"}, 1.0)]
    staying = [Sample(c.M_DRAINING, {"model": "m", "WorkerId": "b"}, 0.0)]
    seen, _ = see(ledger("a", 99, reasoning=3) + going + ledger("b", 99, reasoning=4) + staying, 100, fleet=Fleet(1, 1))
    assert seen.classes["medium"].reasoning[BIN64] == 7
    assert seen.draining["medium"].reasoning[BIN64] == 3
    stale, _ = see(ledger("a", 50, reasoning=3) + going + ledger("b", 99, reasoning=4), 100, fleet=Fleet(1, 1))
    assert stale.draining == {}


def test_who_replicas_are_is_read_and_what_is_emptied_counts_as_what_drains() -> None:
    def here(worker: str, replica: str, since: float) -> list[Sample]:
        return [
            Sample(
                c.M_REPLICA,
                {"model": "m", "WorkerId": worker, "serve_replica": replica, "ray_node": f"n-{replica}"},
                since,
            )
        ]

    samples = ledger("a", 99, reasoning=3) + here("a", "r0", 50.0) + ledger("b", 99, reasoning=4)
    seen, _ = see(samples, 100, fleet=Fleet(2, 2, emptied=("r0",)))
    assert [(r.replica, r.node, r.since_s, r.draining) for r in seen.replicas] == [
        ("r0", "n-r0", 50.0, False),
        (None, None, None, False),
    ]
    assert seen.draining["medium"].reasoning[BIN64] == 3


def test_a_replica_that_sleeps_goes_on_writing_its_ledger_and_says_so() -> None:
    samples = [*ledger("a", 99), Sample(c.M_ASLEEP, {"model": "m", "WorkerId": "a"}, 1.0), *ledger("b", 99)]
    seen, _ = see(samples, 100, fleet=Fleet(2, 2, emptied=("r0",), asleep=("r0",)))
    assert seen.freshness is Freshness.FRESH
    assert [r.asleep for r in seen.replicas] == [True, False]
    assert [r.can_sleep for r in seen.replicas] == [True, False]


def test_whatever_changes_an_observation_is_asked_for_with_its_labels_and_nothing_else() -> None:
    base = {"model": "m", "WorkerId": "a", "namespace": "n", "serve_replica": "r0", "ray_node": "n0"}
    whole = base | {
        "cls": "medium",
        "bin": "64",
        "phase": "reasoning",
        "job": "ray",
        "SessionName": "s",
        "__name__": "x",
    }
    names = {value for name, value in vars(c).items() if name.startswith("M_")}
    times = {c.M_LEDGER_TIME, c.M_GATE_TIME, c.M_INGRESS_TIME}

    def observed(*, names: set[str], later: float = 0.0, labels: dict[str, str] = whole) -> Observation:
        """What is seen of one process that writes all of these, twice."""
        memory = Memory()
        for now, value in ((100.0, 8.0 + later), (105.0, 9.0 + later)):
            samples = [read_of(name, labels, now if name in times else value) for name in sorted(names)]
            seen, memory = see(samples, now, memory)
        return seen

    everything = observed(names=names)
    assert everything == observed(names=set(READ))
    missed = {name for name in names if observed(names=names - {name}) != everything}
    assert missed - READ == set()
    assert READ - missed == {c.M_FETCHING}  # read by the operator itself
    plain = read_of(c.M_KV_USED, whole, 1.0).labels
    assert set(whole) - set(plain) == {"job", "SessionName", "__name__"}
