"""Drift: what stands in the cluster against what was applied. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reasonscale.api import constants as c

_EMPTY: tuple[Any, ...] = (None, {}, [], "")


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield the paths at which `found` does not have what is wanted; what it has beside that is not looked at."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for name, value in wanted.items():
            yield from differences(value, found.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            yield path
        else:
            for n, (a, b) in enumerate(zip(wanted, found, strict=True)):
                yield from differences(a, b, f"{path}[{n}]")
    elif wanted != found and not (wanted in _EMPTY and found in _EMPTY):
        yield path


def _leaves(fields: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    inner = {k: v for k, v in fields.items() if k != "."}
    if not inner:
        yield path
    for key, value in inner.items():
        if not key.startswith("f:"):
            yield path  # a list's member: the list as a whole is named
        else:
            yield from _leaves(value or {}, (*path, key[2:]))


def foreign(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """Return the fields of the spec that others than the operator set beside ours, with who set them."""
    out: dict[tuple[str, ...], str] = {}
    for entry in live["metadata"].get("managedFields") or ():
        if entry.get("subresource") or entry.get("manager") == c.FIELD_MANAGER:
            continue
        spec = (entry.get("fieldsV1") or {}).get("f:spec")
        for leaf in _leaves(spec, ("spec",)) if spec else ():
            if not _has(wanted, leaf) and _has(live, leaf):
                out[leaf] = str(entry.get("manager"))
    return out


def _has(tree: Any, path: tuple[str, ...]) -> bool:
    for step in path:
        if not isinstance(tree, Mapping) or step not in tree:
            return False
        tree = tree[step]
    return True


def removal(paths: Mapping[tuple[str, ...], str]) -> dict[str, Any]:
    """Return the merge patch that takes these fields away."""
    out: dict[str, Any] = {}
    for path in paths:
        node = out
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = None
    return out


def editors(live: Mapping[str, Any]) -> list[str]:
    """Return who else than the operator and KubeRay's status has set fields of the spec."""
    return sorted({
        str(e.get("manager")) for e in live["metadata"].get("managedFields") or ()
        if not e.get("subresource") and e.get("manager") != c.FIELD_MANAGER and "f:spec" in (e.get("fieldsV1") or {})
    })  # fmt: skip
