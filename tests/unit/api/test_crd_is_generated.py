"""The CustomResourceDefinition and the reference follow from the models; what is committed is what they give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reasonscale.api.cel import RULES
from reasonscale.api.crd import FILE_NAME, as_yaml, schema
from reasonscale.api.reference import reference
from reasonscale.cli.main import run

ROOT = Path(__file__).parents[3]


def test_the_committed_definition_is_what_the_models_give() -> None:
    assert (ROOT / "crds" / FILE_NAME).read_text() == as_yaml(), "renew it with: .venv/bin/reasonscale crds -o crds"


def test_the_committed_reference_is_what_the_models_give() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), "renew it with: make reference"


def _nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, part in node.get("properties", {}).items():
        yield from _nodes(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from _nodes(node[key], f"{path}[]")


NODES = dict(_nodes(schema()["properties"]["spec"], "spec")) | dict(_nodes(schema()["properties"]["status"], "status"))


def test_every_text_list_and_map_is_bounded() -> None:
    free = []
    for path, node in NODES.items():
        kind = node.get("type")
        if kind == "string" and "enum" not in node and "maxLength" not in node:
            free.append(path)
        if kind == "array" and "maxItems" not in node:
            free.append(path)
        if kind == "object" and "properties" not in node and "maxProperties" not in node:
            free.append(path)
        if kind == "integer" and "minimum" not in node:
            free.append(path)
    assert free == []


def test_every_field_is_explained() -> None:
    assert [p for p, node in NODES.items() if "[]" not in p and not node.get("description")] == []


def test_every_rule_names_a_field_that_there_is() -> None:
    for rule in RULES:
        # Of the metadata, rules see the name alone.
        assert rule.where + rule.field in {*NODES, ".metadata"}, rule


def test_it_is_structural() -> None:
    for path, node in NODES.items():
        assert not {"$ref", "anyOf", "allOf", "oneOf", "const", "propertyNames", "title"} & set(node), path
        assert "type" in node or "x-kubernetes-int-or-string" in node, path


def test_the_command_prints_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["crds"]) == 0
    assert capsys.readouterr().out == as_yaml()
    assert run(["crds", "-o", str(tmp_path)]) == 0
    assert (tmp_path / FILE_NAME).read_text() == as_yaml()
