"""Reads resources from YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reasonscale.api import constants
from reasonscale.api.documents import TwiceSaid, documents
from reasonscale.api.models import ReasoningModel
from reasonscale.api.shape import problems_of_shape
from reasonscale.api.validate import InvalidResource, Problem, validate


def parse(document: Any, base: Path | None = None) -> ReasoningModel:
    """Return a resource from its parsed YAML; InvalidResource with every problem where it is not right."""
    if not isinstance(document, dict):
        raise InvalidResource(
            [
                Problem(
                    "",
                    f"is no resource but {type(document).__name__}: it must be a map with apiVersion, kind, metadata and spec",
                )
            ]
        )
    kind, version = document.get("kind"), document.get("apiVersion")
    if kind != constants.KIND:
        raise InvalidResource([Problem("kind", f"was {kind!r}; must be {constants.KIND}")])
    if version != constants.API_VERSION:
        raise InvalidResource([Problem("apiVersion", f"was {version!r}; must be {constants.API_VERSION}")])
    document = {k: v for k, v in document.items() if k != "status"}
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        known = ("name", "namespace", "labels", "annotations", "generation", "uid", "resourceVersion")
        document["metadata"] = {k: v for k, v in metadata.items() if k in known}
    try:
        model = ReasoningModel.model_validate(document)
    except ValidationError as error:
        raise InvalidResource(problems_of_shape(error)) from None
    problems = validate(model, base)
    if problems:
        raise InvalidResource(problems)
    return model


def _times(lines: list[int]) -> str:
    often = "twice" if len(lines) == 2 else f"{len(lines)} times"
    at = sorted(set(lines))
    return f"stands {often} (line{'s' if len(at) > 1 else ''} {', '.join(map(str, at))}): keep one"


def base_of(path: Path | str) -> Path:
    """Return the folder that relative file:// paths of a resource's file start from; the current one where it is piped in."""
    folder = Path(path).parent
    return Path.cwd() if folder.is_relative_to("/dev") or folder.is_relative_to("/proc") else folder


def load_models(path: Path | str) -> list[ReasoningModel]:
    """Return the resources of a YAML file of one or several documents; InvalidResource where one is not right."""
    path = Path(path)
    try:
        found = [d for d in documents(path.read_text()) if d is not None]
    except FileNotFoundError:
        raise InvalidResource([Problem("", "there is no such file")]) from None
    except IsADirectoryError:
        raise InvalidResource([Problem("", "is a folder; name the files in it, such as examples/*.yaml")]) from None
    except OSError as error:
        raise InvalidResource([Problem("", f"can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise InvalidResource([Problem("", f"can't be read: {error}")]) from None
    except RecursionError:
        raise InvalidResource([Problem("", "lists or maps are nested too deeply")]) from None
    except TwiceSaid as error:
        raise InvalidResource([Problem(field, _times(lines)) for field, lines in error.found]) from None
    except ValueError as error:  # a number of thousands of digits, a date that is none
        raise InvalidResource([Problem("", f"holds a value that can't be: {str(error).partition(';')[0]}")]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InvalidResource([Problem("", f"is no YAML{where}: {getattr(error, 'problem', None) or error}")]) from None
    if not found:
        raise InvalidResource([Problem("", "is empty: it must hold a ReasoningModel")])
    models = [parse(document, base_of(path)) for document in found]
    names = [(model.metadata.namespace, model.metadata.name) for model in models]
    twice = [
        Problem("metadata.name", f"{name} stands {names.count((space, name))} times; the last would replace the others")
        for space, name in dict.fromkeys(names) if names.count((space, name)) > 1
    ]  # fmt: skip
    if twice:
        raise InvalidResource(twice)
    return models
