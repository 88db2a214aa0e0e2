"""What a resource leaves open is chosen, and can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonscale.api.constants import TOKEN_BINS, bin_of
from reasonscale.api.engine_args import value_of
from reasonscale.api.families import PARSERS, family_of
from reasonscale.api.load import load_models, parse
from reasonscale.api.models import ReasoningModel
from reasonscale.api.quantity import seconds, size_bytes
from reasonscale.api.resolve import resolve
from reasonscale.api.validate import InvalidResource, notes

EXAMPLES = Path(__file__).parents[3] / "examples"


def model(spec: dict[str, Any]) -> ReasoningModel:
    return parse(
        {"apiVersion": "reasonscale.io/v1alpha1", "kind": "ReasoningModel", "metadata": {"name": "m"}, "spec": spec}
    )


@pytest.mark.parametrize(
    ("uri", "parser"),
    [
        ("hf://deepseek-ai/DeepSeek-R1", "deepseek_r1"),
        ("hf://deepseek-ai/DeepSeek-R1-Zero", "deepseek_r1"),
        ("hf://deepseek-ai/DeepSeek-R1-0528", "deepseek_r1"),
        ("hf://deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "deepseek_r1"),
        ("hf://deepseek-ai/DeepSeek-V3", None),
        ("hf://deepseek-ai/DeepSeek-V3-0324", None),
        ("hf://deepseek-ai/DeepSeek-V3.1", "deepseek_v3"),
        ("hf://Qwen/QwQ-32B", "deepseek_r1"),
        ("hf://Qwen/Qwen3-32B", "qwen3"),
        ("hf://Qwen/Qwen3-235B-A22B-Thinking-2507", "qwen3"),
        ("hf://Qwen/Qwen3-235B-A22B-Instruct-2507", None),
        ("hf://Qwen/Qwen2.5-32B-Instruct", None),
        ("hf://meta-llama/Llama-3.3-70B-Instruct", None),
        ("hf://openai/gpt-oss-120b", "openai_gptoss"),
        ("hf://zai-org/GLM-4.5", "glm45"),
        ("hf://moonshotai/Kimi-K2-Thinking", "kimi_k2"),
        ("hf://MiniMaxAI/MiniMax-M2", "minimax_m2"),
        ("hf://nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B", "nemotron_v3"),
        ("hf://mistralai/Magistral-Small-2509", "mistral"),
        ("hf://ByteDance-Seed/Seed-OSS-36B-Instruct", "seed_oss"),
        ("hf://microsoft/Phi-4-reasoning-plus", "deepseek_r1"),
    ],
)
def test_a_family_has_its_parser(uri: str, parser: str | None) -> None:
    assert family_of(uri).parser == parser
    assert parser is None or parser in PARSERS


@pytest.mark.engine
def test_our_list_of_parsers_is_the_engines() -> None:
    from vllm.reasoning import _REASONING_PARSERS_TO_REGISTER

    assert set(_REASONING_PARSERS_TO_REGISTER) == PARSERS


def test_budgets_follow_from_the_context() -> None:
    chosen = resolve(model({"model": {"uri": "hf://Qwen/Qwen3-32B", "maxModelLen": 40960}})).reasoning
    assert (chosen.budget_default, chosen.budget_max, chosen.answer_reserve) == (10240, 32768, 2048)
    assert chosen.efforts["none"] == 0
    assert chosen.efforts["low"] == 2560
    assert chosen.efforts["high"] == 32768  # four times the default, cut at the most


def test_efforts_that_are_chosen_keep_the_order_of_those_written() -> None:
    chosen = resolve(
        model(
            {
                "model": {"uri": "hf://Qwen/Qwen3-32B", "maxModelLen": 40960},
                "reasoning": {"efforts": {"low": 512, "high": 4096}},
            }
        )
    ).reasoning
    assert chosen.budget_default == 10240
    assert chosen.efforts == {
        "none": 0, "minimal": 512, "low": 512, "medium": 4096, "high": 4096, "xhigh": 32768, "max": 32768,
    }  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["minimal", "low", "medium", "high", "xhigh", "max"]), st.integers(0, 40000)),
    st.integers(64, 200_000),
)
def test_no_chosen_effort_contradicts_what_is_written(efforts: dict[str, int], context: int) -> None:
    spec = {
        "model": {"uri": "hf://acme/x", "maxModelLen": context},
        "reasoning": {"parser": "qwen3", "efforts": efforts},
    }
    try:
        chosen = resolve(model(spec)).reasoning
    except InvalidResource:
        return
    tokens = list(chosen.efforts.values())
    assert tokens == sorted(tokens)
    assert tokens[-1] <= chosen.budget_max < context - chosen.answer_reserve


def test_what_is_written_in_tokens_raises_the_most_that_is_chosen() -> None:
    spec = {"model": {"uri": "hf://Qwen/Qwen3-32B", "maxModelLen": 131072}}
    assert resolve(model(spec)).reasoning.budget_max == 32768
    assert resolve(model(spec | {"reasoning": {"budget": {"default": 50000}}})).reasoning.budget_default == 50000
    assert resolve(model(spec | {"reasoning": {"efforts": {"high": 65536}}})).reasoning.budget_max == 65536


def test_a_number_of_the_engine_s_may_be_written_without_quotes_on_one_machine() -> None:
    written = model(
        {
            "model": {"uri": "hf://acme/x"},
            "reasoning": {"mode": "Auto", "parser": "qwen3"},
            "engine": {"args": {"gpu_memory_utilization": 0.9, "enforce_eager": True}},
        }
    )
    assert resolve(written).gpu_memory_utilization == 0.9
    assert notes(written) == [
        'spec.engine.args.gpu_memory_utilization: in a cluster write it as text: "0.9"',
        'spec.engine.args.enforce_eager: in a cluster write it as text: "true"',
    ]


def test_a_local_model_is_found_beside_its_file() -> None:
    file = EXAMPLES / "micro-reasoner.yaml"
    chosen = resolve(load_models(file)[0], file.parent)
    assert Path(chosen.model_source) == EXAMPLES / "micro-reasoner"
    assert chosen.reasoning.parser == "qwen3"
    assert chosen.kv_capacity_tokens == 160 * 32
    assert (chosen.max_num_seqs, chosen.max_model_len) == (8, 2048)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_example_is_valid(file: Path) -> None:
    for example in load_models(file):
        assert resolve(example, file.parent).max_replicas >= 1


def test_gpus_per_replica_are_the_product_of_what_is_split() -> None:
    chosen = resolve(
        model({"model": {"uri": "hf://deepseek-ai/DeepSeek-R1"}, "parallelism": {"tensor": 8, "pipeline": 2}})
    )
    assert chosen.gpus_per_replica == 16


def test_kv_capacity_is_what_the_weights_leave() -> None:
    chosen = resolve(
        model(
            {
                "model": {"uri": "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "maxModelLen": 40960},
                "parallelism": {"tensor": 2},
                "accelerator": {"product": "NVIDIA-H100-80GB-HBM3"},
            }
        )
    )
    # 2 x (0.92 x 80 GB - 65.5/2 GB - 2 GB) over 256 KiB a token
    assert chosen.kv_capacity_tokens == pytest.approx(2 * (0.92 * 80e9 - 32.75e9 - 2e9) / 262144, rel=0.01)


def test_a_part_of_a_gpu_is_that_part_of_its_memory() -> None:
    spec = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "accelerator": {"fraction": 30, "product": "NVIDIA-H200"}}
    chosen = resolve(model(spec))
    assert chosen.gpu_share == 0.3
    assert chosen.gpu_memory_utilization == pytest.approx(0.92 * 0.3)
    assert "30% of a GPU each" in "".join(chosen.as_lines())
    # 0.3 x 0.92 x 141 GB - 16.4 GB - 2 GB over 144 KiB a token
    assert chosen.kv_capacity_tokens == pytest.approx((0.276 * 141e9 - 16.4e9 - 2e9) / 147456, rel=0.01)


def test_what_is_ignored_on_one_machine_is_said() -> None:
    told = notes(
        model(
            {
                "model": {"uri": "hf://Qwen/Qwen3-8B"},
                "pod": {"shmSize": "8Gi"},
                "replicas": 2,
                "engine": {"args": {"max_num_seqs": 8}},
            }
        )
    )
    assert "spec.pod is for clusters; on one machine it is ignored" in told
    assert 'spec.engine.args.max_num_seqs: in a cluster write it as text: "8"' in told
    assert "spec.replicas is 2; mode Auto chooses the number itself and ignores it" in told


@pytest.mark.parametrize(
    ("text", "value"), [("8", 8), ("0.9", 0.9), ("true", True), ("False", False), ("float32", "float32"), (4, 4)]
)
def test_arguments_are_read_out_of_their_text(text: Any, value: object) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


@pytest.mark.parametrize(("text", "value"), [("2s", 2), ("50ms", 0.05), ("250us", 0.00025), ("1h30m", 5400), ("0s", 0)])
def test_durations_are_seconds(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("16Gi", 16 * 2**30), ("500M", 500 * 10**6), ("7", 7)])
def test_quantities_are_bytes(text: str, value: int) -> None:
    assert size_bytes(text) == value


@given(st.integers(0, 10**6))
def test_a_length_lies_in_its_bin(tokens: int) -> None:
    j = bin_of(tokens)
    assert TOKEN_BINS[j] <= tokens
    assert j == len(TOKEN_BINS) - 1 or tokens < TOKEN_BINS[j + 1]
