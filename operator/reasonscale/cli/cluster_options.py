"""What `render` and `operator` are both told of the pods that models become."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cyclopts import Parameter

from reasonscale.cli.checks import BadOption, number
from reasonscale.render.context import PodSize, SecretKey


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Options of every model's pods.

    Parameters
    ----------
    image
        Image with Ray and vLLM, for models that name none.
    code_image
        Image that carries reasonscale itself under /opt/reasonscale.
    cpu
        Engines on CPU instead of GPUs, for a trial.
    rdma
        Engines of replicas of several nodes may lock memory (IPC_LOCK), which restricted Pod Security does not admit.
    redis_address
        Redis for the fault tolerance of Ray's heads, such as redis:6379.
    redis_password_secret
        Secret with its password, NAME or NAME/KEY, in the namespace of each model; KEY is `password` when absent.
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

    image: str
    code_image: str
    cpu: bool = False
    rdma: bool = False
    redis_address: str | None = None
    redis_password_secret: str | None = None
    head_cpu: str = "500m"
    head_memory: str = "2Gi"
    ingress_cpu: str = "500m"
    ingress_memory: str = "2Gi"
    ingress_replicas: int = 2

    def given(self) -> dict[str, Any]:
        """Return them as a Context takes them; BadOption that names the flag."""
        for flag, image in (("--image", self.image), ("--code-image", self.code_image)):
            if not re.fullmatch(r"[\w.:/@-]+", image, re.ASCII):
                raise BadOption(f"{flag} was {image!r}; it must be an image's name, such as registry/name:tag")
        if self.redis_address is not None and not re.fullmatch(
            r"(rediss?://)?[\w.-]+:\d{1,5}", self.redis_address, re.ASCII
        ):
            raise BadOption(f"--redis-address was {self.redis_address!r}; it must be host:port, such as redis:6379")
        out: dict[str, Any] = {
            "image": self.image, "code_image": self.code_image, "cpu": self.cpu, "rdma": self.rdma,
            "redis_address": self.redis_address, "ingress_replicas": self.ingress_replicas,
        }  # fmt: skip
        for name, size in (
            ("head", (self.head_cpu, self.head_memory)),
            ("ingress", (self.ingress_cpu, self.ingress_memory)),
        ):
            try:
                out[name] = PodSize(*size)
            except ValueError as error:
                raise BadOption(f"--{name}-{str(error).replace('CPU', 'cpu')}") from None
        number("--ingress-replicas", self.ingress_replicas, 1, 16)
        if self.redis_password_secret is not None:
            if self.redis_address is None:
                raise BadOption("--redis-password-secret is given and --redis-address is not")
            try:
                out["redis_password"] = SecretKey.of(self.redis_password_secret)
            except ValueError as error:
                raise BadOption(f"--redis-password-secret {error}") from None
        return out
