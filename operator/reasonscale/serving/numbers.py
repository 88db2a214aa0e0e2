"""How many replicas a deployment of Serve's config shall have, written and read. Pure.

A model that may sleep has an `autoscaling_config`, since `num_replicas` cannot be 0: least and most are the number, so
that Serve decides nothing; at zero the most is 1, so that Serve itself starts a replica as soon as a request waits for
one, whoever else is up. Changing between the two forms restarts the application's engines, so the form is chosen once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

FORM: Final = "autoscaling_config"
EMPTIED: Final = "emptied"  # in the ingress' user_config: replicas by deployment that nothing more is sent to
ASLEEP: Final = "asleep"  # beside it: those of them that sleep
# How long nothing may be asked of a last replica that is told to go before it goes: a request that came with the decision keeps it.
SLEEP_DELAY_S: Final = 10.0
# By default Serve looks every 10 s at the mean of 30 s: a request at zero waited 10.9 s until a replica was asked for.
_LOOK_S, _LOOK_BACK_S = 1.0, 5.0


def number_of(deployment: Mapping[str, Any]) -> int:
    """Return the number that a deployment is told."""
    if deployment.get(FORM):
        return int(deployment[FORM]["min_replicas"])
    return int(deployment["num_replicas"])


def numbered(number: int, *, sleeps: bool) -> dict[str, Any]:
    """Return the field that tells a deployment its number."""
    if not sleeps:
        return {"num_replicas": number}
    return {
        FORM: {
            "min_replicas": number, "max_replicas": max(1, number), "downscale_to_zero_delay_s": SLEEP_DELAY_S,
            "metrics_interval_s": _LOOK_S, "look_back_period_s": _LOOK_BACK_S,
        }
    }  # fmt: skip


def built(*, sleeps: bool) -> dict[str, Any]:
    """Return what a deployment is built with: Serve ignores `num_replicas` in its config unless this says no to the other form."""
    return numbered(1, sleeps=True) if sleeps else {FORM: None, **numbered(1, sleeps=False)}


def set_number(deployment: dict[str, Any], number: int) -> None:
    """Tell a deployment another number, in the form that it has."""
    deployment |= numbered(number, sleeps=FORM in deployment)


def set_emptied(
    ingress: dict[str, Any], deployment: str, replicas: Sequence[str], asleep: Sequence[str] = ()
) -> None:  # fmt: skip
    """Tell the ingress which of a deployment's replicas it sends nothing more to, and which of them sleep. In place: no engine is told."""
    told = dict(ingress.get("user_config") or {})
    for key, named in ((EMPTIED, replicas), (ASLEEP, asleep)):
        found = {k: v for k, v in told.pop(key, {}).items() if k != deployment}
        found |= {deployment: list(named)} if named else {}
        told |= {key: found} if found else {}
    ingress["user_config"] = told
