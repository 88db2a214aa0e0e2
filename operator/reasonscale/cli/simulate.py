"""`reasonscale simulate`: would this have served a trace, with how many GPUs, and kept its latency objectives?"""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from rich.console import Console

from reasonscale.cli.checks import number, one_of, output

SHOWN_BAD = 5
DAY_S = 86_400.0
MOST_SCALE = 1000.0


def simulate(
    *, trace: str | None = None, profile: str | None = None, policy: str = "reasonscale", params: Path | None = None,
    cold_start: float = 120.0, replicas: str = "1:256", scrape: float = 5.0, scale: float = 1.0,
    time_scale: float = 1.0, seed: int = 1, start: float = 0.0, end: float | None = None, router: str | None = None,
    gpu_price: float | None = None, json: Path | None = None, plot: Path | None = None,
    max_num_batched_tokens: str | None = None, asleep: int = 0, wake: float = 10.0,
    list_: Annotated[bool, cyclopts.Parameter(name="--list", negative="")] = False,
) -> int:  # fmt: skip
    """Run a trace through a model of the fleet under a scaling policy.

    Parameters
    ----------
    trace
        Required: a built-in workload's name, a trace file (ours, Azure's, Mooncake's), or a ServeGen folder.
    profile
        Required: a shipped hardware profile's name, or a file that `reasonscale profile fit` made.
    policy
        reasonscale, another system's rule, static:N, or a bound: clairvoyant, informed, lower-bound.
    params
        A JSON object of the policy's parameters.
    cold_start
        Seconds from the order of a replica until it is ready, in the mean.
    replicas
        MIN:MAX.
    scrape
        Seconds between two looks at the metrics.
    scale
        So many times the trace's requests per second.
    time_scale
        Stretch the trace's time by this factor.
    seed
        Of everything that is drawn. The same seed gives the same result.
    start
        Leave out what comes before this second of the trace.
    end
        Leave out what comes from this second on.
    router
        least-kv, two-choices, expected-load, gated; the one that the policy's system ships when absent.
    gpu_price
        Price of a GPU-hour, for the cost of a million answer tokens.
    json
        Write the figures to this file.
    plot
        Draw replicas and requests over time to this PNG.
    max_num_batched_tokens
        Tokens that an engine's step takes at most, or `objectives`: as `plan` would choose; the profile's when absent.
    asleep
        So many replicas that are not needed sleep instead of being stopped, under reasonscale; they cost as any other.
    wake
        Seconds from the decision until one that slept takes requests.
    list_
        Name the policies, profiles and built-in workloads; nothing else is required then.
    """
    from reasonscale.profiles.profile import BadProfile
    from reasonscale.simulator.policies import BadPolicy
    from reasonscale.simulator.workload import BadWorkload

    console, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if list_:
            return _list(console)
        return _simulate(
            trace, profile, policy, params, cold_start, replicas, scrape, scale, time_scale, seed, start, end, router,
            gpu_price, json, plot, max_num_batched_tokens, (asleep, wake), console, err,
        )  # fmt: skip
    except (BadPolicy, BadProfile, BadWorkload) as error:
        err.print(f"simulate: {error}", markup=False)
        return 2
    except OSError as error:
        err.print(f"simulate: {error.filename}: {error.strerror}", markup=False)
        return 1


def _list(console: Console) -> int:
    from reasonscale.profiles.library import shipped
    from reasonscale.simulator import bounds, policies
    from reasonscale.simulator.synthetic import BUILT_IN

    console.print("policies:  " + ", ".join([*policies.names(), "static:N", *bounds.NAMES]))
    console.print("profiles:  " + ", ".join(shipped()))
    console.print("workloads: " + ", ".join(BUILT_IN))
    for name, made in BUILT_IN.items():
        console.print(f"  {name:<12} {(made.__doc__ or '').strip()}", markup=False)
    return 0


def bounds_of(text: str) -> tuple[int, int]:
    """Return MIN and MAX of `--replicas MIN:MAX`; BadPolicy where it is something else."""
    from reasonscale.simulator.policies import BadPolicy

    low, _, high = text.partition(":")
    if not (low.isdigit() and (high or low).isdigit()) or not 1 <= int(low) <= int(high or low) <= 4096:
        raise BadPolicy(f"--replicas was {text!r}; it must be MIN:MAX, whole numbers from 1 to 4096, such as 1:64")
    return int(low), int(high or low)


def _simulate(
    trace: str | None, profile_name: str | None, policy: str, params: Path | None, cold_start: float, replicas: str,
    scrape: float, scale: float, time_scale: float, seed: int, start: float, end: float | None, router: str | None,
    gpu_price: float | None, json: Path | None, plot: Path | None, chunk: str | None, sleep: tuple[int, float], console: Console, err: Console,
) -> int:  # fmt: skip
    from reasonscale.profiles.library import load
    from reasonscale.simulator import bounds, policies, run, synthetic, traces, workload
    from reasonscale.simulator.router import ROUTERS

    if trace is None:
        raise workload.BadWorkload(f"--trace is missing; built in are {', '.join(synthetic.BUILT_IN)}")
    if profile_name is None:
        from reasonscale.profiles.library import shipped
        from reasonscale.profiles.profile import BadProfile

        raise BadProfile(f"--profile is missing; there are {', '.join(shipped())}")
    number("--cold-start", cold_start, 0, DAY_S)
    number("--scrape", scrape, 1, DAY_S)
    number("--scale", scale, 0, MOST_SCALE, above=True)
    number("--time-scale", time_scale, 0, MOST_SCALE, above=True)
    number("--seed", seed, 0)
    number("--start", start, 0)
    if end is not None:
        number("--end", end, start, above=True)
    if gpu_price is not None:
        number("--gpu-price", gpu_price, 0)
    if router is not None:
        one_of("--router", router, ROUTERS)
    for flag, path, ends in (("--json", json, ()), ("--plot", plot, (".png",))):
        output(flag, path, Path(trace), Path(profile_name), ends=ends)
    low, high = bounds_of(replicas)
    number("--asleep", sleep[0], 0, high - 1)
    number("--wake", sleep[1], 0, DAY_S)
    if sleep[0] and policy != "reasonscale":
        raise policies.BadPolicy(f"--asleep was {sleep[0]}; no replica sleeps under {policy}, but under reasonscale")
    given = _params(params)
    used = load(profile_name)
    if policy not in bounds.NAMES:  # a wrong name is said before a long trace is read
        policies.make(policy, _probe(used), given)
    work = traces.load(trace, seed=seed)
    work = workload.between(work, start, float("inf") if end is None else end)
    work = workload.scaled(work, rate=scale, time=time_scale, seed=seed)
    for line in work.skipped[:SHOWN_BAD]:
        err.print(line, markup=False)
    if len(work.skipped) > SHOWN_BAD:
        err.print(f"... {len(work.skipped)} rows left out in all")
    options = run.Options(
        cold_start_s=cold_start, scrape_s=scrape, min_replicas=low, max_replicas=high, seed=seed, router=router,
        max_num_batched_tokens=_chunk(chunk, used, err), asleep=sleep[0], wake_s=sleep[1],
    )  # fmt: skip
    if policy == "lower-bound":
        figures = bounds.bound_json(work, used, options)
        console.print(f"{work.name}: no policy takes less than {figures['gpu_hours']:,.1f} GPU-hours")
        _write(json, figures)
        return 0
    if policy in bounds.NAMES:
        search = bounds.clairvoyant if policy == "clairvoyant" else bounds.informed
        outcome = search(work, used, options, tell=lambda text: err.print(text, markup=False))
    else:
        chosen = policies.make(policy, run.setting_of(work, used, options), given)
        outcome = run.run(work, used, chosen, options)
    figures = outcome.to_json(gpu_price)
    figures["rows_left_out"] = len(work.skipped)
    _show(outcome, figures, console)
    _write(json, figures)
    if plot is not None:
        from reasonscale.simulator.plot import draw

        draw(outcome, plot)
        console.print(f"drawn: {plot}", markup=False)
    return 0


def _chunk(text: str | None, profile: Any, err: Console) -> int | None:
    """Return `--max-num-batched-tokens` as a number; None: the profile's."""
    from reasonscale.profiles.prior import plane_of
    from reasonscale.scaling.chunk import chunk_of
    from reasonscale.scaling.types import Objectives
    from reasonscale.simulator.policies import BadPolicy

    if text is None:
        return None
    most = profile.max_num_batched_tokens
    if text == "objectives":
        found = chunk_of(plane_of(profile), Objectives(), profile.max_num_seqs, most)
        err.print(f"max_num_batched_tokens {found.tokens}: {found.reason}", markup=False)
        return int(found.tokens)
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise BadPolicy(
            f"--max-num-batched-tokens was {text!r}; it must be a whole number from 1 to the profile's {most}, or objectives"
        )
    return int(text)


def _probe(profile: Any) -> Any:
    from reasonscale.scaling.types import Objectives
    from reasonscale.simulator.policies import Setting

    return Setting(profile, Objectives(), 1, 1, 1.0, ("default",), 1, 1)


def _params(path: Path | None) -> dict[str, Any]:
    from reasonscale.simulator.policies import BadPolicy

    if path is None:
        return {}
    try:
        data = json_text.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadPolicy(f"{path}: there is no such file") from None
    except ValueError as error:
        raise BadPolicy(f"{path}: can't be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadPolicy(f"{path}: must be a JSON object of parameters and their values")
    return data


def _write(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json_text.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _show(outcome: Any, figures: dict[str, Any], console: Console) -> None:
    o = outcome.options
    console.print(
        f"{outcome.workload} under {outcome.policy}: {figures['requests']:,} requests, a start takes {o.cold_start_s:g} s"
    )
    console.print(
        f"  met every objective {outcome.attainment:7.2%}   (first token {figures['attainment_ttft']:.2%}, pace"
        f" {figures['attainment_tpot']:.2%}, first answer token {figures['attainment_ttfat']:.2%}, end"
        f" {figures['attainment_e2e']:.2%})"
    )
    console.print(
        f"  GPU-hours {figures['gpu_hours']:,.1f}, replicas at most {figures['peak_replicas']}, {figures['scale_ups']} times"
        f" up and {figures['scale_downs']} down"
    )
    if "wakes" in figures:
        console.print(f"  of them {figures['asleep_gpu_hours']:,.1f} asleep, {figures['wakes']} times woken")
    for name, key, unit in (("TTFT", "ttft_s", "s"), ("TPOT", "tpot_ms", "ms"), ("E2E", "e2e_s", "s")):
        q = figures[key]
        if q["p50"] is not None:
            console.print(
                f"  {name:<5} p50 {q['p50']:,.2f} {unit}, p95 {q['p95']:,.2f} {unit}, p99 {q['p99']:,.2f} {unit}"
            )
    if figures["preempted"]:
        console.print(f"  preempted {figures['preempted']:,} requests, {figures['preempted_per_1000']:.2f} in 1,000")
    long = figures["refused_too_long"]
    if long:
        console.print(f"  refused {long:,} requests that are longer than a replica's KV cache")
    if figures["refused"] > long:
        console.print(f"  refused {figures['refused'] - long:,} requests that could not have started in time")
    if figures["unfinished"]:
        console.print(f"  not finished {figures['unfinished']:,} requests")
    if "cost_per_million_answer_tokens" in figures:
        console.print(f"  a million answer tokens cost {figures['cost_per_million_answer_tokens']:,.2f}")
