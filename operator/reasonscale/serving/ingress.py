"""The ingress: the OpenAI API before the engines, with budgets, classes and errors. Runs under Ray."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, CompletionRequest
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.util.metrics import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from reasonscale.api import constants as c
from reasonscale.serving import events, loopback
from reasonscale.serving.access_log import AccessLog, Entry
from reasonscale.serving.budget import Applied, BadRequest, apply, class_of, max_output
from reasonscale.serving.errors import error_body
from reasonscale.serving.settings import MAX_BODY_BYTES, ModelSettings

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800]
_TPOT = [0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1]
MAX_PROMPTS = 64
loopback.apply()


class Ingress:
    """Answers the OpenAI API; holds one handle for each model."""

    def __init__(self, servers: dict[str, Any]) -> None:
        self._handles = {name: handle.options(stream=True) for name, handle in servers.items()}
        self._settings: dict[str, ModelSettings] = {}
        self._created = int(time.time())
        self._log = AccessLog()
        tags = (c.LABEL_METRIC_MODEL, c.LABEL_METRIC_CLASS)
        self._ttft = Histogram(c.M_TTFT, description=c.M_TTFT, boundaries=_SECONDS, tag_keys=tags)
        self._ttfat = Histogram(c.M_TTFAT, description=c.M_TTFAT, boundaries=_SECONDS, tag_keys=tags)
        self._tpot = Histogram(c.M_TPOT, description=c.M_TPOT, boundaries=_TPOT, tag_keys=tags)
        self._e2e = Histogram(c.M_E2E, description=c.M_E2E, boundaries=_SECONDS, tag_keys=tags)
        self._rejected = Counter(
            c.M_REJECTED, description=c.M_REJECTED, tag_keys=(c.LABEL_METRIC_MODEL, c.LABEL_METRIC_REASON)
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new budgets, classes and limits; no engine restarts."""
        self._settings = {name: ModelSettings.from_json(data) for name, data in user_config["models"].items()}

    # -- reading a request

    async def _body(self, request: Request) -> dict[str, Any]:
        declared = request.headers.get("content-length", "")
        too_large = BadRequest(f"the body exceeds {MAX_BODY_BYTES} bytes", status=413, code="body_too_large")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            raise too_large
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > MAX_BODY_BYTES:
                raise too_large
        try:
            body = json.loads(bytes(raw))
        except (ValueError, UnicodeDecodeError) as error:
            raise BadRequest(f"the body is no JSON: {error}", code="invalid_json") from None
        if not isinstance(body, dict):
            raise BadRequest(f"the body was a {type(body).__name__}; it must be a JSON object", code="invalid_json")
        return body

    def _model(self, body: dict[str, Any]) -> ModelSettings:
        name = body.get("model")
        known = ", ".join(self._settings)
        if name is None:
            raise BadRequest(f"model is missing; there are: {known}", "model")
        if not isinstance(name, str) or name not in self._settings:
            raise BadRequest(f"model was {name!r}; there are: {known}", "model", 404, "model_not_found")
        return self._settings[name]

    def _applied(self, settings: ModelSettings, body: dict[str, Any], headers: dict[str, str], chat: bool) -> Applied:
        if chat:
            return apply(settings, body, headers)
        max_output(body)
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) > MAX_PROMPTS and not isinstance(prompt[0], int):
            raise BadRequest(f"prompt held {len(prompt)} prompts; at most {MAX_PROMPTS} are taken at once", "prompt")
        out = {k: v for k, v in body.items() if k not in ("thinking_token_budget", "reasoning_effort")}
        return Applied(out, None, class_of(settings, headers, None, None, True), "unlimited")

    def _typed(self, body: dict[str, Any], rid: str, chat: bool) -> Any:
        n = body.get("n")
        if isinstance(n, int) and n > 16:
            raise BadRequest(f"n was {n}; at most 16 are made at once", "n")
        kind = ChatCompletionRequest if chat else CompletionRequest
        try:
            request = kind.model_validate(body | {"request_id": rid})
            return _sanitize_chat_completion_request(request) if chat else request
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"] if not str(p).startswith("Chat")) or None
            raise BadRequest(f"{where or 'the body'}: {first['msg']}", where) from None
        except ValueError as error:
            raise BadRequest(str(error)) from None

    # -- answering

    async def answer(self, request: Request, chat: bool) -> Response:
        """Answer a chat completion (or a completion), streamed or not."""
        started = time.monotonic()
        given = request.headers.get(c.HEADER_REQUEST_ID, "")
        rid = given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        entry = Entry(time=round(time.time(), 3), id=rid, endpoint="chat" if chat else "completions")
        headers: dict[str, str] = {}  # Serve's proxy answers with x-request-id by itself: the client's, or one it made
        try:
            body = await self._body(request)
            settings = self._model(body)
            entry.model = settings.model
            applied = self._applied(settings, body, dict(request.headers), chat)
            entry.cls, entry.budget = applied.cls, applied.label
            headers |= {c.HEADER_BUDGET: applied.label, c.HEADER_CLASS: applied.cls}
            typed = self._typed(applied.body, rid, chat)
            entry.streamed = bool(typed.stream)
            return await self._run(settings, typed, entry, headers, started, chat)
        except BadRequest as error:
            return self._refuse(entry, headers, started, error.status, str(error), error.param, error.code)
        except Exception as error:
            return self._refuse(entry, headers, started, *_failure(error), code="engine_error")

    async def _run(
        self, settings: ModelSettings, typed: Any, entry: Entry, headers: dict[str, str], started: float, chat: bool
    ) -> Response:
        info = RawRequestInfo(headers={c.HEADER_REQUEST_ID: entry.id, c.HEADER_CLASS: entry.cls})
        handle = self._handles[settings.model]
        stream = (handle.chat if chat else handle.completions).remote(typed, info)
        pieces = _pieces(stream)
        first = await anext(pieces, None)
        if first is None:
            return self._refuse(entry, headers, started, 500, "the engine gave no answer", None, "engine_error")
        if isinstance(first, dict):
            return self._whole(first, entry, headers, started)
        if first[0] == events.ERROR:
            status, message = _stream_error(first[1])
            return self._refuse(entry, headers, started, status, message, None, None)
        return StreamingResponse(
            self._events(first, pieces, entry, started), media_type="text/event-stream", headers=headers
        )

    def _whole(self, first: dict[str, Any], entry: Entry, headers: dict[str, str], started: float) -> Response:
        if "refused" in first:
            self._rejected.inc(tags={c.LABEL_METRIC_MODEL: entry.model, c.LABEL_METRIC_REASON: "queue_full"})
            headers["retry-after"] = str(first["refused"])
            message = f"{first['waiting']} requests wait already; come back in {first['refused']} s"
            return self._refuse(entry, headers, started, 429, message, None, "queue_full")
        if "error" in first:
            error = first["error"]
            status = int(error.get("code") or 400)
            return self._refuse(entry, headers, started, status, error.get("message", ""), error.get("param"), None)
        self._done(entry, first["counts"], started, 200)
        return JSONResponse(first["response"], headers=headers)

    async def _events(
        self, first: Any, rest: AsyncIterator[Any], entry: Entry, started: float
    ) -> AsyncGenerator[str, None]:
        counts: dict[str, Any] = {}
        status, done = 499, False  # the client went away, unless something else comes
        try:
            item: Any = first
            while item is not None:
                kind, text = item
                if kind == events.COUNTS:
                    counts = text
                else:
                    if kind in (events.REASONING, events.ANSWER):
                        entry.first(kind == events.ANSWER, started)
                    elif kind == events.ERROR:
                        status, entry.error = 500, _stream_error(text)[1]
                    done = done or text == events.DONE
                    if text:
                        yield text
                item = await anext(rest, None)
            if status == 499:
                status = 200
        except Exception as error:
            status, message = _failure(error)[:2]
            entry.error = message
            yield f"data: {json.dumps(error_body(status, message, code='engine_error'))}\n\n"
        finally:
            self._done(entry, counts, started, status)
        if not done:
            yield events.DONE

    def _refuse(
        self,
        entry: Entry,
        headers: dict[str, str],
        started: float,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
    ) -> Response:
        entry.error = message
        self._done(entry, {}, started, status)
        return JSONResponse(error_body(status, message, param=param, code=code), status_code=status, headers=headers)

    def _done(self, entry: Entry, counts: dict[str, Any], started: float, status: int) -> None:
        entry.status = status
        entry.e2e_s = round(time.monotonic() - started, 4)
        for name, value in counts.items():
            setattr(entry, name, value)
        self._log.write(entry)
        if status != 200:
            return
        tags = {c.LABEL_METRIC_MODEL: entry.model, c.LABEL_METRIC_CLASS: entry.cls}
        self._e2e.observe(entry.e2e_s, tags=tags)
        if entry.ttft_s is not None:
            self._ttft.observe(entry.ttft_s, tags=tags)
            tokens = entry.reasoning_tokens + entry.answer_tokens
            if tokens > 1:
                self._tpot.observe((entry.e2e_s - entry.ttft_s) / (tokens - 1), tags=tags)
        if entry.ttfat_s is not None:
            self._ttfat.observe(entry.ttfat_s, tags=tags)

    def models(self) -> dict[str, Any]:
        """Return OpenAI's list of models."""
        return {"object": "list", "data": [self.model(name) for name in self._settings]}

    def model(self, name: str) -> dict[str, Any]:
        """Return one entry of that list; BadRequest for an unknown name."""
        settings = self._model({"model": name})
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "reasonscale",
            "max_model_len": settings.max_model_len,
        }


async def _pieces(stream: Any) -> AsyncGenerator[Any, None]:
    """Flatten what the server sends: it batches several events of a stream into a list."""
    async for item in stream:
        if isinstance(item, list):
            for piece in item:
                yield piece
        else:
            yield item


def _stream_error(event: str) -> tuple[int, str]:
    try:
        error = json.loads(event[6:])["error"]
        code = error.get("code")
        return (code if isinstance(code, int) and 400 <= code < 600 else 500), str(error.get("message"))
    except (ValueError, KeyError, TypeError):
        return 500, "the engine failed"


def _failure(error: Exception) -> tuple[int, str, None]:
    """Return status and message of a failure between here and the engine: ours to log, not the client's to read."""
    import logging

    logging.getLogger("ray.serve").error("request failed: %s", error, exc_info=error)
    name = type(error).__name__
    if "Died" in name or "Unavailable" in name:
        return 503, "the engine that held this request was lost; send it again", None
    return 500, "the engine failed; the server's log has the reason", None


def make_ingress() -> Any:
    """Return the ingress as a class that Serve can deploy."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path} is not served; there are POST /v1/chat/completions, POST /v1/completions and GET /v1/models"
        if error.status_code not in (404, 405):
            message = str(error.detail)
        return JSONResponse(
            error_body(error.status_code, message), status_code=error.status_code, headers=dict(error.headers or {})
        )

    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> Response:
        return JSONResponse(
            error_body(error.status, str(error), param=error.param, code=error.code), status_code=error.status
        )

    @serve.ingress(app)
    class ReasonIngress(Ingress):
        @app.post("/v1/chat/completions")
        async def chat_completions(self, request: Request) -> Response:
            return await self.answer(request, chat=True)

        @app.post("/v1/completions")
        async def completions(self, request: Request) -> Response:
            return await self.answer(request, chat=False)

        @app.get("/v1/models")
        async def list_models(self) -> Any:
            return self.models()

        @app.get("/v1/models/{name:path}")
        async def one_model(self, name: str) -> Any:
            return self.model(name)

        @app.get("/health")
        async def health(self) -> Any:
            return {"status": "ok"}

    return ReasonIngress
