"""What runs in Serve's HTTP proxy, before the ingress: a request has one id, and every answer comes to an end.

Serve's own middleware takes any `x-request-id` and answers with it; ours stands before it. Where an ingress dies, Serve
closes its clients' connections without a word; ours says what happened. In a pod, each answer ends its connection. Serve loads it by
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`; without it all works, and a malformed id is answered with two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from reasonscale.api.constants import HEADER_REQUEST_ID
from reasonscale.serving import events
from reasonscale.serving.errors import error_body
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


_LOST = error_body(503, "what answered this request was lost; send it again", code="ingress_lost")


class WholeAnswers:
    """Ends in words an answer that Serve left without one: the ingress that gave it was lost."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = ended = events_come = gone = False

        async def heard() -> Any:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def told(message: Any) -> None:
            nonlocal started, ended, events_come
            if message["type"] == "http.response.start":
                started = True
                kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
                events_come = any(kind.startswith(b"text/event-stream") for kind in kinds)
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        await self._app(scope, heard, told)
        if ended or gone:
            return
        if not started:
            body = json.dumps(_LOST).encode()
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif events_come:
            # The event that was cut may lack its end: a blank line ends it, and clients pass over what is no event.
            body = f"\n\n{events.event_of(_LOST)}{events.DONE}".encode()
            await send({"type": "http.response.body", "body": body})


class OneAnswerAConnection:
    """Ends each connection with its answer, so that a Service chooses a pod for each request.

    It chooses for each connection: a gateway that keeps its own would go on asking the cluster that a rollout has replaced, until
    that is deleted with the chains in it, and would never ask an ingress that was added. A connection takes a thousandth of
    what a chain does.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"connection"]
                message = dict(message) | {"headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, told)


def middlewares(environ: Mapping[str, str] = os.environ) -> list[Any]:
    """Return what Serve wraps around its proxy."""
    from starlette.middleware import Middleware

    found = [Middleware(WholeAnswers), Middleware(RequestIds)]
    if "KUBERNETES_SERVICE_HOST" in environ:  # in every pod
        found.insert(0, Middleware(OneAnswerAConnection))
    return found
