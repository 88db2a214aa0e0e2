"""What the engine is told of its reasoning parser."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from reasonscale.api.engine_args import ALLOWED, ARGS, FORBIDDEN, problem_of_value, value_of
from reasonscale.api.families import PARSERS
from reasonscale.api.load import load_models
from reasonscale.api.resolve import resolve
from reasonscale.serving.config import engine_kwargs

EXAMPLE = Path(__file__).parents[3] / "examples" / "micro-reasoner.yaml"


@pytest.mark.engine
def test_the_arguments_that_may_be_said_and_their_values_are_the_engines() -> None:
    from vllm.config import cache, load, model, scheduler
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = {f.name for f in dataclasses.fields(AsyncEngineArgs)}
    assert fields >= ALLOWED
    gone = {name for name, why in FORBIDDEN.items() if why == "vLLM has it no longer"}
    assert gone
    assert not gone & fields
    closed = {
        "dtype": model.ModelDType,
        "kv_cache_dtype": cache.CacheDType,
        "prefix_caching_hash_algo": cache.PrefixCachingHashAlgo,
        "safetensors_load_strategy": load.SafetensorsLoadStrategy,
        "scheduling_policy": scheduler.SchedulerPolicy,
    }
    for name, values in closed.items():
        assert ARGS[name].pattern == f"^({'|'.join(get_args(values))})$", name


@pytest.mark.engine
@pytest.mark.parametrize("share", ["0.9", "1", "1.0", ".05", "0", "0.0", "1.01", "7", "-0.5"])
def test_a_share_of_memory_is_refused_where_the_engine_refuses_it(share: str) -> None:
    from vllm.config.cache import CacheConfig

    try:
        CacheConfig(gpu_memory_utilization=value_of(share))
        taken = True
    except ValueError:
        taken = False
    assert (problem_of_value("gpu_memory_utilization", share) is None) == taken


@pytest.mark.parametrize("parser", ["deepseek_v3", "granite", "hunyuan_a13b", "minimax_m2_append_think"])
def test_a_parser_that_names_no_marks_of_its_own_is_given_them(parser: str) -> None:
    assert parser in PARSERS
    resolved = resolve(load_models(EXAMPLE)[0], EXAMPLE.parent)
    told = engine_kwargs(replace(resolved, reasoning=replace(resolved.reasoning, parser=parser)))
    assert told["reasoning_parser"] == parser
    assert set(told["reasoning_config"]) == {"reasoning_start_str", "reasoning_end_str"}
    assert "reasoning_config" not in engine_kwargs(resolved)
