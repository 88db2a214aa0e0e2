"""A resource becomes a policy: every number of `spec.scaling` arrives, in base units."""

from __future__ import annotations

from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.scaling.policy import policy_of
from reasonscale.scaling.types import Mode, Objectives, Rates, StepTime

RESOURCE = """
apiVersion: reasonscale.io/v1alpha1
kind: ReasoningModel
metadata: {name: r1-32b}
spec:
  model: {uri: "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", maxModelLen: 16384}
  engine: {args: {max_num_seqs: "32", max_num_batched_tokens: "1024"}}
  parallelism: {tensor: 2}
  replicas: 3
  scaling:
    mode: Recommend
    minReplicas: 2
    maxReplicas: 7
    objectives: {ttft: 3s, ttftPerPromptToken: 100us, tpot: 40ms, maxQueue: 20s, attainmentPercent: 95}
    kvHeadroomPercent: 20
    rates: {upMaxFactor: 3, upMaxStep: 5, downMaxStep: 2, downStable: 90s, downInterval: 45s}
"""


def test_every_number_of_the_resource_arrives(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(RESOURCE)
    step = StepTime(0.02, 1e-4, 1e-8, 1e-4)
    policy = policy_of(resolve(load_models(path)[0]), start_prior_s=77.0, step_time=step)
    assert policy.mode is Mode.RECOMMEND
    assert (policy.min_replicas, policy.max_replicas, policy.manual_replicas) == (2, 7, 3)
    assert policy.objectives == Objectives(3.0, 100e-6, 0.040, 20.0, 0.95)
    assert policy.rates == Rates(3.0, 5, 2, 90.0, 45.0)
    assert (policy.kv_headroom, policy.max_num_seqs, policy.max_num_batched_tokens) == (0.20, 32, 1024)
    assert (policy.start_prior_s, policy.step_time) == (77.0, step)
    assert set(policy.length_limit.values()) == {16384.0}
    prior = policy.length_prior
    assert prior["off"] < prior["low"] < prior["medium"] < prior["high"] <= 16384.0 / 4
