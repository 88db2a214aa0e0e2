"""What rendering is given beside the resource: where it goes and what the operator was told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
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
CODE: Final = Path("/reasonscale")  # our code in every pod, copied from the code image
MODELS: Final = CODE / "models"  # where relative file:// paths start from: what comes with the code


@dataclass(frozen=True, slots=True)
class PodSize:
    """What a pod without an engine asks for; it may take twice the memory."""

    cpu: str = "500m"
    memory: str = "2Gi"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]{1,5}m?|[0-9]{1,3}\.[0-9]{1,3}", self.cpu):
            raise ValueError(f"CPU was {self.cpu!r}; must be a number of cores or of thousandths, such as 1 or 500m")
        if not re.fullmatch(r"[0-9]{1,6}(Mi|Gi)", self.memory):
            raise ValueError(f"memory was {self.memory!r}; must be a whole number with Mi or Gi, such as 2Gi")

    def resources(self) -> dict[str, Any]:
        """Return its container's resources."""
        number, unit = int(self.memory[:-2]), self.memory[-2:]
        return {"requests": {"cpu": self.cpu, "memory": self.memory}, "limits": {"memory": f"{2 * number}{unit}"}}


SMALL: Final = PodSize()


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key of a Secret in the namespace of each model."""

    name: str
    key: str = "password"

    @classmethod
    def of(cls, text: str) -> SecretKey:
        """Return what NAME or NAME/KEY says; ValueError where it is neither."""
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(/[A-Za-z0-9._-]{1,253})?", text):
            raise ValueError(f"was {text!r}; must be a Secret's NAME or NAME/KEY")
        return cls(*text.split("/"))


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
    redis_password: SecretKey | None = None
    pod_monitor: bool = True
    network_policy: bool = True
    operator_namespace: str = "reasonscale"
    head: PodSize = SMALL
    ingress: PodSize = SMALL
    ingress_replicas: int = 2
    emptied: tuple[str, ...] = ()  # replicas that routers send nothing more to
    asleep: tuple[str, ...] = ()  # those of them that sleep
    active_cluster: str | None = None  # the RayCluster that serves, once one does
    spare: int = 0  # of `replicas`: for a rollout alone


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
