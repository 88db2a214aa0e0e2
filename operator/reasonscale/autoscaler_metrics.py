"""Decisions as Prometheus metrics of our own process: a listener of the autoscaler."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from reasonscale.api import constants as c
from reasonscale.autoscaler import Record
from reasonscale.scaling.emptying import serving
from reasonscale.scaling.types import Freshness, Numbers

_HELP = {
    "owed_tokens": "Tokens that running and waiting requests are expected to make yet",
    "queued_tokens": "Of these, the tokens of waiting requests",
    "inflight_now": "Requests running",
    "inflight_at_horizon": "Requests running when a replica ordered now would be ready, high quantile",
    "kv_now_tokens": "Tokens in the KV caches",
    "kv_at_horizon_tokens": "Tokens in the KV caches at the horizon, high quantile",
    "kv_full_in_s": "Seconds until the KV caches are full; NaN: not within the forecast",
    "horizon_s": "Seconds from a decision to a ready replica",
    "arrival_rate": "Requests per second",
    "need_concurrency": "Replicas that decoding at the horizon needs",
    "need_kv": "Replicas that the KV cache at the horizon needs",
    "need_prefill": "Replicas that prefill alone needs",
    "need_awake": "Replicas that are needed by the time that one that sleeps could be awake; 0: none may sleep",
    "wake_horizon_s": "Seconds from a decision to a replica that was asleep; 0: none may sleep",
    "need_queue": "Replicas that the present queue needs to start within the objective",
    "waiting": "Requests without their first token",
    "preemption_rate": "Preemptions per second",
    "drain_owed_tokens": "Tokens that replicas that go are expected to make yet",
    "drain_expected_s": "Seconds until the last chain of the replicas that go ends; NaN: nothing drains",
}


class DecisionMetrics:
    """Writes each record to gauges labelled by model; one for each field of Numbers."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"reasonscale_{name}", text, ["model"], registry=registry)

        self._numbers = {
            f.name: gauge(f"decision_{f.name}", _HELP.get(f.name, f.name.replace("_", " "))) for f in fields(Numbers)
        }
        self._desired = gauge("replicas_desired", "Replicas that the last decision asked for")
        self._ready = gauge("replicas_ready", "Replicas that serve")
        self._starting = gauge("replicas_starting", "Replicas ordered and not ready")
        self._draining = gauge("replicas_draining", "Replicas that finish what they have and get nothing more")
        self._resting = gauge("replicas_asleep", "Replicas that are kept with a sleeping engine; they hold their GPU")
        self._held_bytes = gauge(
            "asleep_host_bytes", "Host memory that they hold at most; NaN: nobody knows how large their weights are"
        )
        self._fresh = gauge(
            "signals_fresh", "1 where the last decision had fresh signals, or waits for a first replica, else 0"
        )
        self._asleep = gauge("asleep", "1 where the model has no replica and wants none")
        self._held = gauge(
            "held", "Requests held until a replica is ready; NaN: nobody knows, or the model never sleeps"
        )
        self._age = gauge("signals_age_seconds", "Age of the signals that the last decision used; NaN: there were none")
        self._limited = gauge("scaling_limited", "1 where the need lies outside minReplicas..maxReplicas")
        self._time = gauge("decision_time_seconds", "When the last decision was made, unix time")
        self._decisions = Counter(
            "reasonscale_decisions", "Decisions by reason", ["model", "reason"], registry=registry
        )
        self._problems = Counter(
            "reasonscale_decision_problems", "Turns that failed in part", ["model"], registry=registry
        )
        self._reasons: dict[str, set[str]] = {}

    def forget(self, model: str) -> None:
        """Take a model's series out: one that is gone must not look like one that nobody decides for."""
        named = [*self._numbers.values(), self._desired, self._ready, self._starting, self._draining, self._fresh]
        for metric in (
            *named,
            self._resting,
            self._held_bytes,
            self._asleep,
            self._held,
            self._age,
            self._limited,
            self._time,
            self._problems,
        ):
            with suppress(KeyError):
                metric.remove(model)
        for reason in self._reasons.pop(model, set()):
            with suppress(KeyError):
                self._decisions.remove(model, reason)

    def __call__(self, record: Record) -> None:
        model, decision, seen = record.model, record.decision, record.observation
        fleet = serving(seen.fleet)
        fresh = decision.freshness is Freshness.FRESH
        for name, gauge in self._numbers.items():
            value = getattr(decision.numbers, name)
            # Without fresh signals the numbers are unknown, and unknown is not zero.
            gauge.labels(model).set(float("nan") if value is None or not fresh else value)
        self._desired.labels(model).set(decision.target)
        self._ready.labels(model).set(fleet.ready)
        self._starting.labels(model).set(len(fleet.starting_s))
        self._draining.labels(model).set(fleet.draining)
        resting, each = len(seen.fleet.asleep), record.policy.asleep_bytes
        self._resting.labels(model).set(resting)
        self._held_bytes.labels(model).set(0.0 if not resting else float("nan") if each is None else resting * each)
        # While a model wakes there is no ledger yet, and that is no fault: the ingress is heard.
        self._fresh.labels(model).set(1.0 if fresh or decision.reason == c.REASON_WAKE else 0.0)
        self._asleep.labels(model).set(1.0 if decision.target == 0 and seen.fleet.ready == 0 else 0.0)
        self._held.labels(model).set(float("nan") if seen.held_requests is None else seen.held_requests)
        self._age.labels(model).set(float("nan") if seen.age_s is None else seen.age_s)
        self._limited.labels(model).set(1.0 if decision.limited else 0.0)
        self._time.labels(model).set(decision.time)
        self._decisions.labels(model, decision.reason).inc()
        self._reasons.setdefault(model, set()).add(decision.reason)
        problems = self._problems.labels(model)
        if record.problem:
            problems.inc()
