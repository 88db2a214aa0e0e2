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
MEASURED = {"qwen2-1.5b-h200": 3.1e9, "qwen2-7b-h200": 15.2e9, "qwen2-7b-h100": 15.2e9, "qwen2-32b-h200": 65.5e9}
PROMPT_TOKENS = 500
SPEED = (
    "requests_at_once",
    "step_ms",
    "tokens_per_s",
    "requests_per_s_within_objectives",
    "tokens_per_s_within_objectives",
)
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
        Hardware profile: a shipped one's name, or a file that `reasonscale profile fit` made. When absent, the one that
        spec.accelerator.profile names, else the shipped one whose model's weights are nearest in size.
    cold_start
        Seconds from the order of a replica until it is ready.
    seed
        Of what is drawn.
    json
        Write the numbers to this file.
    """
    from reasonscale.api.load import base_of, load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource
    from reasonscale.profiles.profile import BadProfile
    from reasonscale.simulator.policies import BadPolicy
    from reasonscale.simulator.workload import BadWorkload

    number("--cold-start", cold_start, 0, DAY_S)
    number("--seed", seed, 0)
    output("--json", json, file)
    out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        found = [
            _plan(model, resolve(model, base_of(file)), base_of(file), trace, profile, cold_start, seed, out)
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


def _profile(model: Any, resolved: Any, base: Path, name: str | None) -> tuple[Any, str]:
    """Return the profile to plan with and, where the command named none, why this one or none."""
    from math import log

    from reasonscale.api.resolve import local_folder
    from reasonscale.api.sizes import size_in, size_of
    from reasonscale.profiles.library import chosen_beside, load

    if name is not None:
        return load(name), ""
    named = chosen_beside(resolved, base)
    if named is not None and named.profile is not None:
        return named.profile, named.note or f"profile {resolved.profile}, as spec.accelerator.profile says"
    folder = local_folder(model, base)
    size = size_of(model.spec.model.uri) or (size_in(folder) if folder is not None else None)
    own = "--profile takes one of your own GPU"
    if size is None:
        return None, f"the model's size is not known, so neither is its speed; {own}"
    apart = {n: abs(log(weights / size.weight_bytes)) for n, weights in MEASURED.items()}
    near = [n for n in MEASURED if apart[n] <= log(MOST_APART)]
    if not near:
        return None, f"no shipped profile is near {size.name} in size: its speed is not known; {own}"
    product = model.spec.accelerator.product or ""
    best = min(near, key=lambda n: (_gpu(n) not in product, apart[n]))
    return load(best), f"profile {best}, since {size.name}'s weights are nearest to its model's; {own}"


def _gpu(profile: str) -> str:
    """Return the GPU that a shipped profile was measured on, from its name."""
    return profile.rpartition("-")[2].upper()


def _assumed(profile: Any, gpus: int, product: str | None) -> str | None:
    """Return in words what the figures suppose beside the profile; None where nothing is."""
    found = []
    if gpus != profile.gpus_per_replica:
        found.append(
            f"a step on {gpus} GPUs takes what it took on {profile.gpus_per_replica}: the profile has no other, and tensor"
            " parallelism would shorten it"
        )
    if profile.name in MEASURED and product and _gpu(profile.name) not in product:
        found.append(f"{product} is as fast as the profile's {_gpu(profile.name)}")
    return "supposed: " + "; ".join(found) if found else None


def _plan(
    model: Any,
    resolved: Any,
    base: Path,
    trace: str | None,
    profile: str | None,
    cold_start: float,
    seed: int,
    out: Console,
) -> dict[str, Any]:
    used, why = _profile(model, resolved, base, profile)
    if used is None and trace is not None:
        from reasonscale.profiles.profile import BadProfile

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
        **dict.fromkeys(SPEED),
    }
    out.print(
        f"{resolved.name}: at least {figures['gpus_least']} GPU{'s' * (figures['gpus_least'] > 1)}"
        f" ({max(1, resolved.min_replicas)} x {gpus}), at most {figures['gpus_most']}",
        markup=False,
    )
    if why:
        out.print(f"  {why}", markup=False)
    if used is not None:
        assumed = _assumed(used, gpus, model.spec.accelerator.product)
        used = replace(used, kv_tokens=kv, gpus_per_replica=max(1, gpus))
        named = "max_num_batched_tokens" in model.spec.engine.args
        figures |= _speed(resolved, used, (PROMPT_TOKENS, chain, reasoning.answer_reserve), named, seed, out)
        if assumed:
            out.print(f"  {assumed}", markup=False)
    if not kv:
        out.print("  the size of its KV cache is not known: name spec.accelerator.product, or --profile")
        return figures
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


def _options(resolved: Any, **more: Any) -> Any:
    from reasonscale.simulator.run import Options

    return Options(
        objectives=_objectives(resolved), max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens, **more,
    )  # fmt: skip


def _speed(
    resolved: Any, profile: Any, lengths: tuple[int, int, int], named: bool, seed: int, out: Console
) -> dict[str, Any]:
    """Say and return what one replica does with requests of so many tokens of prompt, chain and answer."""
    from reasonscale.scaling.capacity import AIM
    from reasonscale.scaling.chunk import chunk_of
    from reasonscale.simulator.policies import Setting
    from reasonscale.simulator.policies.models import seats_at
    from reasonscale.simulator.sustained import requests_per_s
    from reasonscale.simulator.tables import tables_of

    setting = Setting(
        profile, _objectives(resolved), 1, 1, 1.0, ("default",), resolved.max_num_seqs, resolved.max_num_batched_tokens
    )
    step, tpot = setting.step, AIM * resolved.tpot_s
    if step.a >= tpot:
        out.print(
            f"  no number of replicas meets objectives.tpot {resolved.tpot_s * 1e3:g} ms: one request alone takes"
            f" {step.a * 1e3:.0f} ms a token; set it to {1.5 * step.a * 1e3:.0f}ms or more, or use more GPUs a replica"
        )
        return dict.fromkeys(SPEED, 0)
    prompt, made = lengths[0], lengths[1] + lengths[2]
    context = prompt + made / 2.0
    seats = int(seats_at(setting, context, tpot))
    tables = tables_of(profile, resolved.max_num_seqs)
    took = float(tables.base[seats] + tables.slope[seats] * seats * context)
    rate = requests_per_s(
        profile, _options(resolved, seed=seed), seats / (made * took), seats, lengths, resolved.attainment
    )
    out.print(
        f"  on the GPU of {profile.name}, a replica has room for {seats} requests at once; a step then takes"
        f" {took * 1e3:.1f} ms, which is {seats / took:,.0f} tokens/s"
    )
    out.print(
        f"  alone it serves {rate:.3g} requests/s of {prompt:,} + {made:,} tokens, {rate * made:,.0f} tokens/s, with"
        f" {resolved.attainment:.0%} within every objective (simulated, Poisson arrivals)"
    )
    chunk = chunk_of(setting.step, setting.objectives, resolved.max_num_seqs, profile.max_num_batched_tokens)
    if not named and chunk.tokens != resolved.max_num_batched_tokens:
        out.print(
            f"  engine.args: max_num_batched_tokens {chunk.tokens} suits the objectives better than {resolved.max_num_batched_tokens}:"
            f" {chunk.reason}"
        )
    return {
        "requests_at_once": seats,
        "step_ms": round(took * 1e3, 2),
        "tokens_per_s": round(seats / took),
        "requests_per_s_within_objectives": round(rate, 4),
        "tokens_per_s_within_objectives": round(rate * made),
        "max_num_batched_tokens": resolved.max_num_batched_tokens if named else chunk.tokens,
    }


def _traced(trace: str, profile: Any, resolved: Any, cold_start: float, seed: int, out: Console) -> dict[str, Any]:
    from reasonscale.simulator import policies, run, traces

    work = traces.load(trace, seed=seed)
    options = _options(
        resolved, cold_start_s=cold_start, min_replicas=max(1, resolved.min_replicas),
        max_replicas=max(1, resolved.max_replicas), seed=seed,
    )  # fmt: skip
    out.print(
        f"  {work.name}: {len(work.arrival_s):,} requests, {options.min_replicas} to {options.max_replicas} replicas,"
        f" a start takes {cold_start:g} s"
    )
    rows: dict[str, Any] = {}
    options = replace(options, first_replicas=run.first_replicas(work, profile, options))
    number, peak = run.static_peak(work, profile, options, resolved.attainment)
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
