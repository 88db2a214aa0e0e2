"""The length curve: a known distribution is recovered from the ledger's two counters, and a shift is followed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bench.crowd import Crowd
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.scaling.curve import EDGES, curve_from
from reasonscale.scaling.survival import Lengths, curve_of, evidence, prior_hazards, ratios, remember
from reasonscale.scaling.types import N_BINS

SPEED = 40.0


def lognormal(rng, n):
    return np.exp(rng.normal(np.log(900.0), 0.8, n))


def bimodal(rng, n):
    short, long = np.exp(rng.normal(np.log(250.0), 0.4, n)), np.exp(rng.normal(np.log(5000.0), 0.35, n))
    return np.where(rng.random(n) < 0.6, short, long)


def learnt(crowd, until, prior_mean, tick=5.0, lengths=None, limit=65536.0):
    lengths = lengths or Lengths()
    now = crowd.now
    while now < until:
        now += tick
        lengths = remember(lengths, crowd.step(now), tick)
    prior = prior_hazards(prior_mean)
    found = evidence(lengths)
    return curve_of(found, prior, ratios({"x": found}, {"x": prior}), limit), lengths


def mean_remaining(lengths, g):
    left = lengths[lengths > g] - g
    return float(left.mean())


@pytest.mark.parametrize("draw", [lognormal, bimodal])
@pytest.mark.parametrize("censored", [False, True])
@pytest.mark.parametrize("rising", [False, True], ids=["steady", "rising"])
def test_the_mean_remaining_is_within_5_percent_after_2000_requests(draw, censored, rising):
    # The mean over seeds is judged: 2,000 draws of so wide a distribution have a standard error of 2 to 3 % themselves.
    errors = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        span = 1200.0
        starts = np.sort(span * (np.sqrt(rng.random(2000)) if rising else rng.random(2000)))
        lengths = draw(rng, 2000)
        cuts = np.where(rng.random(2000) < 0.15, rng.random(2000) * 3000.0, 1e9) if censored else None
        curve, _ = learnt(Crowd(starts, lengths, SPEED, cuts), span, prior_mean=1500.0)
        truth = draw(np.random.default_rng(99), 400_000)
        errors.append([curve.remaining(g) / mean_remaining(truth, g) - 1.0 for g in (0.0, 500.0, 1500.0)])
    mean = np.mean(errors, axis=0)
    # Far out only a few of the 2,000 are left to learn from, and the prior still weighs.
    assert np.all(np.abs(mean) < [0.05, 0.05, 0.08]), mean


def test_a_shift_of_lengths_is_followed_within_minutes_though_an_hour_spoke_otherwise():
    rng = np.random.default_rng(5)
    hour, later = 3600.0, 900.0
    n, m = int(2 * hour), int(2 * later)
    starts = np.concatenate([np.sort(rng.random(n) * hour), hour + np.sort(rng.random(m) * later)])
    lengths = np.concatenate([lognormal(rng, n), 4.0 * lognormal(rng, m)])
    crowd = Crowd(starts, lengths, SPEED)
    before, memory = learnt(crowd, hour, prior_mean=1200.0)
    after, _ = learnt(crowd, hour + later, prior_mean=1200.0, lengths=memory)
    old, new = mean_remaining(lengths[:n], 0.0), mean_remaining(4.0 * lognormal(np.random.default_rng(9), 100_000), 0.0)
    assert before.mean == pytest.approx(old, rel=0.05)
    assert after.mean == pytest.approx(new, rel=0.15)


def test_a_load_that_has_just_begun_is_not_read_as_endless_chains():
    rng = np.random.default_rng(3)
    starts = np.sort(600.0 * np.sqrt(rng.random(4000)))
    crowd = Crowd(starts, bimodal(rng, 4000), SPEED)
    counts = [crowd.step(now) for now in np.arange(5.0, 151.0, 5.0)]
    memory, reached, ended = Lengths(), np.zeros(N_BINS), np.zeros(N_BINS)
    for c in counts:
        memory = remember(memory, c, 5.0)
        reached, ended = reached + c.reached, ended + c.ended
    hazards = [-np.log1p(-min(0.99, e / max(r, 1.0))) for e, r in zip(ended, reached, strict=True)]
    naive = curve_from(hazards, [0.0] * N_BINS, 65536.0)
    prior = prior_hazards(1500.0)
    found = evidence(memory)
    ours = curve_of(found, prior, ratios({"x": found}, {"x": prior}), 65536.0)
    truth = mean_remaining(bimodal(np.random.default_rng(8), 200_000), 0.0)
    assert naive.mean > 3.0 * truth
    assert 0.5 < ours.mean / truth < 2.0


def test_nothing_seen_gives_the_prior():
    prior = prior_hazards(1500.0)
    found = evidence(Lengths())
    curve = curve_of(found, prior, ratios({"x": found}, {"x": prior}), 65536.0)
    assert curve.mean == pytest.approx(1500.0, rel=0.03)


@given(st.lists(st.floats(1e-6, 3.0), min_size=N_BINS, max_size=N_BINS), st.floats(10, 100_000))
def test_the_curve_s_integrals_agree_with_summing_it(hazards, limit):
    curve = curve_from(hazards, [0.0] * N_BINS, limit)
    # A fine grid within each bin; survival jumps to 0 at the limit.
    edges = [edge for edge in EDGES if edge < limit] + [limit]
    grid = np.concatenate([np.linspace(a, b, 200, endpoint=False) for a, b in itertools.pairwise(edges)] + [[limit]])
    s = np.array([curve.at(g)[0] for g in grid[:-1]] + [curve.at(np.nextafter(limit, 0))[0]])
    assert np.all(np.diff(s) <= 1e-12)
    assert curve.mean == pytest.approx(np.trapezoid(s, grid), rel=1e-3)
    assert curve.mean_moment == pytest.approx(np.trapezoid(s * grid, grid), rel=1e-3)
    g = limit / 3
    assert curve.remaining(g) <= limit - g + 1e-6
    assert curve.remaining_squared(g) >= curve.remaining(g) ** 2 * (1 - 1e-6)
