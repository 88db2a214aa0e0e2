"""The ReasoningModel: the resource as a whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reasonscale.api import constants
from reasonscale.api.base import Part
from reasonscale.api.model_spec import Accelerator, Engine, Metadata, Model, Parallelism, Pod
from reasonscale.api.scaling_spec import Drain, Reasoning, RequestClass, Resume, Rollout, Scaling


class Spec(Part):
    """What the user wants."""

    model: Model = Field(description="The weights and their served name.")
    engine: Engine = Field(default_factory=Engine, description="The engine and its further arguments.")
    parallelism: Parallelism = Field(default_factory=Parallelism, description="How one replica is spread over GPUs.")
    accelerator: Accelerator = Field(default_factory=Accelerator, description="The GPU that the model wants.")
    reasoning: Reasoning = Field(default_factory=Reasoning, description="The chain of thought and its budgets.")
    replicas: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Replicas in the modes Manual and External; the scale subresource's path.",
    )
    scaling: Scaling = Field(default_factory=Scaling, description="How many replicas, and who decides.")
    classes: Annotated[list[RequestClass], Field(max_length=constants.MAX_CLASSES - 1)] = Field(
        default_factory=list, description="Classes of requests by header; absent: one class for each effort."
    )
    drain: Drain = Field(default_factory=Drain, description="How a replica stops.")
    resume: Resume = Field(default_factory=Resume, description="How requests of a lost engine go on.")
    rollout: Rollout = Field(default_factory=Rollout, description="How a change of the engine is brought in.")
    pod: Pod = Field(default_factory=Pod, description="What is applied to the pods with engines.")


class ReasoningModel(Part):
    """A reasoning model, served and scaled by its chain of thought."""

    api_version: Literal["reasonscale.io/v1alpha1"] = Field(description="reasonscale.io/v1alpha1")
    kind: Literal["ReasoningModel"] = Field(description="ReasoningModel")
    metadata: Metadata = Field(description="Kubernetes' metadata.")
    spec: Spec = Field(description="What the user wants.")

    @property
    def served_name(self) -> str:
        """Return the name that clients send as `model`."""
        return self.spec.model.name or self.metadata.name
