"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

_TYPES = {
    400: "invalid_request_error", 404: "not_found_error", 405: "invalid_request_error", 413: "invalid_request_error",
    429: "rate_limit_error", 499: "request_cancelled", 500: "server_error", 503: "server_error",
}  # fmt: skip


class EngineLost(Exception):
    """The engine that held a request is no more, or hangs; the request is not at fault."""


class GaveUp(Exception):
    """A request is not tried again. `status` and `code` are what its client is told."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def is_loss(error: BaseException) -> bool:
    """Tell whether an error says that an engine was lost, and not that a request was wrong.

    Through Ray an error comes as a subclass made on the way, so that its name tells, not its class.
    """
    name = type(error).__name__
    return any(word in name for word in ("ActorDied", "ActorUnavailable", "WorkerCrashed", "NodeDied", "EngineLost"))


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": param,
            "code": code,
        }
    }
