"""Which of vLLM's arguments a resource may say, and what to answer to the others."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Values:
    """What an argument may be: texts that a pattern matches, in a form that the API server understands too."""

    pattern: str | None  # None: any text; images may register further ones
    said: str = ""


def _one_of(*values: str) -> Values:
    return Values(f"^({'|'.join(values)})$", f"must be one of {', '.join(values)}")


ANY: Final = Values(None)
SWITCH: Final = Values("^([Tt]rue|[Ff]alse)$", "must be true or false")
COUNT: Final = Values("^[1-9][0-9]{0,14}$", "must be a whole number of at least 1")
WHOLE: Final = Values("^(0|[1-9][0-9]{0,14})$", "must be a whole number of at least 0")
AMOUNT: Final = Values(r"^[0-9]{1,9}(\.[0-9]{1,9})?$", "must be a number of at least 0")
SHARE: Final = Values(r"^(0?\.0*[1-9][0-9]*|1(\.0*)?)$", "must lie above 0 and be at most 1")

# What the supported vLLM takes (EngineArgs and the configs that it fills, of 0.32), by name.
ARGS: Final[dict[str, Values]] = {
    "async_scheduling": SWITCH,
    "attention_backend": ANY,
    "block_size": COUNT,
    "cpu_offload_gb": AMOUNT,
    "disable_cascade_attn": SWITCH,
    "disable_custom_all_reduce": SWITCH,
    "dtype": _one_of("auto", "half", "float16", "bfloat16", "float", "float32"),
    "enable_chunked_prefill": SWITCH,
    "enable_dbo": SWITCH,
    "enable_eplb": SWITCH,
    "enable_prefix_caching": SWITCH,
    "enforce_eager": SWITCH,
    "generation_config": ANY,
    "gpu_memory_utilization": SHARE,
    "kv_cache_dtype": _one_of(
        "auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla", "nvfp4_ds_mla", "turboquant_k8v4",
        "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc", "ultraquant_4bit", "int4_per_token_head",
        "int8_per_token_head", "fp8_per_token_head", "nvfp4", "nvfp4_4over6",
    ),
    "kv_cache_memory_bytes": COUNT,
    "kv_offloading_size": AMOUNT,
    "load_format": ANY,
    "long_prefill_token_threshold": WHOLE,
    "max_cudagraph_capture_size": WHOLE,
    "max_logprobs": Values("^(-1|0|[1-9][0-9]{0,8})$", "must be a whole number of at least 0, or -1 for all"),
    "max_num_batched_tokens": COUNT,
    "max_num_seqs": COUNT,
    "moe_backend": ANY,
    "num_gpu_blocks_override": COUNT,
    "optimization_level": _one_of("0", "1", "2", "3"),
    "prefix_caching_hash_algo": _one_of("sha256", "sha256_cbor", "xxhash", "xxhash_cbor"),
    "quantization": ANY,
    "safetensors_load_strategy": _one_of("lazy", "eager", "prefetch", "torchao"),
    "scheduling_policy": _one_of("fcfs", "priority"),
    "seed": Values("^-?[0-9]{1,9}$", "must be a whole number of at most nine digits"),
    "tokenizer_mode": ANY,
}  # fmt: skip
ALLOWED: Final[frozenset[str]] = frozenset(ARGS)
# Refused by name: these would execute code, open ports or read files of the pod's choosing.
FORBIDDEN: Final = {
    "trust_remote_code": "it executes code that comes with the weights",
    "worker_cls": "it executes code by name",
    "worker_extension_cls": "it executes code by name",
    "scheduler_cls": "it executes code by name",
    "logits_processors": "it executes code by name",
    "logits_processor_pattern": "it executes code by name",
    "reasoning_parser_plugin": "it executes a file",
    "tool_parser_plugin": "it executes a file",
    "middleware": "it executes code by name",
    "distributed_executor_backend": "the placement is the operator's",
    "kv_transfer_config": "it opens ports and loads connectors by name",
    "kv_events_config": "it opens ports",
    "ec_transfer_config": "it opens ports",
    "data_parallel_address": "it opens ports",
    "data_parallel_rpc_port": "it opens ports",
    "master_addr": "it opens ports",
    "master_port": "it opens ports",
    "host": "it opens ports",
    "port": "it opens ports",
    "uds": "it opens a socket",
    "api_key": "authentication is the gateway's",
    "allowed_local_media_path": "it reads files",
    "chat_template": "it reads files",
    "config": "it reads files",
    "download_dir": "it reads files; use spec.model.cache",
    "hf_config_path": "it reads files",
    "hf_token": "a secret does not belong here; use spec.model.tokenSecretRef",
    "tokenizer": "it reads files; the model's own is used",
    "ssl_keyfile": "it reads files",
    "ssl_certfile": "it reads files",
    "otlp_traces_endpoint": "it sends data elsewhere",
    "enable_sleep_mode": "it follows from spec.scaling.asleep: say it there",
    "enable_lora": "adapters are not supported yet",
    **dict.fromkeys(
        ("compilation_config", "cudagraph_capture_sizes", "eplb_config", "hf_overrides", "limit_mm_per_prompt", "speculative_config"),
        "arguments that hold a map or a list are not supported yet",
    ),
    **dict.fromkeys(
        ("calculate_kv_scales", "max_long_partial_prefills", "max_num_partial_prefills", "max_seq_len_to_capture", "rope_scaling", "swap_space"),
        "vLLM has it no longer",
    ),
}  # fmt: skip
# Said by a typed field, so not again here.
TYPED: Final = {
    "model": "spec.model.uri",
    "served_model_name": "spec.model.name",
    "revision": "spec.model.uri (hf://name@revision)",
    "max_model_len": "spec.model.maxModelLen",
    "tensor_parallel_size": "spec.parallelism.tensor",
    "pipeline_parallel_size": "spec.parallelism.pipeline",
    "data_parallel_size": "spec.parallelism.data",
    "enable_expert_parallel": "spec.parallelism.expert",
    "reasoning_parser": "spec.reasoning.parser",
    "reasoning_config": "spec.reasoning",
}


def problem_of(name: str) -> str | None:
    """Return what is wrong with an argument's name and what would be right; None when it is allowed."""
    if name.startswith("-"):
        return f"{name!r} is a command line's: write {name.lstrip('-').replace('-', '_')}"
    if "-" in name:
        return f"{name!r} is not vLLM's name: write {name.replace('-', '_')}"
    if name in TYPED:
        return f"{name} is said by {TYPED[name]}: say it there"
    if name in FORBIDDEN:
        return f"{name} is not allowed: {FORBIDDEN[name]}"
    if name in ALLOWED:
        return None
    near = difflib.get_close_matches(name, ALLOWED, n=1)
    return f"{name} is not on the list of allowed engine arguments" + (f"; did you mean {near[0]}?" if near else "")


def text_of(value: str | int | float | bool) -> str:
    """Return an argument's value as the text that the cluster stores."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def problem_of_value(name: str, value: str | int | float | bool) -> str | None:
    """Return what is wrong with an allowed argument's value and what would be right; None when vLLM takes it."""
    values = ARGS[name]
    if values.pattern is None or re.fullmatch(values.pattern[1:-1], text_of(value)):
        return None
    return f"was {value!r}; {values.said}"


def value_of(text: str | int | float | bool) -> str | int | float | bool:
    """Return an argument's value as vLLM wants it: numbers and booleans out of the strings that the cluster stores."""
    if not isinstance(text, str):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
