"""Weights, KV cache and GPU memory of what people run, for the check whether they fit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GB: Final = 10**9


@dataclass(frozen=True, slots=True)
class Size:
    """A model's bytes of weights as published, KV bytes per token (unsplit) and longest context in tokens."""

    name: str
    weight_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    mla: bool = False  # latent KV, copied to every tensor rank instead of split


def _kv(layers: int, kv_heads: int, head_dim: int) -> int:
    return 2 * layers * kv_heads * head_dim * 2  # keys and values, two bytes each


# From the config.json that each model is published with.
_SIZES: Final[tuple[tuple[str, Size], ...]] = (
    (r"distill-qwen-1\.5b", Size("R1-Distill-Qwen-1.5B", int(3.6 * GB), _kv(28, 2, 128), 131072)),
    (r"distill-qwen-7b", Size("R1-Distill-Qwen-7B", int(15.2 * GB), _kv(28, 4, 128), 131072)),
    (r"distill-qwen-14b", Size("R1-Distill-Qwen-14B", int(29.5 * GB), _kv(48, 8, 128), 131072)),
    (r"distill-qwen-32b", Size("R1-Distill-Qwen-32B", int(65.5 * GB), _kv(64, 8, 128), 131072)),
    (r"distill-llama-8b", Size("R1-Distill-Llama-8B", int(16.1 * GB), _kv(32, 8, 128), 131072)),
    (r"distill-llama-70b", Size("R1-Distill-Llama-70B", int(141.1 * GB), _kv(80, 8, 128), 131072)),
    (r"r1-0528-qwen3-8b", Size("R1-0528-Qwen3-8B", int(16.4 * GB), _kv(36, 8, 128), 131072)),
    (r"deepseek[-_]?(r1|v3)", Size("DeepSeek-R1/V3 671B", int(688.6 * GB), 61 * 576 * 2, 163840, mla=True)),
    (r"qwq-32b", Size("QwQ-32B", int(65.5 * GB), _kv(64, 8, 128), 40960)),
    (r"qwen3-235b", Size("Qwen3-235B-A22B", int(470.2 * GB), _kv(94, 4, 128), 40960)),
    (r"qwen3-30b", Size("Qwen3-30B-A3B", int(61.1 * GB), _kv(48, 4, 128), 40960)),
    (r"qwen3-32b", Size("Qwen3-32B", int(65.5 * GB), _kv(64, 8, 128), 40960)),
    (r"qwen3-14b", Size("Qwen3-14B", int(29.5 * GB), _kv(40, 8, 128), 40960)),
    (r"qwen3-8b", Size("Qwen3-8B", int(16.4 * GB), _kv(36, 8, 128), 40960)),
    (r"qwen3-4b", Size("Qwen3-4B", int(8.0 * GB), _kv(36, 8, 128), 40960)),
    (r"qwen3-1\.7b", Size("Qwen3-1.7B", int(4.1 * GB), _kv(28, 8, 128), 40960)),
    (r"qwen3-0\.6b", Size("Qwen3-0.6B", int(1.5 * GB), _kv(28, 8, 128), 40960)),
    (r"gpt-oss-120b", Size("gpt-oss-120b", int(65.3 * GB), _kv(36, 8, 64), 131072)),
    (r"gpt-oss-20b", Size("gpt-oss-20b", int(13.8 * GB), _kv(24, 8, 64), 131072)),
)  # fmt: skip

# Memory as the products' names and data sheets say it.
_GPU_MEMORY: Final[tuple[tuple[str, int], ...]] = (
    (r"B300", 288), (r"B200", 180), (r"H200|GH200", 141), (r"H100.*NVL", 94), (r"H100", 80), (r"A100.*40", 40), (r"A100", 80), (r"L40S?", 48),
    (r"RTX.*6000.*Ada|A6000", 48), (r"A10G?\b", 24), (r"\bL4\b", 24), (r"T4", 16), (r"V100.*32", 32), (r"V100", 16), (r"MI300", 192), (r"4090|3090", 24),
)  # fmt: skip


def size_of(uri: str) -> Size | None:
    """Return the published size of the model that a URI names; None when it is not in the table."""
    path = uri.lower()
    return next((size for pattern, size in _SIZES if re.search(pattern, path)), None)


def gpu_memory_bytes(product: str) -> int | None:
    """Return the memory of a GPU product by its label, in bytes; None when it is not in the table."""
    match = re.search(r"(\d+)GB", product)
    if match:
        return int(match[1]) * GB
    return next((gb * GB for pattern, gb in _GPU_MEMORY if re.search(pattern, product)), None)


def size_in(folder: Path) -> Size | None:
    """Return a dense model's size by the config.json in its folder; None where that can't be told."""
    try:
        config = json.loads((folder / "config.json").read_text())
        hidden, layers, heads = (int(config[k]) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        kv_heads, wide = int(config.get("num_key_value_heads", heads)), int(config["intermediate_size"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        vocab, tables = int(config["vocab_size"]), 1 if config.get("tie_word_embeddings") else 2
        context = int(config.get("max_position_embeddings", 32768))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any("expert" in key for key in config):
        return None  # how many weights there are depends on more than these
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    weights = 2 * (vocab * hidden * tables + layers * (attention + 3 * hidden * wide))
    return Size(folder.name, weights, _kv(layers, kv_heads, head_dim), context)
