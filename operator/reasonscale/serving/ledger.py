"""The ledger of one replica: for every request in flight, how far its chain has got. Pure.

Lengths are counted in `api.constants.TOKEN_BINS`. A request *reaches* a bin when it has generated the bin's lower edge,
and *ends* in the bin where it stops by itself; one that was aborted, or cut by max_tokens or its budget, is censored:
it reached, and never ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from reasonscale.api.constants import CLASS_OTHER, MAX_CLASSES, TOKEN_BINS, bin_of

N_BINS = len(TOKEN_BINS)
_NEVER = 1 << 62


def _zeros() -> list[int]:
    return [0] * N_BINS


@dataclass(slots=True)
class Row:
    """One request in flight."""

    cls: str
    arrived_s: float
    thinks: bool
    prompt_tokens: int = 0
    generated: int = 0
    reasoning_tokens: int = 0
    answering: bool = False
    bin: int = -1  # the last bin reached; -1 before the first token
    next_edge: int = 1  # tokens at which the next bin is reached


@dataclass(slots=True)
class ClassTotals:
    """Counters of one class; they only grow."""

    reached: list[int] = field(default_factory=_zeros)
    ended: list[int] = field(default_factory=_zeros)
    arrivals: int = 0
    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    budget_exhausted: int = 0


@dataclass(frozen=True, slots=True)
class ClassNow:
    """What of one class is in flight, by bin."""

    waiting: int
    waiting_prompt_tokens: int
    reasoning: tuple[int, ...]
    answering: tuple[int, ...]
    inflight_prompt_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What a request came to."""

    prompt_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    exhausted: bool


class Tracker:
    """Counts one output's tokens and finds where its chain ends: the first place of the parser's end sequence."""

    __slots__ = ("_end", "_tail", "answering", "generated", "reasoning_tokens")

    def __init__(self, end: Sequence[int], thinks: bool) -> None:
        self._end = tuple(end)
        self._tail: tuple[int, ...] = ()
        self.generated = 0
        self.reasoning_tokens = 0
        self.answering = not (thinks and self._end)

    def feed(self, ids: Sequence[int]) -> None:
        """Take the next tokens."""
        self.generated += len(ids)
        if self.answering:
            return
        end = self._end
        if len(end) == 1:
            if end[0] not in ids:  # nearly every time
                self.reasoning_tokens += len(ids)
                return
            self.reasoning_tokens += list(ids).index(end[0])
            self.answering = True
            return
        window = self._tail + tuple(ids)
        for at in range(len(window) - len(end) + 1):
            if window[at : at + len(end)] == end:
                self.reasoning_tokens = max(0, self.generated - len(window) + at)
                self.answering = True
                return
        self.reasoning_tokens = self.generated
        self._tail = window[-(len(end) - 1) :]


class Ledger:
    """Rows of requests in flight and counters of all that were; not for several threads."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.totals: dict[str, ClassTotals] = {}
        self._ends_s: deque[float] = deque(maxlen=64)

    def _class(self, cls: str) -> str:
        if cls in self.totals:
            return cls
        if len(self.totals) >= MAX_CLASSES - 1:
            cls = CLASS_OTHER
        self.totals.setdefault(cls, ClassTotals())
        return cls

    def start(self, rid: str, cls: str, now: float, *, thinks: bool) -> None:
        """Note that a request has arrived."""
        cls = self._class(cls)
        self.totals[cls].arrivals += 1
        self.rows[rid] = Row(cls, now, thinks)

    def resume(
        self,
        rid: str,
        cls: str,
        now: float,
        *,
        prompt_tokens: int,
        generated: int,
        reasoning_tokens: int,
        answering: bool,
    ) -> None:
        """Note that a request goes on here which another engine began: at its age, and counted there already."""
        cls = self._class(cls)
        row = Row(cls, now, not answering, prompt_tokens, generated, reasoning_tokens, answering)
        if generated > 0:
            row.bin = bin_of(generated)
            row.next_edge = TOKEN_BINS[row.bin + 1] if row.bin + 1 < N_BINS else _NEVER
        self.rows[rid] = row

    def prompt(self, rid: str, tokens: int) -> None:
        """Note a request's prompt length, once it is known."""
        row = self.rows.get(rid)
        if row is not None and row.prompt_tokens == 0 and tokens > 0:
            row.prompt_tokens = tokens
            self.totals[row.cls].prompt_tokens += tokens

    def progress(self, rid: str, generated: int, reasoning_tokens: int, answering: bool) -> None:
        """Note how far a request has got; never backwards."""
        row = self.rows.get(rid)
        if row is None or generated < row.generated:
            return
        totals = self.totals[row.cls]
        reasoning_tokens = max(reasoning_tokens, row.reasoning_tokens)
        thought = reasoning_tokens - row.reasoning_tokens
        totals.reasoning_tokens += thought
        totals.answer_tokens += max(0, generated - row.generated - thought)
        row.generated, row.reasoning_tokens, row.answering = generated, reasoning_tokens, answering
        if generated >= row.next_edge:
            top = bin_of(generated)
            for j in range(row.bin + 1, top + 1):
                totals.reached[j] += 1
            row.bin = top
            row.next_edge = TOKEN_BINS[top + 1] if top + 1 < N_BINS else _NEVER

    def finish(self, rid: str, now: float, *, ended: bool, exhausted: bool = False) -> Result | None:
        """Take a request out. `ended`: it stopped by itself; else it is censored. None for one that isn't there."""
        row = self.rows.pop(rid, None)
        if row is None:
            return None
        totals = self.totals[row.cls]
        if exhausted:
            totals.budget_exhausted += 1
        if ended and not exhausted and row.generated > 0:
            totals.ended[row.bin] += 1
        self._ends_s.append(now)
        return Result(row.prompt_tokens, row.reasoning_tokens, row.generated - row.reasoning_tokens, exhausted)

    @property
    def waiting(self) -> int:
        """Requests without their first token."""
        return sum(1 for row in self.rows.values() if row.generated == 0)

    @property
    def waiting_prompt_tokens(self) -> int:
        """Prompt tokens of the requests without their first token."""
        return sum(row.prompt_tokens for row in self.rows.values() if row.generated == 0)

    def ends_per_s(self, now: float) -> float | None:
        """Requests that end per second of late; None before there is a rate."""
        if len(self._ends_s) < 2 or now <= self._ends_s[0]:
            return None
        return len(self._ends_s) / (now - self._ends_s[0])

    def now(self) -> dict[str, ClassNow]:
        """Return what is in flight of each class that was ever seen."""
        out = {}
        for cls in self.totals:
            waiting = waiting_prompt = 0
            reasoning, answering, prompts = _zeros(), _zeros(), _zeros()
            for row in self.rows.values():
                if row.cls != cls:
                    continue
                if row.generated == 0:
                    waiting += 1
                    waiting_prompt += row.prompt_tokens
                else:
                    (answering if row.answering else reasoning)[row.bin] += 1
                    prompts[row.bin] += row.prompt_tokens
            out[cls] = ClassNow(waiting, waiting_prompt, tuple(reasoning), tuple(answering), tuple(prompts))
        return out
