"""One request across engines: what its client has, what an engine made of it, what the next engine is told. Pure.

An engine that takes over makes the whole request again up to the tokens that were made already, which it is given, and
goes on from there; `Continuation.take` drops of that what the client has. So every state between tokens and events
(chain and answer, tools, stop strings, half characters, usage) is the one that an undisturbed run would have.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

from reasonscale.serving import events

# What of a request can't be continued: its state lies in the engine alone, or what was made is not made again.
_STATEFUL: Final = (
    "logprobs",
    "prompt_logprobs",
    "structured_outputs",
    "bad_words",
    "vllm_xargs",
    "repetition_detection",
)
_PENALTIES: Final = ("presence_penalty", "frequency_penalty")


class NotTheSame(Exception):
    """The engine that took over made another prompt of the same request."""


def what_binds(request: Any) -> str | None:
    """Return the field for which a request can't go on in another engine once its client has some of it; None if it can."""
    if (getattr(request, "n", 1) or 1) > 1:
        return "n"
    prompt = getattr(request, "prompt", None)
    if getattr(request, "prompt_embeds", None) is not None:
        return "prompt_embeds"
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) and len(prompt) > 1:
        return "prompt"
    for name in _STATEFUL:
        if getattr(request, name, None):
            return name
    for name in _PENALTIES:
        if getattr(request, name, None):
            return name
    # A seeded draw depends on how many were made before it in the same engine.
    if getattr(request, "seed", None) is not None and getattr(request, "temperature", None) != 0:
        return "seed"
    if getattr(request, "use_beam_search", False):
        return "use_beam_search"
    shape = getattr(request, "response_format", None)
    if shape is not None and getattr(shape, "type", "text") != "text":
        return "response_format"
    choice = getattr(request, "tool_choice", None)
    if getattr(request, "tools", None) and choice not in (None, "none", "auto"):
        return "tool_choice"
    return None


def packed(ids: Sequence[int]) -> str:
    """Return token ids as text."""
    return base64.b64encode(array("I", ids).tobytes()).decode("ascii")


def unpacked(text: str) -> list[int]:
    """Return the token ids that `packed` made a text of; ValueError where it is none."""
    ids = array("I")
    ids.frombytes(base64.b64decode(text, validate=True))
    return ids.tolist()


class Continuation:
    """How far one request has got."""

    def __init__(self, binds: str | None) -> None:
        self.binds = binds  # the field that binds it to its engine
        self.ids: list[int] = []  # made so far, by whichever engine
        self.prompt: int | None = None  # the mark of the prompt that they follow
        self.begun = False  # the client has something of it
        self.holder: str | None = None  # the replica that has it, as that said itself
        self._sent: dict[str, int] = {}  # characters that the client has, by channel
        self._again: dict[str, int] | None = None  # the same, of what is made again

    @property
    def resumable(self) -> bool:
        """Whether another engine may take it."""
        return self.binds is None or not self.begun

    @property
    def kept(self) -> list[int]:
        """What the next engine is given: nothing where a request starts over."""
        return self.ids if self.binds is None else []

    def restart(self) -> None:
        """Another engine begins with it."""
        self.holder = None
        if self.binds is not None:
            self.ids = []
        self._again = {}

    def take(self, piece: Sequence[Any]) -> tuple[str, Any] | None:
        """Take a piece of a stream; return what of it the client has not, None where it has all."""
        kind, text, ids, said = piece
        if ids:
            self.ids.extend(ids)
        if kind == events.ALIVE:
            told = text if isinstance(text, Mapping) else {}
            self.holder = told.get("replica") or self.holder
            mark = told.get("prompt")
            if mark is not None:
                if self.prompt is not None and self.prompt != mark:
                    raise NotTheSame
                self.prompt = mark
            return (events.OTHER, "")
        if kind in (events.COUNTS, events.ERROR):
            return (kind, text)
        if self._again is None:
            for channel, length in said:
                self._sent[channel] = self._sent.get(channel, 0) + length
        else:
            text = self._rest(text, said)
            for channel, _ in said:
                self._sent[channel] = max(self._sent.get(channel, 0), self._again[channel])
            if text is None:
                return None
        self.begun = self.begun or (kind in (events.REASONING, events.ANSWER) and bool(text))
        return (kind, text)

    def _rest(self, event: str, said: Sequence[tuple[str, int]]) -> str | None:
        """Return what of an event that is made again the client has not; None where it has all of it."""
        assert self._again is not None
        cut: dict[str, int] = {}
        new = not said
        for channel, length in said:
            before = self._again.get(channel, 0)
            self._again[channel] = before + length
            cut[channel] = max(0, min(length, self._sent.get(channel, 0) - before))
            new = new or cut[channel] < length
        if not new:
            return None
        if not any(cut.values()):
            return event
        data = json.loads(event[6:])
        _trim(data, cut)
        return events.event_of(data)


def _trim(data: dict[str, Any], cut: Mapping[str, int]) -> None:
    """Take the first characters out of each channel of an event."""
    choice = data["choices"][0]
    if "text" in choice:
        choice["text"] = choice["text"][cut.get(events.C_ANSWER, 0) :]
        return
    delta = choice.get("delta") or {}
    if cut.get(events.C_ROLE):
        delta.pop("role", None)
    for name, value in list(delta.items()):
        if isinstance(value, str) and name != "role":
            skip = cut.get(events.C_ANSWER if name == "content" else events.C_CHAIN, 0)
            delta[name] = value[skip:]
    calls = []
    for call in delta.get("tool_calls") or []:
        index, function = call.get("index", 0), call.get("function") or {}
        if cut.get(f"n{index}"):
            for name in ("id", "type"):
                call.pop(name, None)
            function.pop("name", None)
        arguments = function.get("arguments")
        if arguments:
            function["arguments"] = arguments[cut.get(f"a{index}", 0) :]
        if function.get("name") or function.get("arguments"):
            calls.append(call)
    if delta.get("tool_calls"):
        delta["tool_calls"] = calls
