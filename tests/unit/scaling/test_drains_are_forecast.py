"""How long a replica that goes takes to finish: the last of its chains, not their mean."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.scaling.arrivals import Rate
from reasonscale.scaling.curve import WIDTHS, curve_from
from reasonscale.scaling.forecast import ClassLoad, drain_time_s
from reasonscale.scaling.types import N_BINS

TPOT_S = 0.02


def load(hazard: float, made: float, count: float, limit: float = 50_000.0, waiting: float = 0.0) -> ClassLoad:
    curve = curve_from([hazard * width for width in WIDTHS], [0.0] * N_BINS, limit)
    return ClassLoad(curve, [(made, count, 100.0)] if count else [], waiting, 0.0, Rate(0.0, 0.0, 1.0, None))


def test_nothing_that_runs_takes_no_time() -> None:
    assert drain_time_s([], TPOT_S) == 0.0
    assert drain_time_s([load(0.001, 0, 0)], TPOT_S) == 0.0


@pytest.mark.parametrize("count", [1, 4, 24])
def test_the_last_of_like_chains_ends_when_the_theory_of_exponential_lengths_says(count: int) -> None:
    harmonic = sum(1 / k for k in range(1, count + 1))  # of the mean, until the last of so many ends
    found = drain_time_s([load(0.001, 64, count)], TPOT_S)
    assert found == pytest.approx(1000 * harmonic * TPOT_S, rel=0.03)


def test_a_simulation_of_two_kinds_of_chains_ends_when_the_forecast_says() -> None:
    kinds = [(0.002, 6), (0.0005, 3)]
    rng = random.Random(7)
    lasts = [
        max(-math.log(1.0 - rng.random()) / hazard for hazard, count in kinds for _ in range(count))
        for _ in range(4000)
    ]
    found = drain_time_s([load(hazard, 100, count) for hazard, count in kinds], TPOT_S)
    assert found == pytest.approx(TPOT_S * sum(lasts) / len(lasts), rel=0.05)


@given(st.floats(1e-5, 0.1), st.integers(0, 40_000), st.integers(1, 64), st.integers(1, 64))
def test_more_chains_never_take_less_time_and_none_takes_more_than_its_limit(
    hazard: float, made: int, few: int, more: int
) -> None:
    one, other = sorted((few, more))
    short = drain_time_s([load(hazard, made, one)], TPOT_S)
    long = drain_time_s([load(hazard, made, other)], TPOT_S)
    assert short <= long + 1e-9
    assert long <= (50_000 - made) * TPOT_S + 1e-6
