"""`reasonscale render FILE...`: what a resource becomes in a cluster, as manifests."""

from __future__ import annotations

import sys
from pathlib import Path

from reasonscale.cli.checks import BadOption, label
from reasonscale.cli.cluster_options import ClusterOptions


def render(
    *files: Path, options: ClusterOptions, namespace: str = "default", replicas: int | None = None, pod_monitor: bool = True,
    network_policy: bool = True,
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
    pod_monitor
        Whether a PodMonitor is among them.
    network_policy
        Whether NetworkPolicies are among them.
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
    label("--namespace", namespace)
    given = options.given()
    documents = []
    seen: dict[str, Path] = {}  # the file of each name
    for file in files:
        try:
            models = load_models(file)
        except InvalidResource as error:
            for problem in error.problems:
                print(f"{file}: {problem}", file=sys.stderr)
            return 2
        for model in models:
            if (first := seen.setdefault(model.metadata.name, file)) is not file:
                raise BadOption(
                    f"{file}: metadata.name was {model.metadata.name}; {first} has one of that name: they must differ"
                )
            resolved = resolve(model, MODELS)
            low, high = resolved.min_replicas, resolved.max_replicas
            wanted = replicas if replicas is not None else resolved.replicas or max(1, low)
            if not low <= wanted <= high:
                print(f"render: --replicas was {wanted}; {resolved.name} allows {low} to {high}", file=sys.stderr)
                return 2
            context = Context(
                namespace=namespace, replicas=wanted, pod_monitor=pod_monitor, network_policy=network_policy, **given
            )  # fmt: skip
            documents += children(model, resolved, context)
    print(to_yaml(documents), end="")
    return 0
