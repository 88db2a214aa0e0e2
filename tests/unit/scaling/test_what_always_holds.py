"""Properties of every decision, whatever is seen."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scaling.worlds import POLICY

from reasonscale.scaling.decide import decide
from reasonscale.scaling.record import from_json, replay, to_json
from reasonscale.scaling.state import State
from reasonscale.scaling.types import (
    N_BINS,
    ClassCounts,
    Decision,
    Fleet,
    Freshness,
    Mode,
    Observation,
    Policy,
    ReplicaCounts,
)

some = st.floats(0, 200).map(lambda x: round(x, 1))
sparse = st.dictionaries(st.integers(0, N_BINS - 1), some, max_size=3).map(
    lambda d: tuple(d.get(i, 0.0) for i in range(N_BINS))
)
class_counts = st.builds(
    ClassCounts, waiting=some, waiting_prompt_tokens=some, reasoning=sparse, answering=sparse,
    inflight_prompt_tokens=sparse, reached=sparse, ended=sparse, arrivals=some, prompt_tokens=some,
    reasoning_tokens=some, answer_tokens=some,
)  # fmt: skip
replica_counts = st.builds(
    ReplicaCounts, id=st.sampled_from("abc"), kv_capacity_tokens=st.sampled_from([None, 5120.0, 20000.0]),
    kv_used_tokens=st.floats(0, 5000), preemptions=st.sampled_from([0.0, 0.0, 3.0]), steps=some, step_seconds=some,
    step_batch=some, step_kv_tokens=some, step_prefill_tokens=some,
)  # fmt: skip
fleets = st.builds(
    Fleet, target=st.integers(0, 12), ready=st.integers(0, 12), starting_s=st.lists(some, max_size=3).map(tuple)
)
observations = st.builds(
    Observation, time=st.just(0.0), window_s=st.floats(0, 10), freshness=st.sampled_from(Freshness),
    age_s=st.one_of(st.none(), some), fleet=fleets,
    classes=st.dictionaries(st.sampled_from(["medium", "high", "off"]), class_counts, max_size=3),
    replicas=st.lists(replica_counts, max_size=3).map(tuple), held_requests=st.one_of(st.none(), some),
    ingress_requests=st.one_of(st.none(), some),
)  # fmt: skip
histories = st.lists(observations, min_size=1, max_size=4).map(
    lambda seen: [replace(o, time=5.0 * (i + 1)) for i, o in enumerate(seen)]
)
policies = st.builds(
    lambda mode, low, span, manual, step: replace(
        POLICY, mode=mode, min_replicas=low, max_replicas=max(1, low + span), manual_replicas=manual, zero_after_s=5.0,
        step_time=POLICY.step_time if step else None,
    ),
    st.sampled_from(Mode), st.integers(0, 4), st.integers(0, 6), st.one_of(st.none(), st.integers(0, 20)), st.booleans(),
)  # fmt: skip


def state_after(history: list[Observation], policy: Policy) -> State:
    state = State.new()
    for seen in history:
        _, state = decide(seen, policy, state)
    return state


@settings(max_examples=20)
@given(histories, policies)
def test_the_target_stays_within_the_bounds_and_the_numbers_are_numbers(history, policy):
    for decision in replay(history, policy):
        assert policy.min_replicas <= decision.target <= policy.max_replicas
        assert decision.act == (decision.target != decision.current and policy.mode is not Mode.RECOMMEND)
        assert decision.message
        assert all(not math.isnan(v) for v in to_json(decision.numbers).values() if v is not None)
        if decision.target != decision.current:
            assert decision.message.startswith(f"{decision.current} -> {decision.target}: ")


def _queue(running: float = 0.0, held: float = 9.0) -> Observation:
    reasoning = tuple(running if j == 14 else 0.0 for j in range(N_BINS))
    counts = ClassCounts(reasoning=reasoning, inflight_prompt_tokens=tuple(30.0 * x for x in reasoning))
    fleet = Fleet(target=0, ready=0)
    return Observation(
        time=100.0,
        window_s=5.0,
        freshness=Freshness.FRESH,
        age_s=1.0,
        fleet=fleet,
        classes={"medium": counts},
        held_requests=held,
    )


def test_seats_of_replicas_that_go_are_not_counted_on_for_the_queue():
    policy = replace(POLICY, max_replicas=1000)
    alone, beside = (decide(_queue(running), policy, State.new())[0] for running in (0.0, 1.0))
    assert beside.target >= alone.target
    assert beside.reason == alone.reason


@settings(max_examples=20)
@given(histories, policies)
def test_the_same_input_gives_the_same_output(history, policy):
    assert list(replay(history, policy)) == list(replay(history, policy))
    assert state_after(history, policy) == state_after(history, policy)


@settings(max_examples=15)
@given(histories, observations, st.sampled_from([Freshness.STALE, Freshness.ABSENT]))
def test_without_fresh_signals_nothing_within_the_bounds_is_changed(history, last, freshness):
    """But for requests that are held where no replica is ready: those the ingress tells of."""
    last = replace(last, held_requests=0.0) if last.fleet.ready == 0 else last
    state = state_after(history, POLICY)
    fleet = replace(last.fleet, target=min(POLICY.max_replicas, max(POLICY.min_replicas, last.fleet.target)))
    decision, _ = decide(replace(last, time=100.0, freshness=freshness, fleet=fleet), POLICY, state)
    assert decision.target == fleet.target
    assert not decision.act


@settings(max_examples=30)
@given(
    histories,
    observations,
    st.sampled_from(["medium", "high", "off"]),
    st.integers(0, N_BINS - 1),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_more_backlog_never_lowers_the_target(history, last, name, where, waiting, running):
    policy = replace(POLICY, max_replicas=1000)
    state = state_after(history, policy)
    before = replace(last, time=100.0, freshness=Freshness.FRESH)
    # The class is there in both: what is added is backlog, not news of a class.
    before = replace(before, classes={**before.classes, name: before.classes.get(name, ClassCounts())})
    counts = before.classes[name]
    inflight = [x + (running if j == where else 0.0) for j, x in enumerate(counts.reasoning)]
    # Prompts of at least the mean, so that the added ones make nobody's mean prompt smaller.
    prompts = [
        x + (max(30.0, x / max(counts.reasoning[j] + counts.answering[j], 1e-9)) * running if j == where else 0.0)
        for j, x in enumerate(counts.inflight_prompt_tokens)
    ]
    mean_waiting = counts.waiting_prompt_tokens / counts.waiting if counts.waiting > 0.0 else 30.0
    more = replace(
        counts,
        waiting=counts.waiting + waiting,
        waiting_prompt_tokens=counts.waiting_prompt_tokens + mean_waiting * waiting,
        reasoning=tuple(inflight),
        inflight_prompt_tokens=tuple(prompts),
    )
    after = replace(before, classes={**before.classes, name: more})
    assert decide(after, policy, state)[0].target >= decide(before, policy, state)[0].target


@settings(max_examples=20)
@given(histories, policies)
def test_what_is_recorded_reads_back_the_same_and_replays_to_the_same_decisions(history, policy):
    text = json.dumps([to_json(seen) for seen in history])
    back = [from_json(Observation, data) for data in json.loads(text)]
    assert back == history
    assert from_json(Policy, json.loads(json.dumps(to_json(policy)))) == policy
    decisions = list(replay(history, policy))
    assert list(replay(back, policy)) == decisions
    assert [from_json(Decision, json.loads(json.dumps(to_json(d)))) for d in decisions] == decisions
