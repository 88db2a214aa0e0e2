"""What all parts of the resource share."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """A part of the resource: camelCase outside, unknown fields refused, immutable once read.

    Strict, as the API server is: `true` and `'4'` are no whole numbers.
    """

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        strict=True,
        str_strip_whitespace=False,
    )


SAID: Final[dict[str, str]] = {}  # what would be right, by the pattern that a text didn't match


def shaped(pattern: str, said: str, *, low: int | None = None, high: int | None = None) -> StringConstraints:
    """Return the constraint of a text that matches a pattern, and note the words for one that doesn't."""
    SAID[pattern] = said
    return StringConstraints(pattern=pattern, min_length=low, max_length=high)


# What KubeRay takes as a RayService's name: a Service's name with room for what it appends.
NAME_PATTERN: Final = "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"
NAME_SAID: Final = "KubeRay takes at most 47 of a-z, 0-9 and -, beginning with a letter and not ending with -"
_DNS: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
OBJECT_PATTERN: Final = rf"^{_DNS}(\.{_DNS})*$"
LABEL_PATTERN: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
KEY_PATTERN: Final = rf"^({_DNS}(\.{_DNS})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
KEY_SAID: Final = (
    "a key is at most 63 of A-Z, a-z, 0-9, -, _ and ., beginning and ending with a letter or digit; "
    "before it may stand a domain and /, as in corp.com/team"
)

ModelName = Annotated[str, shaped(NAME_PATTERN, NAME_SAID)]
Name = Annotated[
    str,
    shaped(
        r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "must be a-z, 0-9, - and ., beginning and ending with a letter or digit",
        low=1, high=63,
    ),
]  # fmt: skip
_OBJECT_SAID: Final = "Kubernetes names objects with a-z, 0-9, - and ., beginning and ending with a letter or digit"
ObjectName = Annotated[str, shaped(OBJECT_PATTERN, _OBJECT_SAID, low=1, high=253)]
MaybeObjectName = Annotated[str, shaped(f"^({OBJECT_PATTERN[1:-1]})?$", _OBJECT_SAID, high=253)]
Text = Annotated[str, StringConstraints(max_length=1024)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=253)]
LabelValue = Annotated[
    str,
    shaped(
        LABEL_PATTERN,
        "a label's value is at most 63 of A-Z, a-z, 0-9, -, _ and ., beginning and ending with a letter or digit",
        high=63,
    ),
]
Key = Annotated[str, shaped(KEY_PATTERN, KEY_SAID, high=317)]
LabelMap = Annotated[dict[Key, LabelValue], Field(max_length=64)]


def _check_annotation(key: str) -> str:
    if not re.fullmatch(KEY_PATTERN, key.lower()):  # Kubernetes looks at an annotation's key in lower case
        raise ValueError(f"was {key!r}; {KEY_SAID}")
    return key


AnnotationMap = Annotated[
    dict[Annotated[str, StringConstraints(max_length=317), AfterValidator(_check_annotation)], Text],
    Field(max_length=64),
]
