"""The rules that hold between fields, and the words in which a resource is refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from reasonscale.api.base import NAME_PATTERN, NAME_SAID
from reasonscale.api.engine_args import problem_of, value_of
from reasonscale.api.families import PARSER_ALIASES, PARSERS, Switch
from reasonscale.api.models import ReasoningModel
from reasonscale.api.pod_rules import pod_rules
from reasonscale.api.quantity import seconds, size_bytes
from reasonscale.api.resolve import answer_reserve, context_tokens, family, kv_capacity, local_folder
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
_MESSAGES: Final = {
    "missing": "is missing",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a map",
    "model_type": "must be a map",
    "model_attributes_type": "must be a map",
}


def _known_names(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the field names at a path of the resource, for a hint at the nearest."""
    current: Any = model
    for step in path:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
        found = next((f for n, f in current.model_fields.items() if step in (n, f.alias)), None)
        if found is None:
            return []
        current = _model_in(found.annotation)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [f.alias or n for n, f in current.model_fields.items()]
    return []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None


def problems_of_shape(error: ValidationError) -> list[Problem]:
    """Return pydantic's errors as problems: field path, what it was, what would be right."""
    problems = []
    for item in error.errors():
        path = tuple(p for p in item["loc"] if not (isinstance(p, str) and ("[" in p or p in ("str", "int", "bool"))))
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
        kind, was = item["type"], item.get("input")
        if kind == "extra_forbidden":
            names = _known_names(ReasoningModel, path[:-1])
            near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
            message = "is no field" + (
                f"; did you mean {near[0]}?" if near else f" here; there are {', '.join(names)}" if names else " here"
            )
        elif kind == "literal_error":
            message = f"was {was!r}; must be one of {item['ctx']['expected']}"
        elif kind in _MESSAGES:
            message = _MESSAGES[kind] if kind == "missing" else f"was {_short(was)}; {_MESSAGES[kind]}"
        elif kind == "value_error":
            message = str(item["ctx"]["error"])
        else:
            text = item["msg"][0].lower() + item["msg"][1:]
            message = f"was {_short(was)}; {text}"
        problem = Problem(where, message)
        if problem not in problems:
            problems.append(problem)
    return problems


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
    room = context - reserve
    if budget.max is not None and budget.max > room:
        yield Problem(
            "spec.reasoning.budget.max",
            f"was {budget.max}; with answerReserve {reserve} it exceeds maxModelLen {context}: at most {max(room - 1, 0)}, or raise spec.model.maxModelLen",
        )
    if reserve >= context:
        yield Problem(
            "spec.reasoning.budget.answerReserve", f"was {reserve}; maxModelLen is {context}: it must be smaller"
        )
    if budget.default is not None and budget.max is not None and budget.default > budget.max:
        yield Problem("spec.reasoning.budget.default", f"was {budget.default}; it exceeds budget.max {budget.max}")
    elif budget.default is not None and budget.max is None and budget.default > room:
        yield Problem(
            "spec.reasoning.budget.default",
            f"was {budget.default}; with answerReserve {reserve} it exceeds maxModelLen {context}: at most {max(room - 1, 0)}",
        )
    pressure = spec.under_pressure
    if pressure is not None and (found.parser is None or found.native_efforts):
        why = "takes efforts of its own" if found.native_efforts else "does not reason"
        yield Problem(
            "spec.reasoning.underPressure",
            f"was set, but this model {why}: it has no default budget to shrink; leave it out",
        )
    if pressure is not None and budget.default is not None and pressure.floor > budget.default:
        yield Problem(
            "spec.reasoning.underPressure.floor", f"was {pressure.floor}; it exceeds budget.default {budget.default}"
        )
    for name, value in spec.efforts.items():
        where = f"spec.reasoning.efforts.{name}"
        if name not in EFFORT_NAMES:
            near = difflib.get_close_matches(name, EFFORT_NAMES, n=1)
            yield Problem(
                where,
                "is no effort" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(EFFORT_NAMES)}"),
            )
        elif value == "native" and not found.native_efforts:
            yield Problem(
                where, f"was native, but {found.name} has no effort setting of its own: write a number of tokens"
            )
        elif isinstance(value, int) and value < 0:
            yield Problem(where, f"was {value}; write 0 or more tokens")
        elif isinstance(value, int) and budget.max is not None and value > budget.max:
            yield Problem(where, f"was {value}; it exceeds budget.max {budget.max}")
        elif name == "none" and value != 0 and value != "native":
            yield Problem(where, f"was {value}; none turns thinking off: write 0")


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


def _name_rule(model: ReasoningModel) -> Iterator[Problem]:
    name = model.metadata.name
    if not re.fullmatch(NAME_PATTERN, name):
        yield Problem("metadata.name", f"was {name}; {NAME_SAID}")


def _engine_rules(model: ReasoningModel) -> Iterator[Problem]:
    for name, value in model.spec.engine.args.items():
        message = problem_of(name)
        if message:
            yield Problem(f"spec.engine.args.{name}", message)
        elif name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_gpu_blocks_override"):
            number = value_of(value)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                yield Problem(f"spec.engine.args.{name}", f"was {value!r}; must be a whole number of at least 1")


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
        *_name_rule(model), *_scaling_rules(model), *_zero_rules(model), *_engine_rules(model), *_placement_rules(model, base), *_reasoning_rules(model, base),
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
            quoted = str(value).lower() if isinstance(value, bool) else value
            found.append(f'spec.engine.args.{name}: in a cluster write it as text: "{quoted}"')
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
