"""Durations and quantities as Kubernetes users write them, parsed to seconds and bytes."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

_UNITS_S: Final = {
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}
_DURATION = re.compile(r"(\d+)(us|ms|s|m|h)")
DURATION_PATTERN: Final = r"^([0-9]+(us|ms|s|m|h))+$"
_BYTES: Final = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
QUANTITY_PATTERN: Final = r"^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$"


def seconds(text: str) -> float:
    """Return a duration such as `2s`, `50ms`, `250us`, `1h30m` in seconds; ValueError if it is none."""
    if not re.fullmatch(DURATION_PATTERN[1:-1], text):
        raise ValueError(f"{text!r} is no duration: write a number with its unit (us, ms, s, m, h), such as 50ms or 2s")
    return float(sum(int(n) * _UNITS_S[u] for n, u in _DURATION.findall(text)))


def size_bytes(text: str) -> int:
    """Return a quantity such as `16Gi` or `500M` in bytes; ValueError if it is none."""
    match = re.fullmatch(r"(\d+)(k|M|G|T|Ki|Mi|Gi|Ti)?", text)
    if match is None:
        raise ValueError(f"{text!r} is no quantity: write a number with its unit (Ki, Mi, Gi, k, M, G), such as 16Gi")
    return int(match[1]) * _BYTES[match[2] or ""]


def _want_duration(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value!r} has no unit: write {value}s, {value}ms or {value}us")
    return value


def _want_quantity(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value!r} has no unit: write {value}Gi or {value}Mi")
    return value


def _check_duration(text: str) -> str:
    seconds(text)
    return text


def _check_quantity(text: str) -> str:
    size_bytes(text)
    return text


Duration = Annotated[
    str,
    BeforeValidator(_want_duration),
    StringConstraints(min_length=2, max_length=20),
    AfterValidator(_check_duration),
    Field(json_schema_extra={"pattern": DURATION_PATTERN}),  # the API server's check; ours has the better words
]
Quantity = Annotated[
    str,
    BeforeValidator(_want_quantity),
    StringConstraints(min_length=1, max_length=20),
    AfterValidator(_check_quantity),
    Field(json_schema_extra={"pattern": QUANTITY_PATTERN}),
]
