"""What rendering is given beside the resource: where it goes and what the operator was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from reasonscale.api import constants as c
from reasonscale.api.models import ReasoningModel
from reasonscale.api.resolve import Resolved

RENDER_REVISION: Final = "1"  # changes when the same resource would come out as another cluster
RAY_VERSION: Final = "2.60.0"
ROLE_HEAD, ROLE_INGRESS, ROLE_ENGINE = "head", "ingress", "engine"
PORT_API, PORT_METRICS, PORT_DASHBOARD = 8000, 8080, 8265
# Ray resources that keep ingress and engines apart: engines never land beside an ingress, nor an ingress on a GPU.
RAY_INGRESS: Final = "reasonscale_ingress"
RAY_ENGINE: Final = "reasonscale_engine"
GPUS_PER_POD: Final = 8


@dataclass(frozen=True, slots=True)
class Context:
    """Where the children go. `uid`: the resource's, for owner references; None: nobody owns them."""

    namespace: str
    replicas: int
    image: str  # with Ray and vLLM, where the resource names none
    code_image: str  # carries our wheel, copied in before the engine starts
    uid: str | None = None
    cpu: bool = False  # engines on CPU: for trials
    rdma: bool = False  # engines of several pods a replica may lock memory
    redis_address: str | None = None
    pod_monitor: bool = True
    network_policy: bool = True
    operator_namespace: str = "reasonscale"


@dataclass(frozen=True, slots=True)
class Subject:
    """A resource and everything that its children are made of."""

    model: ReasoningModel
    resolved: Resolved
    context: Context

    @property
    def name(self) -> str:
        return self.resolved.name

    def labels(self, role: str | None = None) -> dict[str, str]:
        """Return the labels of a child, or of the pods of a role. Never app.kubernetes.io/name: KubeRay selects by it."""
        out = {c.LABEL_MODEL: self.name, "app.kubernetes.io/managed-by": c.FIELD_MANAGER}
        return out | ({c.LABEL_ROLE: role} if role else {})

    def metadata(self, name: str, role: str | None = None) -> dict[str, Any]:
        """Return the metadata of a child."""
        out: dict[str, Any] = {"name": name, "namespace": self.context.namespace, "labels": self.labels(role)}
        out["annotations"] = {c.ANNOTATION_REVISION: RENDER_REVISION}
        if self.context.uid:
            out["ownerReferences"] = [
                {
                    "apiVersion": c.API_VERSION, "kind": c.KIND, "name": self.model.metadata.name, "uid": self.context.uid,
                    "controller": True, "blockOwnerDeletion": False,
                }
            ]  # fmt: skip
        return out

    @property
    def gpus(self) -> int:
        """Return the GPUs of one replica; 0 on CPU."""
        return 0 if self.context.cpu else self.resolved.gpus_per_replica

    @property
    def pods_per_replica(self) -> int:
        return max(1, -(-self.gpus // GPUS_PER_POD))
