"""What all parts of the resource share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """A part of the resource: camelCase outside, unknown fields refused, immutable once read."""

    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, populate_by_name=True, frozen=True, str_strip_whitespace=False
    )


# What KubeRay takes as a RayService's name: a Service's name with room for what it appends.
NAME_PATTERN = "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"
NAME_SAID = "KubeRay takes at most 47 of a-z, 0-9 and -, beginning with a letter and not ending with -"
Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Text = Annotated[str, StringConstraints(max_length=1024)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=253)]
StringMap = Annotated[
    dict[Annotated[str, StringConstraints(max_length=317)], Annotated[str, StringConstraints(max_length=1024)]],
    Field(max_length=64),
]
Loose = dict[str, Any]  # a shape that belongs to Kubernetes; the API server checks it when the pod is made
