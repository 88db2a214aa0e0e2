"""Observations, policies and decisions as JSON and back, for the decision log and for replaying one."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from reasonscale.scaling.decide import decide
from reasonscale.scaling.state import State
from reasonscale.scaling.types import Decision, Observation, Policy

T = TypeVar("T")


def to_json(value: object) -> Any:
    """Return a value of `scaling.types` as plain dicts, lists, strings and numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def from_json(kind: type[T], data: Any, where: str = "") -> T:
    """Return the value of `kind` that `to_json` wrote. Raises ValueError that names the place of what is wrong."""
    where = where or kind.__name__
    built: T = _build(kind, data, where)
    return built


def _build(kind: Any, data: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if data is None:
            return None
        return _build(next(k for k in get_args(kind) if k is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} is {data!r}, a list is wanted")
        return tuple(_build(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(data))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise ValueError(f"{where} is {data!r}, an object is wanted")
        return {k: _build(get_args(kind)[1], v, f"{where}.{k}") for k, v in data.items()}
    if is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    wanted = (int, float) if kind is float else kind
    if not isinstance(data, wanted) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where} is {data!r}, {kind.__name__} is wanted")
    return float(data) if kind is float else data


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r}, an object is wanted")
    hints = _hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}; it has {', '.join(hints)}")
    try:
        return kind(**{name: _build(hints[name], value, f"{where}.{name}") for name, value in data.items()})
    except TypeError as error:
        raise ValueError(f"{where} lacks a field: {error}") from error


def replay(observations: Iterable[Observation], policy: Policy, state: State | None = None) -> Iterator[Decision]:
    """Yield the decisions that these observations, in order, lead to."""
    now = state or State.new()
    for seen in observations:
        decision, now = decide(seen, policy, now)
        yield decision
