"""The rules that hold between fields, and the words in which a resource is refused."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from reasonscale.api.engine_args import problem_of, problem_of_value, text_of, value_of
from reasonscale.api.families import PARSER_ALIASES, PARSERS, Switch
from reasonscale.api.models import ReasoningModel
from reasonscale.api.pod_rules import pod_rules
from reasonscale.api.quantity import seconds, size_bytes
from reasonscale.api.resolve import (
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    answer_reserve,
    context_tokens,
    default_budget,
    family,
    kv_capacity,
    local_folder,
    thinking_room,
)
from reasonscale.api.scaling_spec import EFFORT_NAMES
from reasonscale.api.sizes import GB, gpu_memory_bytes, size_of


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one field, and what would be right."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidResource(ValueError):
    """A resource that was refused, with everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


# What validates as a shape and is not built: refused by name, never silently accepted.
_CLUSTER_ONLY: Final = (
    "engine.image",
    "accelerator.product",
    "accelerator.resourceName",
    "model.tokenSecretRef",
    "model.cache",
    "rollout",
    "pod",
)


def _reasoning_rules(model: ReasoningModel, base: Path | None) -> Iterator[Problem]:
    spec = model.spec.reasoning
    if spec.parser not in ("auto", "none") and spec.parser not in PARSERS:
        alias = PARSER_ALIASES.get(spec.parser)
        near = [alias] if alias else difflib.get_close_matches(spec.parser, PARSERS, n=1)
        yield Problem(
            "spec.reasoning.parser",
            f"was {spec.parser!r}; no parser of vLLM's"
            + (f": write {near[0]}" if near else "; write auto, none or a name that vLLM registers"),
        )
        return
    found, context = family(model, base), context_tokens(model, base)
    budget, reserve = spec.budget, answer_reserve(model, context)
    if spec.mode == "Always" and found.parser is None:
        yield Problem(
            "spec.reasoning.mode",
            f"was Always, but no reasoning parser is known for {model.spec.model.uri}: set reasoning.parser",
        )
    if spec.mode == "Never" and spec.parser not in ("auto", "none"):
        yield Problem("spec.reasoning.mode", f"was Never, but parser {spec.parser} is set: leave one of the two out")
    if spec.mode == "Never" and family_always_thinks(model, base):
        yield Problem("spec.reasoning.mode", "was Never, but this family's chain can't be switched off: leave mode out")
    room = thinking_room(model, context)
    if reserve >= context:  # and nothing of the budgets that then can't fit either: it is this that is wrong
        yield Problem(
            "spec.reasoning.budget.answerReserve", f"was {reserve}; maxModelLen is {context}: it must be smaller"
        )
        room = sys.maxsize
    too_long = f"with answerReserve {reserve} it exceeds maxModelLen {context}: at most {room}"
    if budget.max is not None and budget.max > room:
        yield Problem("spec.reasoning.budget.max", f"was {budget.max}; {too_long}, or raise spec.model.maxModelLen")
    if budget.default is not None and budget.max is not None and budget.default > budget.max:
        yield Problem("spec.reasoning.budget.default", f"was {budget.default}; it exceeds budget.max {budget.max}")
    elif budget.default is not None and budget.max is None and budget.default > room:
        yield Problem("spec.reasoning.budget.default", f"was {budget.default}; {too_long}")
    pressure = spec.under_pressure
    if pressure is not None and (found.parser is None or found.native_efforts):
        why = "takes efforts of its own" if found.native_efforts else "does not reason"
        yield Problem(
            "spec.reasoning.underPressure",
            f"was set, but this model {why}: it has no default budget to shrink; leave it out",
        )
    elif pressure is not None and pressure.floor > (default := default_budget(model, context)) and room < sys.maxsize:
        what = f"budget.default {default}" if budget.default is not None else f"the default budget, {default}"
        yield Problem("spec.reasoning.underPressure.floor", f"was {pressure.floor}; it exceeds {what}")
    for name, value in spec.efforts.items():
        where = f"spec.reasoning.efforts.{name}"
        if value == "native":
            if not found.native_efforts:
                yield Problem(
                    where, f"was native, but {found.name} has no effort setting of its own: write a number of tokens"
                )
        elif not isinstance(value, int) or value < 0:
            yield Problem(where, f"was {value}; write 0 or more tokens")
        elif name == "none" and value != 0:
            yield Problem(where, f"was {value}; none turns thinking off: write 0")
        elif budget.max is not None and value > budget.max:
            yield Problem(where, f"was {value}; it exceeds budget.max {budget.max}")
        elif budget.max is None and value > room:
            yield Problem(where, f"was {value}; {too_long}")
    rising = [(n, v) for n in EFFORT_NAMES if n != "none" and isinstance(v := spec.efforts.get(n), int)]
    for (lower, less), (higher, more) in pairwise(rising):
        if more < less:
            yield Problem(
                f"spec.reasoning.efforts.{higher}",
                f"was {more}; {lower} has {less}: a higher effort must not think less",
            )


def family_always_thinks(model: ReasoningModel, base: Path | None) -> bool:
    """Tell whether the family, whatever the resource says, always thinks (R1 does; Qwen3 can be told not to)."""
    from reasonscale.api.families import family_of

    found = family_of(model.spec.model.uri, local_folder(model, base))
    return found.parser is not None and found.switch is not Switch.TEMPLATE


def _scaling_rules(model: ReasoningModel) -> Iterator[Problem]:
    scaling, spec = model.spec.scaling, model.spec
    if scaling.min_replicas > scaling.max_replicas:
        yield Problem(
            "spec.scaling.minReplicas", f"was {scaling.min_replicas}; it exceeds maxReplicas {scaling.max_replicas}"
        )
    if scaling.asleep >= scaling.max_replicas:
        yield Problem(
            "spec.scaling.asleep",
            f"was {scaling.asleep}; maxReplicas is {scaling.max_replicas}, and one serves: it must be smaller",
        )
    if scaling.mode in ("Manual", "External") and spec.replicas is None:
        yield Problem("spec.replicas", f"is missing; mode {scaling.mode} obeys it: say how many")
    if scaling.mode == "Manual" and spec.replicas is not None and spec.replicas > scaling.max_replicas:
        yield Problem("spec.replicas", f"was {spec.replicas}; it exceeds scaling.maxReplicas {scaling.max_replicas}")
    objectives = scaling.objectives
    for name, low, high in (("ttft", 1e-3, 3600.0), ("tpot", 1e-3, 60.0), ("max_queue", 0.1, 3600.0)):
        value = seconds(getattr(objectives, name))
        if not low <= value <= high:
            alias = "maxQueue" if name == "max_queue" else name
            yield Problem(
                f"spec.scaling.objectives.{alias}",
                f"was {getattr(objectives, name)}; must lie between {low:g}s and {high:g}s",
            )
    if seconds(spec.drain.max) < 1 or seconds(spec.drain.max) > 86400:
        yield Problem("spec.drain.max", f"was {spec.drain.max}; must lie between 1s and 24h")
    if not 15 <= seconds(spec.resume.hang_after) <= 3600:
        yield Problem("spec.resume.hangAfter", f"was {spec.resume.hang_after}; must lie between 15s and 1h")
    if seconds(scaling.start_timeout) < 10:
        yield Problem(
            "spec.scaling.startTimeout",
            f"was {scaling.start_timeout}; must be at least 10s: engines take longer to start",
        )


def _zero_rules(model: ReasoningModel) -> Iterator[Problem]:
    scaling, spec = model.spec.scaling, model.spec
    if spec.replicas == 0:
        yield Problem(
            "spec.replicas",
            "was 0; nobody would wake a model that is told to have none: write 1 or more, or minReplicas: 0 with mode Auto",
        )
    if scaling.min_replicas == 0 and scaling.mode in ("Manual", "External"):
        yield Problem(
            "spec.scaling.minReplicas",
            f"was 0; mode {scaling.mode} obeys spec.replicas and can't wake a model: write 1 or more, or mode Auto",
        )
    sleep = scaling.scale_to_zero
    if sleep is None:
        if scaling.min_replicas == 0:
            yield Problem(
                "spec.scaling.minReplicas",
                "was 0 without scaleToZero: say when it may sleep (scaleToZero with after: 15m), or write 1 or more",
            )
        return
    if not 10 <= seconds(sleep.after) <= 604_800:
        yield Problem("spec.scaling.scaleToZero.after", f"was {sleep.after}; must lie between 10s and 168h")
    if not 1 <= seconds(sleep.hold.max) <= 86_400:
        yield Problem("spec.scaling.scaleToZero.hold.max", f"was {sleep.hold.max}; must lie between 1s and 24h")
    if not 8 * 2**20 <= size_bytes(sleep.hold.max_bytes) <= 64 * 2**30:
        yield Problem(
            "spec.scaling.scaleToZero.hold.maxBytes",
            f"was {sleep.hold.max_bytes}; must lie between 8Mi (two ingresses, bodies of up to 4Mi) and 64Gi",
        )


def _engine_rules(model: ReasoningModel) -> Iterator[Problem]:
    for name, value in model.spec.engine.args.items():
        message = problem_of(name) or problem_of_value(name, value)
        if message:
            yield Problem(f"spec.engine.args.{name}", message)


def _batch_rules(model: ReasoningModel, base: Path | None) -> Iterator[Problem]:
    """What vLLM asks of its batch settings together (SchedulerConfig.verify_max_model_len)."""
    args = {k: value_of(v) for k, v in model.spec.engine.args.items()}
    seqs, batched = args.get("max_num_seqs", MAX_NUM_SEQS), args.get("max_num_batched_tokens", MAX_NUM_BATCHED_TOKENS)
    if not isinstance(seqs, int) or not isinstance(batched, int):
        return
    where = "spec.engine.args.max_num_" + ("batched_tokens" if "max_num_batched_tokens" in args else "seqs")
    if batched < seqs:
        yield Problem(
            where, f"max_num_batched_tokens is {batched} and max_num_seqs {seqs}: vLLM needs a token for each sequence"
        )
    context = context_tokens(model, base)
    if args.get("enable_chunked_prefill") is False and batched < context:
        yield Problem(
            "spec.engine.args.enable_chunked_prefill",
            f"was false; vLLM then needs max_num_batched_tokens of at least maxModelLen, {context}: it is {batched}",
        )


def _placement_rules(model: ReasoningModel, base: Path | None) -> Iterator[Problem]:
    par, spec = model.spec.parallelism, model.spec
    if par.tensor & (par.tensor - 1):
        yield Problem(
            "spec.parallelism.tensor",
            f"was {par.tensor}; attention heads split by powers of two: write {1 << (par.tensor.bit_length() - 1)} or {1 << par.tensor.bit_length()}",
        )
    if par.expert > 1 and par.expert != par.tensor * par.data:
        yield Problem(
            "spec.parallelism.expert",
            f"was {par.expert}; experts spread over all tensor x data GPUs: write {par.tensor * par.data}, or 1",
        )
    if par.data > 1:
        yield Problem(
            "spec.parallelism.data",
            f"was {par.data}; data parallel attention is not supported yet: leave it out and spread the model by tensor (and expert, the same number)",
        )
    if spec.model.uri.startswith("oci://"):
        yield Problem(
            "spec.model.uri", f"was {spec.model.uri}; oci:// is not supported yet: write hf, s3, gs, pvc or file"
        )
    fraction, gpus = spec.accelerator.fraction, par.tensor * par.pipeline * par.data
    if fraction < 100 and gpus > 1:
        yield Problem(
            "spec.accelerator.fraction",
            f"was {fraction}; a replica of {gpus} GPUs takes whole ones: leave it out, or set parallelism to 1",
        )
    if fraction < 100 and "gpu_memory_utilization" in spec.engine.args:
        yield Problem(
            "spec.engine.args.gpu_memory_utilization",
            f"follows from spec.accelerator.fraction, {fraction}: leave one of the two out",
        )
    cache = spec.model.cache
    if cache is not None and (cache.persistent_volume_claim is None) == (cache.node_local is None):
        yield Problem("spec.model.cache", "needs exactly one of persistentVolumeClaim and nodeLocal")
    folder = local_folder(model, base)
    if folder is not None and base is not None and not (folder / "config.json").is_file():
        yield Problem("spec.model.uri", f"was {spec.model.uri}; there is no model in {folder} (no config.json)")
    size, product = size_of(spec.model.uri), spec.accelerator.product
    memory = gpu_memory_bytes(product) if product else None
    if size is None or memory is None or spec.engine.args.get("quantization") or spec.engine.args.get("cpu_offload_gb"):
        return
    capacity, context = kv_capacity(model, size), context_tokens(model, base)
    if capacity is not None and capacity < context:
        need = next(
            (
                t
                for t in (1, 2, 4, 8, 16)
                if t > par.tensor and t * par.pipeline * par.data * memory * 0.92 > size.weight_bytes * 1.15
            ),
            None,
        )
        part = f"{fraction} % of " if fraction < 100 else ""
        remedy = (
            "set accelerator.fraction higher, or leave it out"
            if fraction < 100
            else f"set parallelism.tensor: {need}"
            if need
            else "spread it over more GPUs with parallelism.tensor and pipeline"
        )
        yield Problem(
            "spec.parallelism",
            f"weights {size.weight_bytes / GB:.0f} GB do not fit {part}{gpus} x {memory / GB:.0f} GB with room for KV: {remedy}",
        )


def validate(model: ReasoningModel, base: Path | None = None) -> list[Problem]:
    """Return what is wrong with a resource whose shape is right; an empty list when nothing is."""
    problems = [
        *_scaling_rules(model), *_zero_rules(model), *_engine_rules(model), *_batch_rules(model, base), *_placement_rules(model, base), *_reasoning_rules(model, base),
        *(Problem(*found) for found in pod_rules(model)),
    ]  # fmt: skip
    names = [c.name for c in model.spec.classes]
    problems += [
        Problem("spec.classes", f"{n!r} is there twice: names must differ")
        for n in dict.fromkeys(names)
        if names.count(n) > 1
    ]
    return problems


def notes(model: ReasoningModel) -> list[str]:
    """Return what a user should know of a valid resource before it runs."""
    found = []
    dumped = model.model_dump(by_alias=True, exclude_unset=True).get("spec", {})
    for path in _CLUSTER_ONLY:
        part: Any = dumped
        for step in path.split("."):
            part = part.get(step) if isinstance(part, dict) else None
        if part:
            found.append(f"spec.{path} is for clusters; on one machine it is ignored")
    for name, value in model.spec.engine.args.items():
        if not isinstance(value, str):
            found.append(f'spec.engine.args.{name}: in a cluster write it as text: "{text_of(value)}"')
    if model.spec.replicas is not None and (model.spec.scaling.mode or "Auto") in ("Auto", "Recommend"):
        found.append(
            f"spec.replicas is {model.spec.replicas}; mode {model.spec.scaling.mode or 'Auto'} chooses the number itself and ignores it"
        )
    if model.spec.scaling.scale_to_zero is not None and model.spec.scaling.min_replicas > 0:
        found.append(
            f"spec.scaling.scaleToZero has no effect while minReplicas is {model.spec.scaling.min_replicas}: write 0 to let it sleep"
        )
    if (
        family(model).parser is None
        and model.spec.reasoning.mode == "Auto"
        and model.spec.reasoning.parser == "auto"
        and not model.spec.model.uri.startswith("file://")
    ):
        found.append(
            f"no reasoning parser is known for {model.spec.model.uri}: it is served as a model that does not reason"
        )
    return found
