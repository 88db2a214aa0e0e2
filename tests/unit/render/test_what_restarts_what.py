"""The table of effects against what is rendered: each field is changed, and the objects are compared."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from reasonscale.api import constants as c
from reasonscale.api.crd import schema
from reasonscale.api.effects import EFFECTS, Effect, effect_of
from reasonscale.api.load import parse
from reasonscale.api.resolve import resolve
from reasonscale.render.children import children
from reasonscale.render.context import Context
from reasonscale.render.marks import app_hashed, cluster_hashed, marks_of

BASE: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen3-32B", "maxModelLen": 32768},
    "parallelism": {"tensor": 2},
    "scaling": {"mode": "Manual", "maxReplicas": 4, "scaleToZero": {}, "asleep": 1},
    "replicas": 2,
    "pod": {"volumes": [{"name": "there", "emptyDir": {}}]},
}
CLAIM = {"persistentVolumeClaim": {"claimName": "c"}}
# field -> another value of it; with what else it needs
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "spec.model.uri": ("hf://Qwen/Qwen3-14B", {}),
    "spec.model.name": ("other", {}),
    "spec.model.maxModelLen": (16384, {}),
    "spec.model.tokenSecretRef": ({"name": "s", "key": "k"}, {}),
    "spec.model.cache": (CLAIM, {}),
    "spec.engine.image": ("r/other:1", {}),
    "spec.engine.args": ({"max_num_batched_tokens": "4096"}, {}),
    "spec.parallelism.tensor": (4, {}),
    "spec.parallelism.pipeline": (2, {}),
    "spec.parallelism.expert": (2, {}),
    "spec.accelerator.product": ("NVIDIA-H200", {}),
    "spec.accelerator.resourceName": ("amd.com/gpu", {}),
    "spec.accelerator.profile": ("qwen2-7b-h100", {}),
    "spec.accelerator.fraction": (50, {"parallelism": {"tensor": 1}}),
    "spec.reasoning.parser": ("deepseek_r1", {}),
    "spec.reasoning.mode": ("Always", {}),
    "spec.reasoning.budget.default": (1000, {}),
    "spec.reasoning.budget.max": (9000, {}),
    "spec.reasoning.budget.answerReserve": (1000, {}),
    "spec.reasoning.efforts": ({"low": 512}, {}),
    "spec.reasoning.expose": ("Hidden", {}),
    "spec.reasoning.fieldNames": (["reasoning"], {}),
    "spec.reasoning.underPressure": ({"floor": 512, "steps": 2}, {}),
    "spec.scaling.maxReplicas": (6, {}),
    "spec.scaling.minReplicas": (2, {}),
    "spec.scaling.mode": ("External", {}),
    "spec.scaling.asleep": (2, {}),
    "spec.scaling.scaleToZero.after": ("1h", {}),
    "spec.scaling.scaleToZero.hold.maxRequests": (7, {}),
    "spec.scaling.scaleToZero.hold.maxBytes": ("32Mi", {}),
    "spec.scaling.scaleToZero.hold.max": ("2m", {}),
    "spec.scaling.objectives.ttft": ("5s", {}),
    "spec.scaling.objectives.ttftPerPromptToken": ("500us", {}),
    "spec.scaling.objectives.tpot": ("80ms", {}),
    "spec.scaling.objectives.maxQueue": ("20s", {}),
    "spec.scaling.objectives.attainmentPercent": (95, {}),
    "spec.scaling.kvHeadroomPercent": (20, {}),
    "spec.scaling.rates.upMaxFactor": (3, {}),
    "spec.scaling.rates.upMaxStep": (8, {}),
    "spec.scaling.rates.downMaxStep": (2, {}),
    "spec.scaling.rates.downStable": ("60s", {}),
    "spec.scaling.rates.downInterval": ("60s", {}),
    "spec.scaling.startTimeout": ("20m", {}),
    "spec.classes": ([{"name": "etl", "match": {"header": "x-tenant", "values": ["etl"]}}], {}),
    "spec.drain.max": ("1h", {}),
    "spec.resume.attempts": (1, {}),
    "spec.resume.hangAfter": ("2m", {}),
    "spec.rollout.strategy": ("Surge", {}),
    "spec.pod.labels": ({"a": "b"}, {}),
    "spec.pod.annotations": ({"a": "b"}, {}),
    "spec.pod.env": ([{"name": "A", "value": "b"}], {}),
    "spec.pod.envFrom": ([{"secretRef": {"name": "s"}}], {}),
    "spec.pod.volumes": ([{"name": "v", "emptyDir": {}}], {}),
    "spec.pod.volumeMounts": ([{"name": "there", "mountPath": "/v"}], {}),
    "spec.pod.imagePullSecrets": ([{"name": "s"}], {}),
    "spec.pod.serviceAccountName": ("a", {}),
    "spec.pod.nodeSelector": ({"a": "b"}, {}),
    "spec.pod.tolerations": ([{"key": "a", "operator": "Exists"}], {}),
    "spec.pod.affinity": ({"nodeAffinity": {}}, {}),
    "spec.pod.topologySpreadConstraints": (
        [{"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}],
        {},
    ),
    "spec.pod.priorityClassName": ("p", {}),
    "spec.pod.schedulerName": ("s", {}),
    "spec.pod.runtimeClassName": ("nvidia", {}),
    "spec.pod.securityContext": ({"runAsUser": 7}, {}),
    "spec.pod.shmSize": ("32Gi", {}),
    "spec.pod.resources": ({"limits": {"memory": "9Gi"}}, {}),
    "spec.replicas": (3, {}),
}
# One value alone is possible, or the field is refused as not supported yet, or others work on it: said, and looked at when it comes.
UNCHANGED = {"spec.engine.name", "spec.parallelism.data"}


def leaves(node: dict[str, Any], path: str) -> list[str]:
    out = []
    for name, part in node.get("properties", {}).items():
        where = f"{path}.{name}"
        whole = where in CHANGES or where in UNCHANGED or "properties" not in part
        out += [where] if whole else leaves(part, where)
    return out


def service(spec: dict[str, Any], **context: Any) -> tuple[dict[str, Any], Any]:
    model = parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": spec})
    resolved = resolve(model)
    given = {"namespace": "n", "replicas": spec.get("replicas", 1), "image": "i:1", "code_image": "j:1"} | context
    return children(model, resolved, Context(**given))[0], model


def changed(path: str, value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(BASE)
    *steps, last = path.split(".")[1:]
    node = spec
    for step in steps:
        node = node.setdefault(step, {})
    assert node.get(last) != value
    node[last] = value
    return spec


def seen(before: dict[str, Any], after: dict[str, Any]) -> Effect:
    """Return the effect of bringing in a rendering, by what KubeRay and Serve compare."""
    if cluster_hashed(before) != cluster_hashed(after):
        return Effect.CLUSTER
    if app_hashed(before) != app_hashed(after):
        return Effect.ENGINES
    return Effect.IN_PLACE if before["spec"] != after["spec"] else Effect.NOTHING


def test_every_field_of_the_spec_stands_in_the_table_and_is_changed_here() -> None:
    fields = leaves(schema()["properties"]["spec"], "spec")
    assert [f for f in fields if effect_of(f) is None] == []
    assert set(fields) - UNCHANGED == set(CHANGES)
    known = {".".join(f.split(".")[:n]) for f in fields for n in range(1, 9)}
    assert set(EFFECTS) - known == {"spec.engine.reasons", "spec.scaling.sleeps", "spec.scaling.sleepMode"}


@pytest.mark.parametrize("path", CHANGES)
def test_a_change_does_what_the_table_says(path: str) -> None:
    value, more = CHANGES[path]
    before, after = service(BASE | more)[0], service(changed(path, value) | more)[0]
    assert seen(before, after) is effect_of(path)


def test_the_exceptions_are_as_they_are_said() -> None:
    plain, plain_model = service(BASE)
    without, second = service(changed("spec.scaling.asleep", 0))
    assert seen(plain, without) is Effect.ENGINES
    assert marks_of(plain, plain_model).spec != marks_of(without, second).spec
    on_cpu = [service(spec, cpu=True)[0] for spec in (BASE, changed("spec.scaling.asleep", 0))]
    assert seen(*on_cpu) is Effect.NOTHING
    awake = changed("spec.scaling", {"mode": "Manual", "maxReplicas": 4, "asleep": 1})
    never_sleeps, model = service(awake)
    assert seen(plain, never_sleeps) is Effect.ENGINES
    assert marks_of(plain, plain_model).spec != marks_of(never_sleeps, model).spec
    auto = [service(changed("spec.scaling", {"minReplicas": n, "scaleToZero": {}}))[0] for n in (0, 1)]
    assert seen(*auto) is Effect.IN_PLACE
    assert seen(plain, service(changed("spec.model.uri", "pvc://claim/x"))[0]) is Effect.CLUSTER
    never = copy.deepcopy(BASE) | {"reasoning": {"mode": "Never"}}
    assert seen(plain, service(never)[0]) is Effect.ENGINES
    cpu = [service(spec, cpu=True)[0] for spec in (BASE, changed("spec.accelerator.product", "NVIDIA-H200"))]
    assert seen(*cpu) in (Effect.NOTHING, Effect.IN_PLACE)


def test_a_profile_alone_leaves_every_mark_of_what_restarts_as_it_was_without() -> None:
    for accelerator in ({}, {"product": "NVIDIA-H200"}):
        spec = BASE | {"accelerator": accelerator}
        before, after = (marks_of(*service(s)) for s in (spec, spec | {"accelerator": accelerator | {"profile": "x"}}))
        assert replace(before, inplace="") == replace(after, inplace="")


@pytest.mark.parametrize("path", CHANGES)
def test_marks_tell_the_user_s_change_from_the_operator_s(path: str) -> None:
    """What restarts engines changes the mark of the spec; what does not, does not."""
    more = CHANGES[path][1]
    (one, first), (two, second) = service(BASE | more), service(changed(path, CHANGES[path][0]) | more)
    dear = effect_of(path) in (Effect.ENGINES, Effect.CLUSTER)
    assert (marks_of(one, first).spec != marks_of(two, second).spec) is dear
