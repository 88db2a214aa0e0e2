"""`reasonscale render FILE...`: what a resource becomes in a cluster, as manifests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def render(
    *files: Path, namespace: str = "default", replicas: int | None = None, image: str, code_image: str, cpu: bool = False,
    redis_address: str | None = None, pod_monitor: bool = True, network_policy: bool = True,
    head_cpu: str = "500m", head_memory: str = "2Gi", ingress_cpu: str = "500m", ingress_memory: str = "2Gi", ingress_replicas: int = 2,
) -> int:  # fmt: skip
    """Print the RayService and its companions that resources become, for `kubectl apply -f -`.

    Parameters
    ----------
    files
        YAML files with ReasoningModels.
    namespace
        Where the manifests go.
    replicas
        Engines to start with; the resource's own number when absent.
    image
        Image with Ray and vLLM, for resources that name none.
    code_image
        Image that carries reasonscale itself under /opt/reasonscale.
    cpu
        Engines on CPU instead of GPUs, for a trial.
    redis_address
        Redis for the fault tolerance of Ray's head.
    pod_monitor
        Whether a PodMonitor is among them.
    network_policy
        Whether NetworkPolicies are among them.
    head_cpu
        CPU that the pod of a Ray's head asks for.
    head_memory
        Memory that it asks for; it may take twice as much.
    ingress_cpu
        CPU that each ingress pod asks for.
    ingress_memory
        Memory that it asks for; it may take twice as much.
    ingress_replicas
        Ingress pods of each model; 1 to 16.
    """
    from reasonscale.api.load import load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource
    from reasonscale.render.children import children
    from reasonscale.render.context import MODELS, Context
    from reasonscale.render.text import to_yaml

    if not files:
        print("render: name at least one file, such as examples/qwq-32b.yaml", file=sys.stderr)
        return 2
    try:
        small = small_pods((head_cpu, head_memory), (ingress_cpu, ingress_memory), ingress_replicas)
    except ValueError as error:
        print(f"render: {error}", file=sys.stderr)
        return 2
    documents = []
    for file in files:
        try:
            models = load_models(file)
        except InvalidResource as error:
            for problem in error.problems:
                print(f"{file}: {problem}", file=sys.stderr)
            return 2
        for model in models:
            resolved = resolve(model, MODELS)
            low, high = resolved.min_replicas, resolved.max_replicas
            wanted = replicas if replicas is not None else resolved.replicas or max(1, low)
            if not low <= wanted <= high:
                print(f"render: --replicas was {wanted}; {resolved.name} allows {low} to {high}", file=sys.stderr)
                return 2
            context = Context(
                namespace=namespace, replicas=wanted, image=image, code_image=code_image, cpu=cpu, redis_address=redis_address,
                pod_monitor=pod_monitor, network_policy=network_policy, **small,
            )  # fmt: skip
            documents += children(model, resolved, context)
    print(to_yaml(documents), end="")
    return 0


def small_pods(head: tuple[str, str], ingress: tuple[str, str], replicas: int) -> dict[str, Any]:
    """Return what a Context is told of pods without engines; ValueError that names the flag."""
    from reasonscale.render.context import PodSize

    out: dict[str, Any] = {"ingress_replicas": replicas}
    for name, size in (("head", head), ("ingress", ingress)):
        try:
            out[name] = PodSize(*size)
        except ValueError as error:
            raise ValueError(f"--{name}-{str(error).replace('CPU', 'cpu')}") from None
    if not 1 <= replicas <= 16:
        raise ValueError(f"--ingress-replicas was {replicas}; must be 1 to 16")
    return out
