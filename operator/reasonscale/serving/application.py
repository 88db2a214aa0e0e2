"""Builds the Serve application from its config's `args`. Runs under Ray."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment

from reasonscale.serving.config import INGRESS, ROUTER
from reasonscale.serving.ingress import make_ingress
from reasonscale.serving.numbers import built
from reasonscale.serving.server import ReasonServer


def _llm_config(args: dict[str, Any]) -> LLMConfig:
    gpus, share = int(args["gpus"]), float(args.get("gpu_share", 1.0))
    bundles: list[dict[str, float]] = [{"CPU": 1, "GPU": share} for _ in range(gpus)] or [{"CPU": 0.5}]
    bundles[0] |= args.get("resources", {})  # one of these a pod: an engine has its pods for itself
    return LLMConfig(
        model_loading_config={"model_id": args["model_id"], "model_source": args["model_source"]},
        engine_kwargs=args["engine_kwargs"],
        placement_group_config={"bundles": bundles},
        runtime_env={"env_vars": args["env"]},
        deployment_config={
            **built(sleeps=bool(args.get("sleeps"))),
            "ray_actor_options": {"num_cpus": 0.1},
            "request_router_config": {
                "request_router_class": args.get("router", ROUTER),  # another only where a benchmark compares them
                "request_routing_stats_period_s": 1.0,
            },
        },
        log_engine_metrics=True,
    )


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application: one ingress before one deployment of engines for each model."""
    servers = {
        model["model_id"]: build_llm_deployment(
            _llm_config(model),
            deployment_cls=ReasonServer,
            override_serve_options={"name": model["deployment"]},
            name_prefix="",
        )
        for model in args["models"]
    }
    ingress = args["ingress"]
    deployment = serve.deployment(make_ingress(), name=INGRESS).options(
        max_ongoing_requests=100_000,
        num_replicas=1,
        ray_actor_options={
            "num_cpus": ingress["num_cpus"],
            "resources": ingress.get("resources", {}),
            "runtime_env": {"env_vars": ingress["env"]},
        },
    )
    return deployment.bind(servers)
