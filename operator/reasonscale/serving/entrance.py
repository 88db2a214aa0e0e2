"""The gate in asyncio: lets requests wait, sends them on as seats come free, and tells Ray's metrics what waits. Runs under Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter as Tally
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

from reasonscale.api import constants as c
from reasonscale.serving.gate import Gate, Refusal, Rules, Ticket
from reasonscale.serving.pressure import shrunk
from reasonscale.serving.routing import Takes
from reasonscale.serving.settings import ModelSettings

TICK_S = 0.25
EXPORT_S = 1.0
UNDERWAY_S = 1.0  # what was sent so long before the oldest report came may be in no report yet
OLD_S = 5.0
_WAITS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600]
_MODEL, _CLS = c.LABEL_METRIC_MODEL, c.LABEL_METRIC_CLASS
log = logging.getLogger("ray.serve")


def rules_of(settings: ModelSettings) -> Rules:
    """Return the gate's rules of a model."""
    return Rules(
        seats=settings.seats, max_queue_s=settings.max_queue_s, tpot_s=settings.tpot_s, most_held=settings.max_in_flight,
        weights=settings.weights, expected=settings.expected, pressure_steps=settings.pressure_steps,
    )  # fmt: skip


class Told:
    """What an ingress' gates write to Ray's metrics; one for all models."""

    def __init__(self) -> None:
        by_class = (_MODEL, _CLS)
        self.time = Gauge(c.M_GATE_TIME, description=c.M_GATE_TIME, tag_keys=(_MODEL,))
        self.waiting = Gauge(c.M_GATE_WAITING, description=c.M_GATE_WAITING, tag_keys=by_class)
        self.prompt = Gauge(c.M_GATE_PROMPT, description=c.M_GATE_PROMPT, tag_keys=by_class)
        self.entered = Counter(c.M_GATE_ENTERED, description=c.M_GATE_ENTERED, tag_keys=by_class)
        self.refused = Counter(c.M_GATE_REFUSED, description=c.M_GATE_REFUSED, tag_keys=by_class)
        self.sent = Counter(c.M_GATE_SENT, description=c.M_GATE_SENT, tag_keys=by_class)
        self.wait = Histogram(c.M_GATE_WAIT, description=c.M_GATE_WAIT, boundaries=_WAITS, tag_keys=by_class)
        self.pressure = Gauge(c.M_PRESSURE, description=c.M_PRESSURE, tag_keys=(_MODEL,))
        self.shrunk = Counter(c.M_SHRUNK, description=c.M_SHRUNK, tag_keys=(_MODEL,))


class Entrance:
    """One model's gate at one ingress. `takes`: what the replicas take of us, None where that is not known."""

    def __init__(self, settings: ModelSettings, takes: Callable[[int], Takes | None], told: Told) -> None:
        self.settings = settings
        self.gate = Gate(rules_of(settings))
        self._takes, self._told = takes, told
        self._going: dict[Ticket, asyncio.Future[None]] = {}
        self._classes: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def rule(self, settings: ModelSettings) -> None:
        """Take new settings."""
        if settings is not self.settings:
            self.settings = settings
            self.gate.rule(rules_of(settings))

    @property
    def budget_default(self) -> int:
        """The thinking tokens of a request that names none, now."""
        s = self.settings
        if s.pressure_floor is None:
            return s.budget_default
        return shrunk(s.budget_default, s.pressure_floor, self.gate.pressure.step, s.pressure_steps)

    def note_shrunk(self) -> dict[str, str]:
        """Count a request whose default budget is a smaller one; return the header that says so to its client."""
        self._told.shrunk.inc(tags={_MODEL: self.settings.model})
        return {c.HEADER_PRESSURE: f"{self.gate.pressure.step}/{self.settings.pressure_steps}"}

    def note_refused(self, ticket: Ticket) -> None:
        """Count a request that is told to come back: once, however often it does."""
        if not ticket.again:
            self._told.refused.inc(tags={_MODEL: self.settings.model, _CLS: ticket.cls})

    async def enter(
        self, ticket: Ticket, key: Callable[[], str], rouse: Callable[[], bool] = lambda: False
    ) -> Refusal | None:
        """Wait until a request may go to an engine; or return why it may not.

        `key`: what it will be known by. `rouse`: wakes who sleeps, and tells whether anybody did.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._look()
        if self.gate.crowded:
            ticket.key = key()

        def more() -> bool:
            if not rouse():
                return False
            self._look()
            self._send()  # those who came before go first
            return True

        refusal = self.gate.ask(ticket, time.monotonic(), more)
        tags = {_MODEL: self.settings.model, _CLS: ticket.cls}
        self._classes.add(ticket.cls)
        if not ticket.again:
            self._told.entered.inc(tags=tags)
        if refusal is not None:
            return refusal
        going = self._going[ticket] = asyncio.get_running_loop().create_future()
        self._send()
        try:
            await going
        except asyncio.CancelledError:
            self.leave(ticket, None)
            raise
        self._told.wait.observe(time.monotonic() - ticket.arrived_s, tags=tags)
        return None

    def leave(self, ticket: Ticket, made: int | None) -> None:
        """Give a request's seat to the next. `made`: tokens that it came to; None: it did not come to its end."""
        self._going.pop(ticket, None)
        self.gate.leave(ticket, time.monotonic(), made)
        if (
            made is None
        ):  # its client went, others may with it: a seat that is given at once goes to one that has gone, too
            return
        self._look()  # its engine may have been done with it long before: its seat must not count twice
        self._send()

    def _look(self) -> None:
        takes = self._takes(self.settings.seats)
        if takes is None:
            self.gate.see(None)
            return
        if takes.oldest_s > OLD_S:
            self.gate.see(takes.in_all)
            return
        underway = self.gate.sent_since(time.monotonic() - takes.oldest_s - UNDERWAY_S)
        self.gate.see(takes.in_all, takes.mine + underway)

    def _send(self) -> None:
        for ticket in self.gate.due(time.monotonic()):
            # Counted by us until its engine's ledger does: what is sent is on its way for milliseconds.
            self._told.sent.inc(tags={_MODEL: self.settings.model, _CLS: ticket.cls})
            going = self._going.pop(ticket)
            if going.done():  # its client went away in this very turn of the loop
                self.gate.leave(ticket, time.monotonic(), None)
            else:
                going.set_result(None)

    async def _run(self) -> None:
        exported = 0.0
        while True:
            try:
                now = time.monotonic()
                self._look()
                self.gate.tick(now)
                self._send()
                if now - exported >= EXPORT_S:
                    exported = now
                    self._export()
            except Exception:  # the next turn may do better; a gate that stands still would hold everyone
                log.exception("the gate of %s could not be turned", self.settings.model)
            await asyncio.sleep(TICK_S)

    def _export(self) -> None:
        model = {_MODEL: self.settings.model}
        waiting, prompts = Tally[str](), Tally[str]()
        for ticket in self.gate.waiting:
            waiting[ticket.cls] += 1
            prompts[ticket.cls] += ticket.prompt_tokens
        for cls in self._classes:
            self._told.waiting.set(waiting[cls], tags=model | {_CLS: cls})
            self._told.prompt.set(prompts[cls], tags=model | {_CLS: cls})
        self._told.pressure.set(self.gate.pressure.step, tags=model)
        self._told.time.set(time.time(), tags=model)  # last: who reads it fresh reads the rest fresh
