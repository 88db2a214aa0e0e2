"""What goes into a decision and what comes out of it: plain values, no behaviour.

Counters arrive as *increments since the previous observation* (`signals` sees to resets and lost replicas);
gauges as they are. `None` means unknown and is never the same as 0. Times are seconds, lengths are tokens,
bins are those of `api.constants.TOKEN_BINS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from reasonscale.api.constants import TOKEN_BINS

N_BINS = len(TOKEN_BINS)
NO_BINS: tuple[float, ...] = (0.0,) * N_BINS


class Freshness(StrEnum):
    """Whether the signals can be trusted: three things that must not be mixed up."""

    FRESH = "fresh"
    STALE = "stale"  # there was a ledger, but its newest write is too old
    ABSENT = "absent"  # no ledger at all


class Mode(StrEnum):
    AUTO = "Auto"
    RECOMMEND = "Recommend"
    MANUAL = "Manual"
    EXTERNAL = "External"


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """One class of requests, summed over replicas. Tuples have one entry for each token bin."""

    waiting: float = 0.0  # requests that have not had their first token
    waiting_prompt_tokens: float = 0.0
    reasoning: tuple[float, ...] = NO_BINS  # requests in flight in the chain, by tokens generated so far
    answering: tuple[float, ...] = NO_BINS  # requests in flight past their chain, by tokens generated so far
    inflight_prompt_tokens: tuple[float, ...] = NO_BINS
    # Increments since the previous observation:
    reached: tuple[float, ...] = NO_BINS  # requests that got as far as the bin
    ended: tuple[float, ...] = NO_BINS  # requests that ended of themselves in the bin (aborts and cuts are censored)
    arrivals: float = 0.0
    prompt_tokens: float = 0.0  # of those arrivals
    reasoning_tokens: float = 0.0
    answer_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaCounts:
    """One replica's KV cache and steps. The `step` fields are increments since the previous observation."""

    id: str
    kv_capacity_tokens: float | None = None
    kv_used_tokens: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    preemptions: float = 0.0
    steps: float = 0.0
    step_seconds: float = 0.0
    step_batch: float = 0.0
    step_kv_tokens: float = 0.0
    step_prefill_tokens: float = 0.0
    # Who it is to Ray Serve; None where it does not say.
    replica: str | None = None
    node: str | None = None
    since_s: float | None = None  # when it began to serve
    draining: bool = False  # told to go
    asleep: bool = False  # its engine sleeps
    can_sleep: bool = True  # it was started with sleep mode


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas as the actuator sees them."""

    target: int  # asked for last
    ready: int
    starting_s: tuple[float, ...] = ()  # age of each replica that is ordered and not ready yet
    draining: int = 0
    # Serve's ids of those that routers send nothing to, so that they are empty when they are told to go; counted in
    # `target` and `ready`. None: this actuator can't have a replica emptied.
    emptied: tuple[str, ...] | None = None
    asleep: tuple[str, ...] = ()  # those of `emptied` that are to sleep, and are kept
    replacing: bool = False  # a rollout is under way: what starts is the successor of an engine that was stopped


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a decision may know of the world at one moment."""

    time: float  # unix seconds (or virtual time) at which it was put together
    window_s: float  # what the increments cover
    freshness: Freshness
    age_s: float | None  # age of the oldest live replica's ledger write; None when absent
    fleet: Fleet
    classes: Mapping[str, ClassCounts] = field(default_factory=dict)
    replicas: tuple[ReplicaCounts, ...] = ()
    # Of a model that may sleep, as its ingresses say; None: unknown.
    held_requests: float | None = None  # waiting for a replica to start
    ingress_requests: float | None = None  # all that they have, from the first byte to the last
    draining: Mapping[str, ClassCounts] = field(
        default_factory=dict
    )  # of `classes`, what replicas have that go or are emptied
    resume_off: bool = False  # lost engines' requests are not handed on for now: too many were lost


# From so many requests on, arithmetic rather than memory bounds a step. Each engine measured (1.5B, 7B and 32B on an H200,
# 7B on an H100) has its bend there, and its slope is 2.0 to 2.7 times as large beyond.
BENDS_AT = 128
BEND = 1.2  # of the slope below, in addition, where no profile says it


@dataclass(frozen=True, slots=True)
class StepTime:
    """Engine step time `a + b*B + bend*max(0, B - BENDS_AT) + c*K` (s), B requests decoding, K tokens in the KV cache; `d` s per prompt token."""

    a: float
    b: float
    c: float
    d: float
    bend: float = 0.0


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast the number of replicas may move, and what damps it."""

    up_max_factor: float = 2.0  # at most this many times the replicas in one decision, ordered ones counted ...
    up_max_step: int = 4  # ... or this many more, whichever is larger
    down_max_step: int | None = None  # None: a quarter of those that are spare, one at least
    down_stable_s: float = 120.0  # calm must have held so long before a replica goes
    down_interval_s: float = 30.0  # between two steps down


@dataclass(frozen=True, slots=True)
class Objectives:
    ttft_s: float = 2.0
    ttft_per_prompt_token_s: float = 250e-6
    tpot_s: float = 0.050
    max_queue_s: float = 10.0
    attainment: float = 0.99  # share of requests that shall meet them; sets the forecast's quantile


@dataclass(frozen=True, slots=True)
class Policy:
    """What the resource asks for, resolved to numbers. Per replica where nothing else is said."""

    mode: Mode = Mode.AUTO
    min_replicas: int = 1
    max_replicas: int = 1
    zero_after_s: float | None = None  # with min_replicas 0: idle for so long, the last replica goes
    manual_replicas: int | None = None  # spec.replicas, obeyed in Manual and External
    objectives: Objectives = Objectives()
    rates: Rates = Rates()
    kv_headroom: float = 0.10
    kv_capacity_tokens: float | None = None  # prior until a replica reports its own
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    step_time: StepTime | None = None  # prior; corrected online
    start_prior_s: float = 120.0  # order to ready, until measured
    length_prior: Mapping[str, float] = field(default_factory=dict)  # class -> mean output tokens, by family and effort
    length_limit: Mapping[str, float] = field(default_factory=dict)  # class -> most tokens a request can make
    tick_s: float = 5.0
    drain_s: float = 1800.0  # a replica is emptied for so long at most before it is told to go
    asleep: int = 0  # replicas that are not needed and sleep instead of being stopped, at most
    asleep_bytes: float | None = None  # of host memory that each of them holds; None: unknown
    wake_prior_s: float = 10.0  # from the decision until one that slept takes requests, until measured


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers that made a decision; all of them are logged and exported."""

    owed_tokens: float = 0.0  # expected tokens still to come: running + waiting
    queued_tokens: float = 0.0  # of which waiting requests
    inflight_now: float = 0.0
    inflight_at_horizon: float = 0.0  # high quantile
    kv_now_tokens: float = 0.0
    kv_at_horizon_tokens: float = 0.0  # high quantile
    kv_full_in_s: float | None = None  # None: not within the forecast
    horizon_s: float = 0.0
    arrival_rate: float = 0.0  # requests/s
    need_concurrency: float = 0.0  # replicas, before rounding
    need_kv: float = 0.0
    need_prefill: float = 0.0
    need_queue: float = 0.0
    need_awake: float = 0.0  # at the horizon of a wake; 0 where none may sleep
    wake_horizon_s: float = 0.0
    waiting: float = 0.0
    preemption_rate: float = 0.0  # per second
    drain_owed_tokens: float = 0.0  # of owed_tokens, what replicas owe that go
    drain_expected_s: float | None = None  # until the last of their chains ends; None: nothing drains


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas shall serve, and why. `act` is False where it is only a recommendation or a hold.

    Those of `emptied` are kept beside the target, with nothing sent to them, until they have nothing left; those of
    `asleep`, which are among them, are kept then too, and sleep.
    """

    time: float
    current: int
    target: int
    act: bool
    reason: str  # a constant of api.constants
    message: str  # a sentence with the numbers
    numbers: Numbers
    limited: bool = False  # the need lies outside the bounds
    freshness: Freshness = Freshness.FRESH
    emptied: tuple[str, ...] = ()  # Serve's ids, the first to go first
    asleep: tuple[str, ...] = ()
