"""Builds the Serve application's config: what the dashboard API and a RayService take. Pure; no Ray is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.api.resolve import Resolved
from reasonscale.serving.numbers import numbered, set_emptied
from reasonscale.serving.settings import LOCAL_START_PRIOR_S, START_PRIOR_S, seats_of, settings_of

IMPORT_PATH: Final = "reasonscale.serving.app:build"
ROUTER: Final = "reasonscale.serving.router:ExpectedWork"
INGRESS: Final = c.DEPLOYMENT_INGRESS
# What every process with an engine or an ingress is told.
COMMON_ENV: Final[Mapping[str, str]] = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Serve LLM answers 408 after 600 s otherwise, in the middle of a long chain. A day.
    "RAY_SERVE_LLM_ROUTER_HTTP_TIMEOUT": "86400",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
}
# Serve gives the router, and the code that it serves, a loop in a thread of its own each. Three threads of one process then
# wait for each other's turn with every request and event: at 256 requests in a second the first token came 0.5 s later (docs/gpu.md).
ROUTER_ENV: Final[Mapping[str, str]] = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
INGRESS_ENV: Final[Mapping[str, str]] = {**ROUTER_ENV, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
LOOPBACK_ENV: Final[Mapping[str, str]] = {"REASONSCALE_LOOPBACK": "1"}
# What an engine on a CPU is told.
CPU_ENV: Final[Mapping[str, str]] = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every replica binds to core 0
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
LOCAL_ENV: Final[Mapping[str, str]] = {**LOOPBACK_ENV, **CPU_ENV}
# What an engine is told whose weights lie on this machine: it asks no hub for anything.
OFFLINE_ENV: Final[Mapping[str, str]] = {"HF_HUB_OFFLINE": "1"}

# Parsers of vLLM's that name no marks until a request says that it thinks. Without marks the engine answers every budget
# with an error, and nobody can count a chain.
_MARKS: Final[Mapping[str, tuple[str, str]]] = {
    "deepseek_v3": ("<think>", "</think>"),
    "poolside_v1": ("<think>", "</think>"),
    "minimax_m2_append_think": ("<think>", "</think>"),
    "hunyuan_a13b": ("<think>", "</think>"),
    "granite": ("Here is my thought process:", "Here is my response:"),
}


def deployment_name(resolved: Resolved) -> str:
    """Return the name of the deployment whose replicas hold the engines."""
    return "LLMServer:" + resolved.served_name.replace("/", "--").replace(".", "_")


def app_name(models: Sequence[Resolved]) -> str:
    """Return the application's name: the model's, or that of all that share one Ray."""
    return models[0].name if len(models) == 1 else "reasonscale"


def engine_kwargs(resolved: Resolved) -> dict[str, Any]:
    """Return vLLM's arguments: the typed fields and the resource's own."""
    out: dict[str, Any] = dict(resolved.engine_args)
    out["max_model_len"] = resolved.max_model_len
    out["max_num_seqs"] = resolved.max_num_seqs
    out["max_num_batched_tokens"] = resolved.max_num_batched_tokens
    if resolved.reasoning.parser is not None:
        out["reasoning_parser"] = resolved.reasoning.parser
        marks = _MARKS.get(resolved.reasoning.parser)
        if marks is not None:
            out["reasoning_config"] = {"reasoning_start_str": marks[0], "reasoning_end_str": marks[1]}
    if resolved.revision:
        out["revision"] = resolved.revision
    if resolved.tensor > 1:
        out["tensor_parallel_size"] = resolved.tensor
    if resolved.pipeline > 1:
        out["pipeline_parallel_size"] = resolved.pipeline
    if resolved.expert > 1:
        out["enable_expert_parallel"] = True
    return out


def model_args(
    resolved: Resolved, *, local: bool, gpus: bool, env: Mapping[str, str], resources: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return what the app builder is given of one model; `gpus`: its engines run on GPUs, else on this machine's CPU."""
    here = dict((LOOPBACK_ENV if gpus else LOCAL_ENV) if local else ({} if gpus else CPU_ENV))
    if local and resolved.model_source.startswith("/"):
        here |= OFFLINE_ENV
    kwargs = engine_kwargs(resolved)
    if gpus and resolved.asleep:
        kwargs["enable_sleep_mode"] = True
    if gpus and resolved.gpu_share < 1.0:
        kwargs["gpu_memory_utilization"] = resolved.gpu_memory_utilization
    return {
        "model_id": resolved.served_name,
        "model_source": resolved.model_source,
        "deployment": deployment_name(resolved),
        "engine_kwargs": kwargs,
        "gpus": resolved.gpus_per_replica if gpus else 0,
        # In a cluster a pod has its GPU, or its device plugin's part of one, for itself.
        **({"gpu_share": resolved.gpu_share} if gpus and local and resolved.gpu_share < 1.0 else {}),
        "resources": dict(resources or {}),
        "env": {**COMMON_ENV, **here, **env},
        # Only where it is so: whatever stands here restarts engines when it changes.
        **({"sleeps": True} if resolved.sleep is not None else {}),
    }


def serve_app(
    models: Sequence[Resolved], replicas: Mapping[str, int], *, local: bool, gpus: bool = False, env: Mapping[str, str] | None = None,
    ingress_env: Mapping[str, str] | None = None, ingress_replicas: int = 1, ingress_resources: Mapping[str, int] | None = None,
    engine_resources: Mapping[str, int] | None = None, emptied: Mapping[str, Sequence[str]] | None = None,
    asleep: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return one application of Serve's config.

    `replicas` maps a resource's name to its number, `emptied` to those replicas that the ingress sends nothing more to, `asleep` to those of them that sleep. Only numbers (`serving.numbers`) and `user_config` below change in place;
    everything under `args` and `runtime_env` restarts the application's engines. `..._resources`: Ray's own, by which
    a cluster keeps ingress and engines apart.
    """
    env = dict(env or {})
    start_s = LOCAL_START_PRIOR_S if local else START_PRIOR_S
    settings = {
        m.served_name: settings_of(m, ingress_replicas=ingress_replicas, start_s=start_s).to_json() for m in models
    }
    deployments: list[dict[str, Any]] = [
        {
            "name": deployment_name(m),
            **numbered(replicas[m.name], sleeps=m.sleep is not None),
            "user_config": settings[m.served_name],
            # What is beyond the seats waits at the gate of the ingress. The room above is for what goes on here after
            # its engine was lost, and for two ingresses that fill the same seat; past it Serve holds requests itself
            # and gives them to whichever replica has room.
            "max_ongoing_requests": 2 * seats_of(m) + 64,
            # A drain ends by itself with its last request, so that a long cap costs nothing.
            "graceful_shutdown_timeout_s": m.drain_s,
            "graceful_shutdown_wait_loop_s": 1.0,
            # A loaded machine answers late; an engine killed for it would lose every chain it holds.
            "health_check_period_s": 10.0,
            "health_check_timeout_s": 120.0,
        }
        for m in models
    ]
    deployments.append(
        {
            "name": INGRESS,
            "num_replicas": ingress_replicas,
            "user_config": {"models": settings, "ingresses": ingress_replicas},
            "graceful_shutdown_timeout_s": max(m.drain_s for m in models),
            "health_check_timeout_s": 120.0,
        }
    )
    for m in models:
        set_emptied(
            deployments[-1], deployment_name(m), (emptied or {}).get(m.name, ()), (asleep or {}).get(m.name, ())
        )
    return {
        "name": app_name(models),
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "runtime_env": {"env_vars": {**COMMON_ENV, **(LOOPBACK_ENV if local else {}), **env}},
        "args": {
            "models": [model_args(m, local=local, gpus=gpus, env=env, resources=engine_resources) for m in models],
            "ingress": {
                "env": {**COMMON_ENV, **INGRESS_ENV, **(LOOPBACK_ENV if local else {}), **(ingress_env or {})},
                "num_cpus": 0.1,
                "resources": dict(ingress_resources or {}),
            },
        },
        "deployments": deployments,
    }


def serve_config(app: Mapping[str, Any], *, host: str, port: int, proxy_location: str = "HeadOnly") -> dict[str, Any]:
    """Return the whole config that Serve's dashboard API takes."""
    return {
        "proxy_location": proxy_location,
        "http_options": {"host": host, "port": port, "keep_alive_timeout_s": 90},
        "applications": [dict(app)],
    }
