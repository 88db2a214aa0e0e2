"""Writes model folders of published shapes without weights: a config, a tokenizer whose every token has text, a template.

Random weights cost the same time as trained ones; lengths are forced by the requests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    # For a rehearsal on a CPU.
    "tiny": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
EOS = SPECIAL.index("<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def write(name: str, folder: Path) -> Path:
    """Write the shape's folder below `folder` and return it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shape, out = SHAPES[name], folder / name
    out.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet]
    words += [f"Ġt{i}" for i in range(shape["vocab_size"] - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(w, special=w not in ("<think>", "</think>")) for w in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(out))
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "max_position_embeddings": 32768, "torch_dtype": "bfloat16", "initializer_range": 0.02,
        "bos_token_id": 0, "eos_token_id": EOS, "attention_dropout": 0.0, "use_sliding_window": False, **shape,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return out


def resource(
    shape: str, folder: Path, *, fraction: int, replicas: int | None = None, seats: int = 256, context: int = 8192,
    tpot: str = "50ms", cpu: bool = False, most: int = 3, blocks: int = 400, tensor: int = 1,
) -> Path:  # fmt: skip
    """Write a shape's folder and a resource that serves it; `replicas`: so many, else scaled from 1 to `most`; `tensor`: GPUs of an engine."""
    source = write(shape, folder)
    args = {"load_format": "dummy", "max_num_seqs": str(seats), "enable_prefix_caching": "false"}
    if cpu:
        args |= {
            "dtype": "float32",
            "enforce_eager": "true",
            "block_size": "32",
            "num_gpu_blocks_override": str(blocks),
        }
    scaling: dict[str, Any] = {
        "maxReplicas": most, "objectives": {"ttft": "2s", "tpot": tpot, "attainmentPercent": 95},
        "rates": {"downStable": "20s", "downInterval": "10s"},
    }  # fmt: skip
    spec: dict[str, Any] = {
        "model": {"uri": f"file://{source}", "name": shape, "maxModelLen": context},
        "engine": {"args": args},
        "accelerator": {"fraction": fraction},
        "reasoning": {
            "parser": "qwen3",
            "budget": {"default": context - 1000, "max": context - 1000, "answerReserve": 16},
        },
        "scaling": scaling,
        "drain": {"max": "10m"},
    }
    if tensor > 1:
        spec["parallelism"] = {"tensor": tensor}
    if replicas is not None:
        spec["replicas"] = replicas
        scaling |= {"mode": "Manual", "maxReplicas": max(most, replicas)}
    out = folder / f"{shape}.yaml"
    import yaml

    out.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "reasonscale.io/v1alpha1",
                "kind": "ReasoningModel",
                "metadata": {"name": shape.replace(".", "-")},
                "spec": spec,
            }
        )
    )
    return out
