"""Reads a request before an engine sees it: its id, its body, its model. Pure but for the body's own stream."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

from reasonscale.serving.budget import Applied, BadRequest, apply, apply_completion, check_hidden, said
from reasonscale.serving.settings import MAX_BODY_BYTES, ModelSettings

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_PROMPTS = 64
MAX_CHOICES = 16
_SESSION_TEXT = 4096  # characters of a message by which a conversation is known
_SESSION_LEAST = 256  # a shorter beginning saves no prefill worth a crowded replica
_ASKED = (
    "messages", "prompt", "tools", "user", "prompt_cache_key", "seed", "n", "max_tokens", "max_completion_tokens", "max_output_tokens",
)  # fmt: skip


def request_id(given: str | None) -> str:
    """Return a request's id: the client's where it is well-formed, else a new one."""
    return given if given and _GOOD_ID.fullmatch(given) else uuid.uuid4().hex


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def parse_body(raw: bytes) -> dict[str, Any]:
    """Return a body's object; BadRequest where it is none."""
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except RecursionError:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the body was a {type(body).__name__}; it must be a JSON object", code="invalid_json")
    if b"\\ud" in raw.lower():  # half of a surrogate pair is JSON, and no text that a tokenizer takes
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadRequest(
                "the body holds half of a surrogate pair (\\ud800 to \\udfff)", code="invalid_json"
            ) from None
    return body


async def read_body(declared: str | None, chunks: AsyncIterator[bytes]) -> tuple[dict[str, Any], int]:
    """Return a body's object and its bytes; BadRequest (413) as soon as it is too large, whether its length was declared or not."""
    too_large = BadRequest(f"the body exceeds {MAX_BODY_BYTES} bytes", status=413, code="body_too_large")
    if declared and declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
        raise too_large
    raw = bytearray()
    async for chunk in chunks:
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise too_large
    return parse_body(bytes(raw)), len(raw)


def model_of(models: Mapping[str, ModelSettings], name: object) -> ModelSettings:
    """Return the settings of the model that a request names; BadRequest with the known names."""
    known = ", ".join(models)
    if name is None:
        raise BadRequest(f"model is missing; there are: {known}", "model")
    if not isinstance(name, str) or name not in models:
        raise BadRequest(f"model was {said(name)}; there are: {known}", "model", 404, "model_not_found")
    return models[name]


def _check_numbers(body: Mapping[str, Any]) -> None:
    n, prompt = body.get("n"), body.get("prompt")
    if isinstance(n, int) and n > MAX_CHOICES:
        raise BadRequest(f"n was {said(n)}; at most {MAX_CHOICES} are made at once", "n")
    if isinstance(prompt, list) and len(prompt) > MAX_PROMPTS and not isinstance(prompt[0], int):
        raise BadRequest(f"prompt held {len(prompt)} prompts; at most {MAX_PROMPTS} are taken at once", "prompt")


def _check_content(body: Mapping[str, Any], *, chat: bool) -> None:
    if chat:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise BadRequest("messages must be a list of at least one message", "messages")
    elif body.get("prompt") is None and body.get("prompt_embeds") is None:
        raise BadRequest("prompt is missing; it must be a text or a list of token ids", "prompt")


def session_of(body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """Return what a request has in common with those of its session; None where it has no session to be known by."""
    said_so = headers.get("x-session-id") or body.get("prompt_cache_key")
    if isinstance(said_so, str) and said_so:
        return _digest("id", said_so)
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    # Turns of one conversation begin alike: up to the first message of its user.
    first = [str(m.get("content"))[:_SESSION_TEXT] for m in messages[:2] if isinstance(m, dict)]
    return _digest("prompt", *first) if any(len(text) >= _SESSION_LEAST for text in first) else None


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=12).hexdigest()


def known_by(body: Mapping[str, Any], headers: Mapping[str, str], cls: str = "") -> str:
    """Return what a request is known by when its client sends it again: the key that it was given, else what it asks.

    Two clients that ask the same are two by their credentials or classes, and two samples of one prompt by their keys.
    """
    who, given = (headers.get("authorization") or "", cls), headers.get("idempotency-key")
    if given:
        return _digest("key", *who, given)
    asked = {name: body.get(name) for name in _ASKED}
    session = headers.get("x-session-id") or ""
    return _digest("again", *who, session, json.dumps(asked, sort_keys=True, ensure_ascii=True))


def sequences_of(body: Mapping[str, Any]) -> int:
    """Return how many sequences a request is: its choices, for each of its prompts."""
    prompt, n = body.get("prompt"), body.get("n")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (n if isinstance(n, int) and n > 1 else 1)


def govern(
    settings: ModelSettings,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    chat: bool,
    default: int | None = None,
) -> Applied:
    """Return a request with its budget and class; BadRequest for what no engine needs to see.

    `default`: the default budget for now, where it is not the resource's.
    """
    _check_content(body, chat=chat)
    _check_numbers(body)
    check_hidden(settings, body, chat=chat)
    return (apply if chat else apply_completion)(settings, body, headers, default)
