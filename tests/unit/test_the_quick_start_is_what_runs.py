"""The README's Kubernetes commands are found by the e2e, name files that are there, and are given by variables alone what differs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from e2e.readme import commands

ROOT = Path(__file__).parents[2]


def test_each_part_has_the_commands_that_the_e2e_expects() -> None:
    assert [c.split()[:2] for c in commands("charts")] == [["helm", "install"]] * 2
    assert [c.split()[1] for c in commands("model")] == ["apply", "wait", "get", "describe"]
    [forward] = commands("ask")
    assert forward.endswith(" 8000")


@pytest.mark.parametrize("part", ["charts", "model", "ask"])
def test_what_the_commands_name_is_there(part: str) -> None:
    for command in commands(part):
        for path in re.findall(r"(?:charts|examples)/[\w./-]+", command):
            assert (ROOT / path).exists(), path
        assert set(re.findall(r"\$(\w+)", command)) <= {"IMAGE", "TAG", "ENGINE_IMAGE", "PROMETHEUS"}


def test_a_block_that_is_gone_is_named() -> None:
    with pytest.raises(AssertionError, match="no block marked e2e:nothing"):
        commands("nothing")
