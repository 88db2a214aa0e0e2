"""The CustomResourceDefinition, generated from the pydantic models: structural, no `$ref`, with defaults and docs."""

from __future__ import annotations

import copy
from typing import Any, Final

import yaml

from reasonscale.api import constants
from reasonscale.api.cel import RULES
from reasonscale.api.models import Spec
from reasonscale.api.status_spec import Status

FILE_NAME: Final = f"{constants.GROUP}_{constants.PLURAL}.yaml"
# A shape that belongs to Kubernetes: kept as it is, and checked when the pod is made.
_LOOSE: Final[dict[str, Any]] = {"type": "object", "maxProperties": 64, "x-kubernetes-preserve-unknown-fields": True}
_KEPT: Final = (
    "type", "description", "default", "enum", "format", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
    "maxProperties", "minProperties", "required",
)  # fmt: skip
_COLUMNS: Final = (
    ("Model", "string", ".spec.model.uri", 0),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Desired", "integer", ".status.replicas.desired", 0),
    ("Replicas", "integer", ".status.replicas.ready", 0),
    ("CoT queued", "integer", ".status.demand.queuedTokens", 0),
    ("KV %", "integer", ".status.demand.kvUsagePercent", 0),
    ("Full in", "string", ".status.demand.kvFullIn", 0),
    ("Reason", "string", ".status.lastDecision.reason", 0),
    ("Update", "string", '.status.conditions[?(@.type=="UpdateAvailable")].status', 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def _union(parts: list[dict[str, Any]], defs: dict[str, Any]) -> dict[str, Any]:
    """Return what a choice of types is in a structural schema."""
    parts = [p for p in parts if p.get("type") != "null"]
    if len(parts) == 1:
        return _structural(parts[0], defs)
    types = {p.get("type") for p in parts}
    if "boolean" in types:  # engine.args: text alone in a cluster, so that CEL can look at it
        return {"type": "string", "maxLength": 1024}
    # A structural schema has no type here; bounds of the text and of the number are rules in api/cel.py.
    return {"x-kubernetes-int-or-string": True, "maxLength": 16}


def _structural(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Return a node of pydantic's JSON schema as a structural schema."""
    if "$ref" in node:
        target = defs[node["$ref"].rsplit("/", 1)[1]]
        return _structural({**target, **{k: v for k, v in node.items() if k != "$ref"}}, defs)
    if "anyOf" in node:
        out = _union(node["anyOf"], defs)
        out |= {
            k: node[k] for k in ("description", "default", "pattern", "maxLength", "minimum") if node.get(k) is not None
        }
        return out
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    out = {k: node[k] for k in _KEPT if k in node and node[k] is not None}
    if node.get("type") == "array":
        out["items"] = _structural(node["items"], defs)
    if node.get("type") != "object":
        return out
    if "properties" in node:
        out["properties"] = {name: _structural(part, defs) for name, part in node["properties"].items()}
        return out
    # pydantic says a map whose keys match a pattern by that pattern; a structural schema can't, so keys are rules in api/cel.py.
    values = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)
    if isinstance(values, dict) and values:
        out["additionalProperties"] = _structural(values, defs)
        out.setdefault("maxProperties", 64)
        return out
    return {**_LOOSE, **{k: out[k] for k in ("description",) if k in out}}


def _with_defaults(node: dict[str, Any]) -> None:
    """Give each part of which nothing is required its own defaults as default: a server fills in none below what is absent."""
    for name, part in node.get("properties", {}).items():
        _with_defaults(part)
        if (
            "properties" in part
            and not part.get("required")
            and name not in node.get("required", ())
            and name not in _OPTIONAL
        ):
            # Whole, not {}: the server checks a default against the rules before it fills in anything.
            part["default"] = {
                k: copy.deepcopy(inner["default"]) for k, inner in part["properties"].items() if "default" in inner
            }
    items = node.get("items")
    if isinstance(items, dict):
        _with_defaults(items)


# Absent means something of its own here.
_OPTIONAL: Final = ("scaleToZero", "underPressure", "cache")


def _at(schema: dict[str, Any], path: str) -> dict[str, Any]:
    for step in path.split(".") if path else ():
        schema = schema["properties"][step]
    return schema


def schema() -> dict[str, Any]:
    """Return the resource's openAPIV3Schema."""
    parts = {}
    for name, model in (("spec", Spec), ("status", Status)):
        plain = model.model_json_schema(by_alias=True)
        parts[name] = _structural(plain, plain.get("$defs", {}))
    _with_defaults(parts["spec"])
    conditions = parts["status"]["properties"]["conditions"]
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    parts["spec"]["properties"]["classes"] |= {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    }
    out = {
        "type": "object",
        "description": "A reasoning model, served and scaled by its chain of thought.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **parts,
        },
    }
    for rule in RULES:
        _at(out, rule.where).setdefault("x-kubernetes-validations", []).append(rule.to_json())
    return out


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{constants.PLURAL}.{constants.GROUP}"},
        "spec": {
            "group": constants.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": constants.KIND,
                "listKind": f"{constants.KIND}List",
                "plural": constants.PLURAL,
                "singular": constants.SINGULAR,
                "shortNames": [constants.SHORT_NAME],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": constants.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas.ready",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "priority": priority}
                        for name, kind, path, priority in _COLUMNS
                    ],
                }
            ],
        },
    }


def as_yaml() -> str:
    """Return the CRD as the file under crds/ holds it."""
    head = "# Generated from the models in reasonscale.api by `reasonscale crds`; changes are made there.\n"
    return head + yaml.safe_dump(crd(), sort_keys=False, width=120, allow_unicode=True)
