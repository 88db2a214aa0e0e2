"""Rewrites what the engine streams: which fields carry the chain, whether it is shown, and true counts in `usage`. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

# A piece of a stream is (kind, text, ids, said). `kind`: what it carries; the ingress takes its times by it and never looks
# inside. `text`: what the client gets. `ids`: the tokens made since the piece before. `said`: characters by channel.
OTHER, REASONING, ANSWER, COUNTS, ERROR = "other", "reasoning", "answer", "counts", "error"
ALIVE = "alive"  # the engine has the request; sent at once, and while nothing else comes
DONE = "data: [DONE]\n\n"
C_ROLE, C_CHAIN, C_ANSWER, C_END, C_USAGE = "role", "r", "c", "end", "usage"  # what is no text counts as one character
Said = tuple[tuple[str, int], ...]
Piece = tuple[str, Any, list[int], Said]


def _fields(part: dict[str, Any], names: Sequence[str], hidden: bool) -> str:
    """Move a message's or a delta's chain to the wanted fields; return what the part carries."""
    chain = part.pop("reasoning", None)
    if chain is None:
        chain = part.pop("reasoning_content", None)
    else:
        part.pop("reasoning_content", None)
    kind = OTHER
    if chain:
        kind = REASONING
        if not hidden:
            for name in names:
                part[name] = chain
    if part.get("content") or part.get("tool_calls"):
        kind = ANSWER
    return kind


def _usage(data: dict[str, Any], reasoning_tokens: int) -> None:
    usage = data.get("usage")
    if isinstance(usage, dict) and "completion_tokens" in usage:
        details = usage.get("completion_tokens_details")
        usage["completion_tokens_details"] = (details if isinstance(details, dict) else {}) | {
            "reasoning_tokens": reasoning_tokens
        }


def event_of(data: dict[str, Any]) -> str:
    """Return an object as a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _said(choice: dict[str, Any], names: Sequence[str]) -> Said:
    """Return how many characters a choice says, by channel."""
    end = [(C_END, 1)] if choice.get("finish_reason") else []
    if "text" in choice:
        return ((C_ANSWER, len(choice["text"] or "")), *end)
    delta = choice.get("delta") or {}
    out = [(C_ROLE, 1)] if delta.get("role") else []
    chain = next((delta[name] for name in names if delta.get(name)), None)
    if chain:
        out.append((C_CHAIN, len(chain)))
    if delta.get("content"):
        out.append((C_ANSWER, len(delta["content"])))
    for call in delta.get("tool_calls") or ():
        index, function = call.get("index", 0), call.get("function") or {}
        if function.get("name"):
            out.append((f"n{index}", 1))
        if function.get("arguments"):
            out.append((f"a{index}", len(function["arguments"])))
    return (*out, *end)


def rewrite_event(
    event: str, names: Sequence[str], hidden: bool, reasoning_tokens: int, created: int | None = None
) -> tuple[str, str, Said]:
    """Return (kind, event, said) of one server-sent event. `created`: the time that the whole stream bears."""
    if not event.startswith("data: {"):
        return (OTHER, event, ())
    data = json.loads(event[6:])
    if "error" in data:
        return (ERROR, event, ())
    if created is not None and "created" in data:
        data["created"] = created
    choices = data.get("choices", [])
    kinds = [
        _fields(choice["delta"], names, hidden)
        if isinstance(choice.get("delta"), dict)
        else ANSWER
        if choice.get("text")  # a text completion
        else OTHER
        for choice in choices
    ]
    _usage(data, reasoning_tokens)
    kind = ANSWER if ANSWER in kinds else REASONING if REASONING in kinds else OTHER
    if hidden and kind == REASONING and not any(c.get("finish_reason") for c in choices) and not data.get("usage"):
        return (REASONING, "", ())
    said = _said(choices[0], names) if choices else ((C_USAGE, 1),) if data.get("usage") else ()
    return (kind, event_of(data), said)


def rewrite_response(data: dict[str, Any], names: Sequence[str], hidden: bool, reasoning_tokens: int) -> dict[str, Any]:
    """Return a whole response with its chain in the wanted fields and true counts."""
    for choice in data.get("choices", []):
        if isinstance(choice.get("message"), dict):
            _fields(choice["message"], names, hidden)
    _usage(data, reasoning_tokens)
    return data
