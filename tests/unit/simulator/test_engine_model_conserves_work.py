"""Properties of the engine model under every kind of load, with and without enough KV cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonscale.profiles.profile import Profile
from reasonscale.simulator import engine
from reasonscale.simulator.engine import Replay, replay
from reasonscale.simulator.tables import tables_of

PROFILE = Profile(
    name="p", model="p", kv_tokens=160, block_tokens=4, max_num_seqs=6, max_num_batched_tokens=32, gpus_per_replica=1,
    decode=((1, 10.0, 0.001), (6, 14.0, 0.002)), prefill=((4, 10.0), (32, 30.0)), prefill_overhead_ms=2.0,
    attention_ms_per_pair=0.001,
)  # fmt: skip

Load = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def loads(draw: st.DrawFn, most: int = 80) -> Load:
    n = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.001, 0.013, 0.1, 2.0]), min_size=n, max_size=n))
    size = st.lists(st.integers(1, most), min_size=n, max_size=n)
    return np.cumsum(gaps), np.array(draw(size), dtype=np.int64), np.array(draw(size), dtype=np.int64)


def run(load: Load, **changes: int) -> Replay:
    return replay(replace(PROFILE, **changes), *load)


@settings(max_examples=150, deadline=None)
@given(loads())
def test_every_request_ends_with_all_its_tokens_and_every_block_comes_back(load: Load) -> None:
    done = run(load)
    arrival, _, output = load
    assert not done.refused.any()
    assert (done.made_tokens == output).all()
    assert done.free_blocks == done.blocks
    assert (done.first_s > arrival).all()
    assert (done.last_s >= done.first_s).all()


@settings(max_examples=150, deadline=None)
@given(loads())
def test_tokens_are_computed_once_unless_a_request_was_preempted(load: Load) -> None:
    done = run(load)
    _, prompt, output = load
    once = int((prompt + output - 1).sum())
    assert done.preemptions == done.preempted.sum()
    if done.preemptions == 0:
        assert done.computed_tokens == once
    else:
        assert done.computed_tokens >= once


@settings(max_examples=150, deadline=None)
@given(loads())
def test_first_tokens_come_in_the_order_of_arrival_where_memory_suffices(load: Load) -> None:
    done = run(load, kv_tokens=100_000)
    assert done.preemptions == 0
    assert (np.diff(done.first_s) >= 0).all()


@settings(max_examples=150, deadline=None)
@given(loads(), st.integers(1, 80), st.integers(1, 80))
def test_a_later_request_never_speeds_up_an_earlier_one(load: Load, prompt: int, output: int) -> None:
    arrival, prompts, outputs = load
    before = run(load, kv_tokens=100_000)
    after = run(
        (np.append(arrival, arrival[-1]), np.append(prompts, prompt), np.append(outputs, output)), kv_tokens=100_000
    )
    assert (after.first_s[:-1] >= before.first_s - 1e-9).all()
    assert (after.last_s[:-1] >= before.last_s - 1e-9).all()


@settings(max_examples=150, deadline=None)
@given(loads())
def test_steps_taken_many_at_once_are_the_same_as_one_by_one(load: Load) -> None:
    arrival, prompt, output = load
    fast, tables = run(load), tables_of(PROFILE)
    state = engine.empty_engine(40, 4, 6, 32)
    req = np.zeros((engine.ROWS, len(arrival)), dtype=np.int64)
    sums, ended = np.zeros(4), np.zeros(len(arrival) + 1, dtype=np.int64)
    req[engine.PROMPT], req[engine.OUTPUT] = prompt, output
    first, last, running = np.zeros(len(arrival)), np.zeros(len(arrival)), np.zeros(6, dtype=np.int64)
    clock, sent = 0.0, 0
    while sent < len(arrival) or state[engine.RUNNING] or state[engine.WAITING]:
        if not state[engine.RUNNING] and not state[engine.WAITING]:
            clock = max(clock, arrival[sent])
        while sent < len(arrival) and arrival[sent] <= clock:
            engine.enqueue(state, req, sent)
            sent += 1
        clock = engine._step(
            state, clock, running, req, first, last, sums, ended,
            tables.base, tables.slope, tables.linear, tables.overhead, tables.pair,
        )  # fmt: skip
    assert state[engine.STEPS] == fast.steps
    assert state[engine.WAITING_TOKENS] == 0
    assert sorted(ended[1:]) == list(range(len(arrival)))
    assert fast.first_s == pytest.approx(first, abs=1e-9)
    assert fast.last_s == pytest.approx(last, abs=1e-9)


def test_too_small_a_cache_preempts_and_all_still_end() -> None:
    load = (np.zeros(6), np.full(6, 20, dtype=np.int64), np.full(6, 60, dtype=np.int64))
    done = run(load)
    assert done.preemptions > 0
    assert done.preempted[0] == 0  # the newest go, not the oldest
    assert (done.made_tokens == 60).all()
    assert run(load, kv_tokens=100_000).end_s < done.end_s


@pytest.mark.parametrize("seed", range(5))
def test_the_same_requests_in_half_the_time_take_longer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(0.3, 400))
    sizes = rng.integers(1, 80, (2, 400))
    slow, fast = (run((arrival * scale, sizes[0], sizes[1])) for scale in (1.0, 0.5))
    assert (fast.last_s - arrival * 0.5).mean() > (slow.last_s - arrival).mean()


def test_a_request_that_never_fits_is_refused_and_holds_up_nobody() -> None:
    done = run((np.array([0.0, 0.1]), np.array([100, 4]), np.array([62, 4])))
    assert done.refused.tolist() == [True, False]
    assert np.isnan(done.first_s[0])
    assert done.made_tokens.tolist() == [0, 4]


@pytest.mark.parametrize(
    "load",
    [
        (np.array([1.0, 0.5]), np.array([1, 1]), np.array([1, 1])),
        (np.array([0.0]), np.array([0]), np.array([1])),
        (np.array([0.0]), np.array([1]), np.array([0])),
        (np.array([0.0]), np.array([1, 2]), np.array([1])),
    ],
)
def test_arrivals_that_go_back_and_empty_requests_are_errors(load: Load) -> None:
    with pytest.raises(ValueError, match="must"):
        run(load)
