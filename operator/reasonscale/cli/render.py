"""`reasonscale render FILE...`: what a resource becomes in a cluster, as manifests."""

from __future__ import annotations

import sys
from pathlib import Path


def render(
    *files: Path, namespace: str = "default", replicas: int | None = None, image: str, code_image: str, cpu: bool = False,
    redis_address: str | None = None, pod_monitor: bool = True, network_policy: bool = True,
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
    """
    from reasonscale.api.load import load_models
    from reasonscale.api.resolve import resolve
    from reasonscale.api.validate import InvalidResource
    from reasonscale.render.children import children
    from reasonscale.render.context import Context
    from reasonscale.render.text import to_yaml

    if not files:
        print("render: name at least one file, such as examples/qwq-32b.yaml", file=sys.stderr)
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
            resolved = resolve(model)
            low, high = resolved.min_replicas, resolved.max_replicas
            wanted = replicas if replicas is not None else resolved.replicas or max(1, low)
            if not low <= wanted <= high:
                print(f"render: --replicas was {wanted}; {resolved.name} allows {low} to {high}", file=sys.stderr)
                return 2
            context = Context(
                namespace=namespace, replicas=wanted, image=image, code_image=code_image, cpu=cpu, redis_address=redis_address,
                pod_monitor=pod_monitor, network_policy=network_policy,
            )  # fmt: skip
            documents += children(model, resolved, context)
    print(to_yaml(documents), end="")
    return 0
