"""What runs in Serve's HTTP proxy, before the ingress: a request has one id, and it is well-formed.

Serve's own middleware takes any `x-request-id` and answers with it; ours stands before it. Serve loads it by
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`; without it all works, and a malformed id is answered with two.
"""

from __future__ import annotations

from typing import Any

from reasonscale.api.constants import HEADER_REQUEST_ID
from reasonscale.serving.reading import request_id

IMPORT_PATH = "reasonscale.serving.proxy:middlewares"
_NAME = HEADER_REQUEST_ID.encode()


class RequestIds:
    """Replaces a malformed id, or several, by a new one."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == _NAME]
            rid = request_id(given[0] if len(given) == 1 else None)
            others = [(name, value) for name, value in scope["headers"] if name.lower() != _NAME]
            scope = dict(scope) | {"headers": [*others, (_NAME, rid.encode())]}
        await self._app(scope, receive, send)


def middlewares() -> list[Any]:
    """Return what Serve wraps around its proxy."""
    from starlette.middleware import Middleware

    return [Middleware(RequestIds)]
