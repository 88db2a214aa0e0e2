"""The requests that an engine has: what the ingress says of each, how far its choices are, and what it came to.

Each choice has a row in the ledger. Needs no engine.
"""

from __future__ import annotations

import time
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reasonscale.api import constants as c
from reasonscale.serving.continuation import unpacked
from reasonscale.serving.ledger import Ledger, Result, Tracker
from reasonscale.serving.steps import StepSums


@dataclass(slots=True)
class Asked:
    """What the ingress says of one request, from its coming to its end."""

    cls: str
    most: int | None = None  # output tokens after which it ends as by max_tokens
    created: int | None = None  # the time that all of its events bear
    made: list[int] = field(default_factory=list)  # tokens that another engine made of it
    by_token: bool = False  # those are made again one by one
    keeps: bool = False  # the ingress is told of every token
    fresh: list[int] = field(default_factory=list)  # tokens that it was not told of yet
    mark: int | None = None  # of its prompt; not told yet
    arriving: bool = True  # not in the ledger yet: its prompt is being made
    ingress: str = ""  # which sent it
    sequences: int = 0  # choices of all its prompts that have begun
    tools: bool = False  # it may call tools
    gathers: bool = False  # its tokens leave the engine several at once

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Asked:
        most, created = headers.get(c.HEADER_MOST_OUTPUT, ""), headers.get(c.HEADER_CREATED, "")
        made = headers.get(c.HEADER_MADE)
        return cls(
            headers.get(c.HEADER_CLASS, c.CLASS_MEDIUM), max(1, int(most)) if most.isdigit() else None,
            int(created) if created.isdigit() else None, unpacked(made) if made else [],
            c.HEADER_BY_TOKEN in headers, c.HEADER_KEEP in headers, ingress=headers.get(c.HEADER_INGRESS, ""),
        )  # fmt: skip


class InFlight:
    """What one engine has in its hands."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.sums = StepSums()
        self.start_ids: tuple[int, ...] = ()  # that open and close a chain; none: nothing is known of chains
        self.end_ids: tuple[int, ...] = ()
        self._trackers: dict[str, Tracker] = {}
        self._whole: set[str] = set()  # requests whose output comes at once: read from the engine's own state
        self._asked: dict[str, Asked] = {}  # by the id that a request came with
        self._results: OrderedDict[str, Result] = OrderedDict()

    @property
    def any(self) -> bool:
        """Whether there is a request, also one whose prompt is being made."""
        return bool(self._asked or self.ledger.rows)

    @property
    def waiting(self) -> int:
        """How many wait. A burst is counted while its prompts are still being made, else all of it would pass."""
        return self.ledger.waiting + sum(a.arriving for a in self._asked.values())

    def enter(self, plain: str, headers: Mapping[str, str]) -> Asked:
        """Take a request with what the ingress says of it; `leave` has to follow."""
        asked = self._asked[plain] = Asked.of(headers)
        return asked

    def leave(self, plain: str, rid: str) -> None:
        """Forget a request; what an aborted one came to is nobody's."""
        self._asked.pop(plain, None)
        self.counts(rid)

    def get(self, plain: str) -> Asked | None:
        """Return what was said of a request; None where there is none."""
        return self._asked.get(plain)

    def generated(self, key: str) -> int | None:
        """Return the tokens that a choice has; None where it has ended."""
        tracker = self._trackers.get(key)
        return None if tracker is None else tracker.generated

    def thinks(self, prompt_ids: Any) -> bool:
        """Tell whether a prompt leaves the chain open: it is closed where its last end mark follows its last start."""
        if not self.end_ids:
            return False
        if len(self.end_ids) != 1 or not prompt_ids:
            return True
        ids = list(prompt_ids)
        end = len(ids) - 1 - ids[::-1].index(self.end_ids[0]) if self.end_ids[0] in ids else -1
        start = len(ids) - 1 - ids[::-1].index(self.start_ids[0]) if self.start_ids and self.start_ids[0] in ids else -1
        return end < 0 or start > end

    def begin(self, keys: Sequence[str], asked: Asked, prompt_ids: Any, thinks: bool, delta: bool) -> list[int]:
        """Enter a request's choices in the ledger; return what another engine made of it."""
        now = time.time()
        if asked.keeps and prompt_ids:
            asked.mark = _mark_of(prompt_ids)
        for key in keys:
            tracker = self._trackers[key] = Tracker(self.end_ids, thinks)
            if asked.made:
                tracker.feed(asked.made)
                self.ledger.resume(
                    key, asked.cls, now, prompt_tokens=len(prompt_ids), generated=tracker.generated,
                    reasoning_tokens=tracker.reasoning_tokens, answering=tracker.answering,
                )  # fmt: skip
                continue
            self.ledger.start(key, asked.cls, now, thinks=not tracker.answering)
            if prompt_ids:
                self.ledger.prompt(key, len(prompt_ids))
            if not delta:
                self._whole.add(key)
        return asked.made

    def progress(self, key: str, token_ids: Sequence[int], delta: bool) -> None:
        """Note what a choice has made: since the last time (`delta`), or in all."""
        tracker, asked = self._trackers[key], self.asked_of(key)
        new = token_ids if delta else list(token_ids[tracker.generated :])
        tracker.feed(new)
        if asked.keeps:
            asked.fresh.extend(new)
        self.ledger.progress(key, tracker.generated, tracker.reasoning_tokens, tracker.answering)

    def finish(self, key: str, index: int, budget: int | None, *, ended: bool) -> None:
        """Take a choice out of the ledger, once."""
        tracker = self._trackers.pop(key, None)
        self._whole.discard(key)
        if tracker is None:
            return
        # vLLM forces the end marks as the budget's last tokens.
        exhausted = budget is not None and tracker.reasoning_tokens >= budget - len(self.end_ids) >= 0
        result = self.ledger.finish(key, time.time(), ended=ended, exhausted=exhausted)
        if not self.ledger.rows:
            self.sums.idle()  # after an abort no step may follow that would say so
        if result is not None:
            # The choices of a request have one prompt.
            self._results[key] = result if index == 0 else replace(result, prompt_tokens=0)

    def asked_of(self, rid: str) -> Asked:
        """Return what was said of a request, from the id of one of its prompts in the engine."""
        # One prefix is the engine's; what follows may look like one, and is the client's.
        plain = rid.removeprefix("chatcmpl-") if rid.startswith("chatcmpl-") else rid.removeprefix("cmpl-")
        return self._asked.get(plain) or self._asked.get(plain.rsplit("-", 1)[0]) or Asked(c.CLASS_MEDIUM)

    def look(self, client: Any) -> None:
        """Bring the rows of requests whose output comes at once up to date, from the engine's own state."""
        if not self._whole:
            return
        for state in list(client.output_processor.request_states.values()):
            parent = getattr(state, "parent_req", None)
            external = getattr(state if parent is None else parent, "external_req_id", None) or state.request_id
            rid = row_id(external, state.request_index)
            tracker = self._trackers.get(rid)
            if tracker is None or rid not in self._whole or state.detokenizer is None:
                continue
            self.ledger.prompt(rid, state.prompt_len or 0)
            ids = state.detokenizer.output_token_ids
            if len(ids) > tracker.generated:
                self.progress(rid, ids, delta=False)

    def by_ingress(self) -> dict[str, int]:
        """Return the sequences that are here, by the ingress that sent them."""
        found: dict[str, int] = {}
        for asked in self._asked.values():
            found[asked.ingress] = found.get(asked.ingress, 0) + max(1, asked.sequences)
        return found

    def retry_after_s(self) -> int:
        """Return when a place should be free: what waits at the rate of late, between 1 and 60 s."""
        rate = self.ledger.ends_per_s(time.time())
        return 5 if not rate else max(1, min(60, round(self.ledger.waiting / rate)))

    def reasoned(self, rid: str) -> int:
        """Return the reasoning tokens of a request's parts so far."""
        rows: dict[str, Tracker | Result] = {**self._trackers, **self._results}
        return sum(row.reasoning_tokens for key, row in rows.items() if _part_of(key, rid))

    def counts(self, rid: str) -> dict[str, Any]:
        """Return what a request came to, its parts (several prompts) added up."""
        keys = [key for key in self._results if _part_of(key, rid)]
        found = [self._results.pop(k) for k in keys]
        return {
            "prompt_tokens": sum(r.prompt_tokens for r in found),
            "reasoning_tokens": sum(r.reasoning_tokens for r in found),
            "answer_tokens": sum(r.answer_tokens for r in found),
            "budget_exhausted": any(r.exhausted for r in found),
        }


def _mark_of(prompt_ids: Sequence[int]) -> int:
    """Return a mark by which two engines see that they were given the same prompt."""
    return zlib.crc32(array("I", prompt_ids).tobytes())


def row_id(rid: str, index: int) -> str:
    """Return the id of a choice's row in the ledger."""
    return rid if index == 0 else f"{rid}_{index}"


def _part_of(key: str, rid: str) -> bool:
    """Tell whether a row belongs to a request: it, one of its prompts (`-0`) or one of its choices (`_1`)."""
    return key.startswith(rid) and (len(key) == len(rid) or key[len(rid)] in "-_")
