"""What the resource asks for, as the numbers that a decision needs."""

from __future__ import annotations

from reasonscale.api import constants as c
from reasonscale.api.resolve import Resolved
from reasonscale.scaling.types import Mode, Objectives, Policy, Rates, StepTime

# Share of the family's mean output at medium effort, until lengths have been seen.
_EFFORT_SHARES = {c.CLASS_OFF: 0.25, c.CLASS_LOW: 0.5, c.CLASS_MEDIUM: 1.0, c.CLASS_HIGH: 2.0, c.CLASS_OTHER: 1.0}


def length_priors(resolved: Resolved) -> dict[str, float]:
    """Return the mean output tokens of each class to start from, at most a quarter of what fits the context."""
    mean, most = float(resolved.reasoning.family.mean_output_tokens), resolved.max_model_len / 4
    names = (*resolved.class_names, c.CLASS_OTHER)
    return {name: max(16.0, min(most, mean * _EFFORT_SHARES.get(name, 1.0))) for name in names}


def policy_of(
    resolved: Resolved, *, start_prior_s: float = 120.0, step_time: StepTime | None = None, tick_s: float = 5.0
) -> Policy:
    """Return the policy of a resolved resource.

    `start_prior_s` is how long a replica takes until one has been measured, `step_time` the accelerator's profile
    where one is known; both are corrected by what is seen.
    """
    return Policy(
        mode=Mode(resolved.mode),
        min_replicas=resolved.min_replicas,
        max_replicas=resolved.max_replicas,
        zero_after_s=resolved.sleep.after_s if resolved.sleep is not None else None,
        manual_replicas=resolved.replicas,
        objectives=Objectives(
            ttft_s=resolved.ttft_s,
            ttft_per_prompt_token_s=resolved.ttft_per_prompt_token_s,
            tpot_s=resolved.tpot_s,
            max_queue_s=resolved.max_queue_s,
            attainment=resolved.attainment,
        ),
        rates=Rates(
            up_max_factor=resolved.up_max_factor,
            up_max_step=resolved.up_max_step,
            down_max_step=resolved.down_max_step,
            down_stable_s=resolved.down_stable_s,
            down_interval_s=resolved.down_interval_s,
        ),
        kv_headroom=resolved.kv_headroom,
        kv_capacity_tokens=resolved.kv_capacity_tokens,
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        step_time=step_time,
        start_prior_s=start_prior_s,
        length_prior=length_priors(resolved),
        length_limit={name: float(resolved.max_model_len) for name in (*resolved.class_names, c.CLASS_OTHER)},
        tick_s=tick_s,
        drain_s=resolved.drain_s,
        asleep=resolved.asleep,
        asleep_bytes=resolved.asleep_bytes if resolved.asleep else None,
    )
