"""Forecasts that keep falling behind are carried on to the horizon; those that come true are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonscale.scaling.trend import LOOK_S, MOST_GROWTH, YOUNG_S, Trend, expect, judge


def run(inflight_of, forecast_of, until=900.0, tpot_of=lambda t: 0.04, arrivals_of=lambda t: 10.0) -> Trend:
    trend, t = Trend(), 0.0
    while t <= until:
        trend = judge(trend, t, inflight_of(t), tpot_of(t), arrivals_of(t))
        trend = expect(trend, t + LOOK_S, forecast_of(t), tpot_of(t), 2.0)
        t += 5.0
    return trend


def test_forecasts_that_come_true_are_left_alone():
    trend = run(lambda t: 400.0, lambda t: 400.0)
    assert trend.factor(120.0) == 1.0


def test_load_that_outgrows_its_forecast_is_carried_on():
    # Chains get longer from 600 s on; the forecast thinks each time that it stays as it is.
    trend = run(lambda t: 400.0 + 6.0 * max(0.0, t - 600.0), lambda t: 400.0 + 6.0 * max(0.0, t - 600.0), until=720.0)
    now = 400.0 + 6.0 * 120.0
    assert now * trend.factor(120.0) == pytest.approx(now + 6.0 * 120.0, rel=0.25)


def test_what_is_missed_all_the_time_is_no_growth():
    trend = run(lambda t: 500.0, lambda t: 400.0, until=7200.0)
    assert trend.factor(120.0) == pytest.approx(1.0, abs=0.05)


def test_engines_that_get_slower_are_no_growth():
    # Requests stay longer because each token takes longer: more replicas are needed for that by the step time, not here.
    slower = lambda t: 0.04 * (1.0 + max(0.0, t - 600.0) / 200.0)  # noqa: E731
    trend = run(lambda t: 400.0 * slower(t) / 0.04, lambda t: 400.0 * slower(t) / 0.04, until=700.0, tpot_of=slower)
    assert trend.factor(120.0) == 1.0


def test_more_arrivals_than_forecast_are_no_growth_of_chains():
    # From 600 s on 8 requests/s come, 2 were forecast: the rate of arrivals learns that by itself.
    burst = lambda t: 10.0 if t < 600.0 else 40.0  # noqa: E731
    trend = run(lambda t: 400.0 + 6.0 * max(0.0, t - 600.0), lambda t: 400.0, until=630.0, arrivals_of=burst)
    assert trend.factor(120.0) == 1.0


def test_the_first_minutes_prove_nothing():
    trend = run(lambda t: 10.0 * t, lambda t: 10.0 * t, until=YOUNG_S - 5.0)
    assert trend.factor(120.0) == 1.0


@settings(max_examples=100)
@given(st.lists(st.floats(0.0, 1e5), min_size=70, max_size=90), st.floats(0.0, 5000.0))
def test_the_factor_is_never_below_one_nor_without_bound(inflight, after):
    trend = Trend()
    for i, count in enumerate(inflight):
        trend = judge(trend, 5.0 * i, count, 0.04, 10.0)
        trend = expect(trend, 5.0 * i + LOOK_S, count, 0.04, 2.0)
    assert 1.0 <= trend.factor(after) <= 1.0 + MOST_GROWTH
    assert trend.factor(0.0) == 1.0
