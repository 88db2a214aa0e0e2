"""Which replicas are emptied before their number is lowered. Pure.

Serve chooses who goes when a number is lowered, by a rule that `victims` predicts. So the routers first send nothing more to the
predicted one, and the number is lowered when it has nothing left. Until then it can be had back in a second, where a replica
that was told to go can't, and no cap runs that could cut a chain. A prediction that fails costs nothing: who goes drains.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from reasonscale.scaling.state import State
from reasonscale.scaling.types import Fleet, Freshness, Mode, Observation, Policy, ReplicaCounts
from reasonscale.scaling.victims import Standing, victims

SETTLE_S: Final = 5.0  # until every router has heard of it
GONE_S: Final = 60.0  # the ledger of a replica that was let go may be read for so long


def serving(fleet: Fleet) -> Fleet:
    """Return the fleet without the replicas that are emptied, which count as those that drain."""
    number = len(fleet.emptied or ())
    if not number:
        return fleet
    return replace(
        fleet, target=fleet.target - number, ready=max(0, fleet.ready - number), draining=fleet.draining + number
    )


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


def _is_done(replica: ReplicaCounts | None, told_s: float | None, seen: Observation, policy: Policy) -> bool:
    """Tell whether a replica may be told to go: it has nothing, and had time to get what was under way to it; or it had drain.max."""
    if replica is None or told_s is None:
        return False
    if seen.time - told_s >= policy.drain_s:
        return True
    return replica.running + replica.waiting == 0.0 and seen.time - (seen.age_s or 0.0) >= told_s + SETTLE_S


def plan(seen: Observation, target: int, policy: Policy, state: State) -> tuple[tuple[str, ...], State]:
    """Return the replicas to empty where `target` shall serve, and the state for the next call.

    What is asked for is the target and these. `seen` has the actuator's own fleet. Those that start go first and have nothing;
    where nobody knows who would go, none is emptied but who is already, for `drain.max`, and at zero none at all.
    """
    told = seen.fleet.emptied
    if told is None:
        return (), state
    since = {r: dict(state.emptied_since).get(r, seen.time) for r in told}
    let_go = tuple((r, at) for r, at in state.let_go if seen.time - at < GONE_S)
    state = replace(state, emptied_since=tuple(since.items()), let_go=let_go)
    number = seen.fleet.target - target - len(seen.fleet.starting_s)
    if number <= 0 or target == 0 or policy.mode is Mode.RECOMMEND:
        return (), state
    there = _standings(seen, state) if seen.freshness is Freshness.FRESH else None
    if there is None:
        return tuple(r for r in told[:number] if seen.time - since[r] < policy.drain_s), state
    by_id = {r.replica: r for r in seen.replicas}
    order = victims(there, "engine", number)
    done = next((i for i, r in enumerate(order) if not _is_done(by_id.get(r), since.get(r), seen, policy)), len(order))
    state = replace(state, let_go=(*let_go, *((r, seen.time) for r in order[:done])))
    return tuple(order[done:]), state
