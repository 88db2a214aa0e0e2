"""The gate before the simulated engines: as the product's, it binds late, keeps the order, and refuses who would wait too long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.simulator.scenes import PROFILE
from tests.unit.simulator.test_fleet_loses_nothing import finished, some, work_of

from reasonscale.scaling.types import Objectives
from reasonscale.serving.gate import Gate, Rules, Ticket
from reasonscale.simulator import engine as e
from reasonscale.simulator import router as rt
from reasonscale.simulator.cluster import Cluster

DEFAULT, PATIENT = Objectives(), Objectives(max_queue_s=1e6)


# A token a second: a replica that is full stays so for half a minute.
SLOW = replace(PROFILE, decode=((1, 1000.0, 0.01), (8, 1010.0, 0.01)))


def fleet(work, router="gated", replicas=1, cold=0.0, objectives=DEFAULT, profile=PROFILE):
    return Cluster(profile, work, router=router, cold_start_s=lambda: cold, replicas=replicas, objectives=objectives)


def test_where_there_is_room_the_gate_changes_nothing():
    work = some(200, 1.0)
    gated, open_ = finished(fleet(work, replicas=4)), finished(fleet(work, "expected-load", replicas=4))
    assert not gated.refused.any()
    assert (gated.first_s == open_.first_s).all()
    assert (gated.last_s == open_.last_s).all()


def test_who_waits_at_the_gate_goes_to_the_replica_that_has_just_started():
    # One fills the KV cache; ten come that don't fit beside it. Without a gate those are bound to its replica.
    work = work_of([(0.0, 955, 40), *((15.0 + 0.1 * i, 80, 2) for i in range(10))])
    clusters = {r: fleet(work, r, cold=2.0, objectives=PATIENT, profile=SLOW) for r in ("gated", "expected-load")}
    for cluster in clusters.values():
        cluster.advance(20.0)
        cluster.scale(2)
        finished(cluster)
        assert not np.isnan(cluster.last_s).any()
    assert (np.diff(clusters["gated"].first_s[1:]) >= 0.0).all()
    assert clusters["gated"].first_s[1:].mean() < clusters["expected-load"].first_s[1:].mean()


def test_a_replica_that_is_nearly_full_is_filled_no_further():
    work = work_of([(0.0, 955, 40), (15.0, 5, 2)])
    cluster = fleet(work, objectives=PATIENT, profile=SLOW)
    cluster.advance(20.0)
    seen = cluster.scrape()
    assert (seen.at_gate, seen.held, seen.waiting.sum()) == (1, 0, 0)
    assert seen.by_class[0].sum() == 1  # what waits at the gate waits
    assert finished(cluster).first_s[1] >= cluster.last_s[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 30.0))
def test_everyone_is_served_whole_or_refused_at_once(seed, longest_s):
    work = some(300, 30.0, seed)
    cluster = finished(fleet(work, objectives=Objectives(max_queue_s=longest_s)))
    served = ~cluster.refused
    assert np.isnan(cluster.first_s[cluster.refused]).all()
    assert not np.isnan(cluster.last_s[served]).any()
    assert (np.diff(cluster.first_s[served]) > -2.0).all()  # in order, but for those of one step and one report


def test_a_longer_queue_refuses_fewer():
    work = some(600, 60.0)
    refused = [
        int(finished(fleet(work, objectives=Objectives(max_queue_s=s))).refused.sum())
        for s in (0.5, 20.0, 60.0, 3600.0)
    ]
    assert refused[0] > refused[1] > refused[2] >= refused[3] == 0


def test_the_next_step_of_a_client_that_was_refused_comes_all_the_same():
    work = some(400, 60.0)
    follower = np.where(np.arange(400) < 200, np.arange(400) + 200, -1)
    work = replace(work, arrival_s=np.where(np.arange(400) < 200, work.arrival_s, -1.0), follower=follower)
    cluster = finished(fleet(work, objectives=Objectives(max_queue_s=0.5)))
    assert cluster.refused[:200].any()
    assert (cluster.arrival_s >= 0.0).all()


@pytest.mark.parametrize("waiting", [0, 1, 3, 10, 40])
@pytest.mark.parametrize("longest_s", [1.0, 3.0, 10.0, 30.0])
def test_it_lets_in_whom_the_product_would_let_in(waiting, longest_s):
    running, mean, tokens, seconds = 8, 400.0, 5000.0, 200.0
    product = Gate(Rules(seats=running, max_queue_s=longest_s, tpot_s=0.05))
    product._speed, product._typical, product._seats_used = (tokens, seconds), mean, running
    product.see(running)
    for _ in range(waiting):
        product.waiting.add(Ticket("default", cost=mean))
    lets_in = product._servable(Ticket("default", cost=mean), None, 0.0)

    g, gate = np.zeros(9, dtype=np.int64), np.zeros(7)
    g[rt.PLACES], g[rt.QUEUED] = 1, waiting
    gate[rt.LONGEST_S], gate[rt.MEAN], gate[rt.TOKENS], gate[rt.SECONDS] = longest_s, mean, tokens, seconds
    gate[rt.PRIOR_SPEED] = 2.0 / 0.05
    engines = e.empty_engine(1000, 16, running, 2048)[None, :].copy()
    engines[0, e.RUNNING] = running
    known = np.zeros((1, 5))
    known[0, rt.ONGOING] = running
    here = rt.admits(
        g, gate, 0.0, engines, np.array([rt.ORDERED]), np.zeros(1), known, np.zeros((1, running), dtype=np.int64),
        np.zeros((e.ROWS, 1), dtype=np.int64), np.zeros(2, dtype=np.int64),
    )  # fmt: skip
    assert here == lets_in
