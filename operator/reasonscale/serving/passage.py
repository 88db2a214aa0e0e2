"""A request's passage through one engine, or several, as its ingress arranges it. Runs under Ray."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.util.metrics import Counter, Histogram

from reasonscale.api import constants as c
from reasonscale.serving.access_log import Entry
from reasonscale.serving.board import LossesOf
from reasonscale.serving.continuation import Continuation, packed, what_binds
from reasonscale.serving.gate import Ticket
from reasonscale.serving.hold import Pass
from reasonscale.serving.routing import Loads
from reasonscale.serving.settings import ModelSettings
from reasonscale.serving.shared import LOADS, PLACED
from reasonscale.serving.takeover import Takeover, Way

_PAUSES = [0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800]
_MODEL, _OUTCOME = c.LABEL_METRIC_MODEL, c.LABEL_METRIC_OUTCOME


@dataclass(slots=True)
class Call:
    """One request from its first byte to its line in the log."""

    entry: Entry
    headers: dict[str, str]
    ticket: Ticket | None = None
    known_by: Callable[[], str] = str  # what it is known by when it comes again
    session: str | None = None
    prompt_tokens: int = 0  # about so many
    size_bytes: int = 0  # of its body
    leave: Pass | None = None  # of a model that may sleep
    takeover: Takeover | None = None
    unique: str = ""
    settled: bool = False


class Passages:
    """What requests of all models share on their way: engines that were lost, and what is counted of it."""

    def __init__(self, handles: Mapping[str, Any], me: str) -> None:
        """`me`: this ingress' name among its like."""
        self._handles, self._me, self._losses = handles, me, LossesOf()
        self._resumes = Counter(c.M_RESUMES, description=c.M_RESUMES, tag_keys=(_MODEL, _OUTCOME))
        self._pause = Histogram(c.M_RESUME_PAUSE, description=c.M_RESUME_PAUSE, boundaries=_PAUSES, tag_keys=(_MODEL,))

    def share(self, shared: bool) -> None:
        """Tell whether there are other ingress replicas."""
        self._losses.share(shared)

    def _told(self, call: Call, kept: Continuation, typed: Any, most_output: int | None) -> dict[str, str]:
        """Return what every engine is told of a request."""
        entry = call.entry
        told = {
            c.HEADER_UNIQUE_ID: call.unique, c.HEADER_CLASS: entry.cls, c.HEADER_CREATED: str(int(entry.time)),
            c.HEADER_PROMPT_TOKENS: str(call.prompt_tokens), c.HEADER_INGRESS: self._me,
        }  # fmt: skip
        if most_output is not None:
            told[c.HEADER_MOST_OUTPUT] = str(most_output)
        if call.session is not None:
            told[c.HEADER_SESSION] = call.session
        if kept.binds is None:
            told[c.HEADER_KEEP] = "1"
        if getattr(typed, "tools", None):
            told[c.HEADER_BY_TOKEN] = "1"
        return told

    def of(self, settings: ModelSettings, typed: Any, call: Call, chat: bool, most_output: int | None) -> Takeover:
        """Return a request's way through one engine, or several."""
        entry, model = call.entry, settings.model
        kept = Continuation(what_binds(typed))
        unique = call.unique = f"{entry.id}.{uuid.uuid4().hex[:8]}"
        told = self._told(call, kept, typed, most_output)
        if kept.binds is None and call.ticket is not None:
            call.ticket.made = lambda: len(kept.ids)
        handle = self._handles[model]
        loads = LOADS.setdefault(handle.deployment_name, Loads())

        def open_stream() -> Any:
            again = {c.HEADER_AGAIN: str(taken.times + taken.moves)} if taken.times + taken.moves else {}
            made = {c.HEADER_MADE: packed(kept.kept)} if kept.kept else {}
            info = RawRequestInfo(headers=told | again | made)
            return (handle.chat if chat else handle.completions).remote(typed, info)

        def resumed(pause_s: float) -> None:
            self._resumes.inc(tags={_MODEL: model, _OUTCOME: "resumed"})
            self._pause.observe(pause_s, tags={_MODEL: model})

        way = Way(
            open_stream, placed=lambda: PLACED.get(unique), avoid=lambda replica: loads.avoid(replica, 10 * settings.hang_s),
            leaves=lambda replica: loads.goes_for_s(replica) > settings.hand_over_s, room=loads.room, resumed=resumed,
            moved=lambda: self._resumes.inc(tags={_MODEL: model, _OUTCOME: "moved"}),
        )  # fmt: skip
        taken = Takeover(
            kept, entry.time, self._losses.of(model), way, hang_s=settings.hang_s, attempts=settings.attempts
        )
        return taken

    def over(self, call: Call, *, given_up: bool) -> None:
        """Note in a request's line what it went through."""
        PLACED.pop(call.unique, None)
        if call.takeover is None:
            return
        entry = call.entry
        entry.moved, entry.resumed = call.takeover.moves, call.takeover.times
        if (entry.resumed or entry.moved) and given_up:
            self._resumes.inc(tags={_MODEL: entry.model, _OUTCOME: entry.error or "failed"})
