"""Reads YAML as a user means it: a key that stands twice is refused, where YAML's parsers let the last win."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml


class TwiceSaid(ValueError):
    """Keys that stand more than once in one map: field, and on which lines."""

    def __init__(self, found: list[tuple[str, list[int]]]) -> None:
        super().__init__("; ".join(f"{field} stands twice" for field, _ in found))
        self.found = found


def _twice(root: yaml.Node) -> Iterator[tuple[str, list[int]]]:
    seen: set[int] = set()  # a node that an alias repeats is looked at once
    left = [("", root)]
    while left:
        path, node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += [(f"{path}[{n}]", item) for n, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[tuple[str, str], list[int]] = {}
        for key, value in node.value:
            name = str(key.value)
            if isinstance(key, yaml.ScalarNode):
                lines.setdefault((key.tag, name), []).append(key.start_mark.line + 1)
            left.append((f"{path}.{name}" if path else name, value))
        yield from ((f"{path}.{name}" if path else name, at) for (_, name), at in lines.items() if len(at) > 1)


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML text; TwiceSaid where a key is repeated, yaml.YAMLError where it is no YAML."""
    loader = yaml.SafeLoader(text)
    try:
        out, found = [], []
        while loader.check_node() and (node := loader.get_node()) is not None:
            found += sorted(_twice(node), key=lambda twice: twice[1])
            out.append(loader.construct_document(node))
    finally:
        loader.dispose()
    if found:
        raise TwiceSaid(found)
    return out
