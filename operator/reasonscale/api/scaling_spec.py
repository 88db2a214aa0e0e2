"""The parts of the resource that say how it thinks, scales, drains and rolls out."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from reasonscale.api.base import Name, Part, ShortText, shaped
from reasonscale.api.quantity import Duration, Quantity

EFFORT_NAMES: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _want_effort(value: object) -> object:
    if value == "native" or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"was {value!r}; must be a whole number of tokens, or native")


def _check_effort_name(name: str) -> str:
    if name not in EFFORT_NAMES:
        near = difflib.get_close_matches(name, EFFORT_NAMES, n=1)
        raise ValueError(
            "is no effort" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(EFFORT_NAMES)}")
        )
    return name


Effort = Annotated[int | Literal["native"], BeforeValidator(_want_effort)]
EffortName = Annotated[str, AfterValidator(_check_effort_name)]


class Budget(Part):
    """Thinking tokens that a request may use."""

    default: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="For a request that asks for nothing; a quarter of maxModelLen when absent.",
    )
    max: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="The most that a request can ask for; more is cut to this. Absent: 32768, or what default and efforts say, where the context has room.",
    )
    answer_reserve: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Tokens kept for the answer after the chain."
    )


class UnderPressure(Part):
    """How default budgets shrink under overload."""

    floor: int = Field(
        default=1024, ge=1, le=1_000_000, description="The default budget is never below so many tokens."
    )
    steps: int = Field(default=4, ge=1, le=16, description="In so many steps.")


class Reasoning(Part):
    """The chain of thought: whether, how long, and who sees it."""

    mode: Literal["Auto", "Always", "Never"] = Field(
        default="Auto", description="Auto: by request, where the family can be switched; Always; Never."
    )
    parser: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        default="auto", description="auto (by model family), none, or a vLLM parser's name."
    )
    budget: Budget = Field(default_factory=Budget, description="Thinking tokens.")
    efforts: Annotated[dict[EffortName, Effort], Field(max_length=8)] = Field(
        default_factory=dict,
        description="Tokens for each reasoning_effort, not falling from low to high; `native` leaves it to the model's own setting.",
    )
    expose: Literal["Full", "Hidden"] = Field(default="Full", description="Whether the chain is sent to the client.")
    field_names: Annotated[list[Literal["reasoning", "reasoning_content"]], Field(min_length=1, max_length=2)] = Field(
        default=["reasoning", "reasoning_content"],
        description="Fields that carry the chain; old clients read reasoning_content.",
    )
    under_pressure: UnderPressure | None = Field(
        default=None, description="Shrink default budgets under overload; absent: never."
    )


class ObjectivesSpec(Part):
    """What clients are promised."""

    ttft: Duration = Field(default="2s", description="Time to first token, beside what the prompt costs.")
    ttft_per_prompt_token: Duration = Field(default="250us", description="What each prompt token may add to it.")
    tpot: Duration = Field(default="50ms", description="Time per output token.")
    max_queue: Duration = Field(
        default="10s",
        description="Longest wait for an engine; who would wait longer is answered 429 with the time to come back at.",
    )
    attainment_percent: int = Field(default=99, ge=50, le=99, description="Share of requests that shall meet them.")


class Hold(Part):
    """Requests kept at zero replicas until one is there; its ingress replicas share the limits."""

    max_requests: int = Field(default=100, ge=1, le=100_000, description="At most so many; more are answered 503.")
    max_bytes: Quantity = Field(default="64Mi", description="At most so many bytes of bodies.")
    max: Duration = Field(default="10m", description="Each at most so long.")


class ScaleToZero(Part):
    """When the last replica goes, and what is kept until one is back; used where minReplicas is 0."""

    after: Duration = Field(default="15m", description="With no request for so long.")
    hold: Hold = Field(default_factory=Hold, description="What is kept while none runs.")


class RatesSpec(Part):
    """How fast the number of replicas may move."""

    up_max_factor: int = Field(
        default=2, ge=1, le=10, description="At most this many times the replicas at once, those on their way counted."
    )
    up_max_step: int = Field(default=4, ge=1, le=1000, description="Or so many more, whichever is larger.")
    down_max_step: int | None = Field(
        default=None, ge=1, le=1000,
        description="Replicas that may go at once; when absent, a quarter of those that are spare, one at least.",
    )  # fmt: skip
    down_stable: Duration = Field(default="120s", description="Calm must have held so long before one goes.")
    down_interval: Duration = Field(default="30s", description="Between two steps down.")


class Scaling(Part):
    """How many replicas, and who decides."""

    mode: Literal["Auto", "Recommend", "Manual", "External"] | None = Field(
        default=None,
        description="Auto acts; Recommend only says; Manual and External obey spec.replicas. Absent: Auto locally, the chart's default in a cluster.",
    )
    min_replicas: int = Field(default=1, ge=0, le=1000, description="Never fewer; 0 with scaleToZero.")
    max_replicas: int = Field(default=1, ge=1, le=1000, description="Never more.")
    objectives: ObjectivesSpec = Field(default_factory=ObjectivesSpec, description="What clients are promised.")
    kv_headroom_percent: int = Field(default=10, ge=0, le=80, description="Share of the KV cache kept free.")
    scale_to_zero: ScaleToZero | None = Field(
        default=None, description="Stop the last replica when idle; needed where minReplicas is 0."
    )
    rates: RatesSpec = Field(default_factory=RatesSpec, description="How fast it may move.")
    asleep: int = Field(
        default=0, ge=0, le=100,
        description="Replicas that are not needed and sleep instead of being stopped: each keeps its GPU's place and its weights in host memory, and is woken in about a second. GPUs only.",
    )  # fmt: skip
    start_timeout: Duration = Field(default="15m", description="A replica that is not ready by then is given up.")


class Match(Part):
    header: Annotated[str, shaped(r"^[A-Za-z0-9-]+$", "must be A-Z, a-z, 0-9 and -", low=1, high=64)] = Field(
        description="Header to look at."
    )
    values: Annotated[list[ShortText], Field(min_length=1, max_length=64)] = Field(
        description="Values that belong to the class."
    )


class RequestClass(Part):
    """A class of requests with a share of its own."""

    name: Name = Field(description="Name of the class, a metric's label.")
    match: Match = Field(description="Which requests belong to it.")
    weight: int = Field(
        default=1, ge=1, le=1000, description="Its share of the tokens against the other classes, while they wait."
    )


class Drain(Part):
    max: Duration = Field(default="30m", description="The longest that a stopping replica may finish its chains.")


class Resume(Part):
    """How requests of an engine that was lost go on in others."""

    attempts: int = Field(
        default=3,
        ge=0,
        le=10,
        description="Further engines that a request is handed on to, one after the other; 0: none.",
    )
    hang_after: Duration = Field(
        default="60s", description="An engine with requests that makes no step for so long is taken as lost."
    )


class Rollout(Part):
    strategy: Literal["InPlace", "Surge", "Recreate"] = Field(
        default="InPlace",
        description="InPlace: Serve's rolling update; Surge: a new cluster beside the old; Recreate: stop, then start.",
    )
