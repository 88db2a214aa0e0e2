"""Rewrites what the engine streams: which fields carry the chain, whether it is shown, and true counts in `usage`. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

# What a piece of a stream carries; the ingress takes its times by it and never looks inside.
OTHER, REASONING, ANSWER, COUNTS, ERROR = "other", "reasoning", "answer", "counts", "error"
DONE = "data: [DONE]\n\n"


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


def rewrite_event(event: str, names: Sequence[str], hidden: bool, reasoning_tokens: int) -> tuple[str, str] | None:
    """Return (kind, event) of one server-sent event; None where nothing is left to send of it."""
    if not event.startswith("data: {"):
        return (OTHER, event)
    data = json.loads(event[6:])
    if "error" in data:
        return (ERROR, event)
    kinds = [
        _fields(choice["delta"], names, hidden)
        if isinstance(choice.get("delta"), dict)
        else ANSWER
        if choice.get("text")  # a text completion
        else OTHER
        for choice in data.get("choices", [])
    ]
    _usage(data, reasoning_tokens)
    kind = ANSWER if ANSWER in kinds else REASONING if REASONING in kinds else OTHER
    if (
        hidden
        and kind == REASONING
        and not any(c.get("finish_reason") for c in data["choices"])
        and not data.get("usage")
    ):
        return (REASONING, "")
    return (kind, f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n")


def rewrite_response(data: dict[str, Any], names: Sequence[str], hidden: bool, reasoning_tokens: int) -> dict[str, Any]:
    """Return a whole response with its chain in the wanted fields and true counts."""
    for choice in data.get("choices", []):
        if isinstance(choice.get("message"), dict):
            _fields(choice["message"], names, hidden)
    _usage(data, reasoning_tokens)
    return data
