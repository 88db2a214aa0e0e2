"""What a shape that is not right is answered: pydantic's errors in the words of a user."""

from __future__ import annotations

import difflib
import re
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from reasonscale.api.base import NAME_PATTERN, SAID
from reasonscale.api.models import ReasoningModel
from reasonscale.api.validate import Problem

_MESSAGES: Final = {
    "missing": "is missing",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a map",
    "string_too_short": "must not be empty",
    "model_type": "must be a map",
    "model_attributes_type": "must be a map",
}

_BOUNDS: Final = {
    "greater_than_equal": "must be at least {}",
    "less_than_equal": "must be at most {}",
    "string_too_long": "characters: must have at most {}",
    "too_long": "entries: must have at most {}",
    "too_short": "entries: must have at least {}",
}


def _known_names(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the field names at a path of the resource, for a hint at the nearest."""
    current: Any = model
    for step in path:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
        found = next((f for n, f in current.model_fields.items() if step in (n, f.alias)), None)
        if found is None:
            return []
        current = _model_in(found.annotation)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [f.alias or n for n, f in current.model_fields.items()]
    return []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None


def problems_of_shape(error: ValidationError) -> list[Problem]:
    """Return pydantic's errors as problems: field path, what it was, what would be right."""
    problems = []
    for item in error.errors():
        path = tuple(p for p in item["loc"] if p != "[key]")
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
        kind, was = item["type"], item.get("input")
        if kind == "extra_forbidden":
            names = _known_names(ReasoningModel, path[:-1])
            near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
            message = "is no field" + (
                f"; did you mean {near[0]}?" if near else f" here; there are {', '.join(names)}" if names else " here"
            )
        elif kind == "literal_error":
            expected = item["ctx"]["expected"]
            message = f"was {was!r}; must be {'one of ' if ' or ' in expected else ''}{expected}"
        elif kind == "string_pattern_mismatch":
            message = f"was {_short(was)}; {SAID[item['ctx']['pattern']]}{_near(item['ctx']['pattern'], was)}"
        elif kind in _BOUNDS:
            limit = next(item["ctx"][k] for k in ("ge", "le", "max_length", "min_length") if k in item["ctx"])
            is_now = f"has {len(was)}" if isinstance(was, (str, list, dict)) else f"was {_short(was)};"
            message = f"{is_now} {_BOUNDS[kind].format(limit)}"
        elif kind in _MESSAGES:
            message = _MESSAGES[kind] if kind == "missing" else f"was {_short(was)}; {_MESSAGES[kind]}"
        elif kind == "value_error":
            message = str(item["ctx"]["error"])
        else:
            text = item["msg"][0].lower() + item["msg"][1:]
            message = f"was {_short(was)}; {text}"
        problem = Problem(where, message)
        if problem not in problems:
            problems.append(problem)
    return problems


def _near(pattern: str, value: object) -> str:
    """Return the name nearest to one that KubeRay refuses, where there is one."""
    near = re.sub("[^a-z0-9]+", "-", str(value).lower()).strip("-") if pattern == NAME_PATTERN else ""
    return f": write {near}" if near != value and re.fullmatch(NAME_PATTERN, near) else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
