"""docs/reference.md, generated from the resource's schema: `python -m reasonscale.api.reference [FILE]`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reasonscale.api.cel import RULES
from reasonscale.api.crd import schema
from reasonscale.api.effects import EXCEPTIONS, SAID, effect_of

_HEAD = """# Reference of the ReasoningModel

Every field of `reasonscale.io/v1alpha1`, generated from the models (`make reference`). What is left out is chosen by the system;
`reasonscale validate FILE` shows what. Durations are strings such as `2s`, `50ms`, `250us`, `1h30m`; quantities such as `16Gi`.
The API server drops fields that it doesn't know; `reasonscale validate` refuses them and names the nearest.

"""


def _kind(node: dict[str, Any]) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "number or text"
    if node.get("enum"):
        return " \\| ".join(f"`{v}`" for v in node["enum"])
    kind = node.get("type", "")
    if kind == "array":
        inner = node["items"]
        return "list of " + ("parts" if inner.get("properties") else _kind(inner))
    if "additionalProperties" in node:
        return "map to " + _kind(node["additionalProperties"])
    if kind == "object":
        return "part" if "properties" in node else "as in a pod"
    return {"integer": "number", "string": "text"}.get(kind, str(kind))


def _bounds(node: dict[str, Any]) -> str:
    found = []
    if "minimum" in node or "maximum" in node:
        found.append(f"{node.get('minimum', '')} to {node.get('maximum', '')}")
    if "maxLength" in node:
        found.append(f"{node.get('minLength', 0)} to {node['maxLength']} characters")
    if "maxItems" in node:
        found.append(f"at most {node['maxItems']}")
    if "maxProperties" in node:
        found.append(f"at most {node['maxProperties']} keys")
    return ", ".join(found)


def _rows(node: dict[str, Any], path: str) -> Iterator[str]:
    required = node.get("required", ())
    for name, part in node.get("properties", {}).items():
        where = f"{path}.{name}"
        default = part.get("default")
        said = (
            "**required**"
            if name in required
            else ""
            if default in (None, {}, []) or "properties" in part
            else f"`{json.dumps(default)}`"
        )
        yield f"| `{where}` | {_kind(part)} | {said} | {_bounds(part)} | {part.get('description', '')} |"
        yield from _rows(part, where)
        if isinstance(part.get("items"), dict):
            yield from _rows(part["items"], where + "[]")


def _rules() -> Iterator[str]:
    for rule in RULES:
        yield f"| `{rule.where}{rule.field}` | {re.sub(r'{[^{}]*}', '…', rule.message)} |"


def _leaves(node: dict[str, Any], path: str) -> Iterator[str]:
    for name, part in node.get("properties", {}).items():
        where = f"{path}.{name}"
        yield from _leaves(part, where) if "properties" in part else (where,)


def _effects(spec: dict[str, Any]) -> str:
    said = "\n".join(f"- **{effect}**: {words}" for effect, words in SAID.items())
    rows = "\n".join(f"| `{path}` | {effect_of(path)} |" for path in _leaves(spec, "spec"))
    notes = "\n".join(f"- `{path}`: {words}" for path, words in EXCEPTIONS.items())
    return f"{said}\n\n| field | a change of it |\n|---|---|\n{rows}\n\nExceptions:\n{notes}"


def reference() -> str:
    """Return the page."""
    found = schema()["properties"]
    head = "| field | type | default | bounds | |\n|---|---|---|---|---|\n"
    spec = head + "\n".join(_rows(found["spec"], "spec"))
    status = "| field | type | |\n|---|---|---|\n" + "\n".join(
        "|".join((cells := row.split(" | "))[:2]) + " | " + cells[-1] for row in _rows(found["status"], "status")
    )
    rules = "| field | what is said |\n|---|---|\n" + "\n".join(_rules())
    return (
        f"{_HEAD}## spec\n\n{spec}\n\n## Rules between fields\n\nChecked by the API server in CEL and by `reasonscale validate`, which "
        f"also knows what needs the model's family, size or files.\n\n{rules}\n\n## What restarts what\n\nHeld by tests that change "
        f"each field: a real KubeRay's clusters and a real Ray Serve's replicas are the same ones afterwards, or others.\n\n{_effects(found['spec'])}\n\n## status\n\n{status}\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference.md").write_text(reference())
