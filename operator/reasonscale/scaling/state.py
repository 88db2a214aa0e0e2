"""What a decision remembers from the ones before, and how one observation is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil

from reasonscale.scaling.arrivals import Arrivals, add
from reasonscale.scaling.capacity import Steps, observe
from reasonscale.scaling.survival import Lengths, remember
from reasonscale.scaling.trend import Trend
from reasonscale.scaling.types import Fleet, Observation, Policy

MOST_STARTS = 20
FORGET_WAKE_S = 120.0
PREEMPTION_HALF_LIFE_S = 15.0
TRAFFIC_HALF_LIFE_S = 30.0
FORGET_CLASS_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class ClassMemory:
    lengths: Lengths = field(default_factory=Lengths)
    arrivals: Arrivals = field(default_factory=Arrivals)
    unseen_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rise:
    """The moment at which more replicas were ready than before, and what they had to do then."""

    time: float
    ready: int  # after it
    owed_tokens: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class State:
    """Everything that lasts from one decision to the next. A value: `decide` returns a new one."""

    time: float | None = None  # of the last fresh observation
    classes: Mapping[str, ClassMemory] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)
    starts_s: tuple[float, ...] = ()  # measured times from order to ready, newest last
    fleet: Fleet | None = None
    fleet_time: float = 0.0
    preemptions_per_s: float = 0.0
    preempting_ticks: int = 0  # in a row
    preempted_at: float | None = None  # the last time that anybody was
    tokens_per_s: float = 0.0
    trend: Trend = field(default_factory=Trend)
    last_need: float = 0.0
    last_wake_need: float = 0.0
    calm_since: float | None = None
    last_down: float | None = None
    idle_since: float | None = None  # nothing in flight, held or arriving since then; None: not idle, or unknown
    rises: tuple[Rise, ...] = ()
    stuck_since: float | None = None  # more replicas have not helped
    emptied_since: tuple[tuple[str, float], ...] = ()  # replicas that are emptied, and since when routers were told
    woken: tuple[tuple[str, float], ...] = ()  # replicas that were told to wake, and when
    wakes_s: tuple[float, ...] = ()  # measured times from that to a look that found them awake, newest last
    let_go: tuple[tuple[str, float], ...] = ()  # those that the number was lowered for of late, and when

    @staticmethod
    def new() -> State:
        """Return the state of a loop that has seen nothing."""
        return State()


def _p90(measured: tuple[float, ...], prior: float) -> float:
    ordered = sorted(measured)
    return ordered[ceil(0.9 * len(ordered)) - 1] if ordered else prior


def start_time_s(state: State, policy: Policy) -> float:
    """Return how long a replica takes from order to ready: the p90 of those measured, until then the prior."""
    return _p90(state.starts_s, policy.start_prior_s)


def wake_time_s(state: State, policy: Policy) -> float:
    """Return how long a replica that sleeps takes from the decision to awake: the p90 of those measured, else the prior."""
    return _p90(state.wakes_s, policy.wake_prior_s)


def learn_wakes(state: State, seen: Observation) -> State:
    """Return the state with the wakes that a fresh observation finds done; one that never comes is forgotten."""
    if not state.woken:
        return state
    still = {r.replica for r in seen.replicas if r.asleep}
    there = {r.replica for r in seen.replicas}
    done = tuple(seen.time - at for r, at in state.woken if r in there and r not in still)
    left = tuple((r, at) for r, at in state.woken if r in still and seen.time - at < FORGET_WAKE_S)
    return replace(state, woken=left, wakes_s=(*state.wakes_s, *done)[-MOST_STARTS:])


def learn_fleet(state: State, fleet: Fleet, now: float) -> State:
    """Return the state with the starts that ended since the last look. `fleet`: as the actuator has it.

    With those that are emptied or sleep: one of them that is taken back serves again, and has not started.
    """
    return replace(state, fleet=fleet, fleet_time=now, starts_s=_starts(state, fleet, now))


def _starts(state: State, fleet: Fleet, now: float) -> tuple[float, ...]:
    """Return the measured starts with those that ended since the last look: the oldest are taken to be ready."""
    before, starts = state.fleet, state.starts_s
    if before is not None and fleet.ready > before.ready and before.starting_s:
        dt = max(0.0, now - state.fleet_time)
        # Those that were starting before are older than the time that has passed; the others are new orders.
        still = sum(1 for age in fleet.starting_s if age >= dt)
        done = min(fleet.ready - before.ready, len(before.starting_s) - still)
        starts = (*starts, *(age + dt for age in sorted(before.starting_s, reverse=True)[: max(0, done)]))[
            -MOST_STARTS:
        ]
    return starts


def learn(state: State, seen: Observation, policy: Policy) -> State:
    """Return the state after a fresh observation, but for its fleet. Targets, calm and rises are for `decide` to keep."""
    dt = max(0.0, seen.time - state.time) if state.time is not None else seen.window_s
    classes: dict[str, ClassMemory] = {}
    for name in sorted({*state.classes, *seen.classes}):
        memory, counts = state.classes.get(name, ClassMemory()), seen.classes.get(name)
        unseen = memory.unseen_s + dt if counts is None else 0.0
        if unseen > FORGET_CLASS_S:
            continue
        classes[name] = ClassMemory(
            lengths=remember(memory.lengths, counts, dt),
            arrivals=add(
                memory.arrivals, counts.arrivals if counts else 0.0, counts.prompt_tokens if counts else 0.0, dt
            ),
            unseen_s=unseen,
        )
    preempted = sum([r.preemptions for r in seen.replicas])
    made = sum(c.reasoning_tokens + c.answer_tokens for c in seen.classes.values())
    window = max(seen.window_s, 1e-3)
    old_p, old_t = 0.5 ** (dt / PREEMPTION_HALF_LIFE_S), 0.5 ** (dt / TRAFFIC_HALF_LIFE_S)
    return replace(
        state,
        time=seen.time,
        classes=classes,
        steps=observe(state.steps, seen.replicas, seen.time, dt),
        preemptions_per_s=old_p * state.preemptions_per_s + (1.0 - old_p) * preempted / window,
        preempted_at=seen.time if preempted > 0 else state.preempted_at,
        preempting_ticks=state.preempting_ticks + 1 if preempted > 0 else 0,
        tokens_per_s=old_t * state.tokens_per_s + (1.0 - old_t) * made / window,
    )
