"""A decision in words: sentences whose numbers are the decision's own."""

from __future__ import annotations

from reasonscale.api import constants as c
from reasonscale.scaling.types import Fleet, Numbers


def count(tokens: float) -> str:
    """Return a number of tokens as a person would say it: 873, 14.2k, 1.9M."""
    if tokens < 999.5:
        return f"{tokens:.0f}"
    if tokens < 999_950:
        return f"{tokens / 1e3:.1f}k"
    if tokens < 999_950_000:
        return f"{tokens / 1e6:.1f}M"
    return f"{tokens / 1e9:.1f}G"


def seconds(value: float) -> str:
    """Return a duration: 0.4 s, 41 s, 12 min."""
    if value < 9.95:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def _kv(n: Numbers) -> str:
    if n.kv_full_in_s is not None:
        return "KV full now" if n.kv_full_in_s <= 0.0 else f"KV full in {seconds(n.kv_full_in_s)}"
    return f"KV up to {count(n.kv_at_horizon_tokens)} tokens in {seconds(n.horizon_s)}"


def why_up(reason: str, n: Numbers, start_s: float, drain_s: float, allowed_s: float) -> str:
    """Return why more replicas are asked for."""
    owed = f"{count(n.owed_tokens)} tokens owed"
    takes = f"a replica takes {seconds(start_s)}"
    if reason == c.REASON_KV:
        return f"{owed}, {_kv(n)}, {takes}"
    if reason == c.REASON_QUEUE:
        when = "does not drain" if drain_s == float("inf") else f"would take {seconds(drain_s)} to start"
        return f"{n.waiting:.0f} waiting, the queue {when} against {seconds(allowed_s)} allowed, {owed}"
    if reason == c.REASON_PREEMPTION:
        return f"{n.preemption_rate:.2f} preemptions/s, {owed}, {takes}"
    if reason == c.REASON_PREFILL:
        return f"prompts of {n.arrival_rate:.2f} requests/s need {n.need_prefill:.2f} replicas, {owed}, {takes}"
    return (
        f"{owed}, {n.inflight_now:.0f} in flight now and up to {n.inflight_at_horizon:.0f} in "
        f"{seconds(n.horizon_s)} need {n.need_concurrency:.2f} replicas, {takes}"
    )


def why_down(n: Numbers, need: float, calm_s: float) -> str:
    """Return why fewer replicas are enough."""
    return f"{count(n.owed_tokens)} tokens owed, {need:.1f} replicas enough for {seconds(calm_s)} past"


def what_is_emptied(number: int, n: Numbers) -> str:
    """Return how many replicas get nothing more until they are empty, and what they have."""
    return f"{number} more {'is' if number == 1 else 'are'} emptied first, {count(n.drain_owed_tokens)} tokens to make"


def what_sleeps(number: int) -> str:
    """Return how many replicas sleep."""
    return f"{number} more {'is' if number == 1 else 'are'} asleep"


def what_a_rollout_holds(number: int) -> str:
    """Return how many replicas stay because engines are replaced."""
    return f"{number} stay while a rollout replaces engines"


def why_let_sleep(wanted: int, n: Numbers) -> str:
    """Return why replicas that sleep are not woken yet, though they will be needed."""
    return (
        f"{count(n.owed_tokens)} tokens owed need {wanted} replicas in {seconds(n.horizon_s)}, "
        f"{n.need_awake:.1f} in the {seconds(n.wake_horizon_s)} that waking one takes"
    )


def why_hold(n: Numbers, need: float) -> str:
    """Return the state of things where nothing changes."""
    return f"{count(n.owed_tokens)} tokens owed, {n.inflight_now:.0f} in flight, {need:.1f} replicas needed"


def requests(n: float) -> str:
    """Return a number of requests: 1 request, 50 requests."""
    return f"{n:.0f} request" + ("" if round(n) == 1 else "s")


def why_sleep(idle_s: float) -> str:
    """Return why the last replica may go."""
    return f"no request for {seconds(idle_s)}"


def why_asleep(known: bool) -> str:
    """Return the state of things where there is no replica and none is wanted."""
    if known:
        return "asleep, nothing is held; the first request wakes it"
    return "asleep, and nothing is heard of the ingress; the first request wakes it all the same"


def why_wake(waiting: float, fleet: Fleet, start_s: float) -> str:
    """Return why replicas are asked for, or what they are waited for by."""
    under_way = f"{len(fleet.starting_s)} starting, " if fleet.starting_s else ""
    return f"{requests(waiting)} held until a replica is ready, {under_way}a replica takes {seconds(start_s)}"
