"""When seats come free: by waves where lengths are alike, at a steady rate where nothing is known of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.serving.frees import frees


def test_where_nothing_is_known_of_lengths_seats_come_free_at_a_steady_rate() -> None:
    found = frees({"a": [0.0] * 64}, {}, {"a": 200.0}, 10.0)
    for n in (1, 10, 64, 200, 1000):
        assert found.time_of(n) == pytest.approx(n * 200.0 / 10.0 / 64, rel=0.02)


def test_chains_of_like_length_that_began_together_end_together_and_so_do_those_after_them() -> None:
    ended = [200.0] * 100
    fresh = frees({"a": [0.0] * 64}, {"a": ended}, {"a": 200.0}, 10.0)
    assert 15.0 < fresh.time_of(10) <= 22.0  # of 20 s that they take; by a steady rate 3 s
    assert 15.0 < fresh.time_of(60) <= 25.0
    assert 34.0 < fresh.time_of(74) <= 44.0
    late = frees({"a": [190.0] * 64}, {"a": ended}, {"a": 200.0}, 10.0)
    assert late.time_of(40) < 4.0


def test_seats_of_chains_far_beyond_the_usual_come_free_as_slowly_as_those_end() -> None:
    # The bins end at 6,584 tokens; whoever gets there goes on to 20,000.
    ended, ages = [50.0] * 92 + [20_000.0] * 8, [8_000.0] * 64
    found = frees({"a": ages}, {"a": ended}, {"a": 1_646.0}, 10.0)
    # All of them end at 20,000, 1,200 s on; by one bin's hazard half were gone in 45 s.
    assert found.time_of(32) > 200.0


def test_it_holds_against_a_crowd_that_is_played() -> None:
    rng = random.Random(3)
    lengths = [max(5.0, rng.gauss(200, 60)) for _ in range(256)]
    ages = [rng.uniform(0, 180) for _ in range(64)]
    found = frees({"a": ages}, {"a": lengths}, {"a": 200.0}, 10.0)
    times = []
    for _ in range(40):
        ends = []
        for age in ages:
            left = next(x for x in iter(lambda: rng.choice(lengths), None) if x > age) - age
            at = left / 10.0
            while at < 60.0:
                ends.append(at)
                at += rng.choice(lengths) / 10.0
        times.append(sorted(ends))
    for n in (5, 20, 60, 120):
        mean = sum(t[n - 1] for t in times) / len(times)
        assert found.time_of(n) == pytest.approx(mean, rel=0.12, abs=0.7)


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(0, 50_000), min_size=1, max_size=20), min_size=1),
    st.lists(st.floats(0, 50_000), max_size=40), st.floats(1.0, 20_000), st.floats(0.1, 500.0),
)  # fmt: skip
def test_more_seats_take_longer_and_never_no_time(
    running: dict[str, list[float]], ended: list[float], mean: float, speed: float
) -> None:
    found = frees(running, dict.fromkeys(running, ended), dict.fromkeys(running, mean), speed)
    times = [found.time_of(n) for n in (0.5, 1, 2, 5, 20, 100, 1000)]
    assert times == sorted(times)
    assert 0.0 < times[0] < times[-1] < float("inf")
