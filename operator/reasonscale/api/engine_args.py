"""Which of vLLM's arguments a resource may say, and what to answer to the others."""

from __future__ import annotations

import difflib
from typing import Final

ALLOWED: Final[frozenset[str]] = frozenset(
    [
        "async_scheduling",
        "attention_backend",
        "block_size",
        "calculate_kv_scales",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "disable_cascade_attn",
        "disable_custom_all_reduce",
        "dtype",
        "enable_chunked_prefill",
        "enable_dbo",
        "enable_eplb",
        "enable_prefix_caching",
        "enforce_eager",
        "eplb_config",
        "generation_config",
        "gpu_memory_utilization",
        "hf_overrides",
        "kv_cache_dtype",
        "kv_cache_memory_bytes",
        "kv_offloading_size",
        "limit_mm_per_prompt",
        "load_format",
        "long_prefill_token_threshold",
        "max_cudagraph_capture_size",
        "max_logprobs",
        "max_long_partial_prefills",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "max_num_seqs",
        "max_seq_len_to_capture",
        "moe_backend",
        "num_gpu_blocks_override",
        "optimization_level",
        "prefix_caching_hash_algo",
        "quantization",
        "rope_scaling",
        "safetensors_load_strategy",
        "scheduling_policy",
        "seed",
        "speculative_config",
        "swap_space",
        "tokenizer_mode",
    ]
)
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
    "enable_sleep_mode": "replicas that sleep are not supported yet",
    "enable_lora": "adapters are not supported yet",
}
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


def value_of(text: str | int | bool) -> str | int | float | bool:
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
