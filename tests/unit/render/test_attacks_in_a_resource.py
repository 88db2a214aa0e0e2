"""Whoever may write a resource gets values into objects, never syntax; and of vLLM's arguments those that are allowed, never others."""

from __future__ import annotations

import json
import re
import string
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from reasonscale.api import constants as c
from reasonscale.api.cel import RULES
from reasonscale.api.engine_args import ALLOWED, value_of
from reasonscale.api.load import parse
from reasonscale.api.resolve import resolve
from reasonscale.api.validate import InvalidResource
from reasonscale.render.children import children
from reasonscale.render.context import Context
from reasonscale.render.text import to_yaml

CONTEXT = Context(namespace="models", replicas=1, image="i:1", code_image="j:1", uid="u")
EVIL = st.one_of(
    st.text(alphabet="ab\"'\n:{}[]&*#|>-%@`\\ é$();,!?<\t", min_size=1, max_size=40),
    st.sampled_from([
        "x\n      privileged: true", "x\n---\nkind: ClusterRoleBinding", "!!python/object/apply:os.system [id]", "$(rm -rf /)", "`id`", "x; id",
        "'; import os #", "{{ .Values }}", "&a [*a, *a]", "x\u2028y", "yes", "0x1F", "1e3", "~", "null", "2026-11-25",
    ]),
)  # fmt: skip


def resource(text: str) -> dict[str, Any]:
    """Return a resource that says a text wherever it may say any; behind an @ of the URI stands a revision, one argument more."""
    return {
        "apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m", "annotations": {"note": text}},
        "spec": {
            "model": {"uri": f"hf://acme/x{text}".translate({10: None, ord("@"): None}), "maxModelLen": 4096, "tokenSecretRef": {"name": "s", "key": text}},
            "engine": {"image": "i" + "".join(text.split()), "args": {"load_format": text, "quantization": text, "tokenizer_mode": text}},
            "classes": [{"name": "a", "match": {"header": "x", "values": [text]}}],
            "pod": {
                "annotations": {"note": text}, "env": [{"name": "X", "value": text}],
                "tolerations": [{"key": text, "value": text}],
            },
        },
    }  # fmt: skip


def shape(value: Any) -> Any:
    """Return what a value is made of, without what its texts and numbers say."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    return [shape(x) for x in value] if isinstance(value, list) else "leaf"


def rendered(text: str) -> list[Any]:
    model = parse(resource(text))
    found = list(yaml.safe_load_all(to_yaml(children(model, resolve(model), CONTEXT))))
    found[0]["spec"]["serveConfigV2"] = yaml.safe_load(found[0]["spec"]["serveConfigV2"])
    return found


def commands(found: Any) -> Any:
    """Return what a shell or an init container runs."""
    if isinstance(found, dict):
        own = [found[k] for k in ("rayStartParams", "command", "args") if k in found and "models" not in found[k]]
        return own + [x for v in found.values() for x in commands(v)]
    return [x for v in found for x in commands(v)] if isinstance(found, list) else []


PLAIN = rendered("x")


@given(EVIL)
def test_a_text_changes_no_object_s_structure_and_no_command(text: str) -> None:
    assume(len(text) <= 60)
    try:
        found = rendered(text)
    except InvalidResource:
        return  # refused in words
    assert shape(found) == shape(PLAIN)
    assert commands(found) == commands(PLAIN)
    engine = found[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["template"]
    notes = engine["metadata"]["annotations"]
    assert re.fullmatch("[0-9a-f]{12}", notes.pop(c.ANNOTATION_TOLERATIONS))
    assert notes == {"note": text}
    assert engine["spec"]["containers"][0]["image"] == "i" + "".join(text.split())
    [model] = found[0]["spec"]["serveConfigV2"]["applications"][0]["args"]["models"]
    assert (model["model_id"], model["engine_kwargs"]["quantization"]) == ("m", value_of(text))


@pytest.mark.parametrize("text", ["$(id)", "a\nb", "a'b", "{{ .Values }}", "a b", "a\n", "!!x", "&a"])
@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"accelerator": {"product": "?"}}, "accelerator.product"),
        ({"accelerator": {"resourceName": "?"}}, "accelerator.resourceName"),
        ({"classes": [{"name": "a", "match": {"header": "?", "values": ["x"]}}]}, "classes[0].match.header"),
        ({"pod": {"labels": {"note": "?"}}}, "pod.labels.note"),
        ({"pod": {"nodeSelector": {"zone": "?"}}}, "pod.nodeSelector.zone"),
        ({"pod": {"imagePullSecrets": [{"name": "?"}]}}, "pod.imagePullSecrets[0].name"),
        ({"pod": {"serviceAccountName": "?"}}, "pod.serviceAccountName"),
        ({"pod": {"priorityClassName": "?"}}, "pod.priorityClassName"),
        ({"pod": {"schedulerName": "?"}}, "pod.schedulerName"),
        ({"pod": {"runtimeClassName": "?"}}, "pod.runtimeClassName"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_of_kubernetes_is_no_text(spec: dict[str, Any], field: str, text: str) -> None:
    told = json.loads(json.dumps({"model": {"uri": "hf://a/b"}} | spec).replace('"?"', json.dumps(text)))
    with pytest.raises(InvalidResource) as refused:
        parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": told})
    assert [p.field for p in refused.value.problems] == [f"spec.{field}"]


@pytest.mark.parametrize("name", ["a b", "a\nb", "a#b", "a'b", "-a", "a/", "", "$(id)", "é"])
def test_a_served_name_is_one_that_ray_and_prometheus_can_bear(name: str) -> None:
    spec = {"model": {"uri": "hf://a/b", "name": name}}
    with pytest.raises(InvalidResource, match=r"spec\.model\.name"):
        parse({"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"}, "spec": spec})


@given(st.text(alphabet=string.ascii_lowercase + string.digits + "_-.[]", min_size=1, max_size=40))
def test_no_argument_beside_those_allowed_comes_through(name: str) -> None:
    assume(name not in ALLOWED)
    bad = {
        "apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": {"name": "m"},
        "spec": {"model": {"uri": "hf://a/b"}, "engine": {"args": {name: "1"}}},
    }  # fmt: skip
    with pytest.raises(InvalidResource) as refused:
        parse(bad)
    assert refused.value.problems[0].field == f"spec.engine.args.{name}"


def test_the_server_has_the_same_list_as_we() -> None:
    [rule] = [r for r in RULES if r.where == "spec.engine" and "all(k, k in" in r.rule]
    assert {w.strip(" '") for w in rule.rule.split("[", 1)[1].split("]", 1)[0].split(",")} == ALLOWED


def test_no_allowed_argument_opens_a_port_reads_a_file_of_choice_or_runs_code_by_name() -> None:
    words = (
        "port",
        "host",
        "address",
        "path",
        "file",
        "dir",
        "plugin",
        "cls",
        "class",
        "trust",
        "middleware",
        "processor",
        "connector",
        "url",
    )
    assert [a for a in ALLOWED if any(w in a.split("_") for w in words)] == []
