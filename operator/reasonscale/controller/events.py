"""Events, few and with numbers: what `kubectl describe` shows at its end. The same again within ten minutes is counted, not repeated."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from reasonscale.api import constants as c
from reasonscale.controller.kube import Kube, KubeError
from reasonscale.controller.status import stamp

AGGREGATE_S: Final = 600.0  # one Event object for a reason within this time
BURST: Final = 10  # writes at once for one model ...
REFILL_S: Final = 30.0  # ... and one more each so often
_log = logging.getLogger("reasonscale.controller")


class Event(NamedTuple):
    """What happened. `kind`: Normal or Warning."""

    kind: str
    reason: str
    message: str


def _conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {x["type"]: x for x in status.get("conditions") or ()}


# condition -> the status that is worth an event, what it is called, and whether it is a warning
_WORTH: Final[tuple[tuple[str, str, str | None, str], ...]] = (
    ("Accepted", "False", "Refused", "Warning"),
    ("Degraded", "True", None, "Warning"),  # by the condition's own reason
    ("SignalsAvailable", "False", "SignalsMissing", "Warning"),
    ("RolloutBlocked", "True", "RolloutBlocked", "Warning"),
    ("UpdateAvailable", "True", "UpdateAvailable", "Normal"),
)


def events_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Event]:
    """Yield what a change of the status is worth an event for. Pure."""
    old, new = _conditions(before), _conditions(now)
    decision = now.get("lastDecision")
    if decision and decision != before.get("lastDecision") and decision["from"] != decision["to"]:
        only_said = new.get("ScalingActive", {}).get("reason") in ("Recommend", "Held", "Frozen")
        yield Event(
            "Normal",
            "Recommended" if only_said else "Scaled",
            str(decision["message"] or f"{decision['from']} -> {decision['to']}: {decision['reason']}"),
        )
    for kind, status, name, level in _WORTH:
        found, known = new.get(kind), old.get(kind, {})
        if found is None:
            continue
        turned = found["status"] != known.get("status")
        other = kind == "Degraded" and found.get("reason") != known.get("reason")
        if not known and found["reason"] == "Absent":
            continue  # a model that was just made has no replica yet
        if found["status"] == status and (turned or other):
            yield Event(level, name or str(found["reason"]), str(found["message"]))
        elif (
            turned and known and found["status"] not in (status, "Unknown") and kind in ("Degraded", "SignalsAvailable")
        ):
            yield Event("Normal", "Recovered" if kind == "Degraded" else "SignalsBack", str(found["message"]))
    held, was = new.get("ScalingActive", {}), old.get("ScalingActive", {})
    if held.get("reason") in ("Held", "Frozen") and was.get("reason") != held.get("reason"):
        yield Event("Normal", str(held["reason"]), str(held["message"]))
    elif was.get("reason") in ("Held", "Frozen") and held.get("reason") not in (None, was.get("reason")):
        yield Event("Normal", "Released", f"no longer held: {held['message']}")
    profile, known = new.get("ProfileLoaded", {}), old.get("ProfileLoaded", {})
    if profile and profile["reason"] != c.PROFILE_LOADED and profile["message"] != known.get("message"):
        yield Event("Warning", str(profile["reason"]), str(profile["message"]))


class Recorder:
    """Writes one model's events; a write that fails is logged and forgotten."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.time) -> None:
        self._kube, self._clock = kube, clock
        self._known: dict[str, dict[str, Any]] = {}  # reason -> the Event that counts it
        self._tokens, self._filled_s = float(BURST), clock()
        self._unsaid = 0

    def _may(self, now: float) -> bool:
        self._tokens = min(float(BURST), self._tokens + (now - self._filled_s) / REFILL_S)
        self._filled_s = now
        if self._tokens < 1:
            self._unsaid += 1
            return False
        self._tokens -= 1
        return True

    async def record(self, body: Mapping[str, Any], event: Event) -> None:
        """Write an event of a resource, or count it to one that is written already."""
        now = self._clock()
        if not self._may(now):
            return
        meta, known = body["metadata"], self._known.get(event.reason)
        message = event.message[:1024]
        if known is not None and now - known["since"] < AGGREGATE_S:
            known["count"] += 1
            manifest = {**known["manifest"], "count": known["count"], "lastTimestamp": stamp(now), "message": message}
        else:
            uid = str(meta.get("uid", ""))
            manifest = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{meta['name'][:200]}.{int(now * 1000):x}.{event.reason.lower()}", "namespace": meta["namespace"]},
                "involvedObject": {"apiVersion": c.API_VERSION, "kind": c.KIND, "name": meta["name"], "namespace": meta["namespace"], "uid": uid},
                "type": event.kind, "reason": event.reason, "message": message, "count": 1,
                "firstTimestamp": stamp(now), "lastTimestamp": stamp(now),
                "source": {"component": c.FIELD_MANAGER}, "reportingComponent": c.FIELD_MANAGER, "reportingInstance": c.FIELD_MANAGER,
            }  # fmt: skip
            self._known[event.reason] = {"since": now, "count": 1, "manifest": manifest}
        try:
            await self._kube.apply(manifest)
        except KubeError as error:
            _log.warning(json.dumps({"event": "event", "reason": event.reason, "problem": str(error)}))
