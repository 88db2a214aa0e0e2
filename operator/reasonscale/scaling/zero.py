"""To no replica and back: when the last one may go, and how many the requests need that are held meanwhile. Pure.

What is unknown never leads to zero, and a model that has none is never woken by what is unknown: it wakes by itself
there, since Serve starts a replica for a request that is held (`serving.hold`).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from reasonscale.scaling.capacity import capacity_of, fit
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Observation, Policy

ROUNDING = 0.02  # as in `decide`


def _in_engines(seen: Observation) -> float:
    """Return the requests that the ledgers tell of."""
    return sum(c.waiting + sum(c.reasoning) + sum(c.answering) for c in seen.classes.values())


def watch(state: State, seen: Observation) -> State:
    """Return the state with the moment since which a fresh observation, and each before it, has told of nothing at all.

    A ledger that shows no request is not enough: one may be on its way between ingress and engine, or have come and
    gone since the last look.
    """
    nothing = (
        seen.fleet.ready > 0
        and not seen.fleet.starting_s
        and seen.held_requests == 0.0
        and seen.ingress_requests == 0.0
        and _in_engines(seen) == 0.0
        and sum(c.arrivals for c in seen.classes.values()) == 0.0
    )
    since = seen.time if state.idle_since is None else state.idle_since
    idle_since = since if nothing else None
    return state if idle_since == state.idle_since else replace(state, idle_since=idle_since)


def may_sleep(state: State, policy: Policy, now: float) -> float | None:
    """Return for how long nothing was asked where the last replica may go for it; else None."""
    if policy.min_replicas > 0 or policy.zero_after_s is None or state.idle_since is None:
        return None
    idle_s = now - state.idle_since
    return idle_s if idle_s >= policy.zero_after_s else None


def at_zero(seen: Observation, policy: Policy) -> bool:
    """Tell whether no replica is wanted, and none has to be."""
    return seen.fleet.target == 0 and policy.min_replicas == 0


def waits_for_any(seen: Observation) -> bool:
    """Tell whether requests are held and there is nobody yet to take them."""
    return seen.fleet.ready == 0 and bool(seen.held_requests)


def demand(seen: Observation) -> float:
    """Return the requests that want a replica; 0 also where nothing is known."""
    return (seen.held_requests or 0.0) + _in_engines(seen)


def wanted(seen: Observation, policy: Policy, state: State) -> float:
    """Return the replicas in whose batches all of them have a seat, unrounded."""
    return demand(seen) / capacity_of(fit(state.steps, policy), policy, seen.replicas).seats


def rounded(need: float, policy: Policy) -> int:
    """Return what to ask for at once: at least one, and no more than one decision may add to nothing."""
    return max(1, min(policy.rates.up_max_step, policy.max_replicas, ceil(need - ROUNDING)))
