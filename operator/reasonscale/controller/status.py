"""What a ReasoningModel's status says. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.api.resolve import Resolved
from reasonscale.autoscaler import Record
from reasonscale.controller.causes import IN_PLACE
from reasonscale.profiles.library import FIELD, Chosen
from reasonscale.render.context import PORT_API, ROLE_ENGINE
from reasonscale.scaling.emptying import awake, serving
from reasonscale.scaling.types import Freshness, Mode

HISTORY: Final = 10
MOVING: Final = ("demand", "drain")  # numbers of the load, which are never twice the same


def stamp(now: float) -> str:
    """Return a time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


def emptied_since(status: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return what a status that an operator wrote says of replicas that are emptied: each, and since when."""
    out = []
    for item in status.get("emptied") or ():
        try:
            out.append((str(item["replica"]), datetime.fromisoformat(str(item["since"])).timestamp()))
        except (KeyError, TypeError, ValueError):  # somebody else's
            continue
    return tuple(out)


def rolls_in_place(status: Mapping[str, Any]) -> bool:
    """Tell whether a status that an operator wrote says that Serve was replacing engines."""
    return any(
        x.get("type") == "Progressing" and str(x.get("message")).startswith(IN_PLACE)
        for x in status.get("conditions") or ()
    )


def condition(kind: str, holds: bool | None, reason: str, message: str) -> dict[str, Any]:
    """Return a condition without its time; `holds` None: unknown."""
    status = "Unknown" if holds is None else "True" if holds else "False"
    return {"type": kind, "status": status, "reason": reason, "message": message[:4096]}


def merged(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], when: str) -> list[dict[str, Any]]:
    """Return conditions with the time at which each last changed its status."""
    known = {x["type"]: x for x in before}
    out = []
    for item in now:
        old = known.get(item["type"])
        same = old is not None and old.get("status") == item["status"]
        out.append({**item, "lastTransitionTime": old["lastTransitionTime"] if same and old else when})
    return out


def refused(problems: str, before: Mapping[str, Any], generation: int | None, now: float) -> dict[str, Any]:
    """Return the status of a resource that is not valid: what runs is left as it is."""
    found = condition("Accepted", False, "Invalid", f"{problems}; what runs is left as it is")
    others = [x for x in before.get("conditions", ()) if x["type"] != "Accepted"]
    return {
        "observedGeneration": generation,
        "conditions": merged(before.get("conditions", ()), [found, *others], stamp(now)),
    }


@dataclass(frozen=True, slots=True)
class Found:
    """What a turn found beside its decision. `trouble`: reason and message of Degraded; None where all is well."""

    trouble: tuple[str, str] | None = None
    held: str | None = None  # what holds the model as it is
    held_reason: str = "Held"
    signals: str | None = None  # why there are none
    signals_reason: str = "PrometheusDown"
    profile: Chosen | None = None  # what came of the one that the resource names
    revision: str | None = None  # of the rendering that runs
    update: str | None = None  # what another rendering would change
    blocked: str | None = None  # why a rollout does not begin
    image: str = ""  # of the engines
    waiting: str | None = None  # what pods do before they are ready
    rolling: str | None = None  # what a rollout under way does
    emptied_since: Sequence[tuple[str, float]] = ()


_RESUME_OFF: Final = (
    "engines were lost again and again, so that their requests end with engine_lost instead of going on in another; "
    "it turns on again by itself ten minutes after the last: look why engines die"
)


def _unseen(record: Record) -> bool:
    """Tell whether it is unknown how many replicas serve: some did, and nobody tells of their ledgers.

    A Prometheus that is down, or that has not scraped yet, stops no replica: a model that is called not ready for it would
    be taken for lost.
    """
    return record.observation.freshness is not Freshness.FRESH and record.observation.fleet.ready > 0


def _conditions(record: Record | None, found: Found) -> list[dict[str, Any]]:
    out = [condition("Accepted", True, "Valid", "the resource is valid")]
    if record is None:
        out.append(condition("Ready", False, "Starting", "no decision yet"))
    else:
        fleet = serving(record.observation.fleet)
        asked = record.decision.target if record.decision.act else fleet.target
        asleep = asked == 0 and fleet.ready == 0
        text = f"{fleet.ready} of {asked} replicas serve"
        if _unseen(record):
            said = f"nobody knows how many of {asked} replicas serve, since their ledgers can't be read; {fleet.ready} did at the last look"
            out.append(condition("Ready", None, "NotSeen", said))
        elif asleep and record.observation.ingress_requests is None:
            out.append(condition("Ready", None, "AtZero", "asleep, and no ingress is heard that would hold a request"))
        elif asleep:
            # It answers, if late: who waits for Ready must not wait for ever.
            out.append(condition("Ready", True, "AtZero", "asleep; the first request wakes it and is held meanwhile"))
        else:
            out.append(condition("Ready", fleet.ready > 0, "Serving" if fleet.ready else "NoReplica", text))
        out.append(_signals(record, found))
        mode = record.policy.mode.value
        acts = mode == "Auto" and not found.held
        reason = found.held_reason if found.held else "AtZero" if asleep and acts else mode
        said = f"mode {mode}, asleep at zero replicas" if asleep else f"mode {mode}"
        out.append(condition("ScalingActive", acts, reason, found.held or said))
        bounds = f"bounds {record.policy.min_replicas} to {record.policy.max_replicas}"
        out.append(condition("ScalingLimited", record.decision.limited, "Bounds", bounds))
    if found.rolling or found.waiting:
        out.append(
            condition(
                "Progressing", True, "Rollout" if found.rolling else "Starting", found.rolling or found.waiting or ""
            )
        )
    else:
        out.append(condition("Progressing", False, "Settled", "nothing is being started or replaced"))
    if found.trouble is not None:
        out.append(condition("Degraded", True, *found.trouble))
    elif record is not None and record.observation.resume_off:
        out.append(condition("Degraded", True, "ResumeOff", _RESUME_OFF))
    else:
        out.append(condition("Degraded", False, "AsWanted", "everything is applied"))
    if found.update:
        said = f"this operator renders the model otherwise ({found.update}); it runs on as it is until its engines' settings change or {c.ANNOTATION_UPDATE}: now is set"
        out.append(condition("UpdateAvailable", True, "OtherRendering", said))
    else:
        out.append(condition("UpdateAvailable", False, "UpToDate", "what runs is what this operator renders"))
    if found.blocked:
        out.append(condition("RolloutBlocked", True, "Blocked", found.blocked))
    else:
        out.append(condition("RolloutBlocked", False, "Free", "no rollout waits"))
    profile = found.profile
    if profile is not None:
        out.append(
            condition("ProfileLoaded", profile.profile is not None, profile.reason, f"{FIELD}: {profile.message}")
        )
    return out


def _signals(record: Record, found: Found) -> dict[str, Any]:
    fresh = record.observation.freshness
    known, ready = record.observation.held_requests is not None, record.observation.fleet.ready
    if known and not ready:
        return condition(
            "SignalsAvailable", True, "IngressOnly", "no replica, so no ledger; what the ingress holds is read"
        )
    if fresh is Freshness.FRESH:
        return condition("SignalsAvailable", True, "Fresh", "the engines' ledgers are read")
    if found.signals:
        return condition(
            "SignalsAvailable", False, found.signals_reason, f"{found.signals}; replicas are held until it answers"
        )
    if fresh is Freshness.ABSENT:
        text = "Prometheus has no ledger of this model: no replica serves yet, or it does not scrape port metrics of the model's pods; replicas are held"
        return condition("SignalsAvailable", False, "Absent", text)
    text = "the engines' ledgers are old: Prometheus scrapes less often than the operator was told, or the engines hang; replicas are held"
    return condition("SignalsAvailable", False, "Stale", text)


def _decision(record: Record) -> dict[str, Any]:
    d = record.decision
    return {"from": d.current, "to": d.target, "reason": d.reason, "message": d.message[:1024], "time": stamp(d.time)}


def _demand(record: Record) -> dict[str, Any]:
    numbers, replicas = record.decision.numbers, awake(record.observation)
    capacity = sum(r.kv_capacity_tokens or 0.0 for r in replicas)
    used = sum(r.kv_used_tokens for r in replicas)
    full, held = numbers.kv_full_in_s, record.observation.held_requests
    return {
        "queuedTokens": round(numbers.queued_tokens),
        "inFlightTokens": round(numbers.owed_tokens - numbers.queued_tokens),
        "kvUsagePercent": round(100 * used / capacity) if capacity else 0,
        "kvFullIn": None if full is None else f"{full:.0f}s",
        **({} if held is None else {"heldRequests": round(held)}),
    }


def _asleep(resolved: Resolved, number: int) -> dict[str, Any] | None:
    """Return what replicas hold that sleep."""
    each = resolved.asleep_bytes
    if not number:
        return None
    return {
        "gpus": number * resolved.gpus_per_replica,
        "hostMemory": None if each is None else f"{number * each / 2**30:.1f}Gi",
    }


def status_of(
    resolved: Resolved, record: Record | None, before: Mapping[str, Any], *, namespace: str, generation: int | None,
    found: Found, now: float,
) -> dict[str, Any]:  # fmt: skip
    """Return the whole status; equal to `before` where nothing changed."""
    out: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": merged(before.get("conditions", ()), _conditions(record, found), stamp(now)),
        "renderRevision": found.revision or before.get("renderRevision"),
        "endpoint": f"http://{resolved.name}-openai.{namespace}.svc:{PORT_API}/v1",
        "selector": f"{c.LABEL_MODEL}={resolved.name},{c.LABEL_ROLE}={ROLE_ENGINE}",
        "resolved": {
            "model": resolved.served_name, "parser": resolved.reasoning.parser or "none", "maxModelLen": resolved.max_model_len,
            "maxNumSeqs": resolved.max_num_seqs, "maxNumBatchedTokens": resolved.max_num_batched_tokens,
            "gpusPerReplica": resolved.gpus_per_replica, "mode": resolved.mode,
            "image": found.image,
            "budget": {
                "default": resolved.reasoning.budget_default, "max": resolved.reasoning.budget_max,
                "answerReserve": resolved.reasoning.answer_reserve,
            },
        },
    }  # fmt: skip
    if record is None:
        return out
    fleet, decision = serving(record.observation.fleet), record.decision
    out["replicas"] = {
        "desired": decision.target, "ready": fleet.ready, "starting": len(fleet.starting_s), "draining": fleet.draining,
        "asleep": len(record.observation.fleet.asleep),
    }  # fmt: skip
    if found.emptied_since or before.get("emptied"):
        out["emptied"] = [{"replica": r, "since": stamp(at)} for r, at in found.emptied_since] or None
    if record.observation.fleet.asleep or before.get("asleep"):
        out["asleep"] = _asleep(resolved, len(record.observation.fleet.asleep))
    fresh = decision.freshness is Freshness.FRESH
    # Unknown is not zero: what is not known is taken away.
    demand = _demand(record)
    # The ingress tells what is held, also while there is no ledger.
    held = {k: v for k, v in demand.items() if k == "heldRequests"}
    out["demand"] = demand if fresh else dict.fromkeys(demand) | held
    going = fleet.draining > 0 and fresh
    out["drain"] = {
        "tokensOwed": round(decision.numbers.drain_owed_tokens) if going else None,
        "expected": f"{decision.numbers.drain_expected_s or 0.0:.0f}s" if going else None,
    }
    history = list(before.get("history", ()))
    if decision.act:
        out["lastDecision"] = _decision(record)
        out["history"] = [out["lastDecision"], *history][:HISTORY]
    elif record.policy.mode is Mode.RECOMMEND and fresh and decision.target != decision.current:
        # What would be done; the same again is not written again, though its numbers move.
        known, now_said = before.get("lastDecision") or {}, _decision(record)
        same = all(known.get(k) == now_said[k] for k in ("from", "to", "reason"))
        out["lastDecision"] = known if same else now_said
    return out


def moved(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    """Tell whether the numbers of the load say something new: by a tenth, or by what a person would call another number.

    They move a little each turn, also under a load that stays the same: forecasts follow what is learnt. Written whenever they
    differ, 200 such models cost 400 writes a minute.
    """
    old, new = before or {}, now or {}
    for name, step in (
        ("queuedTokens", 1000.0),
        ("inFlightTokens", 1000.0),
        ("kvUsagePercent", 3.0),
        ("kvFullIn", 10.0),
        ("tokensOwed", 1000.0),
        ("expected", 10.0),
    ):
        a, b = _number(old.get(name)), _number(new.get(name))
        if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > max(step, 0.1 * max(a, b))):
            return True
    return False


def _number(value: Any) -> float | None:
    return None if value is None else float(str(value).removesuffix("s"))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether a status differs in more than the numbers of the load, which move all the time."""
    return any(before.get(key) != value for key, value in now.items() if key not in MOVING)
