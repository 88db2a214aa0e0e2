"""Which replicas are emptied before their number is lowered. Pure.

Serve chooses who goes when a number is lowered, by a rule that `victims` predicts. So the routers first send nothing more to the
predicted one, and the number is lowered when it has nothing left. Until then it can be had back in a second, where a replica
that was told to go can't, and no cap runs that could cut a chain. A prediction that fails costs nothing: who goes drains.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from reasonscale.api import constants as c
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Fleet, Freshness, Mode, Observation, Policy, ReplicaCounts
from reasonscale.scaling.victims import Standing, victims

SETTLE_S: Final = 5.0  # until every router has heard of it
GONE_S: Final = 60.0  # the ledger of a replica that was let go may be read for so long


def serving(fleet: Fleet) -> Fleet:
    """Return the fleet without the replicas that sleep, and without those that are emptied, which count as those that drain."""
    number, asleep = len(fleet.emptied or ()), len(fleet.asleep)
    if not number:
        return fleet
    return replace(
        fleet, target=fleet.target - number, ready=max(0, fleet.ready - number),
        draining=fleet.draining + number - asleep,
    )  # fmt: skip


def risen(seen: Observation) -> Observation:
    """Return what is seen with those that were to sleep and have requests among those that serve.

    A request that reaches one that sleeps wakes it, and an ingress that would refuse somebody wakes them all.
    """
    asleep = set(seen.fleet.asleep)
    up = {r.replica for r in seen.replicas if r.replica in asleep and r.running + r.waiting > 0.0}
    if not up:
        return seen
    return replace(
        seen,
        fleet=replace(
            seen.fleet,
            emptied=tuple(r for r in seen.fleet.emptied or () if r not in up),
            asleep=tuple(r for r in seen.fleet.asleep if r not in up),
        ),
    )


def unlapsed(fleet: Fleet, policy: Policy, state: State, now: float) -> tuple[str, ...]:
    """Return those of the fleet that are emptied still: where nobody decides, the ingress lets the others have requests again.

    Not those that sleep: they do until they are named no more.
    """
    since = dict(state.emptied_since)
    most_s = policy.drain_s + c.EMPTIED_MORE_S
    return tuple(r for r in fleet.emptied or () if r in fleet.asleep or now - since.get(r, now) <= most_s)


def awake(seen: Observation) -> tuple[ReplicaCounts, ...]:
    """Return the replicas that are not asleep: the KV cache of one that sleeps holds nothing and takes nothing."""
    asleep = set(seen.fleet.asleep)
    return tuple(r for r in seen.replicas if r.replica not in asleep) if asleep else seen.replicas


def _standings(seen: Observation, state: State) -> list[Standing] | None:
    """Return who is there in the order of their start; None where that is not known of all that are ready."""
    known = [r for r in seen.replicas if r.replica and r.node and r.since_s is not None and not r.draining]
    gone = dict(state.let_go)
    there = [r for r in known if r.replica not in gone]
    # Fewer: somebody does not say who it is. More: those of a cluster that a rollout has replaced still report.
    if len(known) < seen.fleet.ready or len(there) > seen.fleet.ready:
        return None
    there.sort(key=lambda r: (r.since_s, r.replica))
    return [Standing(r.replica or "", "engine", r.node) for r in there]


def _is_empty(replica: ReplicaCounts | None, told_s: float | None, seen: Observation) -> bool:
    """Tell whether a replica has nothing, and had time to get what was under way to it."""
    if replica is None or told_s is None:
        return False
    return replica.running + replica.waiting == 0.0 and seen.time - (seen.age_s or 0.0) >= told_s + SETTLE_S


def _may_go(replica: ReplicaCounts | None, told_s: float | None, seen: Observation, policy: Policy) -> bool:
    """Tell whether a replica may be told to go: it is empty, or it had drain.max."""
    if replica is None or told_s is None:
        return False
    return seen.time - told_s >= policy.drain_s or _is_empty(replica, told_s, seen)


Plan = tuple[tuple[str, ...], tuple[str, ...], State]


def plan(seen: Observation, target: int, policy: Policy, state: State) -> Plan:
    """Return the replicas to empty where `target` shall serve, those of them that sleep, and the state for the next call.

    What is asked for is the target and these. `seen` has the actuator's own fleet. Those that start go first and have nothing;
    where nobody knows who would go, none is emptied but who is already, for `drain.max`, and at zero none at all.
    """
    told = seen.fleet.emptied
    if told is None:
        return (), (), state
    since = {r: dict(state.emptied_since).get(r, seen.time) for r in told}
    let_go = tuple((r, at) for r, at in state.let_go if seen.time - at < GONE_S)
    state = replace(state, emptied_since=tuple(since.items()), let_go=let_go)
    number = seen.fleet.target - target - len(seen.fleet.starting_s)
    if policy.mode is Mode.RECOMMEND or target == 0:
        return (), (), state
    if number <= 0:
        return (), (), _woken(seen, (), state)
    # Who sleeps is kept beside the target, and counts for maxReplicas as any other.
    kept = min(number, policy.asleep, max(0, policy.max_replicas - target))
    there = _standings(seen, state) if seen.freshness is Freshness.FRESH else None
    if there is None:
        asleep = seen.fleet.asleep[:kept]
        busy = tuple(r for r in told if r not in seen.fleet.asleep and seen.time - since[r] < policy.drain_s)
        return (*busy[: number - len(asleep)], *asleep), asleep, _woken(seen, asleep, state)
    by_id = {r.replica: r for r in seen.replicas}
    order = victims(there, "engine", len(there))
    while sum(by_id[r].can_sleep for r in order[number - kept :]) < kept:
        kept -= 1
    first = order[: number - kept]  # whom Serve would stop
    # Of the others those that sleep already, then those that are emptied already: they are the nearest to it.
    able = [r for r in order[number - kept :] if by_id[r].can_sleep]
    rest = sorted(able, key=lambda r: (r not in seen.fleet.asleep, r not in since))[:kept]
    done = next((i for i, r in enumerate(first) if not _may_go(by_id.get(r), since.get(r), seen, policy)), len(first))
    asleep = tuple(sorted(r for r in rest if r in seen.fleet.asleep or _is_empty(by_id.get(r), since.get(r), seen)))
    # Who still has something after drain.max goes, as if nobody slept here.
    rest = [r for r in rest if r in asleep or not _may_go(by_id.get(r), since.get(r), seen, policy)]
    state = replace(state, let_go=(*let_go, *((r, seen.time) for r in first[:done])))
    return (*first[done:], *(r for r in rest if r not in asleep), *asleep), asleep, _woken(seen, asleep, state)


def _woken(seen: Observation, asleep: tuple[str, ...], state: State) -> State:
    """Return the state with those that are to sleep no longer, and that have to be woken."""
    slept = {r.replica for r in seen.replicas if r.asleep}
    woken = tuple((r, at) for r, at in state.woken if r not in asleep)  # told to sleep on, it took no wake
    gone = {r for r, _ in (*state.let_go, *woken)}
    new = ((r, seen.time) for r in seen.fleet.asleep if r not in asleep and r in slept and r not in gone)
    return replace(state, woken=(*woken, *new))
