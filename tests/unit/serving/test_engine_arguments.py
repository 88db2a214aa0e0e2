"""What the engine is told of its reasoning parser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reasonscale.api.families import PARSERS
from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.serving.config import engine_kwargs

EXAMPLE = Path(__file__).parents[3] / "examples" / "micro-reasoner.yaml"


@pytest.mark.parametrize("parser", ["deepseek_v3", "granite", "hunyuan_a13b", "minimax_m2_append_think"])
def test_a_parser_that_names_no_marks_of_its_own_is_given_them(parser: str) -> None:
    assert parser in PARSERS
    resolved = resolve(load_models(EXAMPLE)[0], EXAMPLE.parent)
    told = engine_kwargs(replace(resolved, reasoning=replace(resolved.reasoning, parser=parser)))
    assert told["reasoning_parser"] == parser
    assert set(told["reasoning_config"]) == {"reasoning_start_str", "reasoning_end_str"}
    assert "reasoning_config" not in engine_kwargs(resolved)
