"""`reasonscale plan FILE`: how many GPUs a resource needs, what a replica of it gives, and what a trace would cost."""

from __future__ import annotations

import json as json_text
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reasonscale.cli.checks import number, output
from reasonscale.cli.simulate import DAY_S

RIVALS = ("hpa", "knative-kpa", "ray-serve", "llm-d-slo-aware")
# Weights of the shapes that the shipped profiles were measured on, in bytes.
MEASURED = {"qwen2-1.5b-h200": 3.1e9, "qwen2-7b-h200": 15.2e9, "qwen2-32b-h200": 65.5e9}
PROMPT_TOKENS = 500
MOST_APART = 2.5  # times in weights, beyond which one model's speed says nothing of another's


def plan(
    file: Path, /, *, trace: str | None = None, profile: str | None = None, cold_start: float = 120.0, seed: int = 1,
    json: Path | None = None,
) -> int:  # fmt: skip
    """Say what a resource takes and gives before it is applied.

    Parameters
    ----------
    file
        A YAML file with ReasoningModels.
    trace
        A built-in workload's name, a trace file or a ServeGen folder: GPU-hours and objectives by policy.
    profile
        Hardware profile: a shipped one's name, or a file that `reasonscale profile fit` made. When absent, the shipped
        one whose model's weights are nearest in size.
    cold_start
        Seconds from the order of a replica until it is ready.
    seed
        Of what is drawn.
    json
        Write the numbers to this file.
    """
    from reasonscale.api.load import load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource
    from reasonscale.simulator.policies import BadPolicy
    from reasonscale.simulator.profile import BadProfile
    from reasonscale.simulator.workload import BadWorkload

    number("--cold-start", cold_start, 0, DAY_S)
    number("--seed", seed, 0)
    output("--json", json, file)
    out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        found = [
            _plan(model, resolve(model, file.parent), trace, profile, cold_start, seed, out)
            for model in load_models(file)
        ]
    except InvalidResource as error:
        for problem in error.problems:
            err.print(f"{file}: {problem}", markup=False)
        return 2
    except (BadProfile, BadWorkload, BadPolicy) as error:
        err.print(f"plan: {error}", markup=False)
        return 2
    if json is not None:
        try:
            json.write_text(json_text.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            err.print(f"plan: {error.filename}: {error.strerror}", markup=False)
            return 1
    return 0


def _profile(model: Any, name: str | None) -> tuple[Any, str]:
    """Return the profile to plan with and, where nobody named one, why this one."""
    from math import log

    from reasonscale.api.sizes import size_of
    from reasonscale.simulator.profile import load

    if name is not None:
        return load(name), ""
    size = size_of(model.spec.model.uri)
    weights = size.weight_bytes if size else MEASURED["qwen2-7b-h200"]
    near = min(MEASURED, key=lambda n: abs(log(MEASURED[n] / weights)))
    if abs(log(MEASURED[near] / weights)) > log(MOST_APART):
        return None, (
            f"no shipped profile is near {size.name if size else 'it'} in size: its speed is not known; --profile takes one"
            " of your own GPU"
        )
    said = f"{size.name}'s weights are nearest to its model's" if size else "the model's size is not known"
    return load(near), f"profile {near}, since {said}; --profile takes one of your own GPU"


def _plan(
    model: Any, resolved: Any, trace: str | None, profile: str | None, cold_start: float, seed: int, out: Console
) -> dict[str, Any]:
    used, why = _profile(model, profile)
    if used is None and trace is not None:
        from reasonscale.simulator.profile import BadProfile

        raise BadProfile(why)
    kv = int(resolved.kv_capacity_tokens or (used.kv_tokens if used else 0))
    gpus, most = resolved.gpus_per_replica, max(1, resolved.max_replicas)
    reasoning = resolved.reasoning
    chain = reasoning.budget_default if reasoning.parser else 0
    whole = PROMPT_TOKENS + chain + reasoning.answer_reserve
    largest = min(
        resolved.max_model_len,
        PROMPT_TOKENS + (reasoning.budget_max if reasoning.parser else 0) + reasoning.answer_reserve,
    )
    figures: dict[str, Any] = {
        "model": resolved.name,
        "profile": used.name if used else None,
        "gpus_least": gpus * max(1, resolved.min_replicas),
        "gpus_most": gpus * most,
        "kv_tokens": kv,
        "chains_of_default_budget": kv // whole,
        "chains_of_largest_budget": kv // largest,
        "requests_within_objectives": None,
        "tokens_per_s_within_objectives": None,
    }
    out.print(
        f"{resolved.name}: at least {figures['gpus_least']} GPUs ({max(1, resolved.min_replicas)} x {gpus}), at most"
        f" {figures['gpus_most']}",
        markup=False,
    )
    if why:
        out.print(f"  {why}", markup=False)
    if used is not None:
        used = replace(used, kv_tokens=kv, gpus_per_replica=max(1, gpus))
        named = "max_num_batched_tokens" in model.spec.engine.args
        figures |= _speed(resolved, used, 0.5 * (chain + reasoning.answer_reserve), named, out)
    out.print(
        f"  its KV cache holds {kv:,} tokens: {kv // whole} chains of the default budget ({chain:,} tokens and"
        f" {reasoning.answer_reserve:,} of answer), {kv // largest} of the largest ({largest:,} in all)"
    )
    if kv < largest:
        out.print(
            f"  a request of the largest budget does not fit one KV cache: lower reasoning.budget.max to"
            f" {max(0, kv - PROMPT_TOKENS - reasoning.answer_reserve):,} or give a replica more GPUs"
        )
    if trace is not None:
        figures["policies"] = _traced(trace, used, resolved, cold_start, seed, out)
    return figures


def _objectives(resolved: Any) -> Any:
    from reasonscale.scaling.types import Objectives

    return Objectives(
        ttft_s=resolved.ttft_s, ttft_per_prompt_token_s=resolved.ttft_per_prompt_token_s, tpot_s=resolved.tpot_s,
        max_queue_s=resolved.max_queue_s, attainment=resolved.attainment,
    )  # fmt: skip


def _speed(resolved: Any, profile: Any, made: float, named: bool, out: Console) -> dict[str, Any]:
    """Say and return what one replica makes with requests that have made so many tokens in the mean."""
    from reasonscale.scaling.capacity import AIM
    from reasonscale.scaling.chunk import chunk_of
    from reasonscale.simulator.policies import Setting
    from reasonscale.simulator.policies.models import seats_at

    setting = Setting(
        profile, _objectives(resolved), 1, 1, 1.0, ("default",), resolved.max_num_seqs, resolved.max_num_batched_tokens
    )
    step, tpot = setting.step, AIM * resolved.tpot_s
    if step.a >= tpot:
        out.print(
            f"  no number of replicas meets objectives.tpot {resolved.tpot_s * 1e3:g} ms: one request alone takes"
            f" {step.a * 1e3:.0f} ms a token; set it to {1.5 * step.a * 1e3:.0f}ms or more, or use more GPUs a replica"
        )
        return {"requests_within_objectives": 0, "tokens_per_s_within_objectives": 0}
    seats = seats_at(setting, PROMPT_TOKENS + made, tpot)
    out.print(
        f"  a replica makes about {seats / tpot:,.0f} tokens/s for {int(seats)} requests at once, within"
        f" {resolved.tpot_s * 1e3:g} ms a token, on the GPU of {profile.name}"
    )
    chunk = chunk_of(setting.step, setting.objectives, resolved.max_num_seqs, profile.max_num_batched_tokens)
    if not named and chunk.tokens != resolved.max_num_batched_tokens:
        out.print(
            f"  engine.args: max_num_batched_tokens {chunk.tokens} suits the objectives better than {resolved.max_num_batched_tokens}:"
            f" {chunk.reason}"
        )
    return {
        "requests_within_objectives": int(seats),
        "tokens_per_s_within_objectives": round(seats / tpot),
        "max_num_batched_tokens": resolved.max_num_batched_tokens if named else chunk.tokens,
    }


def _traced(trace: str, profile: Any, resolved: Any, cold_start: float, seed: int, out: Console) -> dict[str, Any]:
    from reasonscale.simulator import bounds, policies, run, workload

    work = workload.load(trace, seed=seed)
    options = run.Options(
        cold_start_s=cold_start, min_replicas=max(1, resolved.min_replicas), max_replicas=max(1, resolved.max_replicas),
        seed=seed, objectives=_objectives(resolved), max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
    )  # fmt: skip
    out.print(
        f"  {work.name}: {len(work.arrival_s):,} requests, {options.min_replicas} to {options.max_replicas} replicas,"
        f" a start takes {cold_start:g} s"
    )
    rows: dict[str, Any] = {}
    number, peak = bounds.static_peak(work, profile, options, resolved.attainment)
    found = {f"static {number}": peak}
    for name in ("reasonscale", *RIVALS):
        found[name] = run.run(work, profile, policies.make(name, run.setting_of(work, profile, options)), options)
    for name in sorted(found, key=lambda n: (n != "reasonscale", found[n].gpu_hours)):
        outcome = found[name]
        rows[name] = {"gpu_hours": round(outcome.gpu_hours, 3), "attainment": round(outcome.attainment, 5)}
        met = "" if outcome.attainment >= resolved.attainment else "  misses its objectives"
        out.print(
            f"    {name:<18} {outcome.gpu_hours:>9,.1f} GPU-hours, {outcome.attainment:7.2%} of requests within{met}"
        )
    return rows
