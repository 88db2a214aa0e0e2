"""What a RayService was rendered from, as digests in one annotation: by them a later operator tells whose change a difference is. Pure.

`cluster`: what KubeRay hashes, which starts a new cluster when it changes. `engines`: Serve's config without its deployments, which
restarts every engine. `spec`: the resource's fields behind these two. `inplace`: its other fields. `update`: the value of the
annotation `reasonscale.io/update` that was obeyed last.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import yaml

from reasonscale.api import constants as c
from reasonscale.api.effects import Effect, effect_of
from reasonscale.api.models import ReasoningModel
from reasonscale.render.text import to_yaml
from reasonscale.serving.numbers import ASLEEP, EMPTIED, number_of, set_number

NUMBERS = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")


@dataclass(frozen=True, slots=True)
class Marks:
    """The digests of one rendering."""

    cluster: str
    engines: str
    spec: str
    inplace: str
    update: str = ""

    @property
    def revision(self) -> str:
        """Return the name of the rendering: the same for the same engines in the same pods."""
        return digest([self.cluster, self.engines])

    def to_text(self) -> str:
        """Return the annotation's value."""
        return json.dumps(asdict(self), sort_keys=True)


def digest(value: Any) -> str:
    """Return a short digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


@lru_cache(maxsize=1024)
def _parsed(text: str) -> dict[str, Any]:
    """Return a Serve config, which nobody may change. Kept: the same few texts are read each turn, at 8 ms each."""
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def app_of(service: dict[str, Any]) -> dict[str, Any]:
    """Return the one application of a RayService's Serve config, which nobody may change."""
    app: dict[str, Any] = _parsed(service["spec"]["serveConfigV2"])["applications"][0]
    return app


def replicas_of(service: dict[str, Any]) -> int:
    """Return the number of replicas that a RayService asks for, without those for a rollout alone."""
    return number_of(app_of(service)["deployments"][0]) - spare_of(service)


def spare_of(service: dict[str, Any]) -> int:
    """Return how many of the replicas that a RayService asks for are there for a rollout alone."""
    spare = (service["metadata"].get("annotations") or {}).get(c.ANNOTATION_SPARE, "")
    return int(spare) if spare.isdigit() else 0


def can_sleep(service: dict[str, Any]) -> bool:
    """Tell whether a RayService's engines run with sleep mode."""
    return any(
        m.get("engine_kwargs", {}).get("enable_sleep_mode") for m in app_of(service).get("args", {}).get("models", ())
    )


def emptied_of(service: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the engine's replicas that a RayService has emptied, and those of them that sleep."""
    deployments = app_of(service)["deployments"]
    told = [deployment.get("user_config") or {} for deployment in deployments]
    emptied, asleep = (
        [r for u in told for r in u.get(key, {}).get(deployments[0]["name"], ())] for key in (EMPTIED, ASLEEP)
    )
    return tuple(emptied), tuple(asleep)


def app_hashed(service: dict[str, Any]) -> dict[str, Any]:
    """Return the application without its deployments, which alone change in place."""
    return {k: v for k, v in app_of(service).items() if k != "deployments"}


def cluster_hashed(service: dict[str, Any]) -> dict[str, Any]:
    """Return the RayClusterSpec as KubeRay hashes it: without the workers' numbers; and without a Surge's mark."""
    out: dict[str, Any] = copy.deepcopy(service["spec"]["rayClusterConfig"])
    for group in out["workerGroupSpecs"]:
        for name in NUMBERS:
            group.pop(name, None)
    notes = out["headGroupSpec"]["template"].get("metadata", {}).get("annotations") or {}
    notes.pop(c.ANNOTATION_ENGINES, None)
    if not notes:
        out["headGroupSpec"]["template"].get("metadata", {}).pop("annotations", None)
    return out


def _hard(path: str) -> bool:
    """Tell whether a change of the field restarts something; one that no table knows is taken to."""
    return effect_of(path) in (Effect.ENGINES, Effect.CLUSTER, None)


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    if effect_of(path) is None:
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{path}.{name}").items()}
    # A part that restarts nothing stands by itself beside a whole that does; the whole keeps the mark it had without it.
    soft = {f"{path}.{name}": part for name, part in value.items() if _hard(path) and not _hard(f"{path}.{name}")}
    rest = {name: part for name, part in value.items() if f"{path}.{name}" not in soft}
    return ({path: rest} if rest else {}) | soft


def marks_of(service: dict[str, Any], model: ReasoningModel, update: str = "") -> Marks:
    """Return the marks of a rendered RayService."""
    # Without what stands at its default: a later operator knows more fields, and may choose other defaults.
    fields = _flat(model.spec.model_dump(by_alias=True, mode="json", exclude_defaults=True), "spec")
    fields["spec.engine.reasons"] = model.spec.reasoning.mode != "Never"
    if model.spec.scaling.scale_to_zero is not None:  # only then: the marks of others stay what earlier operators wrote
        fields["spec.scaling.sleeps"] = True
    if model.spec.scaling.asleep:
        fields["spec.scaling.sleepMode"] = True
    hard = {k: v for k, v in fields.items() if _hard(k)}
    soft = {k: v for k, v in fields.items() if k not in hard}
    return Marks(digest(cluster_hashed(service)), digest(app_hashed(service)), digest(hard), digest(soft), update)


def read_marks(service: dict[str, Any]) -> Marks | None:
    """Return the marks that a RayService in the cluster carries; None where it has none that can be read."""
    text = (service["metadata"].get("annotations") or {}).get(c.ANNOTATION_RENDERED)
    try:
        found = Marks(**json.loads(text or ""))
    except (ValueError, TypeError):
        return None
    return found if all(isinstance(v, str) for v in asdict(found).values()) else None


def marked(service: dict[str, Any], marks: Marks) -> dict[str, Any]:
    """Return the RayService with its marks."""
    metadata = {
        **service["metadata"],
        "annotations": {**service["metadata"].get("annotations", {}), c.ANNOTATION_RENDERED: marks.to_text()},
    }
    return {**service, "metadata": metadata}


def surge_mark(service: dict[str, Any]) -> str | None:
    """Return the mark that the last Surge left in the head's pod template."""
    notes = (
        service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"].get("metadata", {}).get("annotations") or {}
    )
    found = notes.get(c.ANNOTATION_ENGINES)
    return str(found) if found else None


def with_surge_mark(service: dict[str, Any], mark: str | None) -> dict[str, Any]:
    """Return the RayService with a Surge's mark in the head's pod template: another one starts a new cluster."""
    if not mark:
        return service
    out = copy.deepcopy(service)
    metadata = out["spec"]["rayClusterConfig"]["headGroupSpec"]["template"].setdefault("metadata", {})
    metadata.setdefault("annotations", {})[c.ANNOTATION_ENGINES] = mark
    return out


def _known(new: Any, old: Any) -> Any:
    """Return `old` with the new values of the keys that it has: older code takes no others."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {k: _known(new[k], v) if k in new else v for k, v in old.items()}
    return new


def _with_emptied(told: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return what a deployment is told, with the replicas that are emptied now or sleep; an ingress of older code ignores them."""
    named = (EMPTIED, ASLEEP)
    return {k: v for k, v in told.items() if k not in named} | {k: new[k] for k in named if k in new}


def pinned(live: dict[str, Any], new: dict[str, Any], old: Marks, marks: Marks) -> dict[str, Any]:
    """Return what runs as it is, with the new numbers, and with the fields of the resource that change in place."""
    out = copy.deepcopy(new)
    spec = {
        k: copy.deepcopy(live["spec"][k])
        for k in ("serveConfigV2", "rayClusterConfig", *out["spec"])
        if k in live["spec"]
    }
    numbers = {g["groupName"]: g for g in new["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        wanted = numbers.get(group["groupName"], {})
        group |= {name: wanted[name] for name in NUMBERS if name in wanted}
    before = _parsed(spec["serveConfigV2"])
    config = copy.deepcopy(before)
    for mine, theirs in zip(config["applications"][0]["deployments"], app_of(new)["deployments"], strict=False):
        set_number(mine, number_of(theirs))
        if old.inplace != marks.inplace and "user_config" in mine:
            mine["user_config"] = _known(theirs["user_config"], mine["user_config"])
        if "user_config" in mine:
            mine["user_config"] = _with_emptied(mine["user_config"], theirs["user_config"])
    if config != before:
        spec["serveConfigV2"] = to_yaml([config])
    return marked({**out, "spec": spec}, replace(old, inplace=marks.inplace))
