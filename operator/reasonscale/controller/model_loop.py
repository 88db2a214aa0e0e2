"""One model in a cluster: its resource, its loop, and what was applied for it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from reasonscale.api import constants as c
from reasonscale.api.load import parse
from reasonscale.api.models import ReasoningModel
from reasonscale.api.resolve import Resolved, resolve
from reasonscale.api.validate import InvalidResource
from reasonscale.autoscaler import Autoscaler, Record
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.kube import KindMissing, Kube, KubeError
from reasonscale.controller.status import changed, refused, status_of
from reasonscale.render.children import children
from reasonscale.render.context import Context
from reasonscale.scaling.policy import policy_of
from reasonscale.scaling.types import Fleet, Mode, Policy
from reasonscale.signals.assemble import Sample
from reasonscale.signals.sources import ModelSource, Samples

DEMAND_EVERY_S: Final = 30.0  # how often a status is written for the load's numbers alone
_log = logging.getLogger("reasonscale.controller")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator was told for all models."""

    image: str
    code_image: str
    default_mode: str = "Recommend"
    cpu: bool = False
    redis_address: str | None = None
    pod_monitor: bool = True
    network_policy: bool = True
    namespace: str = "reasonscale"


def ready_replicas(samples: list[Sample], model: str, now: float, limit_s: float) -> int:
    """Return the replicas that write a fresh ledger: a pod that runs may hold an engine that still loads."""
    return len(
        {
            s.labels.get("WorkerId") or s.labels.get("pod") or s.labels.get("instance")
            for s in samples
            if s.name == c.M_LEDGER_TIME and s.labels.get(c.LABEL_METRIC_MODEL) == model and now - s.value <= limit_s
        }
    )


class Held:
    """The number of replicas as it stands in the RayService, and when what is not ready yet was asked for."""

    def __init__(self, target: int, ready: Callable[[], Any], clock: Callable[[], float]) -> None:
        self.target, self._ready, self._clock = target, ready, clock
        self._asked: list[float] = []

    async def set_replicas(self, replicas: int, /) -> None:
        self._asked += [self._clock()] * max(0, replicas - self.target)
        self.target = replicas

    async def fleet(self) -> Fleet:
        ready = int(await self._ready())
        missing, now = max(0, self.target - ready), self._clock()
        self._asked = self._asked[len(self._asked) - missing :] if missing < len(self._asked) else self._asked
        self._asked = [now] * (missing - len(self._asked)) + self._asked
        ages = tuple(now - asked for asked in self._asked)
        return Fleet(self.target, min(ready, self.target), ages, max(0, ready - self.target))


class ModelLoop:
    """One model's loop in a cluster. `see` a new body; `tick` brings the cluster a step closer to it."""

    def __init__(
        self,
        kube: Kube,
        samples: Samples,
        settings: Settings,
        metrics: DecisionMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kube, self._samples, self._settings, self._metrics, self._clock = kube, samples, settings, metrics, clock
        self._body: dict[str, Any] = {}
        self._status: dict[str, Any] = {}
        self._applied: dict[str, str] = {}
        self._held: Held | None = None
        self._scaler: Autoscaler | None = None
        self._policy: Policy | None = None
        self._written_s = 0.0

    def see(self, body: dict[str, Any]) -> None:
        """Take the newest body of the resource."""
        self._body = body
        if not self._status:
            self._status = dict(body.get("status") or {})

    @property
    def _namespace(self) -> str:
        return str(self._body["metadata"]["namespace"])

    @property
    def _annotations(self) -> dict[str, str]:
        return dict(self._body["metadata"].get("annotations") or {})

    async def tick(self) -> None:
        """Observe, decide, apply and report once."""
        meta = self._body["metadata"]
        if meta.get("deletionTimestamp"):
            return
        try:
            model = parse(json.loads(json.dumps(self._body)))
        except InvalidResource as error:
            await self._report(refused(str(error), self._status, meta.get("generation"), self._clock()))
            return
        resolved = resolve(model)
        if model.spec.scaling.mode is None:
            resolved = replace(resolved, mode=self._settings.default_mode)
        held = self._annotations.get(c.ANNOTATION_HOLD) == "true"
        trouble: tuple[str, str] | None = None
        record: Record | None = None
        try:
            await self._start(resolved)
            self._policy = policy_of(resolved)
            if held:
                self._policy = replace(self._policy, mode=Mode.RECOMMEND)
            assert self._scaler is not None
            record = await self._scaler.tick()
            if not held:
                await self._apply(model, resolved)
        except KindMissing as error:
            trouble = ("KubeRayMissing", f"{error}: install KubeRay and its CRDs")
        except KubeError as error:
            trouble = ("NotApplied", f"the API server refused what the model needs: {error}")
        status = status_of(
            resolved, record, self._status, namespace=self._namespace, generation=meta.get("generation"), trouble=trouble,
            held=held, now=self._clock(),
        )  # fmt: skip
        await self._report(status)

    async def _start(self, resolved: Resolved) -> None:
        """Begin with the number that runs: a restart of the operator scales nothing."""
        if self._scaler is not None:
            return
        target = (
            resolved.replicas
            if resolved.mode in ("Manual", "External") and resolved.replicas
            else max(1, resolved.min_replicas)
        )
        running = await self._kube.read("ray.io/v1", "RayService", self._namespace, resolved.name)
        if running is not None:
            app = yaml.safe_load(running["spec"]["serveConfigV2"])["applications"][0]
            target = int(app["deployments"][0]["num_replicas"])

        async def ready() -> int:
            try:
                found = await self._samples.fetch()
            except RuntimeError:
                return 0
            return ready_replicas(found, resolved.served_name, self._clock(), self._samples.limit_s)

        self._held = Held(target, ready, self._clock)
        source = ModelSource(self._samples, resolved.served_name, self._held.fleet, self._clock)
        name = f"{self._namespace}/{resolved.name}"
        self._scaler = Autoscaler(
            name, source, self._held, self._policy_now, listeners=[self._metrics], clock=self._clock
        )

    def _policy_now(self) -> Policy:
        assert self._policy is not None
        return self._policy

    async def _apply(self, model: ReasoningModel, resolved: Resolved) -> None:
        assert self._held is not None
        s = self._settings
        context = Context(
            namespace=self._namespace, replicas=self._held.target, image=s.image, code_image=s.code_image,
            uid=self._body["metadata"]["uid"], cpu=s.cpu, redis_address=s.redis_address, pod_monitor=s.pod_monitor,
            network_policy=s.network_policy, operator_namespace=s.namespace,
        )  # fmt: skip
        for child in children(model, resolved, context):
            key = f"{child['kind']}/{child['metadata']['name']}"
            digest = hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()
            if self._applied.get(key) == digest:
                continue
            try:
                await self._kube.apply(child)
            except KindMissing:
                if child["kind"] != "PodMonitor":  # no Prometheus operator here: its own scrape config finds the pods
                    raise
            self._applied[key] = digest

    async def _report(self, status: dict[str, Any]) -> None:
        """Write the status where it says something new; for the load's numbers alone not more often than twice a minute."""
        now = self._clock()
        demand = status.get("demand") != self._status.get("demand") and now - self._written_s >= DEMAND_EVERY_S
        if not changed(self._status, status) and not demand:
            return
        try:
            await self._kube.patch_status(self._namespace, self._body["metadata"]["name"], status)
        except KubeError as error:
            _log.warning(json.dumps({"event": "status", "problem": str(error)}))
            return
        self._status = {**self._status, **status}
        self._written_s = now
