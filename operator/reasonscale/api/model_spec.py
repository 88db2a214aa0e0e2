"""The parts of the resource that say what is served and on what."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from reasonscale.api.base import (
    AnnotationMap,
    Key,
    LabelMap,
    LabelValue,
    MaybeObjectName,
    ModelName,
    ObjectName,
    Part,
    ShortText,
    shaped,
)
from reasonscale.api.quantity import Amount, Quantity

URI_PATTERN: Final = "^(hf|s3|gs|oci|pvc|file)://.+$"
_HUB: Final = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


def _check_uri(text: str) -> str:
    if re.fullmatch(URI_PATTERN[1:-1], text):
        return text
    on_hub = re.fullmatch(rf"(?:https?://(?:huggingface\.co|hf\.co)/)?({_HUB})(@[\w.-]+)?/?", text)
    if on_hub:
        right = f"write hf://{on_hub[1]}{on_hub[2] or ''}"
    elif text.startswith(("/", "./", "../")):
        right = f"write file://{text.removeprefix('./')}"
    else:
        right = "must begin with hf://, s3://, gs://, pvc:// or file://, as in hf://deepseek-ai/DeepSeek-R1"
    raise ValueError(f"was {text!r}; {right}")


Uri = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    AfterValidator(_check_uri),
    Field(json_schema_extra={"pattern": URI_PATTERN}),  # the API server's check; ours has the better words
]

# It becomes a part of names within Ray, and a metric's label.
ServedName = Annotated[
    str,
    shaped(
        r"^[A-Za-z0-9]([-A-Za-z0-9._/:]*[A-Za-z0-9])?$",
        "must be A-Z, a-z, 0-9, -, ., _, / and :, beginning and ending with a letter or digit",
        high=253,
    ),
]


def _want_argument(value: object) -> object:
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"was {value!r}; must be text, a number, or true or false")
    return value


Argument = Annotated[str | int | float | bool, BeforeValidator(_want_argument)]


class SecretKey(Part):
    """A key of a Secret in the model's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: ShortText = Field(description="Key within the Secret.")


class ClaimName(Part):
    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")


class HostPath(Part):
    path: Annotated[str, shaped(r"^/.*$", "must begin with /", low=1, high=512)] = Field(
        description="Absolute path on each node."
    )


class Cache(Part):
    """Where downloaded weights are kept between starts; one of the two."""

    persistent_volume_claim: ClaimName | None = Field(default=None, description="A claim that all replicas mount.")
    node_local: HostPath | None = Field(default=None, description="A folder on each node's own disk.")


class Model(Part):
    """The weights and how they are named to clients."""

    uri: Uri = Field(
        description="Where the weights are: hf://, s3://, gs://, oci://, pvc://claim/path or file://. hf:// may end in @revision."
    )
    name: ServedName | None = Field(
        default=None, description="Name that clients send as `model`; the resource's own name when absent."
    )
    max_model_len: int | None = Field(
        default=None,
        ge=64,
        le=2_000_000,
        description="Longest sequence in tokens, prompt and output together; the model's own when absent.",
    )
    token_secret_ref: SecretKey | None = Field(default=None, description="Token for a gated model.")
    cache: Cache | None = Field(default=None, description="Where downloaded weights are kept.")


class Engine(Part):
    """The engine and what is said to it beyond the typed fields."""

    name: Literal["vllm"] = Field(default="vllm", description="The engine.")
    image: Annotated[str, shaped(r"^\S+$", "must hold no blank", low=1, high=512)] | None = Field(
        default=None, description="Image with Ray and vLLM; the operator's default when absent."
    )
    args: Annotated[
        dict[Annotated[str, StringConstraints(min_length=1, max_length=64)], Argument], Field(max_length=64)
    ] = Field(
        default_factory=dict, description="vLLM's own arguments by their names in snake_case, as strings; allow-listed."
    )


class Parallelism(Part):
    """How one replica is spread over GPUs; their number per replica is the product of tensor, pipeline and data."""

    tensor: int = Field(default=1, ge=1, le=64, description="GPUs that share each layer.")
    pipeline: int = Field(default=1, ge=1, le=64, description="Stages of layers, one after another.")
    data: int = Field(default=1, ge=1, le=256, description="Copies of attention that share the experts.")
    expert: int = Field(
        default=1, ge=1, le=256, description="GPUs that the experts are spread over; 1 means not spread."
    )


ProfileName = Annotated[
    str,
    shaped(
        r"^[A-Za-z0-9._/][-A-Za-z0-9._/]*$",
        "must be a profile's name, such as qwen2-7b-h200, or on one machine the path of its file: A-Z, a-z, 0-9, -, _, . and /",
        low=1, high=253,
    ),
]  # fmt: skip


class Accelerator(Part):
    """The GPU that the model wants."""

    product: Annotated[LabelValue, StringConstraints(min_length=1)] | None = Field(
        default=None, description="Product as the node's label nvidia.com/gpu.product says it."
    )
    resource_name: Key = Field(default="nvidia.com/gpu", description="Extended resource to ask for.")
    fraction: int = Field(
        default=100, ge=5, le=100,
        description="Percent of one GPU's memory that a replica takes, for small models; on one machine replicas then share a GPU.",
    )  # fmt: skip
    profile: ProfileName | None = Field(
        default=None,
        description="Hardware profile whose step times the scaler starts from: a shipped one's name, one of the chart's `profiles`, "
        "or on one machine a file, relative to the resource's own.",
    )


class NamedSecret(Part):
    """A Secret in the model's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")


class Pod(Part):
    """What is applied to the pods with engines; shapes are those of a pod."""

    labels: LabelMap = Field(default_factory=dict, description="Labels to add.")
    annotations: AnnotationMap = Field(default_factory=dict, description="Annotations to add.")
    env: list[dict[str, object]] = Field(
        default_factory=list, max_length=64, description="Environment of the engine container."
    )
    env_from: list[dict[str, object]] = Field(
        default_factory=list, max_length=16, description="Sources of environment."
    )
    volumes: list[dict[str, object]] = Field(default_factory=list, max_length=32, description="Volumes to add.")
    volume_mounts: list[dict[str, object]] = Field(
        default_factory=list, max_length=32, description="Mounts in the engine container."
    )
    image_pull_secrets: list[NamedSecret] = Field(
        default_factory=list, max_length=16, description="Secrets for pulling images."
    )
    service_account_name: MaybeObjectName = Field(default="", description="Service account of the pods.")
    node_selector: LabelMap = Field(default_factory=dict, description="Labels that nodes must have.")
    tolerations: list[dict[str, object]] = Field(default_factory=list, max_length=32, description="Taints to tolerate.")
    affinity: dict[str, object] = Field(default_factory=dict, description="Affinity of the pods.")
    topology_spread_constraints: list[dict[str, object]] = Field(
        default_factory=list, max_length=16, description="How pods are spread."
    )
    priority_class_name: MaybeObjectName = Field(default="", description="Priority class of the pods.")
    scheduler_name: MaybeObjectName = Field(default="", description="Scheduler of the pods.")
    runtime_class_name: MaybeObjectName = Field(default="", description="Runtime class of the pods.")
    security_context: dict[str, object] = Field(default_factory=dict, description="Security context of the pods.")
    shm_size: Quantity = Field(
        default="16Gi", description="Size of /dev/shm, which engines of several GPUs talk through."
    )
    resources: Annotated[
        dict[Annotated[str, StringConstraints(max_length=16)], Annotated[dict[Key, Amount], Field(max_length=32)]],
        Field(max_length=2),
    ] = Field(default_factory=dict, description="Resources beside the GPUs: requests and limits.")


class Metadata(Part):
    """The few fields of Kubernetes' metadata that are read here; others are left to the API server."""

    name: ModelName = Field(description="Name of the resource.")
    namespace: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    generation: int | None = None
    uid: str | None = None
    resource_version: str | None = None
