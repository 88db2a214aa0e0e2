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
# Kubernetes' own quantities, as a pod's resources say them.
_SUFFIXES: Final = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    **{s: Fraction(1000**n) for n, s in enumerate("kMGTPE", 1)}, **{f"{s}i": Fraction(1024**n) for n, s in enumerate("KMGTPE", 1)},
}  # fmt: skip
AMOUNT_PATTERN: Final = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,2})?$"
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


MAX_AMOUNT: Final = 16  # characters
MAX_TEXT: Final = 20  # characters of a duration or a size


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


def amount(value: str | int) -> Fraction:
    """Return what a resource's quantity such as `500m`, `1.5`, `2e3` or `64Gi` says; ValueError if it is none."""
    match = re.fullmatch(AMOUNT_PATTERN[1:-1], str(value))
    if match is None:
        raise ValueError(f"was {value!r}; must be a quantity of at least 0, such as 500m, 4 or 64Gi")
    number, suffix = Fraction(match[1].rstrip(".")), match[3] or ""
    return number * _SUFFIXES[suffix] if suffix in _SUFFIXES else number * Fraction(10) ** int(suffix[1:])


def _want_amount(value: object) -> object:
    if isinstance(value, float):
        raise ValueError(f'was {value!r}; write it as text: "{value!r}"')
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"was {value!r}; must be a quantity, such as 500m, 4 or 64Gi")
    if isinstance(value, str) and len(value) > MAX_AMOUNT:
        raise ValueError(f"has {len(value)} characters; must have at most {MAX_AMOUNT}")
    amount(value)
    return value


def _want_duration(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value!r} has no unit: write {value}s, {value}ms or {value}us")
    return _short_enough(value)


def _want_quantity(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value!r} has no unit: write {value}Gi or {value}Mi")
    return _short_enough(value)


def _short_enough(value: object) -> object:
    # Before anything parses it: a text of a million digits is a number too.
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"has {len(value)} characters; must have at most {MAX_TEXT}")
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
    StringConstraints(min_length=2, max_length=MAX_TEXT),
    AfterValidator(_check_duration),
    Field(json_schema_extra={"pattern": DURATION_PATTERN}),  # the API server's check; ours has the better words
]
Quantity = Annotated[
    str,
    BeforeValidator(_want_quantity),
    StringConstraints(min_length=1, max_length=MAX_TEXT),
    AfterValidator(_check_quantity),
    Field(json_schema_extra={"pattern": QUANTITY_PATTERN}),
]
# Of a resource that a pod asks for. The schema holds whole numbers and texts, as Kubernetes' own does.
Amount = Annotated[
    int | str,
    BeforeValidator(_want_amount),
    Field(json_schema_extra={"pattern": AMOUNT_PATTERN, "maxLength": MAX_AMOUNT, "minimum": 0}),
]
