"""The operator: kopf watches the models, one task ticks for all of them. Level-based; it leaves no finalizer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import kopf

from reasonscale.api import constants as c
from reasonscale.autoscaler_metrics import DecisionMetrics
from reasonscale.controller.kube import KindMissing, Kube, KubeError, NotLeading
from reasonscale.controller.metrics import OperatorMetrics
from reasonscale.controller.model_loop import ModelLoop, Settings
from reasonscale.controller.watched import MISSING_RETRY_S, Watched, of_pod, of_service
from reasonscale.render.context import PORT_METRICS, ROLE_ENGINE, ROLE_INGRESS
from reasonscale.signals.pods import PodScrape, Target
from reasonscale.signals.shared import SharedSamples
from reasonscale.signals.sources import Prometheus

TICK_S: Final = 5.0
STALLED_S: Final = 60.0
WATCH_STALLED_S: Final = 150.0
GUARD_S: Final = 30.0
AT_ONCE: Final = 8  # turns that wait for the API server side by side
_log = logging.getLogger("reasonscale.controller")


class Watches:
    """What the models' loops see of the cluster."""

    def __init__(self, kube: Kube, namespace: str | None) -> None:
        self.services = Watched(kube, "ray.io/v1", "RayService", c.LABEL_MODEL, namespace, part=of_service)
        self.model_pods = Watched(kube, "v1", "Pod", c.LABEL_MODEL, namespace, part=of_pod)

    def service(self, namespace: str, name: str) -> dict[str, Any] | None:
        if self.services.missing:
            raise KindMissing(self.services.missing)
        return self.services.get(namespace, name)

    def pods(self, namespace: str, name: str) -> list[dict[str, Any]]:
        return self.model_pods.select(namespace, name)

    def targets(self) -> list[Target]:
        """Return the metrics pages of the pods with engines and with ingresses, whose gates hold what waits."""
        found = []
        for pod in self.model_pods.all():
            labels, ip = pod["metadata"].get("labels") or {}, (pod.get("status") or {}).get("podIP")
            if (
                ip
                and labels.get(c.LABEL_ROLE) in (ROLE_ENGINE, ROLE_INGRESS)
                and not pod["metadata"].get("deletionTimestamp")
            ):
                host = f"[{ip}]" if ":" in ip else ip
                whose = {
                    c.LABEL_METRIC_NAMESPACE: pod["metadata"]["namespace"],
                    c.LABEL_METRIC_RESOURCE: labels[c.LABEL_MODEL],
                }
                found.append(Target(f"http://{host}:{PORT_METRICS}/metrics", whose))
        return found

    def put(self, service: dict[str, Any]) -> None:
        self.services.put(service)


class Guard:
    """Holds the watch of the models against a list of them: what the list has and the watch never tells is a watch that stalls."""

    def __init__(self, kube: Kube, namespace: str | None, seen: Callable[[], dict[str, dict[str, Any]]]) -> None:
        self._kube, self._namespace, self._seen = kube, namespace, seen
        self._behind: dict[str, tuple[int, float]] = {}  # uid -> version that the watch has not told, since when
        self.missing: str | None = "the models have not been listed yet"
        self.heard_s = time.monotonic()

    def age_s(self) -> float:
        """Return for how long the watch has lacked something, or the list has not been had, in seconds."""
        now = time.monotonic()
        return max([now - self.heard_s - GUARD_S, 0.0, *(now - since for _, since in self._behind.values())])

    async def look(self) -> None:
        """Compare once."""
        try:
            found = await self._kube.list(c.API_VERSION, c.KIND, None, self._namespace)
        except KindMissing as error:
            self.missing, self.heard_s, self._behind = (
                f"{error}: install the chart reasonscale-crds",
                time.monotonic(),
                {},
            )
            return
        except (KubeError, OSError, TimeoutError) as error:
            _log.warning(json.dumps({"event": "guard", "problem": str(error)}))
            return
        self.missing, self.heard_s = None, time.monotonic()
        seen, behind = self._seen(), {}
        for item in found.get("items") or ():
            uid, version = item["metadata"]["uid"], int(item["metadata"]["resourceVersion"])
            told = int(seen[uid]["metadata"]["resourceVersion"]) if uid in seen else -1
            lacked, since = self._behind.get(uid, (version, self.heard_s))
            if told < lacked:
                behind[uid] = (lacked, since)
        self._behind = behind

    async def wait(self) -> None:
        """Wait until the API server knows the models."""
        await self.look()
        while self.missing:
            _log.warning(json.dumps({"event": "waiting", "problem": self.missing}))
            await asyncio.sleep(MISSING_RETRY_S)
            await self.look()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(GUARD_S)


class Manager:
    """All models that the operator looks after."""

    def __init__(
        self, kube: Kube, samples: Prometheus | None, settings: Settings, metrics: DecisionMetrics, own: OperatorMetrics,
        namespace: str | None = None,
    ) -> None:  # fmt: skip
        self._kube, self._settings, self._metrics, self._own = kube, settings, metrics, own
        self._watches = Watches(kube, namespace)
        self._source = samples or PodScrape(self._watches.targets)
        self._samples = SharedSamples(self._source)
        self._bodies: dict[str, dict[str, Any]] = {}
        self._loops: dict[str, ModelLoop] = {}
        self.guard = Guard(kube, namespace, lambda: self._bodies)
        self.leads = False
        self.ticked_s = time.monotonic()
        self._told: str | None = None
        self._ended: str | None = None
        watched = (self._watches.services, self._watches.model_pods)
        self._ages = {w.kind: w.age_s for w in watched} | {c.KIND: self.guard.age_s}
        own.follow(lambda: kube.writes, self._ages)

    def seen(self, kind: str | None, body: dict[str, Any]) -> None:
        """Take an event of the watch: the newest body is all that counts."""
        uid = body["metadata"]["uid"]
        if kind == "DELETED":
            self._bodies.pop(uid, None)
            self._loops.pop(uid, None)  # the children go by their owner references
            self._metrics.forget(f"{body['metadata'].get('namespace', 'default')}/{body['metadata']['name']}")
            return
        body["metadata"].pop("managedFields", None)  # read by nobody, and as large as the rest
        self._bodies[uid] = body
        if uid in self._loops:
            self._loops[uid].see(body)

    async def tick(self) -> None:
        """Take one turn for every model; what fails for one is logged and the others go on."""
        await self._samples.renew()
        problem = str(self._samples.missing) if self._samples.missing else None
        if problem != self._told:
            self._told = problem
            _log.warning(json.dumps({"event": "signals", "problem": problem}))
        room = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._turn(uid, body, problem, room) for uid, body in list(self._bodies.items())))
        self.ticked_s = time.monotonic()

    async def _turn(self, uid: str, body: dict[str, Any], problem: str | None, room: asyncio.Semaphore) -> None:
        """Take one model's turn."""
        async with room:
            loop = self._loops.get(uid)
            if loop is None:
                loop = ModelLoop(self._kube, self._watches, self._samples.of, self._settings, self._metrics)
                self._loops[uid] = loop
                loop.see(body)
            try:
                await loop.tick(problem)
            except NotLeading:
                return
            except Exception:
                _log.exception("a turn for the model %s failed", uid)
            # By model: with 200 new ones a whole turn takes over a minute, and is no standstill.
            self.ticked_s = time.monotonic()

    async def close(self) -> None:
        """Close the connections to where samples come from."""
        await self._source.close()

    async def follow(self) -> None:
        """Keep the watches going until cancelled."""
        await asyncio.gather(self._watches.services.run(), self._watches.model_pods.run(), self.guard.run())

    async def lead(self) -> None:
        """Tick until cancelled, from what stands in the cluster now."""
        await self._watches.services.ready.wait()
        await self._watches.model_pods.ready.wait()
        self._loops.clear()
        self.leads, self.ticked_s = True, time.monotonic()
        self._own.leading.set(1)
        try:
            while True:
                began = time.monotonic()
                await self.tick()
                self._own.tick.observe(time.monotonic() - began)
                self._own.models.set(len(self._bodies))
                await asyncio.sleep(TICK_S)
        finally:
            self.leads = False
            self._own.leading.set(0)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Take note of a task that should never end: the liveness probe has the operator started again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ended = f"{type(error).__name__}: {error}"
            _log.error(json.dumps({"event": "ended", "problem": self._ended}))

    def stalled(self) -> str | None:
        """Return what stands still: ticks where this one leads, or a watch; None where all move."""
        if self._ended is not None:
            return f"a task ended: {self._ended}"
        if self.leads and time.monotonic() - self.ticked_s >= STALLED_S:
            return f"no turn was taken for {time.monotonic() - self.ticked_s:.0f} s"
        for kind, age in self._ages.items():
            if age() >= WATCH_STALLED_S:
                return f"the watch of {kind} has told nothing for {age():.0f} s"
        return None

    def unready(self) -> str | None:
        """Return why there is nothing to work on; None where there is."""
        return self.guard.missing or self.stalled()


def registry_of(
    manager: Manager,
    kubeconfig: Path | None,
    lead: Callable[[Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]],
) -> kopf.OperatorRegistry:
    """Return kopf's handlers: they hand events on, and hold no logic. `lead` runs the ticks while this process may act."""
    registry = kopf.OperatorRegistry()
    tasks: list[asyncio.Task[None]] = []

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> Any:
        if kubeconfig is None:
            return kopf.login_with_service_account(**kwargs)
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.watching.server_timeout = 60
        settings.scanning.disabled = (
            True  # it would list CustomResourceDefinitions, which the chart's role does not allow
        )
        for work in (manager.follow(), lead(manager.lead)):
            tasks.append(asyncio.create_task(work))
            tasks[-1].add_done_callback(manager.ended)

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @kopf.on.event(c.GROUP, c.VERSION, c.PLURAL, registry=registry)
    async def event(type: str | None, body: kopf.Body, **_: Any) -> None:
        manager.seen(type, json.loads(json.dumps(dict(body), default=dict)))

    return registry
