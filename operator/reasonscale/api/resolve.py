"""What the system chose where the resource left it open: one value for everything, in base units."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reasonscale.api import constants
from reasonscale.api.engine_args import value_of
from reasonscale.api.families import PARSER_ALIASES, Family, family_by_parser, family_of
from reasonscale.api.models import ReasoningModel
from reasonscale.api.quantity import seconds, size_bytes
from reasonscale.api.scaling_spec import ScaleToZero
from reasonscale.api.sizes import Size, gpu_memory_bytes, size_in, size_of

DEFAULT_MAX_MODEL_LEN = 32768
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 2048
GPU_MEMORY_UTILIZATION = 0.92  # of what a replica has of a GPU; vLLM's own default
# Of host memory for a byte of weights: pinned memory is had in powers of two. 27.4 GiB were taken for 14.2 of a 7B.
PINNED = 2.0
MAX_BUDGET = 32768  # thinking tokens, where nobody says more
_EFFORT_SHARES = {"none": 0.0, "minimal": 1 / 16, "low": 1 / 4, "medium": 1.0, "high": 4.0, "xhigh": 8.0, "max": 8.0}


@dataclass(frozen=True, slots=True)
class ResolvedReasoning:
    """How a request's chain is governed. Budgets are thinking tokens; None: no budget can be enforced."""

    parser: str | None
    mode: str
    family: Family
    budget_default: int
    budget_max: int
    answer_reserve: int
    efforts: Mapping[str, int | str]
    expose: str
    field_names: tuple[str, ...]
    pressure_floor: int | None = None  # thinking tokens that the default may shrink to; None: it never shrinks
    pressure_steps: int = 0


@dataclass(frozen=True, slots=True)
class ResolvedClass:
    name: str
    header: str
    values: tuple[str, ...]
    weight: int


@dataclass(frozen=True, slots=True)
class ResolvedSleep:
    """When a model that may have no replica goes to sleep, and what is held until it is awake."""

    after_s: float
    hold_requests: int
    hold_bytes: int
    hold_s: float


@dataclass(frozen=True, slots=True)
class Resolved:
    """A resource with every choice made. Times in seconds, lengths in tokens."""

    name: str
    served_name: str
    model_source: str  # what the engine loads: a path or a hub's name
    revision: str | None
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: float | None  # per replica, where it can be told before the engine has started
    gpus_per_replica: int
    gpu_share: float  # of each GPU: 1.0, or less where replicas share one
    tensor: int
    pipeline: int
    data: int
    expert: int
    reasoning: ResolvedReasoning
    classes: tuple[ResolvedClass, ...]
    class_names: tuple[str, ...]
    mode: str
    min_replicas: int
    max_replicas: int
    replicas: int | None
    ttft_s: float
    ttft_per_prompt_token_s: float
    tpot_s: float
    max_queue_s: float
    attainment: float
    kv_headroom: float
    up_max_factor: float
    up_max_step: int
    down_max_step: int | None
    down_stable_s: float
    down_interval_s: float
    start_timeout_s: float
    drain_s: float
    rollout: str
    hang_s: float
    resume_attempts: int
    engine_args: Mapping[str, str | int | float | bool]
    sleep: ResolvedSleep | None = None  # scaleToZero; it takes minReplicas 0 to use it
    asleep: int = 0  # replicas that sleep instead of being stopped
    asleep_bytes: float | None = None  # of host memory that one replica holds while it sleeps, at most; None: not known
    profile: str | None = None  # whose step times the scaler starts from: a name, or a file

    def _gpus(self) -> str:
        if self.gpu_share < 1.0:
            return f"{self.gpu_share:.0%} of a GPU each"
        return f"{self.gpus_per_replica} GPU{'s' * (self.gpus_per_replica > 1)} each in a cluster"

    @property
    def gpu_memory_utilization(self) -> float:
        """Return the share of a GPU's memory that an engine takes."""
        said = self.engine_args.get("gpu_memory_utilization")
        if isinstance(said, (int, float)) and not isinstance(said, bool):
            return float(said)
        return round(GPU_MEMORY_UTILIZATION * self.gpu_share, 4)

    def as_lines(self) -> list[str]:
        """Return what was chosen as lines for a person."""
        r = self.reasoning
        efforts = ", ".join(f"{k} {v}" for k, v in r.efforts.items())
        thinking = (
            "none"
            if r.parser is None
            else f"parser {r.parser}, budget {r.budget_default}, at most {r.budget_max}, {r.answer_reserve} kept for the answer"
        )
        sleeps = self.sleep is not None and self.min_replicas == 0
        asleep = f", none after {self.sleep.after_s:g} s without a request" if sleeps and self.sleep else ""
        if self.asleep:
            held = (
                "" if self.asleep_bytes is None else f", up to {self.asleep_bytes / 2**30:.1f} GiB of host memory each"
            )
            asleep += f", up to {self.asleep} asleep{held}"
        return [
            f"model      {self.served_name} from {self.model_source}, context {self.max_model_len} tokens",
            f"reasoning  {thinking}" + (f"; efforts {efforts}" if r.parser else ""),
            f"replicas   {self.min_replicas} to {self.max_replicas}, {self.mode}, {self._gpus()}{asleep}",
            f"engine     max_num_seqs {self.max_num_seqs}, max_num_batched_tokens {self.max_num_batched_tokens}",
            *([f"profile    {self.profile}, until engines report their own step times"] if self.profile else []),
            f"lifecycle  start within {self.start_timeout_s:g} s, drain up to {self.drain_s:g} s, rollout {self.rollout}; "
            f"lost after {self.hang_s:g} s without a token, then in {self.resume_attempts} others at most",
            f"objectives TTFT {self.ttft_s:g} s, TPOT {self.tpot_s * 1000:g} ms, queue {self.max_queue_s:g} s, for {self.attainment:.0%}",
        ]


def local_folder(model: ReasoningModel, base: Path | None) -> Path | None:
    """Return the folder of a file:// model; relative ones are beside the resource's own file. None for others."""
    uri = model.spec.model.uri
    if not uri.startswith("file://"):
        return None
    path = Path(uri.removeprefix("file://"))
    return path if path.is_absolute() or base is None else (base / path).resolve()


def family(model: ReasoningModel, base: Path | None = None) -> Family:
    """Return the model's family: by the parser where the user named one, else by its name or config.json."""
    reasoning = model.spec.reasoning
    if reasoning.mode == "Never" or reasoning.parser == "none":
        return Family("told not to reason", None, mean_output_tokens=500)
    found = family_of(model.spec.model.uri, local_folder(model, base))
    if reasoning.parser == "auto":
        return found
    named = PARSER_ALIASES.get(reasoning.parser, reasoning.parser)
    return found if found.parser == named else family_by_parser(named)


def context_tokens(model: ReasoningModel, base: Path | None = None) -> int:
    """Return the longest sequence: as said, else the model's own where it is known, else 32,768."""
    if model.spec.model.max_model_len is not None:
        return model.spec.model.max_model_len
    folder = local_folder(model, base)
    if folder is not None:
        try:
            return int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
        except (OSError, ValueError, KeyError, TypeError):
            return DEFAULT_MAX_MODEL_LEN
    size = size_of(model.spec.model.uri)
    return min(size.context_tokens, 65536) if size else DEFAULT_MAX_MODEL_LEN


def answer_reserve(model: ReasoningModel, context: int) -> int:
    return model.spec.reasoning.budget.answer_reserve or max(16, min(2048, context // 8))


def thinking_room(model: ReasoningModel, context: int) -> int:
    """Return the thinking tokens that a sequence has room for beside the answer and one token of a prompt."""
    return max(0, context - answer_reserve(model, context) - 1)


def default_budget(model: ReasoningModel, context: int) -> int:
    """Return the thinking tokens of a request that asks for nothing."""
    budget = model.spec.reasoning.budget
    if budget.default is not None:
        return budget.default
    most = budget.max if budget.max is not None else min(MAX_BUDGET, thinking_room(model, context))
    return min(most, max(context // 4, 1))


def _efforts(written: Mapping[str, int | str], default: int, most: int) -> dict[str, int | str]:
    """Return each effort's tokens: as written, else a share of the default that keeps the order of those written."""
    tokens = {name: v for name, v in written.items() if isinstance(v, int)}
    out: dict[str, int | str] = {}
    names = list(_EFFORT_SHARES)
    for n, name in enumerate(names):
        least = max((tokens[k] for k in names[:n] if k in tokens), default=0)
        highest = min((tokens[k] for k in names[n + 1 :] if k in tokens), default=most)
        out[name] = 0 if name == "none" else max(least, min(highest, most, int(default * _EFFORT_SHARES[name])))
    return out


def _reasoning(model: ReasoningModel, base: Path | None, context: int) -> ResolvedReasoning:
    spec, found = model.spec.reasoning, family(model, base)
    reserve, default = answer_reserve(model, context), default_budget(model, context)
    most = spec.budget.max
    if most is None:  # what is written in tokens elsewhere is asked for as well
        written = [v for v in spec.efforts.values() if isinstance(v, int)]
        most = min(max(MAX_BUDGET, default, *written), thinking_room(model, context))
    efforts = _efforts(spec.efforts, default, most)
    if found.native_efforts:
        efforts |= dict.fromkeys(("low", "medium", "high"), "native")
    efforts |= spec.efforts
    pressure = spec.under_pressure
    return ResolvedReasoning(
        parser=found.parser, mode=spec.mode, family=found, budget_default=min(default, most), budget_max=most,
        answer_reserve=reserve, efforts=efforts, expose=spec.expose, field_names=tuple(dict.fromkeys(spec.field_names)),
        pressure_floor=pressure.floor if pressure else None, pressure_steps=pressure.steps if pressure else 0,
    )  # fmt: skip


def _sleep(spec: ScaleToZero | None) -> ResolvedSleep | None:
    if spec is None:
        return None
    hold = spec.hold
    return ResolvedSleep(seconds(spec.after), hold.max_requests, size_bytes(hold.max_bytes), seconds(hold.max))


def kv_capacity(model: ReasoningModel, size: Size | None) -> float | None:
    """Return a replica's KV cache in tokens: from an override of its blocks, else from the GPU's memory less the weights."""
    args = {k: value_of(v) for k, v in model.spec.engine.args.items()}
    blocks, block = args.get("num_gpu_blocks_override"), args.get("block_size", 16)
    if isinstance(blocks, int) and isinstance(block, int):
        return float(blocks * block)
    product = model.spec.accelerator.product
    memory = gpu_memory_bytes(product) if product else None
    if size is None or memory is None:
        return None
    par = model.spec.parallelism
    default = GPU_MEMORY_UTILIZATION * model.spec.accelerator.fraction / 100
    share = args.get("gpu_memory_utilization", default)
    usable = memory * (float(share) if not isinstance(share, (str, bool)) else default)
    gpus = par.tensor * par.pipeline * par.data
    free_each = usable - size.weight_bytes / gpus - 2e9
    per_gpu_token = size.kv_bytes_per_token / par.pipeline / (1 if size.mla else par.tensor)
    return max(0.0, free_each / per_gpu_token * par.data)


def _asleep_bytes(model: ReasoningModel, folder: Path | None) -> float | None:
    """Return what a replica holds of host memory while it sleeps, at most, by its weights' bytes; None where those can't be told."""
    if "quantization" in model.spec.engine.args:
        return None
    size = size_in(folder) if folder is not None else size_of(model.spec.model.uri)
    return PINNED * size.weight_bytes if size is not None else None


def resolve(model: ReasoningModel, base: Path | None = None) -> Resolved:
    """Return the resource with every choice made; `base` is the folder that relative file:// paths start from."""
    spec, scaling = model.spec, model.spec.scaling
    context = context_tokens(model, base)
    args = {name: value_of(value) for name, value in spec.engine.args.items()}
    max_num_seqs, batched = (
        int(args.get("max_num_seqs", MAX_NUM_SEQS)),
        int(args.get("max_num_batched_tokens", MAX_NUM_BATCHED_TOKENS)),
    )
    folder = local_folder(model, base)
    source, revision = spec.model.uri.split("://", 1)[1], None
    if folder is not None:
        source = str(folder)
    elif spec.model.uri.startswith("hf://"):
        source, _, rev = source.partition("@")
        revision = rev or None
    elif not spec.model.uri.startswith("pvc://"):
        source = spec.model.uri
    else:
        source = "/models/" + source.partition("/")[2]
    classes = tuple(
        ResolvedClass(c.name, c.match.header.lower(), tuple(c.match.values), c.weight) for c in spec.classes
    )
    objectives, rates, par = scaling.objectives, scaling.rates, spec.parallelism
    return Resolved(
        name=model.metadata.name, served_name=model.served_name, model_source=source, revision=revision,
        max_model_len=context, max_num_seqs=max_num_seqs, max_num_batched_tokens=batched,
        kv_capacity_tokens=kv_capacity(model, size_of(spec.model.uri)),
        gpus_per_replica=par.tensor * par.pipeline * par.data, gpu_share=spec.accelerator.fraction / 100,
        tensor=par.tensor, pipeline=par.pipeline, data=par.data, expert=par.expert,
        reasoning=_reasoning(model, base, context), classes=classes,
        class_names=(*(c.name for c in classes), *constants.EFFORT_CLASSES)[: constants.MAX_CLASSES - 1],
        mode=scaling.mode or "Auto", min_replicas=scaling.min_replicas, max_replicas=scaling.max_replicas, replicas=spec.replicas,
        ttft_s=seconds(objectives.ttft), ttft_per_prompt_token_s=seconds(objectives.ttft_per_prompt_token),
        tpot_s=seconds(objectives.tpot), max_queue_s=seconds(objectives.max_queue), attainment=objectives.attainment_percent / 100,
        kv_headroom=scaling.kv_headroom_percent / 100,
        up_max_factor=float(rates.up_max_factor), up_max_step=rates.up_max_step, down_max_step=rates.down_max_step,
        down_stable_s=seconds(rates.down_stable), down_interval_s=seconds(rates.down_interval),
        start_timeout_s=seconds(scaling.start_timeout), drain_s=seconds(spec.drain.max), rollout=spec.rollout.strategy,
        hang_s=seconds(spec.resume.hang_after), resume_attempts=spec.resume.attempts,
        engine_args=args,
        sleep=_sleep(scaling.scale_to_zero), asleep=scaling.asleep, asleep_bytes=_asleep_bytes(model, folder),
        profile=spec.accelerator.profile,
    )  # fmt: skip
