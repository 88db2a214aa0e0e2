"""Brings one model's children to what is rendered: applies, puts drift right, rolls out, and says what it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from reasonscale.api import constants as c
from reasonscale.api.effects import Effect
from reasonscale.api.models import ReasoningModel
from reasonscale.controller.drift import differences, editors, foreign, removal
from reasonscale.controller.kube import KindMissing, Kube, KubeError
from reasonscale.controller.rollout import blocked, free_gpus, plan
from reasonscale.controller.spare import Spare, room_for_one
from reasonscale.render.context import Subject
from reasonscale.render.marks import NUMBERS, digest, read_marks

CONTESTED_S: Final = 600.0  # where the same drift comes back at once, it is put right this often
PREFLIGHT_S: Final = 30.0
_RAY: Final = ("ray.io/v1", "RayService")


class Cluster(Protocol):
    """What is watched: RayServices by name, and the pods of a model."""

    def service(self, namespace: str, name: str) -> dict[str, Any] | None: ...

    def pods(self, namespace: str, name: str) -> list[dict[str, Any]]: ...

    def put(self, service: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class Outcome:
    """What one turn found and did: conditions' causes and what is worth an event."""

    revision: str | None = None
    update: str | None = None
    blocked: str | None = None
    contested: str | None = None
    in_place: bool = False  # Serve was told to replace the engines
    spare_awaited: bool = False  # it will be, when one replica more is there
    events: list[tuple[str, str, str]] = field(default_factory=list)  # type, reason, message


class Applier:
    """Applies one model's children."""

    def __init__(self, kube: Kube, cluster: Cluster, clock: Callable[[], float] = time.time) -> None:
        self._kube, self._cluster, self._clock = kube, cluster, clock
        self._applied: dict[str, str] = {}
        self._compared: tuple[str, str] | None = None  # what was found equal: manifest, and version of the object
        self._repaired_s: float | None = None
        self._waits = False  # Recreate: the old pods are still there
        self._free: tuple[float, dict[str, float] | None] | None = None
        self.spare = Spare()
        self._told: str | None = None
        # The last turn in which there was nothing to do: what was rendered, what was found, and what came of it.
        self._settled: tuple[list[dict[str, Any]], tuple[Any, ...], Outcome] | None = None

    async def apply(
        self, subject: Subject, manifests: list[dict[str, Any]], spec_seen: bool, ready: int = 0
    ) -> Outcome:
        """Apply the children, the RayService first; KubeError where the API server refuses. `ready`: the replicas that serve."""
        live = self._cluster.service(subject.context.namespace, subject.name)
        meta = live["metadata"] if live is not None else {}
        asked = subject.model.metadata.annotations.get(c.ANNOTATION_UPDATE)
        seen = (meta.get("uid"), meta.get("resourceVersion"), asked, spec_seen)
        if self._settled is not None and self._settled[0] is manifests and self._settled[1] == seen:
            return self._settled[2]
        out = Outcome()
        await self._service(subject, manifests[0], spec_seen, ready, out)
        for child in manifests[1:]:
            await self._companion(child)
        calm = not (out.events or out.blocked or out.contested or out.spare_awaited or self._waits)
        self._settled = (manifests, seen, out) if calm and live is not None else None
        return out

    def look(self, subject: Subject, new: dict[str, Any], spec_seen: bool) -> Outcome:
        """Return what would be applied to a model that is held, and apply nothing."""
        live = self._cluster.service(subject.context.namespace, subject.name)
        if live is None:
            return Outcome()
        found = plan(live, new, subject.model, spec_seen)
        if found.held_back is None:
            return Outcome(found.marks.revision, found.update)
        waits = f"the model is held; the change of the resource (effect: {found.effect}) waits"
        return Outcome(_runs(live), None, waits)

    async def _companion(self, child: dict[str, Any]) -> None:
        key, found = f"{child['kind']}/{child['metadata']['name']}", digest(child)
        if self._applied.get(key) == found:
            return
        try:
            await self._kube.apply(child)
        except KindMissing:
            if child["kind"] != "PodMonitor":  # no Prometheus operator here: its own scrape config finds the pods
                raise
        self._applied[key] = found

    async def _service(self, subject: Subject, new: dict[str, Any], spec_seen: bool, ready: int, out: Outcome) -> None:
        namespace, name = subject.context.namespace, subject.name
        live = self._cluster.service(namespace, name)
        model, strategy = subject.model, subject.model.spec.rollout.strategy
        if live is not None and live["metadata"].get("deletionTimestamp"):
            return  # it goes; what comes after is new
        if live is None and self._waits and self._cluster.pods(namespace, name):
            out.blocked, out.revision = "Recreate waits until the old pods have gone", None
            return
        found = plan(live, new, model, spec_seen)
        out.revision, out.update = found.marks.revision, found.update
        manifest = found.manifest
        if live is None:
            if self._applied.get("RayService") and not self._waits:
                out.events.append(("Normal", "Created", "the RayService was gone and is made again"))
            self._waits = False
        elif found.held_back is not None:
            if strategy == "Recreate":
                await self._kube.delete(*_RAY, namespace, name)
                self._waits = True
                out.events.append(
                    (
                        "Normal",
                        "RolloutStarted",
                        f"Recreate: {found.effect.value}; the RayService is deleted, and made again when its pods have gone",
                    )
                )
                return
            out.blocked = await self._preflight(subject, strategy, found.effect)
            if not out.blocked and found.effect is not Effect.CLUSTER:
                out.spare_awaited = await self._awaits_spare(subject, found.marks.engines, ready)
            if out.blocked or out.spare_awaited:
                manifest, out.revision = found.held_back, _runs(live)
            else:
                out.in_place = found.effect is not Effect.CLUSTER
                out.events.append(("Normal", "RolloutStarted", _started(strategy, found.effect, subject)))
        begins = found.held_back is not None and not (out.blocked or out.spare_awaited)
        await self._bring(live, manifest, new_rendering=begins, out=out)

    async def _preflight(self, subject: Subject, strategy: str, effect: Effect) -> str | None:
        """Return why the rollout can't begin."""
        if effect is not Effect.CLUSTER or not subject.gpus:
            return None
        free = await self._free_gpus(subject)
        room = None if free is None else int(sum(free.values()))
        return blocked(strategy, subject.gpus * subject.context.replicas, room)

    async def _awaits_spare(self, subject: Subject, rendering: str, ready: int) -> bool:
        """Tell whether a rollout in place waits for one replica more, on GPUs that are free for it."""
        resolved, asked = subject.resolved, subject.context.replicas - subject.context.spare
        if asked >= resolved.max_replicas:  # also where it has come to that meanwhile
            self.spare.rest()
            return False
        room = not self.spare.number and bool(subject.gpus) and room_for_one(subject, await self._free_gpus(subject))
        there = ready > asked
        return self.spare.waits(rendering, room=room, there=there, most_s=resolved.start_timeout_s, now=self._clock())

    async def _free_gpus(self, subject: Subject) -> dict[str, float] | None:
        """Return the GPUs that are free by node; None where nodes may not be seen. Asks at most twice a minute."""
        now = self._clock()
        if self._free is None or now - self._free[0] >= PREFLIGHT_S:
            try:
                nodes = (await self._kube.list("v1", "Node", None, None))["items"]
                pods = (await self._kube.list("v1", "Pod", None, None))["items"]
            except KubeError:  # no right to see them, with a Role of one namespace
                self._free = (now, None)
            else:
                accelerator, selector = subject.model.spec.accelerator, dict(subject.model.spec.pod.node_selector)
                if accelerator.product:
                    selector.setdefault("nvidia.com/gpu.product", accelerator.product)
                self._free = (now, free_gpus(nodes, pods, accelerator.resource_name, selector))
        return self._free[1]

    async def _bring(
        self, live: dict[str, Any] | None, manifest: dict[str, Any], *, new_rendering: bool, out: Outcome
    ) -> None:
        """Apply the RayService where it differs, and say so where nobody but an editor can have made the difference."""
        want = digest(manifest)
        ours = self._applied.get("RayService") == want
        version = str(live["metadata"].get("resourceVersion")) if live else ""
        if live is not None and self._compared == (want, version):
            return
        lacking = list(differences({k: manifest[k] for k in ("metadata", "spec")}, live or {}))
        extra = foreign(live, manifest) if live else {}
        if live is not None and not lacking and not extra:
            self._applied["RayService"], self._compared = want, (want, version)
            return
        if live is not None and not new_rendering and (ours or extra or _edited(live, manifest, lacking)):
            now, paths = self._clock(), [*lacking, *(".".join(p) for p in extra)]
            who = ", ".join(editors(live)) or "an admission webhook"
            said = f"{', '.join(paths[:3])}{f' and {len(paths) - 3} more' if len(paths) > 3 else ''} by {who}"
            again = said == self._told and self._repaired_s is not None and now - self._repaired_s < CONTESTED_S
            if again and ours:
                out.contested = (
                    f"{said}: it comes back, and is put right every {CONTESTED_S / 60:.0f} minutes; end what sets it"
                )
                return
            self._repaired_s, self._told = now, said
            out.events.append(
                (
                    "Warning",
                    "DriftRepaired",
                    f"put right {len(paths)} fields of the RayService that were edited: {said}",
                )
            )
        answer = await self._kube.apply(manifest)
        if extra:
            await self._kube.remove_fields(
                *_RAY, manifest["metadata"]["namespace"], manifest["metadata"]["name"], removal(extra)
            )
        else:
            self._cluster.put(answer)
        self._applied["RayService"] = want


def _runs(live: dict[str, Any]) -> str | None:
    marks = read_marks(live)
    return marks.revision if marks else None


def _edited(live: dict[str, Any], manifest: dict[str, Any], lacking: list[str]) -> bool:
    """Tell whether what runs was rendered as it is now, so that a difference is somebody's edit; true after a restart too."""
    marks = live["metadata"].get("annotations", {}).get(c.ANNOTATION_RENDERED)
    return marks == manifest["metadata"]["annotations"].get(c.ANNOTATION_RENDERED) and any(
        p.startswith("spec.rayClusterConfig") and not p.endswith(NUMBERS) for p in lacking
    )


def _started(strategy: str, effect: Effect, subject: Subject) -> str:
    replicas = subject.context.replicas
    if effect is Effect.CLUSTER:
        return f"{strategy}: a new cluster of {replicas} replicas, {subject.gpus * replicas} GPUs, beside the old, whose chains have {subject.resolved.drain_s:.0f} s to end"
    spare = subject.context.spare
    return f"InPlace: the engines restart one after another; {cost_in_place(replicas - spare, spare)}"


def cost_in_place(replicas: int, spare: int = 0) -> str:
    """Return what Serve's rolling update of so many replicas costs while it goes on; `spare`: beside them, for it alone."""
    if spare and replicas < 10:
        return "one replica more runs meanwhile, so that none is missing"
    if replicas == 1:
        return "the only replica stops before it starts again: an outage of one engine start"
    return f"{_at_once(replicas)} of {replicas} replicas {'is' if replicas < 10 else 'are'} out at a time"


def _at_once(replicas: int) -> str:
    """Return how many replicas Serve's rolling update stops at once: a fifth, and one at least."""
    return "one" if replicas < 10 else str(replicas // 5)


def held_by(model: ReasoningModel, freeze: bool) -> str | None:
    """Return what holds a model as it is; None where nothing does."""
    if freeze:
        return "frozen: the operator runs with --freeze, for all models"
    if model.metadata.annotations.get(c.ANNOTATION_HOLD) == "true":
        return f"held by the annotation {c.ANNOTATION_HOLD}"
    return None
