"""A model whose tokens are bytes, and whose every next token follows from the last: for cuts inside a character.

Real weights for the real engine, set by hand: a token's embedding has one place of its own, no layer changes it, and the head reads
from it the token that comes next. It thinks three characters over and over until its budget closes the chain, then answers a list
of tools' calls without an end.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

THOUGHT, PARTS = "é漢😀", ('{"name": "add", "arguments": {"note": "я', '", "of": ["€', '", "Ж', '"]}}\n')
THINK, THINK_END = "<think>", "</think>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", THINK, THINK_END)
WIDTH = 320


def _vocabulary() -> tuple[dict[str, int], dict[bytes, int], dict[str, int]]:
    """Return the tokenizer's vocabulary, and the ids of bytes and of the plain text between two characters."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate((*SPECIAL, *letters))}

    def spelled(text: str) -> str:
        return "".join(piece for piece, _ in level.pre_tokenize_str(text))

    # The byte-level alphabet keeps printable ASCII as it is, and shows other bytes by one letter each.
    by_byte = {bytes([b]): vocab[letter] for b, letter in _letters().items()}
    plain = {}
    for part in PARTS:
        text = part.rstrip("я€Ж")
        plain[part] = vocab.setdefault(spelled(text), len(vocab))
    return vocab, by_byte, plain


def _letters() -> dict[int, str]:
    """Return the letter that stands for each byte, as GPT-2's tokenizer has it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out, extra = {b: chr(b) for b in shown}, 0
    for b in range(256):
        if b not in out:
            out[b] = chr(256 + extra)
            extra += 1
    return out


def make(folder: Path) -> Path:
    """Write the model's files; return their folder."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab, by_byte, plain = _vocabulary()
    after: dict[int, int] = {}

    def chain(ids: list[int]) -> None:
        for one, two in itertools.pairwise(ids):
            assert after.setdefault(one, two) == two, "a byte that two others may follow"

    def of(text: str) -> list[int]:
        return [by_byte[bytes([b])] for b in text.encode()]

    thought = of(THOUGHT)
    chain([vocab[THINK], *thought, thought[0]])
    answer = [i for part in PARTS for i in (plain[part], *of(part[len(part.rstrip("я€Ж")) :]))]
    chain([vocab[THINK_END], *answer, answer[0]])

    size = WIDTH
    embedding, head = torch.zeros(size, WIDTH), torch.zeros(size, WIDTH)
    for token in range(size):
        embedding[token, token] = 1.0
    for one, two in after.items():
        head[two, one] = 1.0
    heads, kv, dim, inner = 2, 1, 32, 64
    layer = "model.layers.0."
    zeros = {
        "self_attn.q_proj.weight": (heads * dim, WIDTH), "self_attn.k_proj.weight": (kv * dim, WIDTH),
        "self_attn.v_proj.weight": (kv * dim, WIDTH), "self_attn.o_proj.weight": (WIDTH, heads * dim),
        "mlp.gate_proj.weight": (inner, WIDTH), "mlp.up_proj.weight": (inner, WIDTH), "mlp.down_proj.weight": (WIDTH, inner),
    }  # fmt: skip
    ones = {
        f"{layer}input_layernorm.weight": WIDTH, f"{layer}post_attention_layernorm.weight": WIDTH,
        f"{layer}self_attn.q_norm.weight": dim, f"{layer}self_attn.k_norm.weight": dim, "model.norm.weight": WIDTH,
    }  # fmt: skip
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    weights |= {layer + name: torch.zeros(*shape) for name, shape in zeros.items()}
    weights |= {name: torch.ones(n) for name, n in ones.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    plain_text = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    plain_text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain_text.decoder = decoders.ByteLevel()
    plain_text.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL[:3]])
    plain_text.add_tokens([AddedToken(t, special=False, normalized=False) for t in SPECIAL[3:]])
    plain_text.save(str(folder / "tokenizer.json"))

    def write(name: str, data: dict[str, Any]) -> None:
        (folder / name).write_text(json.dumps(data))

    write(
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 2048},
    )  # fmt: skip
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<think>"
    )
    write("generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    write(
        "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "dtype": "float32",
            "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "head_dim": dim, "hidden_act": "silu",
            "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": inner, "max_position_embeddings": 2048,
            "num_attention_heads": heads, "num_hidden_layers": 1, "num_key_value_heads": kv, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": False, "use_cache": True, "vocab_size": size,
        },
    )  # fmt: skip
    return folder
