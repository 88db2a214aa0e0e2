"""The same decision lets simulated replicas sleep, charges them as any other, and wakes them in seconds for the next burst."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.simulator.scenes import PROFILE

from reasonscale.simulator import policies
from reasonscale.simulator.cluster import Cluster
from reasonscale.simulator.run import Options, Outcome, run, setting_of
from reasonscale.simulator.workload import Workload, make


def bursts() -> Workload:
    """Three bursts, of which each is more than one replica serves within its objectives."""
    rng = np.random.default_rng(3)
    arrival = np.sort(np.concatenate([at + rng.uniform(0, 90, 150) for at in (5.0, 1000.0, 2000.0)]))
    n = len(arrival)
    return make("bursts", arrival, rng.integers(5, 60, n), rng.integers(50, 400, n), rng.integers(1, 60, n))


def played(asleep: int, wake_s: float = 10.0) -> tuple[Outcome, policies.Policy]:
    options = Options(cold_start_s=120.0, max_replicas=4, first_replicas=1, asleep=asleep, wake_s=wake_s)
    work = bursts()
    policy = policies.make("reasonscale", setting_of(work, PROFILE, options), {})
    return run(work, PROFILE, policy, options), policy


def test_sleeping_replicas_cost_what_they_hold_and_serve_the_next_bursts_sooner() -> None:
    plain, _ = played(0)
    slept, _ = played(3)
    assert plain.peak > 1
    assert plain.asleep_s == 0.0
    assert slept.wakes >= 2
    assert slept.asleep_s > 0.0
    assert slept.replica_s > plain.replica_s + 0.5 * slept.asleep_s  # they are charged
    assert slept.unfinished == plain.unfinished == 0
    assert slept.refused < 0.5 * plain.refused
    assert slept.attainment > plain.attainment + 0.1
    figures = slept.to_json()
    assert figures["asleep_gpu_hours"] == pytest.approx(slept.asleep_s / 3600.0, abs=1e-3)
    assert "asleep_gpu_hours" not in plain.to_json()


def test_one_that_is_woken_takes_requests_after_the_time_of_a_wake_and_none_before() -> None:
    work = make("one", np.array([200.0, 200.5]), np.array([9, 9]), np.array([900, 50]), np.array([5, 5]))
    cluster = Cluster(PROFILE, work, router="gated", cold_start_s=lambda: 0.0, replicas=2, wake_s=10.0, max_num_seqs=1)
    cluster.advance(10.0)
    sleeper = cluster.id_of(0)
    cluster.rest((sleeper,), (sleeper,))
    cluster.advance(110.0)
    assert cluster.asleep_s == 100.0
    assert cluster.fleet() == (2, 2, (), 0)  # the number is as it was
    assert cluster.scrape().asleep == (True, False)
    cluster.advance(195.0)
    cluster.rest((), ())
    assert cluster.scrape().asleep == (True, False)  # it wakes
    cluster.advance(300.0)
    assert cluster.scrape().asleep == (False, False)
    assert cluster.wakes == 1
    # The first went to the one that was awake; the second waited for the other.
    assert cluster.first_s[0] < 201.0
    assert 205.0 <= cluster.first_s[1] < 207.0
    cluster.close()
    assert sum(s.gone - s.ordered for s in cluster.spans) == 600.0


def test_a_number_that_falls_stops_the_one_that_is_spared() -> None:
    work = make("one", np.array([500.0]), np.array([9]), np.array([50]), np.array([5]))
    cluster = Cluster(PROFILE, work, router="gated", cold_start_s=lambda: 0.0, replicas=1)
    cluster.advance(10.0)
    cluster.scale(2)
    cluster.advance(20.0)
    first = cluster.id_of(0)
    cluster.rest((first,), ())
    cluster.scale(1)
    assert [s.ordered for s in cluster.spans] == [0.0]
    cluster.advance(30.0)
    assert cluster.fleet() == (1, 1, (), 0)
