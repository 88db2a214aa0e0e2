"""The load that one replica serves within its objectives: found by playing it, not by a formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from reasonscale.profiles.profile import Profile
from reasonscale.simulator.policies.base import Static
from reasonscale.simulator.run import Options, run, setting_of
from reasonscale.simulator.workload import Workload, make

LEAST_REQUESTS: Final = 500
TURNOVERS: Final = 20  # of the whole batch, so that the first, which finds an empty replica, counts for little
STEPS: Final = 8  # of the bisection: to 0.4 % of the ceiling


def requests_per_s(
    profile: Profile, options: Options, ceiling: float, seats: float, lengths: tuple[int, int, int], aim: float
) -> float:  # fmt: skip
    """Return the highest rate, below `ceiling`, of Poisson arrivals that one replica serves with `aim` of them within every objective.

    `lengths` are each request's tokens of prompt, chain and answer; `seats`, how many run at once, says how long to play.
    """
    n = max(LEAST_REQUESTS, int(TURNOVERS * seats))
    gaps = np.random.default_rng(options.seed).exponential(1.0, n)
    # Scrapes cost time, and a constant number looks at none.
    options = replace(options, min_replicas=1, max_replicas=1, router="gated", scrape_s=60.0)

    def at(rate: float) -> Workload:
        prompt, reasoning, answer = (np.full(n, tokens) for tokens in lengths)
        return make("poisson", np.cumsum(gaps) / rate, prompt, reasoning, answer)

    low, high = 0.0, ceiling
    for _ in range(STEPS):
        middle = (low + high) / 2.0
        work = at(middle)
        met = run(work, profile, Static(setting_of(work, profile, options), {"replicas": 1}), options).attainment
        low, high = (middle, high) if met >= aim else (low, middle)
    return low
