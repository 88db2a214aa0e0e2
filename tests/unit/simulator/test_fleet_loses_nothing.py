"""The fleet: nobody is lost, drains end their work, every second of a replica is paid, a seed decides everything."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.simulator.scenes import PROFILE

from reasonscale.simulator import bounds, policies, traces, workload
from reasonscale.simulator.cluster import Cluster
from reasonscale.simulator.engine import replay
from reasonscale.simulator.router import ROUTERS
from reasonscale.simulator.run import Options, run, setting_of
from reasonscale.simulator.workload import NOBODY, Workload, make


def work_of(rows: list[tuple[float, int, int]]) -> Workload:
    t, prompt, output = (np.array(c) for c in zip(*rows, strict=True))
    return make("by hand", t.astype(float), prompt, output // 2, output - output // 2)


def some(n: int, rate: float, seed: int = 1) -> Workload:
    rng = np.random.default_rng(seed)
    return make(
        "some", np.cumsum(rng.exponential(1 / rate, n)), rng.integers(5, 60, n), rng.integers(1, 100, n), rng.integers(1, 60, n)
    )  # fmt: skip


def finished(cluster: Cluster, until: float = 5000.0) -> Cluster:
    while not cluster.done and cluster.time < until:
        cluster.advance(cluster.time + 5.0)
    cluster.close()
    return cluster


def test_one_replica_does_what_the_engine_model_does():
    work = some(200, 2.0)
    fleet = finished(Cluster(PROFILE, work, router="least-kv", cold_start_s=lambda: 0.0, replicas=1))
    alone = replay(PROFILE, work.arrival_s, work.prompt_tokens, work.output_tokens)
    assert fleet.last_s == pytest.approx(alone.last_s, abs=0.15)  # a pause may cut a run of steps elsewhere
    assert fleet.preempted.sum() == pytest.approx(alone.preemptions, abs=20)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 60), st.integers(1, 200), st.integers(1, 150)), min_size=1, max_size=60),
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
    st.sampled_from(sorted(ROUTERS)),
    st.floats(0.0, 20.0),
)
def test_no_request_is_lost_whatever_is_scaled(rows, targets, router, cold):
    work = work_of(sorted(rows))
    cluster = Cluster(PROFILE, work, router=router, cold_start_s=lambda: cold, replicas=1)
    for target in targets:
        cluster.scale(target)
        cluster.advance(cluster.time + 7.0)
    finished(cluster)
    fits = work.prompt_tokens + work.output_tokens - 1 <= PROFILE.kv_tokens
    assert router == "gated" or (cluster.refused == ~fits).all()
    fits = ~cluster.refused
    assert not np.isnan(cluster.last_s[fits]).any()
    assert np.isnan(cluster.first_s[~fits]).all()
    assert (cluster.first_s[fits] >= work.arrival_s[fits]).all()
    assert (cluster.last_s[fits] >= cluster.first_s[fits]).all()
    assert all(0.0 <= s.ordered <= s.gone <= cluster.time for s in cluster.spans)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_what_scrapes_count_is_what_happened(seed):
    work = some(80, 3.0, seed)
    cluster = Cluster(PROFILE, work, router="least-kv", cold_start_s=lambda: 3.0, replicas=2)
    total = np.zeros(6)
    ended = reached = 0.0
    while not cluster.done:
        cluster.scale(1 + int(cluster.time / 10) % 3)
        cluster.advance(cluster.time + 5.0)
        seen = cluster.scrape()
        total += seen.by_class.sum(axis=1)
        ended += seen.by_bin[4].sum()
        reached += seen.by_bin[3, :, 0].sum()
    assert seen.by_class[0].sum() == 0
    assert seen.by_bin[:3].sum() == 0
    assert (ended, reached, total[2]) == (80, 80, 80)
    assert total[3] == work.prompt_tokens.sum()
    assert (total[4], total[5]) == (work.reasoning_tokens.sum(), work.answer_tokens.sum())


def test_a_draining_replica_takes_nobody_and_ends_its_work():
    # Two long ones, one on each replica; then the fleet shrinks and a third comes.
    work = work_of([(0.0, 5, 800), (0.1, 5, 800), (3.0, 5, 400)])
    cluster = Cluster(PROFILE, work, router="least-kv", cold_start_s=lambda: 0.0, replicas=2)
    cluster.advance(2.0)
    cluster.scale(1)
    assert cluster.fleet() == (1, 1, (), 1)
    cluster.advance(4.0)
    assert cluster.scrape().running.max() == 2  # the third went to the one that stays
    finished(cluster)
    assert not np.isnan(cluster.last_s).any()
    drained = min(cluster.spans, key=lambda s: s.gone)
    assert drained.gone >= min(cluster.last_s[:2]) - 1e-6


def test_a_start_that_is_called_off_costs_until_then():
    work = work_of([(0.0, 5, 10), (100.0, 5, 10)])
    cluster = Cluster(PROFILE, work, router="least-kv", cold_start_s=lambda: 60.0, replicas=1)
    cluster.advance(10.0)
    cluster.scale(2)
    cluster.advance(30.0)
    assert cluster.fleet() == (2, 1, (20.0,), 0)
    cluster.scale(1)
    assert [(s.ordered, s.gone) for s in cluster.spans] == [(10.0, 30.0)]


def test_requests_that_find_nobody_ready_are_held_and_served_in_order():
    work = work_of([(1.0, 5, 20), (2.0, 5, 20), (3.0, 5, 20)])
    cluster = Cluster(PROFILE, work, router="least-kv", cold_start_s=lambda: 30.0, replicas=1)
    cluster.scale(2)
    cluster._life[0] = 0  # the one that was ready is lost
    cluster._taken[0] = False
    cluster.advance(10.0)
    assert cluster.scrape().held == 3
    finished(cluster)
    assert cluster.first_s[0] >= 30.0
    assert (np.diff(cluster.first_s) >= 0).all()


def test_a_follower_comes_when_its_client_has_read_and_thought():
    work = replace(work_of([(0.0, 5, 50), (1.0, 5, 50)]), arrival_s=np.array([0.0, -1.0]))
    work = replace(work, follower=np.array([1, NOBODY]), think_s=np.array([10.0, 0.0]))
    cluster = finished(Cluster(PROFILE, work, router="least-kv", cold_start_s=lambda: 0.0, replicas=1))
    assert cluster.arrival_s[1] == pytest.approx(cluster.last_s[0] + 10.0, abs=1e-6)
    assert not np.isnan(cluster.last_s).any()


@pytest.mark.parametrize("policy", policies.names())
def test_the_same_seed_gives_the_same_figures(policy):
    work = some(300, 3.0)
    options = Options(cold_start_s=10.0, max_replicas=8)

    def figures() -> str:
        found = run(work, PROFILE, policies.make(policy, setting_of(work, PROFILE, options)), options).to_json()
        found.pop("wall_s")
        return json.dumps(found)

    assert figures() == figures()


def test_a_static_fleet_costs_its_size_times_its_time():
    work = some(100, 2.0)
    options = Options(cold_start_s=10.0)
    found = run(work, PROFILE, policies.make("static:3", setting_of(work, PROFILE, options)), options)
    assert found.gpu_hours == pytest.approx(3 * found.span_s / 3600.0)
    assert found.ups == found.downs == 0


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_below_the_lower_bound(seed):
    work = some(300, 4.0, seed)
    options = Options(cold_start_s=5.0, max_replicas=6)
    bound = bounds.lower_bound_gpu_hours(work, PROFILE, options)
    for policy in ("reasonscale", "static:1", "hpa"):
        found = run(work, PROFILE, policies.make(policy, setting_of(work, PROFILE, options)), options)
        assert found.gpu_hours > bound


def test_who_knows_the_future_needs_no_more_than_ours():
    work = workload.between(traces.load("cot-shift"), 3300.0, 4500.0)
    profile, options = policies_profile(), Options()
    ours = run(work, profile, policies.make("reasonscale", setting_of(work, profile, options)), options)
    best = bounds.clairvoyant(work, profile, options)
    assert best.attainment >= 0.99
    assert best.gpu_hours < 1.05 * ours.gpu_hours


def policies_profile():
    from reasonscale.profiles.library import load

    return load("qwen2-32b-h200")


def test_chains_that_grow_are_met_by_the_trend_of_the_forecast(monkeypatch):
    from reasonscale.scaling import trend

    work, profile, options = traces.load("cot-shift"), policies_profile(), Options()

    def attained() -> float:
        return run(work, profile, policies.make("reasonscale", setting_of(work, profile, options)), options).attainment

    known = attained()
    monkeypatch.setattr(trend, "MOST_LOOKS", 0.0)
    assert known >= 0.99
    assert attained() < known


def test_who_knows_the_distributions_alone_does_not_see_the_future():
    rng = np.random.default_rng(3)
    before = [(t, 20, int(n)) for t, n in zip(np.arange(0.0, 1500.0, 1.0), rng.integers(5, 200, 1500), strict=True)]
    calm = work_of([*before, (1600.0, 20, 50)])
    crowd = work_of([*before, *((1500.0 + 0.01 * i, 20, 400) for i in range(3000))])
    options = Options(cold_start_s=60.0)
    known = {name: bounds.need_over_time(w, PROFILE, options) for name, w in (("calm", calm), ("crowd", crowd))}
    expected = {name: bounds.expected_need(w, PROFILE, options) for name, w in (("calm", calm), ("crowd", crowd))}
    until = int((1500.0 - bounds.LENGTHS_WINDOW_S) / bounds.GRID_S)
    assert (expected["calm"][:until] == expected["crowd"][:until]).all()
    crowded = int(1525.0 / bounds.GRID_S)
    assert known["crowd"][crowded] > 5 * known["calm"][crowded]
    assert expected["crowd"][crowded] > 5 * expected["calm"][crowded]  # it sees the rate as it is


def test_at_a_steady_rate_what_is_expected_is_what_is_needed():
    work = some(6000, 4.0)
    options = Options(cold_start_s=30.0)
    known, expected = (f(work, PROFILE, options) for f in (bounds.need_over_time, bounds.expected_need))
    middle = slice(60, 240)
    assert expected[middle].mean() == pytest.approx(known[middle].mean(), rel=0.15)


def test_the_true_remains_are_those_of_the_running_requests():
    work = some(60, 3.0)
    cluster = Cluster(PROFILE, work, router="least-kv", cold_start_s=lambda: 0.0, replicas=2)
    cluster.advance(10.0)
    made, left, prompt = cluster.true_remains()
    assert len(made) == cluster.scrape().running.sum() > 0
    assert (left > 0).all()
    assert (made >= 0).all()
    assert (prompt >= 5).all()
