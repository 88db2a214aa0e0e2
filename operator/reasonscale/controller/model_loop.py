"""One model in a cluster: its resource, its loop, and what was applied for it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.api.load import parse
from reasonscale.api.models import ReasoningModel
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.api.validate import InvalidResource
from reasonscale.autoscaler import Autoscaler, Record
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.applier import Applier, Cluster, Outcome, cost_in_place, held_by
from reasonscale.controller.causes import (
    Cause,
    cause_of,
    engines_fail,
    engines_update,
    late_pods,
    of_refusal,
    rolling_of,
    running_pods,
    waiting_of,
)
from reasonscale.controller.events import Event, Recorder, events_of
from reasonscale.controller.held import Held, fetching_replicas, going_replicas, ready_replicas
from reasonscale.controller.kube import KindMissing, Kube, KubeError, NotLeading
from reasonscale.controller.spare import SAID
from reasonscale.controller.status import (
    MOVING,
    Found,
    changed,
    emptied_since,
    moved,
    refused,
    rolls_in_place,
    stamp,
    status_of,
)
from reasonscale.profiles.library import Chosen, Library, chosen
from reasonscale.render.children import children
from reasonscale.render.context import MODELS, SMALL, Context, PodSize, SecretKey, Subject
from reasonscale.render.marks import can_sleep, emptied_of, replicas_of, spare_of
from reasonscale.scaling.policy import policy_of
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Mode, Policy
from reasonscale.signals.sources import ModelSource, Samples, SignalsMissing

SamplesOf = Callable[[str, str, str], Samples]  # of a namespace, a resource's name, and the name that it serves
DEMAND_EVERY_S: Final = 30.0  # how often a status is written for the load's numbers alone
ROLL_TOLD_S: Final = 60.0  # KubeRay takes so long to tell Serve of a new configuration, and us what Serve says of it
_log = logging.getLogger("reasonscale.controller")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator was told for all models."""

    image: str
    code_image: str
    default_mode: str = "Recommend"
    cpu: bool = False
    rdma: bool = False
    redis_address: str | None = None
    redis_password: SecretKey | None = None
    pod_monitor: bool = True
    network_policy: bool = True
    direct: bool = False  # ledgers are read from the pods: there is no Prometheus
    namespace: str = "reasonscale"
    freeze: bool = False  # hold every model as it is
    head: PodSize = SMALL
    ingress: PodSize = SMALL
    ingress_replicas: int = 2
    profiles: Library = field(default_factory=Library)


class ModelLoop:
    """One model's loop in a cluster. `see` a new body; `tick` brings the cluster a step closer to it."""

    def __init__(
        self,
        kube: Kube,
        cluster: Cluster,
        samples_of: SamplesOf,
        settings: Settings,
        metrics: DecisionMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube, self._cluster, self._samples_of, self._settings = kube, cluster, samples_of, settings
        self._metrics, self._clock = metrics, clock
        self._body: dict[str, Any] = {}
        self._status: dict[str, Any] = {}
        self._applier = Applier(kube, cluster, clock)
        self._events = Recorder(kube, clock)
        self._held: Held | None = None
        self._scaler: Autoscaler | None = None
        self._rolls_since: float | None = None  # a rollout in place that we began
        self._fetching = 0  # replicas that fetch their weights, as of the last look
        self._going = 0  # of those that write a ledger, those that were told to go
        self._served: str | None = None  # the name whose ledger the scaler reads
        self._rendered: tuple[tuple[Any, Context], list[dict[str, Any]]] | None = None
        self._policy: Policy | None = None
        self._written_s = 0.0
        self._given_up: tuple[int, float] | None = None  # at most so many replicas until then

    def see(self, body: dict[str, Any]) -> None:
        """Take the newest body of the resource."""
        self._body = body
        if not self._status:
            self._status = dict(body.get("status") or {})

    @property
    def _namespace(self) -> str:
        return str(self._body["metadata"]["namespace"])

    @property
    def _name(self) -> str:
        return str(self._body["metadata"]["name"])

    async def tick(self, signals: str | None = None) -> None:
        """Observe, decide, apply and report once. `signals`: why there are none for any model."""
        meta = self._body["metadata"]
        if meta.get("deletionTimestamp"):
            return
        try:
            model = parse(json.loads(json.dumps(self._body)))
        except InvalidResource as error:
            await self._report(refused(str(error), self._status, meta.get("generation"), self._clock()))
            return
        resolved = resolve(model, MODELS)
        if model.spec.scaling.mode is None:
            resolved = replace(resolved, mode=self._settings.default_mode)
        held = held_by(model, self._settings.freeze)
        profile = chosen(resolved, self._settings.profiles)
        trouble: Cause | None = None
        record: Record | None = None
        outcome = Outcome()
        try:
            self._start(resolved)
            self._policy = policy_of(resolved, step_time=profile.prior if profile else None)
            running = self._cluster.service(self._namespace, resolved.name)
            if self._settings.cpu or (running is not None and not can_sleep(running)):
                # On a CPU vLLM puts none to sleep, nor one that runs without sleep mode, until a rollout has brought it.
                self._policy = replace(self._policy, asleep=0)
            if held:
                self._policy = replace(self._policy, mode=Mode.RECOMMEND)
            elif self._policy.mode is Mode.AUTO:
                self._policy = self._without_late(model, resolved, self._policy)
            assert self._scaler is not None
            assert self._held is not None
            self._held.replacing = self._rolls_since is not None
            record = await self._scaler.tick()
            outcome = await self._apply(model, resolved, act=not held)
        except KindMissing as error:
            trouble = Cause("KubeRayMissing", f"{error}: install KubeRay and its CRDs")
        except NotLeading:
            raise
        except KubeError as error:
            trouble = of_refusal(str(error))
        found = self._found(model, resolved, trouble, outcome, held, signals, profile)
        status = status_of(
            resolved, record, self._status, namespace=self._namespace, generation=meta.get("generation"), found=found,
            now=self._clock(),
        )  # fmt: skip
        for event in outcome.events:
            await self._events.record(self._body, Event(*event))
        await self._report(status)

    def _found(
        self,
        model: ReasoningModel,
        resolved: Resolved,
        trouble: Cause | None,
        outcome: Outcome,
        held: str | None,
        signals: str | None,
        profile: Chosen | None,
    ) -> Found:
        pods = self._cluster.pods(self._namespace, resolved.name)
        try:
            service = self._cluster.service(self._namespace, resolved.name)
        except KindMissing:  # said by `trouble`
            service = None
        if trouble is None and outcome.contested:
            trouble = Cause("DriftContested", outcome.contested)
        if trouble is None and self._given_up is not None:
            most, until = self._given_up
            trouble = Cause(
                "StartTimeout",
                f"replicas whose pods had not come within {resolved.start_timeout_s:.0f} s are given up: at most {most} until {stamp(until)}; "
                "look at why pods wait, or raise scaling.startTimeout",
            )
        if trouble is None:
            trouble = cause_of(service, pods, resolved.start_timeout_s, self._clock())
        return Found(
            trouble=trouble, held=held, held_reason="Frozen" if self._settings.freeze else "Held", signals=signals,
            profile=profile, image=model.spec.engine.image or self._settings.image,
            signals_reason="ScrapeFailed" if self._settings.direct else "PrometheusDown",
            revision=outcome.revision, update=outcome.update, blocked=outcome.blocked, waiting=waiting_of(pods, self._fetching),
            rolling=self._rolling(service, outcome, held),
            emptied_since=self._scaler.state.emptied_since if self._scaler is not None else (),
        )  # fmt: skip

    def _rolling(self, service: dict[str, Any] | None, outcome: Outcome, frozen: str | None) -> str | None:
        """Return in words what a rollout under way does; one in place is over when Serve, told of it, updates no engine."""
        now = self._clock()
        if outcome.in_place:
            self._rolls_since = now
        elif self._rolls_since is not None and now - self._rolls_since > ROLL_TOLD_S and not engines_update(service):
            self._rolls_since = None
        began = self._rolls_since is not None
        if outcome.spare_awaited:
            return f"InPlace: {SAID}"
        applied = outcome.revision is not None and not frozen  # else nothing was, for a reason that may pass
        if applied and not began:
            self._applier.spare.rest()
        held = self._held
        return rolling_of(service, cost_in_place(held.target, held.spare) if began and held else None)

    def _without_late(self, model: ReasoningModel, resolved: Resolved, policy: Policy) -> Policy:
        """Give up replicas whose pods have not come within startTimeout, and ask for no more for as long again.

        So what is placed of a replica of several nodes goes back to others. Never below minReplicas,
        and never to zero: what loads is not put to sleep.
        """
        assert self._held is not None
        now, timeout = self._clock(), resolved.start_timeout_s
        if self._given_up is not None and now >= self._given_up[1]:
            self._given_up = None
        subject = Subject(model, resolved, Context(self._namespace, 1, "", "", cpu=self._settings.cpu))
        asked = self._held.target * subject.pods_per_replica
        late = late_pods(self._cluster.pods(self._namespace, resolved.name), asked, timeout, now)
        if late and self._given_up is None:
            replicas = -(-late // subject.pods_per_replica)
            self._given_up = (max(1, policy.min_replicas, self._held.target - replicas), now + timeout)
        if self._given_up is None:
            return policy
        return replace(policy, max_replicas=min(policy.max_replicas, self._given_up[0]))

    def _start(self, resolved: Resolved) -> None:
        """Begin with the number that runs, and with who is emptied or sleeps: a restart of the operator scales nothing."""
        if self._scaler is not None and self._served == resolved.served_name:
            return
        running = self._cluster.service(self._namespace, resolved.name)
        known = (self._status.get("replicas") or {}).get("desired")
        if running is not None:
            target = replicas_of(running)
        elif resolved.mode in ("Manual", "External") and resolved.replicas:
            target = resolved.replicas
        else:
            target = min(resolved.max_replicas, max(1, resolved.min_replicas, int(known or 0)))

        samples = self._samples_of(self._namespace, resolved.name, resolved.served_name)

        async def ready() -> int | None:
            known: int | None = None
            try:
                found = await samples.fetch()
            except SignalsMissing:
                self._fetching = 0
            else:
                self._fetching = fetching_replicas(found, resolved.served_name)
                self._going = going_replicas(found, resolved.served_name, self._clock(), samples.limit_s)
                known = ready_replicas(found, resolved.served_name, self._clock(), samples.limit_s)
                if not any(s.name == c.M_LEDGER_TIME for s in found) and self._none_runs(resolved):
                    return 0
            if known is None and not running_pods(self._cluster.pods(self._namespace, resolved.name)):
                return 0
            return known

        self._served = resolved.served_name
        if self._held is None:
            before = (self._status.get("replicas") or {}).get("ready")
            self._held = Held(target, self._clock, int(before or 0))
            if running is not None:
                self._held.emptied, self._held.asleep = emptied_of(running)
                self._held.counted += len(self._held.emptied)  # the status has them apart
                spare = spare_of(running)
                if spare:
                    self._applier.spare.resume(self._clock())
                # Serve may not have been told of it yet, nor the status of it.
                if spare or rolls_in_place(self._status) or engines_update(running):
                    self._rolls_since = self._clock()
        self._held.ready = ready
        source = ModelSource(samples, resolved.served_name, self._held.fleet, self._clock)
        name = f"{self._namespace}/{resolved.name}"
        # A restart under emptying counts no drain.max anew.
        since = tuple((r, at) for r, at in emptied_since(self._status) if r in self._held.emptied)
        self._scaler = Autoscaler(
            name, source, self._held, self._policy_now, listeners=[self._metrics], clock=self._clock,
            state=replace(State.new(), emptied_since=since),
        )  # fmt: skip

    def _none_runs(self, resolved: Resolved) -> bool:
        """Tell whether it is for lack of an engine that no ledger is there: it ends with its engine, whose pod runs on."""
        service = self._cluster.service(self._namespace, resolved.name)
        return self._held is None or self._held.target == 0 or engines_update(service) or engines_fail(service)

    def _policy_now(self) -> Policy:
        assert self._policy is not None
        return self._policy

    async def _apply(self, model: ReasoningModel, resolved: Resolved, *, act: bool) -> Outcome:
        assert self._held is not None
        more = resolved.max_replicas - self._held.target if self._held.target else 0
        self._held.spare = max(0, min(self._applier.spare.number, more))
        s, running = self._settings, self._cluster.service(self._namespace, resolved.name) or {}
        active = ((running.get("status") or {}).get("activeServiceStatus") or {}).get("rayClusterName")
        context = Context(
            namespace=self._namespace, replicas=self._held.target + self._held.spare, image=s.image, code_image=s.code_image,
            uid=self._body["metadata"]["uid"], cpu=s.cpu, rdma=s.rdma, redis_address=s.redis_address, redis_password=s.redis_password, pod_monitor=s.pod_monitor,
            network_policy=s.network_policy, operator_namespace=s.namespace, head=s.head, ingress=s.ingress,
            ingress_replicas=s.ingress_replicas, active_cluster=active or None, emptied=self._held.emptied,
            asleep=self._held.asleep, spare=self._held.spare,
        )  # fmt: skip
        seen = self._status.get("observedGeneration") == self._body["metadata"].get("generation")
        subject = Subject(model, resolved, context)
        manifests = self._children(model, resolved, context)
        return (
            await self._applier.apply(subject, manifests, seen, self._held.counted - self._going)
            if act
            else self._applier.look(subject, manifests[0], seen)
        )

    def _children(self, model: ReasoningModel, resolved: Resolved, context: Context) -> list[dict[str, Any]]:
        """Render the children, the same objects again where nothing has changed: 20 ms a model, four seconds a turn for 200."""
        key = (self._body["metadata"].get("generation"), context)
        if self._rendered is None or self._rendered[0] != key:
            self._rendered = (key, children(model, resolved, context))
        return self._rendered[1]

    async def _report(self, status: dict[str, Any]) -> None:
        """Write the status where it says something new; for the load's numbers alone not more often than twice a minute."""
        now = self._clock()
        due = now - self._written_s >= DEMAND_EVERY_S
        load = due and any(key in status and moved(self._status.get(key), status[key]) for key in MOVING)
        if not changed(self._status, status) and not load:
            return
        before = self._status  # the watch may bring what is written here before its writing returns
        try:
            await self._kube.patch_status(self._namespace, self._name, status)
        except NotLeading:
            raise
        except KubeError as error:
            _log.warning(json.dumps({"event": "status", "problem": str(error)}))
            return
        for event in events_of(before, status):
            await self._events.record(self._body, event)
        self._status = {**before, **status}
        self._written_s = now
