"""The same decision puts a simulated fleet to sleep between two bursts, and wakes it for the second."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.simulator.scenes import PROFILE

from reasonscale.simulator import policies
from reasonscale.simulator.run import Options, run, setting_of
from reasonscale.simulator.workload import make


def test_two_bursts_an_hour_apart_cost_no_replica_between_them_and_every_request_is_served():
    rng = np.random.default_rng(3)
    arrival = np.sort(np.concatenate([rng.uniform(5, 120, 40), 3600.0 + rng.uniform(0, 60, 40)]))
    work = make("two bursts", arrival, rng.integers(5, 60, 80), rng.integers(1, 100, 80), rng.integers(1, 60, 80))
    used = {}
    for least in (0, 1):
        options = Options(cold_start_s=60.0, min_replicas=least, max_replicas=4)
        setting = setting_of(work, PROFILE, options)
        policy = policies.make("reasonscale", setting, {"zero_after_s": 300.0})
        found = run(work, PROFILE, policy, options)
        assert np.isfinite(found.e2e_s).all()
        assert len(found.e2e_s) == 80
        used[least] = found.gpu_hours
        if least == 0:
            reasons = [(n, reason) for _, n, reason, _ in policy.reasons]
            assert (0, "Idle") in reasons
            woke = reasons[reasons.index((0, "Idle")) + 1]
            assert woke[1] == "Wake"
            # The first of the second burst waits for a start, and no decision longer than a scrape away is added to it.
            assert found.ttft_s.max() == pytest.approx(60.0, abs=30.0)
    assert used[0] < 0.6 * used[1]
