"""Engines in virtual time behind real gates: seats, a pace, lengths. No sleeps, no Ray."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from reasonscale.serving.gate import Gate, Refusal, Rules, Ticket

TICK_S = 0.1
REPORT_S = 1.0


@dataclass(eq=False)
class Asked:
    """One request of a client, from its coming to its end."""

    cls: str
    tokens: int
    came_s: float
    key: str = ""
    tries: int = 0
    sent_s: float | None = None
    done_s: float | None = None
    refused: list[Refusal] = field(default_factory=list)
    ticket: Ticket | None = None

    @property
    def waited_s(self) -> float:
        assert self.sent_s is not None
        return self.sent_s - self.came_s


class World:
    """Gates of one or several ingresses before replicas of so many seats, each running request at so many tokens/s after its prefill."""

    def __init__(
        self, rules: Rules, replicas: int = 2, speed: float = 20.0, gates: int = 1, prefill_s: float = 0.0
    ) -> None:
        self.now, self.speed, self.rules, self.prefill_s = 0.0, speed, rules, prefill_s
        self.gates = [Gate(rules) for _ in range(gates)]
        self.seats = replicas * rules.seats
        self.running: dict[Asked, int] = {}  # -> its gate
        self.queue: list[Asked] = []  # in the engines, beyond their seats
        self.asked: list[Asked] = []
        self.busy_s = self.idle_while_waiting_s = 0.0
        self.deepest = self.new_asks = 0
        self._reported = [0] * gates
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._tick()
        self._report()

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), do))

    def _tick(self) -> None:
        for g, gate in enumerate(self.gates):
            gate.tick(self.now)
            self._pump(g)
        self.at(self.now + TICK_S, self._tick)

    def _report(self) -> None:
        self._reported = [sum(1 for at in self.running.values() if at == g) for g in range(len(self.gates))]
        self.at(self.now + REPORT_S, self._report)

    def _pump(self, g: int) -> None:
        gate = self.gates[g]
        others = sum(self._reported) - self._reported[g]
        gate.see(self.seats - others)
        for ticket in gate.due(self.now):
            asked = next(a for a in self.asked if a.ticket is ticket)
            asked.sent_s = self.now
            self.queue.append(asked)
            self.running[asked] = g
            self._start()

    def _start(self) -> None:
        in_seats = sum(1 for a in self.running if a not in self.queue)
        while self.queue and in_seats < self.seats:
            in_seats += 1
            self._run_one(self.queue.pop(0), self.now)

    def _run_one(self, asked: Asked, started: float) -> None:
        assert asked.ticket is not None
        begun = started + self.prefill_s
        asked.ticket.made = lambda: min(asked.tokens, max(0, int((self.now - begun) * self.speed)))
        self.at(begun + asked.tokens / self.speed, lambda: self._end(asked))

    def _end(self, asked: Asked) -> None:
        asked.done_s = self.now
        g = self.running.pop(asked)
        assert asked.ticket is not None
        self.gates[g].leave(asked.ticket, self.now, asked.tokens)
        self._start()
        self._pump(g)

    def ask(self, cls: str, tokens: int, key: str = "", back: bool = False, g: int = 0) -> Asked:
        """A client asks now; `back`: it comes back when it is told to, for as often as it takes."""
        asked = Asked(cls, tokens, self.now, key or f"k{next(self._order)}")
        self.asked.append(asked)
        self._try(asked, back, g)
        return asked

    def _try(self, asked: Asked, back: bool, g: int) -> None:
        asked.tries += 1
        asked.came_s = self.now
        asked.ticket = Ticket(asked.cls, asked.key, made=lambda: 0)
        refusal = self.gates[g].ask(asked.ticket, self.now)
        self.new_asks += not asked.ticket.again
        if refusal is None:
            self._pump(g)
            return
        asked.refused.append(refusal)
        if back:
            self.at(self.now + refusal.retry_after_s + 0.05, lambda: self._try(asked, back, g))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            when, _, do = heapq.heappop(self._events)
            passed = when - self.now
            in_seats = min(self.seats, len(self.running))
            self.busy_s += in_seats * passed
            if any(len(gate.waiting) for gate in self.gates):
                self.idle_while_waiting_s += (self.seats - in_seats) * passed
            self.now = when
            do()
            self.deepest = max(self.deepest, sum(len(gate.waiting) for gate in self.gates))
        self.now = until_s

    def poisson(
        self, cls: str, per_s: float, mean_tokens: float, start_s: float, end_s: float, rng: random.Random, **how: Any
    ) -> None:
        """Clients of a class ask at random; lengths scatter as much as their mean."""
        when = start_s
        while (when := when + rng.expovariate(per_s)) < end_s:
            tokens = max(1, round(rng.expovariate(1 / mean_tokens)))
            self.at(when, lambda tokens=tokens: self.ask(cls, tokens, **how))  # type: ignore[misc]


def high(values: Iterable[float], share: float = 0.95) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
