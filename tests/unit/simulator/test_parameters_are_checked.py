"""A parameter of a rule runs or is refused in words: 0 fails no run in the middle, and an unknown word is not the usual one."""

from __future__ import annotations

import numpy as np
import pytest

from reasonscale.profiles.library import load
from reasonscale.simulator import policies, run, workload
from reasonscale.simulator.policies.base import _DIVISORS

PROFILE = load("qwen2-32b-h200")
OPTIONS = run.Options(cold_start_s=10.0)
N = 40
WORK = workload.make("x", np.arange(N) * 2.0, np.full(N, 100), np.full(N, 300), np.full(N, 50))
SETTING = run.setting_of(WORK, PROFILE, OPTIONS)
NUMBERS = [
    (name, key)
    for name in policies.names()
    for key, usual in policies.make(name, SETTING).defaults.items()
    if not isinstance(usual, str)
]


def test_a_word_that_no_rule_knows_is_refused():
    with pytest.raises(policies.BadPolicy, match="predictor was 'best'; it must be constant or linear"):
        policies.make("dynamo-throughput", SETTING, {"predictor": "best"})


@pytest.mark.parametrize(("policy", "key"), NUMBERS)
def test_a_parameter_of_zero_runs_or_is_refused_in_words(policy, key):
    if key in _DIVISORS:
        with pytest.raises(policies.BadPolicy, match=f"{key} was 0; it must be a number, greater than 0"):
            policies.make(policy, SETTING, {key: 0})
        return
    made = policies.make(policy, SETTING, {key: 0})
    with np.errstate(all="raise"):
        assert run.run(WORK, PROFILE, made, OPTIONS).gpu_hours > 0
