"""Which replica takes a request: the one with the least work, in tokens of KV cache. Pure.

A replica's work is what its KV cache holds, what its requests are still to add, and the prompts that it has not
prefilled, which weigh more: a neighbour's long prompt breaks the time per token of everyone. The weights were best in
the simulator at equal GPU-hours (`simulator.router`, router `expected-load`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from reasonscale.serving.asleep import AWAKE, FALLING, HELD

PREFILL_WEIGHT: Final = 5.0
TOKENS_TO_COME: Final = 2000.0
# Keys of what a replica reports.
KV_TOKENS, KV_CAPACITY, WAITING_PROMPT, REQUESTS = "kv", "capacity", "prompt", "requests"
AT, PREEMPTED, BY = "at", "preempted", "by"  # BY: sequences by the ingress that sent them
RESTS: Final = "rests"  # a stage of `asleep`
STALE_S: Final = 15.0  # a replica that reported nothing for so long is taken last
SILENT: Final = 2  # how late such a one is
FULL: Final = 0.95  # of its KV cache: filled no further while others have room
SESSIONS: Final = 10_000
LEFT: Final = 1_000  # replicas that went, remembered
ROUSED_S: Final = 60.0  # since somebody waited last
STAY: Final = 1.25  # a session stays where its replica has at most so much more work than the least
STAY_TOKENS: Final = 4000.0


@dataclass(slots=True)
class Seen:
    """What the router knows of one replica."""

    report: Mapping[str, Any] = field(default_factory=dict)
    at_s: float = float("-inf")  # by our clock, when that came
    sent: list[tuple[float, float]] = field(default_factory=list)  # what was sent since: when, and its prompt's tokens


@dataclass(frozen=True, slots=True)
class Takes:
    """What the replicas take of one ingress, in sequences."""

    in_all: int
    mine: int  # that they hold of it, as they reported
    oldest_s: float  # age of the oldest report


class Loads:
    """What the router of one ingress knows of a model's replicas. Between reports it adds what it sent itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, Seen] = {}
        self._avoid: dict[str, float] = {}
        self._emptied: dict[str, float] = {}  # until when each is
        self._named: dict[str, float] = {}  # since when each of these was named
        self._asleep: frozenset[str] = frozenset()  # of these, those that sleep: they don't come back by themselves
        self._roused_until_s = float("-inf")  # until when none of them sleeps
        self._woken: set[str] = set()  # of them, those that were told to wake since: a request wakes them as well
        self._asked: dict[str, bool] = {}  # replicas that were told to sleep, or to wake
        self._left: OrderedDict[str, float] = OrderedDict()  # replicas that Serve sends nothing to any more, since when
        self._sessions: OrderedDict[str, str] = OrderedDict()

    def report(self, replica: str, stats: Mapping[str, Any]) -> None:
        """Take a replica's report; one that was taken before changes nothing."""
        seen = self._seen.setdefault(replica, Seen())
        if stats and stats.get(AT) != seen.report.get(AT):
            now = self._clock()
            # What was sent while a report was under way may not be in it: it counts once more for a report's time.
            period = now - seen.at_s
            seen.sent = [s for s in seen.sent if now - s[0] < min(period, 1.0) / 2]
            seen.report, seen.at_s = stats, now

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget all replicas but these."""
        there = set(replicas)
        for gone in self._seen.keys() - there:
            del self._seen[gone]
            self._left.setdefault(gone, self._clock())
        for gone in self._avoid.keys() - there:
            del self._avoid[gone]
        for back in self._left.keys() & there:
            del self._left[back]
        while len(self._left) > LEFT:
            self._left.popitem(last=False)

    def goes_for_s(self, replica: str) -> float:
        """Return for how long a replica has been told to go, or been emptied before that; 0 for one that stays."""
        since = self._left.get(replica)
        if since is None and replica in self._named and replica in self._spared(list(self._seen)):
            since = self._named[replica]
        return 0.0 if since is None else self._clock() - since

    def room(self, tokens: int) -> bool:
        """Tell whether a replica's KV cache has room for so many tokens, as far as it is known."""
        there = list(self._seen.items())
        spared = self._spared([name for name, _ in there])
        known = [seen for name, seen in there if not self._avoided(name, spared)]
        return not known or any(
            not seen.report.get(KV_CAPACITY)  # it has just come
            or float(seen.report.get(KV_TOKENS, 0.0)) + sum(sent for _, sent in list(seen.sent)) + tokens
            <= FULL * float(seen.report[KV_CAPACITY])
            for seen in known
        )

    def avoid(self, replica: str, for_s: float) -> None:
        """Send nothing to a replica for a while where another is there: it was lost, it hangs, or it was told to go."""
        self._avoid[replica] = self._clock() + for_s

    def empty(self, replicas: Iterable[str], for_s: float, asleep: Iterable[str] = ()) -> None:
        """Send nothing to these while another is there, until other ones are named: they go, or sleep, when they have nothing left.

        It lapses after `for_s`, as whoever decided it may be gone, or told to decide nothing. What sleeps is not lost by
        that: it does until it is named no more, or `rouse` says that it is needed.
        """
        now, named, told = self._clock(), frozenset(asleep), tuple(replicas)
        if named != self._asleep:
            for back in self._asleep - named:  # what it had before, it had asleep
                self._named.pop(back, None)
            self._asleep, self._roused_until_s = named, float("-inf")
        self._emptied = {r: inf if r in named else min(self._emptied.get(r, inf), now + for_s) for r in told}
        self._named = {r: self._named.get(r, now) for r in told}

    def rouse(self) -> bool:
        """Let nobody sleep for `ROUSED_S`, or until others are named; return whether anybody did."""
        if not self._asleep:
            return False
        did = not self._roused
        if did:
            self._woken.clear()
        self._roused_until_s = self._clock() + ROUSED_S
        return did

    @property
    def _roused(self) -> bool:
        return self._roused_until_s > self._clock()

    def to_tell(self) -> list[tuple[str, bool]]:
        """Return the replicas that are to be told to sleep (True) or to wake, by what they say and what they were told."""
        there = list(self._seen.items())
        sleepers = self._spared([name for name, _ in there]) & self._asleep
        self._asked = {r: told for r, told in self._asked.items() if r in self._seen}
        found = []
        for name, seen in there:
            rests, wanted = seen.report.get(RESTS, AWAKE), name in sleepers
            # One that was told to sleep may do it by now, and not have said so.
            if (wanted and rests == AWAKE) or (not wanted and (rests != AWAKE or self._asked.get(name, False))):
                if not wanted and name in self._asleep:
                    # Once: another ingress, at which nobody waits, may tell it to sleep again, and so on without end.
                    if name in self._woken:
                        continue
                    self._woken.add(name)
                found.append((name, wanted))
                self._asked[name] = wanted
        return found

    def sent(self, replica: str, prompt_tokens: float, session: str | None = None) -> None:
        """Note that a replica was given a request."""
        self._seen.setdefault(replica, Seen()).sent.append((self._clock(), prompt_tokens))
        if session is not None:
            self._sessions[session] = replica
            self._sessions.move_to_end(session)
            while len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)

    def work(self, replica: str) -> float:
        """Return a replica's work, in tokens of KV cache."""
        seen = self._seen.get(replica, Seen())
        kv, prompt = float(seen.report.get(KV_TOKENS, 0.0)), float(seen.report.get(WAITING_PROMPT, 0.0))
        requests = float(seen.report.get(REQUESTS, 0.0)) + len(seen.sent)
        prompt += sum(tokens for _, tokens in seen.sent)
        return kv + PREFILL_WEIGHT * prompt + TOKENS_TO_COME * requests

    def _avoided(self, replica: str, spared: Iterable[str] = ()) -> bool:
        return replica in spared or self._avoid.get(replica, 0.0) > self._clock()

    def _spared(self, there: Iterable[str]) -> frozenset[str]:
        """Return which of these are emptied; none of them where no other takes requests."""
        now = self._clock()
        emptied = frozenset(
            r for r, until in self._emptied.items() if until > now and not (self._roused and r in self._asleep)
        )
        others = (r for r in there if r not in emptied and not self._avoided(r) and self._late(r) < SILENT)
        return emptied if next(others, None) is not None else frozenset()

    def _late(self, replica: str) -> int:
        """Return 0 for a replica to send to, more for those that are taken only when no other is there."""
        now = self._clock()
        seen = self._seen.get(replica)
        if seen is None or not seen.report:
            return 0  # it has just come: nothing is known because nothing has run
        if now - seen.at_s > STALE_S:
            return SILENT
        capacity, prompts = float(seen.report.get(KV_CAPACITY, 0.0)), float(seen.report.get(WAITING_PROMPT, 0.0))
        full = capacity > 0 and float(seen.report.get(KV_TOKENS, 0.0)) + prompts >= FULL * capacity
        # One that has just gone to sleep is not awake before it is asleep, nor one that is held before an engine has started.
        return 1 if full or seen.report.get(PREEMPTED) or seen.report.get(RESTS) in (FALLING, HELD) else 0

    def takes(self, seats: int, ingress: str) -> Takes | None:
        """Return what the replicas take of one ingress in all, at so many sequences each; None where none is known.

        A replica that is full by its KV cache, preempts, hangs or is to be emptied keeps what it has and gets no more.
        """
        in_all, mine, oldest_s = 0, 0, 0.0
        seen = list(self._seen.items())
        spared = self._spared([replica for replica, _ in seen])
        for replica, known in seen:
            by = known.report.get(BY) or {}
            own = int(by.get(ingress, 0))
            shut = self._late(replica) or self._avoided(replica, spared)
            in_all += own if shut else max(0, seats - sum(by.values()) + own)
            mine += own
            oldest_s = max(oldest_s, self._clock() - known.at_s)
        return Takes(in_all, mine, oldest_s) if seen else None

    def order(self, replicas: Iterable[str], session: str | None = None) -> list[str]:
        """Return the replicas in the order in which a request should try them; those to avoid only where all are."""
        # Serve tries the next where the first is slow to answer, and one whose engine is dead answers at once: with a
        # lost replica at the end of the list, a third of its requests went back to it.
        there = list(replicas)
        spared = self._spared(there)
        ranked = sorted(
            [r for r in there if not self._avoided(r, spared)] or there, key=lambda r: (self._late(r), self.work(r), r)
        )
        home = self._sessions.get(session) if session is not None else None
        if home is None or home not in ranked or self._late(home) != self._late(ranked[0]):
            return ranked
        if self.work(home) <= STAY * self.work(ranked[0]) + STAY_TOKENS:
            ranked.remove(home)
            ranked.insert(0, home)
        return ranked
