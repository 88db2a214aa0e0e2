"""The chart takes no name for a profile that no resource can write."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from reasonscale.profiles.library import is_path

SCHEMA = json.loads((Path(__file__).parents[3] / "charts/reasonscale/values.schema.json").read_text())["properties"]


@pytest.mark.parametrize(
    ("name", "right"), [("my-gpu", True), ("qwen2.5-7b", True), ("my-gpu.json", False), ("a/b", False)]
)
def test_a_name_that_would_be_taken_for_a_file_is_refused(name: str, right: bool) -> None:
    assert is_path(name) is not right
    assert jsonschema.Draft7Validator(SCHEMA["profiles"]).is_valid({name: {}}) is right
