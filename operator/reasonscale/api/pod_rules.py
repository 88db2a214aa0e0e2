"""What `spec.pod` may not say, because the pods have it already: two of a name would be refused by the API server, or silently lose one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.api.models import ReasoningModel
from reasonscale.api.quantity import amount

# Set in every engine's container by us, then by KubeRay.
OWN_ENV: Final[frozenset[str]] = frozenset({
    "PYTHONPATH", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED", "RAY_SERVE_LLM_ROUTER_HTTP_TIMEOUT",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "RAY_metrics_report_interval_ms",
    "RAY_ADDRESS", "RAY_IP", "RAY_PORT", "FQ_RAY_IP", "RAY_CLUSTER_NAME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN",
})  # fmt: skip
DEFAULT_REQUESTS: Final[Mapping[str, int | str]] = {"cpu": "1"}  # of an engine's container
OWN_PREFIX: Final = "reasonscale-"  # of volumes
OWN_LABELS: Final[tuple[str, ...]] = (f"{c.GROUP}/", "ray.io/")
_SELECTED: Final = ("app.kubernetes.io/name", "app.kubernetes.io/created-by", "app.kubernetes.io/managed-by")

Found = Iterator[tuple[str, str]]  # field, and what is wrong with it


def _items(value: Sequence[Mapping[str, Any]], field: str, key: str = "name") -> Found:
    seen: set[str] = set()
    for n, item in enumerate(value):
        name = item.get(key)
        if not isinstance(name, str) or not name:
            yield f"{field}[{n}].{key}", "is missing"
        elif name in seen:
            yield f"{field}[{n}].{key}", f"was {name}; it is there twice: names must differ"
        else:
            seen.add(name)


def _env(model: ReasoningModel) -> Found:
    spec = model.spec
    yield from _items(spec.pod.env, "spec.pod.env")
    said = {"HF_TOKEN": "spec.model.tokenSecretRef"} if spec.model.token_secret_ref else {}
    said |= {"HF_HOME": "spec.model.cache"} if spec.model.cache else {}
    for n, item in enumerate(spec.pod.env):
        name, value = item.get("name"), item.get("value")
        if value is not None and not isinstance(value, str):
            yield f"spec.pod.env[{n}].value", f"was {value!r}; must be text: put it in quotes"
        if name in OWN_ENV:
            yield f"spec.pod.env[{n}].name", f"was {name}; reasonscale or KubeRay sets it: leave it out"
        elif name in said:
            yield f"spec.pod.env[{n}].name", f"was {name}; {said[str(name)]} says it: leave one of the two out"


def _volumes(model: ReasoningModel) -> Found:
    spec = model.spec
    yield from _items(spec.pod.volumes, "spec.pod.volumes")
    yield from _items(spec.pod.volume_mounts, "spec.pod.volumeMounts", "mountPath")
    names = {v.get("name") for v in spec.pod.volumes}
    for n, volume in enumerate(spec.pod.volumes):
        if str(volume.get("name", "")).startswith(OWN_PREFIX):
            yield (
                f"spec.pod.volumes[{n}].name",
                f"was {volume['name']}; names that begin with {OWN_PREFIX} are reasonscale's: choose another",
            )
    taken = {"/reasonscale": "reasonscale's own code", "/dev/shm": "shared memory, sized by spec.pod.shmSize"}
    taken |= {"/models": "the claim of spec.model.uri"} if spec.model.uri.startswith("pvc://") else {}
    taken |= {"/cache": "spec.model.cache"} if spec.model.cache else {}
    for n, mount in enumerate(spec.pod.volume_mounts):
        name, path = mount.get("name"), str(mount.get("mountPath", "")).rstrip("/")
        if name not in names:
            yield f"spec.pod.volumeMounts[{n}].name", f"was {name}; spec.pod.volumes has no such volume"
        if path in taken:
            yield f"spec.pod.volumeMounts[{n}].mountPath", f"was {path}; that is {taken[path]}: choose another"


def _metadata(model: ReasoningModel) -> Found:
    for field, found in (("labels", model.spec.pod.labels), ("annotations", model.spec.pod.annotations)):
        for key in found:
            if key.startswith(OWN_LABELS) or (field == "labels" and key in _SELECTED):
                yield f"spec.pod.{field}.{key}", "is set by reasonscale or KubeRay, which select by it: leave it out"


def _resources(model: ReasoningModel) -> Found:
    gpu, given = model.spec.accelerator.resource_name, model.spec.pod.resources
    for part, found in given.items():
        if part not in ("requests", "limits"):
            yield f"spec.pod.resources.{part}", "is no field here; there are requests, limits"
        elif gpu in found:
            yield (
                f"spec.pod.resources.{part}.{gpu}",
                f"was {found[gpu]}; it follows from spec.parallelism: leave it out",
            )
    limits, asked = given.get("limits", {}), {**DEFAULT_REQUESTS, **given.get("requests", {})}
    for name in limits:
        if name in asked and amount(asked[name]) > amount(limits[name]):
            yield (
                f"spec.pod.resources.limits.{name}",
                f"was {limits[name]}; the pod requests {asked[name]}: write a limit of at least that, or a smaller requests.{name}",
            )


def pod_rules(model: ReasoningModel) -> Found:
    """Yield what in `spec.pod` can't be, by field."""
    yield from _env(model)
    yield from _volumes(model)
    yield from _metadata(model)
    yield from _resources(model)
