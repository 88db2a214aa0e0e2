"""The ingress: the OpenAI API before the engines, with budgets, classes and errors. Runs under Ray."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request
from ray import serve
from ray.util.metrics import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from reasonscale.api import constants as c
from reasonscale.serving import events, loopback
from reasonscale.serving.access_log import AccessLog, Entry
from reasonscale.serving.budget import BadRequest, max_output
from reasonscale.serving.entrance import Entrance, Told
from reasonscale.serving.errors import GaveUp, error_body
from reasonscale.serving.gate import Refusal, Ticket
from reasonscale.serving.hold import NotHeld
from reasonscale.serving.holds import Holds
from reasonscale.serving.numbers import ASLEEP, EMPTIED
from reasonscale.serving.passage import Call, Passages
from reasonscale.serving.reading import govern, known_by, model_of, read_body, request_id, sequences_of, session_of
from reasonscale.serving.rests import Rests
from reasonscale.serving.routing import Loads
from reasonscale.serving.settings import ModelSettings
from reasonscale.serving.shared import LOADS
from reasonscale.serving.stream import error_of, relay
from reasonscale.serving.typed import typed_request

_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800]
_TPOT = [0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1]
_MODEL, _CLS, _REASON = c.LABEL_METRIC_MODEL, c.LABEL_METRIC_CLASS, c.LABEL_METRIC_REASON
_CLIENT_GONE = 499
_ALIVE = (events.OTHER, "")
_SERVED = "POST /v1/chat/completions, POST /v1/completions and GET /v1/models"
log = logging.getLogger("ray.serve")


class _Stream(StreamingResponse):  # type: ignore[misc]
    """A streaming response whose source is closed also where a client went before its first byte."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()
            self.over()

    over: Any = staticmethod(lambda: None)  # called when all is over; settles what the source could not


loopback.apply()  # before Serve binds this replica's ports


class Ingress:
    """Answers the OpenAI API; holds one handle for each model."""

    def __init__(self, servers: dict[str, Any]) -> None:
        self._handles = {name: handle.options(stream=True) for name, handle in servers.items()}
        self._settings: dict[str, ModelSettings] = {}
        self._holds = Holds(self._handles)
        self._me = uuid.uuid4().hex[:8]
        self._gates: dict[str, Entrance] = {}
        self._rests = Rests(self._handles, self._waits)
        self._told = Told()
        self._created = int(time.time())
        self._log = AccessLog()
        self._times = {
            name: Histogram(name, description=name, boundaries=bounds, tag_keys=(_MODEL, _CLS))
            for name, bounds in ((c.M_TTFT, _SECONDS), (c.M_TTFAT, _SECONDS), (c.M_TPOT, _TPOT), (c.M_E2E, _SECONDS))
        }
        self._passages = Passages(self._handles, self._me)
        self._rejected = Counter(c.M_REJECTED, description=c.M_REJECTED, tag_keys=(_MODEL, _REASON))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new budgets, classes and limits; no engine restarts."""
        self._settings = {name: ModelSettings.from_json(data) for name, data in user_config["models"].items()}
        self._holds.configure(self._settings)
        self._passages.share(user_config.get("ingresses", 1) > 1)
        for model, handle in self._handles.items():
            if model in self._settings:
                name, most_s = handle.deployment_name, self._settings[model].hand_over_s + c.EMPTIED_MORE_S
                emptied, asleep = (user_config.get(key, {}).get(name, ()) for key in (EMPTIED, ASLEEP))
                LOADS.setdefault(name, Loads()).empty(emptied, most_s, asleep)
        self._rests.configure()

    def _waits(self, model: str) -> bool:
        """Tell whether a request waits so long at the gate that no replica may sleep: whoever should have it woken is gone, or late."""
        gate = self._gates.get(model)
        if gate is None:
            return False
        since = min((ticket.arrived_s for ticket in gate.gate.waiting), default=None)
        return since is not None and time.monotonic() - since > gate.settings.max_queue_s / 2

    def _gate(self, settings: ModelSettings) -> Entrance:
        name, gate = self._handles[settings.model].deployment_name, self._gates.get(settings.model)
        if gate is None:

            def takes(seats: int) -> Any:
                return LOADS[name].takes(seats, self._me) if name in LOADS else None

            gate = self._gates[settings.model] = Entrance(settings, takes, self._told)
        gate.rule(settings)
        return gate

    async def answer(self, request: Request, chat: bool) -> Response:
        """Answer a chat completion (or a completion), streamed or not."""
        given = request.headers.get(c.HEADER_REQUEST_ID)
        rid = request_id(given)
        endpoint = "chat" if chat else "completions"
        entry = Entry(time=round(time.time(), 3), id=rid, endpoint=endpoint, started_s=time.monotonic())
        # Serve's proxy answers with the id that it was given or made; ours beside it would come out twice.
        call = Call(entry, {} if given == rid else {c.HEADER_REQUEST_ID: rid})
        try:
            body, call.size_bytes = await read_body(request.headers.get("content-length"), request.stream())
            settings = model_of(self._settings, body.get("model"))
            entry.model = settings.model
            gate = self._gate(settings)
            applied = govern(settings, body, dict(request.headers), chat=chat, default=gate.budget_default)
            entry.cls, entry.budget = applied.cls, applied.label
            call.session = session_of(body, dict(request.headers))
            call.prompt_tokens = _about(request.headers.get("content-length"))
            call.headers |= {c.HEADER_BUDGET: applied.label, c.HEADER_CLASS: applied.cls}
            if applied.shrunk:
                call.headers |= gate.note_shrunk()
            typed = typed_request(applied.body, rid, chat)
            entry.streamed = bool(typed.stream)
            most = min((n for n in (max_output(body), applied.most_output) if n is not None), default=None)
            call.ticket = Ticket(entry.cls, prompt_tokens=call.prompt_tokens, most=most, seats=sequences_of(body))
            call.known_by = lambda: known_by(body, dict(request.headers), applied.cls)
            return await self._run(settings, typed, call, chat, applied.most_output)
        except BadRequest as error:
            return self._refuse(call, error.status, str(error), error.param, error.code)
        except NotHeld as error:
            self._rejected.inc(tags={_MODEL: entry.model, _REASON: error.code})
            call.headers["retry-after"] = str(error.retry_after_s)
            return self._refuse(call, 503, str(error), None, error.code)
        except (asyncio.CancelledError, ClientDisconnect):
            self._settle(call, _CLIENT_GONE, {})
            raise
        except Exception as error:
            status, message, code = _failure(error, rid)
            return self._refuse(call, status, message, None, code)

    async def _run(
        self, settings: ModelSettings, typed: Any, call: Call, chat: bool, most_output: int | None
    ) -> Response:
        assert call.ticket is not None
        call.leave = await self._holds.enter(settings.model, call.size_bytes)
        call.ticket.accepted = call.leave is not None and call.leave.held_s > 0.0
        gate = self._gates[settings.model]  # its rules may be newer than ours
        # Nobody is refused while a replica sleeps.
        refusal = await gate.enter(call.ticket, call.known_by, lambda: self._rests.rouse(settings.model))
        if refusal is not None:
            return self._overloaded(call, refusal)
        call.takeover = self._passages.of(settings, typed, call, chat, most_output)
        pieces = call.takeover.pieces()
        try:
            while (first := await anext(pieces, None)) == _ALIVE:
                pass  # no status can be sent yet
        except BaseException:
            await pieces.aclose()
            raise
        if call.leave is not None:
            call.leave.begun()
        if isinstance(first, tuple) and first[0] != events.ERROR:
            return self._streamed(first, pieces, call)
        await pieces.aclose()
        if first is None:
            return self._refuse(call, 500, "the engine gave no answer", None, "engine_error")
        if isinstance(first, tuple):
            status, message = error_of(first[1])
            return self._engine_error(call, status, message, None)
        if "refused" in first:
            return self._overloaded(call, Refusal(first["refused"], first["waiting"], full=True))
        if "error" in first:
            error = first["error"]
            code = error.get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            return self._engine_error(call, status, str(error.get("message") or ""), error.get("param"))
        self._settle(call, 200, first["counts"])
        return JSONResponse(first["response"], headers=call.headers)

    def _streamed(self, first: Any, pieces: Any, call: Call) -> Response:
        rid = call.entry.id
        body = relay(
            first,
            pieces,
            call.entry,
            settle=lambda status, counts: self._settle(call, status, counts),
            failure=lambda error: _failure(error, rid),
            more=call.takeover.more if call.takeover is not None else lambda: False,
        )
        headers = call.headers | {"cache-control": "no-cache", "x-accel-buffering": "no"}
        response = _Stream(body, media_type="text/event-stream", headers=headers)
        response.over = lambda: self._settle(call, _CLIENT_GONE, {})
        return response

    def _overloaded(self, call: Call, refusal: Refusal) -> Response:
        code = "queue_full" if refusal.full else "overloaded"
        gate = self._gates[call.entry.model]
        self._rejected.inc(tags={_MODEL: call.entry.model, _REASON: code})
        assert call.ticket is not None
        gate.note_refused(call.ticket)
        call.headers["retry-after"] = str(refusal.retry_after_s)
        longest = gate.settings.max_queue_s
        why = "are held or wait already" if refusal.full else f"run or wait, and one more would wait over {longest:g} s"
        message = f"{refusal.held} requests {why}; come back in {refusal.retry_after_s} s"
        return self._refuse(call, 429, message, None, code)

    def _engine_error(self, call: Call, status: int, message: str, param: str | None) -> Response:
        if status >= 500:
            log.error("request %s failed in the engine: %s", call.entry.id, message)
            message = f"the engine failed (request {call.entry.id}); the server's log has the reason"
        code = "engine_error" if status >= 500 else "invalid_value"
        return self._refuse(call, status, message, param, code)

    def _refuse(self, call: Call, status: int, message: str, param: str | None, code: str | None) -> Response:
        # The log has the code and the field at fault; the message may quote what the client wrote.
        field = param.split(".")[0] if param else None
        call.entry.error = f"{code}: {field}" if field else code
        if status == 503:
            call.headers.setdefault("retry-after", "1")
        self._settle(call, status, {})
        return JSONResponse(error_body(status, message, param=param, code=code), status, headers=call.headers)

    def _settle(self, call: Call, status: int, counts: dict[str, Any]) -> None:
        """Write a request's line and its times, once; whatever happens to its client afterwards."""
        if call.settled:
            return
        call.settled = True
        self._passages.over(call, given_up=status not in (200, _CLIENT_GONE))
        now, entry = time.monotonic(), call.entry
        if call.leave is not None:
            entry.held_s = round(call.leave.held_s, 4)
            call.leave.over()
        if call.ticket is not None:  # before all that may fail: a seat that is not given back is lost for good
            made = counts.get("reasoning_tokens", 0) + counts.get("answer_tokens", 0) if status == 200 else None
            self._gates[entry.model].leave(call.ticket, made)
        entry.status, entry.e2e_s = status, round(now - entry.started_s, 4)
        for name, value in counts.items():
            setattr(entry, name, value)
        self._log.write(entry)
        if status == 200:
            self._observe(entry, entry.e2e_s)

    def _observe(self, entry: Entry, e2e_s: float) -> None:
        tags = {_MODEL: entry.model, _CLS: entry.cls}
        self._times[c.M_E2E].observe(e2e_s, tags=tags)
        if entry.ttft_s is not None:
            self._times[c.M_TTFT].observe(entry.ttft_s, tags=tags)
            tokens = entry.reasoning_tokens + entry.answer_tokens
            if tokens > 1:
                self._times[c.M_TPOT].observe((e2e_s - entry.ttft_s) / (tokens - 1), tags=tags)
        if entry.ttfat_s is not None:
            self._times[c.M_TTFAT].observe(entry.ttfat_s, tags=tags)

    def models(self) -> dict[str, Any]:
        """Return OpenAI's list of models."""
        return {"object": "list", "data": [self.model(name) for name in self._settings]}

    def model(self, name: str) -> dict[str, Any]:
        """Return one entry of that list; BadRequest for an unknown name."""
        length = model_of(self._settings, name).max_model_len
        common = {"object": "model", "created": self._created, "owned_by": "reasonscale"}
        return {"id": name, **common, "max_model_len": length}


def _about(length: str | None) -> int:
    """Return about how many tokens a body holds, from its bytes."""
    return int(length) // 4 if length and length.isdigit() else 0


def _failure(error: Exception, rid: str) -> tuple[int, str, str]:
    """Return status, message and code of a failure between here and the engine: ours to log, not the client's to read."""
    if isinstance(error, GaveUp):
        log.error("request %s was given up (%s): %s", rid, error.code, error)
        return error.status, str(error), error.code
    log.error("request %s failed: %s", rid, error, exc_info=error)
    if "BackPressure" in type(error).__name__:
        return 503, "too many requests wait already; send it again", "engine_error"
    return 500, f"the engine failed (request {rid}); the server's log has the reason", "engine_error"


def make_ingress() -> Any:
    """Return the ingress as a class that Serve can deploy."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path} is not served; there are {_SERVED}"
        if error.status_code not in (404, 405):
            message = str(error.detail)
        body = error_body(error.status_code, message, code="not_served")
        return JSONResponse(body, status_code=error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> Response:
        body = error_body(error.status, str(error), param=error.param, code=error.code)
        return JSONResponse(body, status_code=error.status)

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
