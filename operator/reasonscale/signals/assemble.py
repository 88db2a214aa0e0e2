"""From raw samples of the ledger's metrics to one `Observation`. Pure; both sources go through it.

Counters become increments since the last fresh observation before. A process that is seen for the first time after that counts
whole: it has started since, unless it says that it is older. On the very first observation only the lengths count whole, since they say how long chains
last whenever they were; arrivals, tokens and steps do not, since nobody knows over what time.

What waits at an ingress' gate is in no engine's ledger. It is added to what waits in the engines, from gates that have
written of late, and counts as arrived when it came to the gate, not when it went on to an engine. So does who was refused there,
once: else the rate of arrivals would never exceed what the replicas that are there can do. Gates and ledgers are read at times of
their own: who is on his way from one to the other counts in the look in which he came.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from sys import intern

from reasonscale.api import constants as c
from reasonscale.scaling.types import N_BINS, ClassCounts, Fleet, Freshness, Observation, ReplicaCounts

_BIN_INDEX = {str(edge): j for j, edge in enumerate(c.TOKEN_BINS)}
_COUNTERS = frozenset({
    c.M_REACHED, c.M_ENDED, c.M_ARRIVALS, c.M_PROMPT_TOKENS, c.M_REASONING_TOKENS, c.M_ANSWER_TOKENS, c.M_PREEMPTIONS,
    c.M_GATE_ENTERED, c.M_GATE_SENT, c.M_STEPS, c.M_STEP_SECONDS, c.M_STEP_BATCH, c.M_STEP_KV, c.M_STEP_PREFILL,
})  # fmt: skip
_LENGTHS = frozenset({c.M_REACHED, c.M_ENDED})
SHORT_GRACE_S = 15.0  # a replica that has just become ready has not been scraped yet
FORGET_S = 6 * 3600.0  # a process that comes back within this time goes on where it was
UNREAD_S = 120.0  # a replica that had run so long before the last look was there, and its page was not read

_OF_PROCESS = ("WorkerId", "ReplicaId", "pod", "instance")
_LABELS = frozenset({
    *_OF_PROCESS, c.LABEL_METRIC_MODEL, c.LABEL_METRIC_CLASS, c.LABEL_METRIC_BIN, c.LABEL_METRIC_PHASE, c.LABEL_METRIC_REPLICA,
    c.LABEL_METRIC_NODE, c.LABEL_METRIC_NAMESPACE, c.LABEL_METRIC_RESOURCE,
})  # fmt: skip
# What is read of what replicas, ingresses and gates write.
READ = _COUNTERS | {
    c.M_LEDGER_TIME, c.M_WAITING, c.M_WAITING_PROMPT, c.M_INFLIGHT, c.M_INFLIGHT_PROMPT, c.M_KV_CAPACITY, c.M_KV_USED,
    c.M_DRAINING, c.M_ASLEEP, c.M_REPLICA, c.M_FETCHING, c.M_RESUME_OFF, c.M_GATE_TIME, c.M_GATE_WAITING, c.M_GATE_PROMPT,
    c.M_INGRESS_TIME, c.M_INGRESS_REQUESTS, c.M_HELD,
}  # fmt: skip

Key = tuple[str, str, str, str]  # process, name, class, bin


@dataclass(frozen=True, slots=True)
class Sample:
    """One series' value, as a scrape or a query gives it; `name` without Ray's prefix."""

    name: str
    labels: Mapping[str, str]
    value: float


def read_of(name: str, labels: Mapping[str, str], value: float) -> Sample:
    """Return a sample with those of its labels that are read: of 200 models each turn brings tens of thousands, with a dozen labels each."""
    return Sample(intern(name), {intern(k): intern(v) for k, v in labels.items() if k in _LABELS}, value)


@dataclass(frozen=True, slots=True)
class Door:
    """What is known of a class between gates and ledgers."""

    waiting: float = 0.0  # at the gates, in the last look
    early: float = 0.0  # counted as arrived before their ledger had them
    prompt_tokens: float = 0.0  # that each of these was taken to have: the mean of those that were counted last


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept from one observation to the next."""

    time: float | None = None  # of the last fresh one
    counters: Mapping[Key, float] = field(default_factory=dict)
    seen: Mapping[str, float] = field(default_factory=dict)  # process -> when last
    short_since: float | None = None  # fewer ledgers than ready replicas since then
    doors: Mapping[str, Door] = field(default_factory=dict)  # by class


def process_of(labels: Mapping[str, str]) -> str:
    """Return the process that wrote a sample."""
    return next((labels[name] for name in _OF_PROCESS if labels.get(name)), "")


def _increments(samples: list[Sample], before: Memory, now: float) -> tuple[dict[Key, float], Memory]:
    """Return each counter's increment, and the memory with what is now."""
    out: dict[Key, float] = {}
    counters, seen = dict(before.counters), dict(before.seen)
    started = {process_of(s.labels): s.value for s in samples if s.name == c.M_REPLICA}
    for s in samples:
        process = process_of(s.labels)
        if s.name not in _COUNTERS:
            seen[process] = now
            continue
        key = (process, s.name, s.labels.get(c.LABEL_METRIC_CLASS, ""), s.labels.get(c.LABEL_METRIC_BIN, ""))
        last = before.counters.get(key)
        if last is None:
            # A series of a known process that appears only now began at zero.
            older = before.time is None or (
                process not in before.seen and started.get(process, now) < before.time - UNREAD_S
            )
            gained = 0.0 if older and s.name not in _LENGTHS else s.value
        else:
            gained = s.value - last if s.value >= last else s.value  # it started again
        out[key] = out.get(key, 0.0) + max(0.0, gained)
        counters[key] = s.value
        seen[process] = now
    old = {p for p, t in seen.items() if now - t > FORGET_S}
    counters = {k: v for k, v in counters.items() if k[0] not in old}
    return out, Memory(now, counters, {p: t for p, t in seen.items() if p not in old}, before.short_since, before.doors)


_WAITING = {c.M_GATE_WAITING: c.M_WAITING, c.M_GATE_PROMPT: c.M_WAITING_PROMPT}


def _read_on(samples: list[Sample], before: Memory) -> bool:
    """Tell whether every gate that is read was read in the last look: what another has counted is of a longer time."""
    gates = {process_of(s.labels) for s in samples if s.name == c.M_GATE_ENTERED}
    return before.time is not None and all(before.seen.get(p) == before.time for p in gates)


def _came(
    samples: list[Sample], gained: Mapping[Key, float], gates: frozenset[str], before: Memory
) -> tuple[dict[str, tuple[float, float]], dict[str, Door]]:
    """Return each class's arrivals and their prompt tokens, and its door after them.

    Who was sent by a gate and is in no ledger yet counts now, and not when the ledger has him: a hundred that waited go to a new
    replica whose ledger is read later. No more than waited or entered can be on their way, so that nothing is owed for long.
    """
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (_, name, cls, _), value in gained.items():
        if cls:
            sums[cls][name] += value
    waiting: dict[str, float] = defaultdict(float)
    for s in samples:
        if s.name == c.M_GATE_WAITING and process_of(s.labels) in gates:
            waiting[s.labels.get(c.LABEL_METRIC_CLASS, "")] += s.value
    out, doors, read_on = dict[str, tuple[float, float]](), dict[str, Door](), _read_on(samples, before)
    for cls, found in sums.items():
        door, counted = before.doors.get(cls, Door()), found[c.M_ARRIVALS]
        entered, sent = found[c.M_GATE_ENTERED], found[c.M_GATE_SENT]
        prompt = found[c.M_PROMPT_TOKENS] / counted if counted > 0.0 else door.prompt_tokens
        early = min(max(0.0, door.early + sent - counted), door.waiting + entered) if read_on and prompt > 0.0 else 0.0
        plain = entered + counted - sent
        tokens = (plain + early) * prompt - door.early * door.prompt_tokens
        out[cls] = max(0.0, plain + early - door.early), max(0.0, tokens)
        doors[cls] = Door(waiting[cls], early, prompt)
    return out, doors


def _classes(
    samples: list[Sample],
    gained: Mapping[Key, float],
    came: Mapping[str, tuple[float, float]],
    live: frozenset[str],
    gates: frozenset[str],
) -> dict[str, ClassCounts]:
    scalars: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    bins: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0] * N_BINS))
    for s in samples:
        cls = s.labels.get(c.LABEL_METRIC_CLASS)
        if s.name in _WAITING and cls is not None and process_of(s.labels) in gates:
            scalars[cls][_WAITING[s.name]] += s.value
        if cls is None or process_of(s.labels) not in live or s.name in _COUNTERS:
            continue
        j = _BIN_INDEX.get(s.labels.get(c.LABEL_METRIC_BIN, ""))
        if s.name == c.M_INFLIGHT and j is not None:
            bins[cls][s.labels.get(c.LABEL_METRIC_PHASE, "")][j] += s.value
        elif s.name == c.M_INFLIGHT_PROMPT and j is not None:
            bins[cls]["prompt"][j] += s.value
        elif s.name in (c.M_WAITING, c.M_WAITING_PROMPT):
            scalars[cls][s.name] += s.value
    for (_, name, cls, edge), value in gained.items():
        if not cls:
            continue
        if name in _LENGTHS:
            if edge in _BIN_INDEX:
                bins[cls][name][_BIN_INDEX[edge]] += value
        else:
            scalars[cls][name] += value
    return {
        cls: ClassCounts(
            waiting=scalars[cls][c.M_WAITING], waiting_prompt_tokens=scalars[cls][c.M_WAITING_PROMPT],
            reasoning=tuple(bins[cls][c.PHASE_REASONING]), answering=tuple(bins[cls][c.PHASE_ANSWERING]),
            inflight_prompt_tokens=tuple(bins[cls]["prompt"]), reached=tuple(bins[cls][c.M_REACHED]), ended=tuple(bins[cls][c.M_ENDED]),
            arrivals=came.get(cls, (0.0, 0.0))[0], prompt_tokens=came.get(cls, (0.0, 0.0))[1],
            reasoning_tokens=scalars[cls][c.M_REASONING_TOKENS], answer_tokens=scalars[cls][c.M_ANSWER_TOKENS],
        )
        for cls in sorted({*scalars, *bins})
    }  # fmt: skip


def _replicas(samples: list[Sample], gained: Mapping[Key, float], live: frozenset[str]) -> tuple[ReplicaCounts, ...]:
    gauges: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    capacity: dict[str, float] = {}
    who: dict[str, Sample] = {}
    able = {process_of(s.labels) for s in samples if s.name == c.M_ASLEEP}
    for s in samples:
        process = process_of(s.labels)
        if s.name == c.M_KV_CAPACITY:
            capacity[process] = s.value
        elif s.name in (c.M_KV_USED, c.M_WAITING, c.M_INFLIGHT, c.M_DRAINING, c.M_ASLEEP):
            gauges[process][s.name] += s.value
        elif s.name == c.M_REPLICA:
            who[process] = s
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (process, name, _, _), value in gained.items():
        sums[process][name] += value
    return tuple(
        ReplicaCounts(
            id=p, kv_capacity_tokens=capacity.get(p), kv_used_tokens=gauges[p][c.M_KV_USED],
            running=gauges[p][c.M_INFLIGHT], waiting=gauges[p][c.M_WAITING], preemptions=sums[p][c.M_PREEMPTIONS],
            steps=sums[p][c.M_STEPS], step_seconds=sums[p][c.M_STEP_SECONDS], step_batch=sums[p][c.M_STEP_BATCH],
            step_kv_tokens=sums[p][c.M_STEP_KV], step_prefill_tokens=sums[p][c.M_STEP_PREFILL],
            replica=who[p].labels.get(c.LABEL_METRIC_REPLICA) if p in who else None,
            node=who[p].labels.get(c.LABEL_METRIC_NODE) if p in who else None,
            since_s=who[p].value if p in who else None, draining=gauges[p][c.M_DRAINING] > 0.0,
            asleep=gauges[p][c.M_ASLEEP] > 0.0, can_sleep=p in able,
        )
        for p in sorted(live)
    )  # fmt: skip


def _ingress(samples: list[Sample], now: float, limit_s: float) -> tuple[float | None, float | None, float | None]:
    """Return what the ingresses hold, all that they have, and the oldest one's age; None where none is heard of."""
    written = {process_of(s.labels): s.value for s in samples if s.name == c.M_INGRESS_TIME}
    live = {p: t for p, t in written.items() if now - t <= limit_s}
    if not live:
        return None, None, None

    def total(name: str) -> float:
        return sum(s.value for s in samples if s.name == name and process_of(s.labels) in live)

    return total(c.M_HELD), total(c.M_INGRESS_REQUESTS), now - min(live.values())


def assemble(
    samples: Iterable[Sample], model: str, fleet: Fleet, now: float, before: Memory, *, limit_s: float
) -> tuple[Observation, Memory]:
    """Return what the samples say of a model, and the memory for the next call.

    A ledger whose last write is older than `limit_s` is a dead replica's that lingers, or one that is stuck: its gauges
    do not count. Fewer live ledgers than ready replicas for more than 15 s make the whole STALE. Where there is no replica
    and none is wanted there is no ledger: all that there is to know, the ingress tells.
    """
    mine = [s for s in samples if s.labels.get(c.LABEL_METRIC_MODEL) == model]
    gained, after = _increments(mine, before, now)
    written = {process_of(s.labels): s.value for s in mine if s.name == c.M_LEDGER_TIME}
    live = frozenset(p for p, t in written.items() if now - t <= limit_s)
    told = {process_of(s.labels): s.value for s in mine if s.name == c.M_GATE_TIME}
    gates = frozenset(p for p, t in told.items() if now - t <= limit_s)
    short = len(live) < fleet.ready
    short_since = (before.short_since if before.short_since is not None else now) if short else None
    held, at_ingress, ingress_age = _ingress(mine, now, limit_s)
    if not live and ingress_age is not None and fleet.target == 0 and fleet.ready == 0:
        freshness, age = Freshness.FRESH, ingress_age
    elif not written:
        freshness, age = Freshness.ABSENT, None
    elif not live:
        freshness, age = Freshness.STALE, now - max(written.values())
    else:
        stuck = short_since is not None and now - short_since > SHORT_GRACE_S
        freshness, age = (Freshness.STALE if stuck else Freshness.FRESH), now - min(written[p] for p in live)
    if freshness is Freshness.FRESH:
        came, doors = _came(mine, gained, gates, before)
        after = replace(after, short_since=short_since, doors=doors)
    else:
        # Nobody learns from it: what was counted meanwhile belongs to the next observation that can be trusted.
        gained, came, after = {}, {}, replace(before, short_since=short_since)
    replicas = _replicas(mine, gained, live)
    going = frozenset(r.id for r in replicas if r.draining or r.replica in (fleet.emptied or ()))
    observation = Observation(
        time=now,
        window_s=now - before.time if before.time is not None else 0.0,
        freshness=freshness,
        age_s=max(0.0, age) if age is not None else None,
        fleet=fleet,
        classes=_classes(mine, gained, came, live, gates),
        draining=_classes(mine, {}, {}, going, frozenset()) if going else {},
        resume_off=any(s.value > 0.0 for s in mine if s.name == c.M_RESUME_OFF),
        replicas=replicas,
        held_requests=held,
        ingress_requests=at_ingress,
    )
    return observation, after
