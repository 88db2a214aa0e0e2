"""The gate before a model's engines, at one ingress: who is let in, who waits, who goes next. Pure; time is an argument.

A request that is let in goes at once where a replica has a seat for it; else it waits *here* and is bound to a replica as late
as possible, so that it goes to whichever has room first, one that has just started included. It is let in only if it can be expected to
start within the longest queue that the resource allows; else it is refused with a time at which it will be let in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Final

from reasonscale.serving.bookings import EARLY_S, Booking, Bookings
from reasonscale.serving.frees import Frees, frees
from reasonscale.serving.lengths import Lengths
from reasonscale.serving.pressure import UP_S, Pressure
from reasonscale.serving.reserve import Rate, most_kept, reserved
from reasonscale.serving.shares import Shares

PROMPT_COST: Final = 0.1  # of a token made: prompts are computed many tokens at a time
FEW_CLASSES: Final = 4  # with more, when seats come free is forecast once a second
SURE: Final = 1.64  # deviations: nineteen in twenty that are let in start in time
BOOKED: Final = 0.8  # of what is made is promised ahead: lengths scatter, and a line without slack never recovers
UNSEEN_TPOT: Final = (
    0.5  # of the objective: what a token is taken to last before one was seen; a guess refuses nobody lightly
)
SPEED_KEEP_S: Final = 10.0
ACTIVE_S: Final = 60.0  # a class that has asked within it counts as one of those that share
LONGEST_RETRY_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Rules:
    """What the resource says of a model's queue."""

    seats: int = 256  # sequences that one replica runs at once
    max_queue_s: float = 10.0
    tpot_s: float = 0.05  # until a speed has been seen
    most_held: int = 4096  # requests here at once, waiting and running: a bound of memory
    weights: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)  # output tokens by class, until lengths have been seen
    pressure_steps: int = 0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request at the gate."""

    cls: str
    key: str = ""  # what it is known by when it comes back
    prompt_tokens: int = 0
    most: float | None = None  # output tokens that it can make at most
    seats: int = 1
    # While the model slept: it has waited by other limits than the queue's, and is refused no more.
    accepted: bool = False
    again: bool = False  # it was refused before and comes back: no new demand
    made: Callable[[], int] | None = None  # tokens so far; None: not told before its end
    arrived_s: float = 0.0
    sent_s: float | None = None
    cost: float = 0.0  # expected; its class is charged so much when it goes
    charged: float = 0.0
    told: int = 0  # tokens made when last looked
    head_s: float = 0.0  # until its first token; counts as its tokens come


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let in, and when it will be."""

    retry_after_s: int
    held: int
    full: bool  # by number, not by time


class Gate:
    """One model's requests at one ingress."""

    def __init__(self, rules: Rules = Rules()) -> None:
        self.rules = rules
        self.waiting: Shares[Ticket] = Shares(rules.weights)
        self.lengths = Lengths(rules.expected)
        self.bookings = Bookings()
        self.pressure = Pressure()
        self.running: set[Ticket] = set()
        self._seats_used = 0
        self._used_by: dict[str, int] = {}
        self._typical: float | None = None  # tokens that those which run are expected to make, each
        self._takes: int | None = None  # sequences that the replicas have room for in all; None: not known
        self._idle_used = 0  # of those that run, as many as no engine has any longer
        self._speed: tuple[float, float] | None = None  # decayed tokens and seat-seconds
        self._ticked_s: float | None = None
        self._made_since = 0
        self._frees: Frees | None = None  # as of the last tick
        self._frees_until_s = 0.0  # it is good until the first tick from then on
        self._refused_s: float | None = None  # when somebody was refused last, who did not come too early
        self._asks: dict[str, Rate] = {}
        self._ends = Rate()

    def rule(self, rules: Rules) -> None:
        """Take other rules; what waits goes on waiting."""
        self.rules = rules
        self.waiting.weights, self.lengths.prior = rules.weights, rules.expected

    # What the replicas take.

    def see(self, takes: int | None, in_engines: int | None = None) -> None:
        """Take what the replicas report: the room that they have for this ingress, and its requests that they really hold.

        A client that reads slowly keeps its request here after its engine is done with it; its seat is free.
        """
        self._takes = takes
        self._idle_used = max(0, self._seats_used - in_engines) if in_engines is not None else 0

    @property
    def room(self) -> int:
        """Sequences that could start now."""
        takes = self.rules.seats if self._takes is None else self._takes
        return takes - self._seats_used + self._idle_used

    @property
    def crowded(self) -> bool:
        """Whether a request that comes now may have to wait, or was refused before."""
        return self.room <= 0 or len(self.waiting) > 0 or len(self.bookings) > 0

    def sent_since(self, when: float) -> int:
        """Return the sequences that were sent since a time and still run."""
        return sum(t.seats for t in self.running if t.sent_s is not None and t.sent_s > when)

    @property
    def rate(self) -> float:
        """Tokens per second that this ingress' share of the replicas makes while it is full."""
        seats = self._seats_used - self._idle_used + max(0, self.room)
        return self.speed * (seats if seats > 0 else self.rules.seats)

    @property
    def speed(self) -> float:
        """Tokens per second of one running request."""
        prior = 1.0 / (UNSEEN_TPOT * self.rules.tpot_s)
        tokens, seconds = self._speed or (0.0, 0.0)
        return (tokens + prior) / (seconds + 1.0)

    # Coming and going.

    def ask(self, ticket: Ticket, now: float, more: Callable[[], bool] = lambda: False) -> Refusal | None:
        """Let a request in, to wait or to go; or say why not. `more`: has more room made for one that would be refused."""
        self.bookings.expire(now)
        self._asks.setdefault(ticket.cls, Rate()).note(now)
        mean = self.lengths.mean(ticket.cls, ticket.most)
        ticket.arrived_s, ticket.cost = now, ticket.seats * mean + PROMPT_COST * ticket.prompt_tokens
        held = len(self.running) + len(self.waiting)
        booking = self.bookings.find(ticket.key) if ticket.key else None
        ticket.again = booking is not None
        full = held >= self.rules.most_held

        def refused() -> bool:
            return full or not self._servable(ticket, booking, now)

        if not ticket.accepted and refused() and not (more() and not refused()):
            return Refusal(self._book(ticket, booking, now, full), held, full)
        if booking is not None:
            self.bookings.take(booking)
        self.waiting.add(ticket, light=self._light(ticket.cls, now))
        return None

    def _servable(self, ticket: Ticket, booking: Booking | None, now: float) -> bool:
        """Tell whether a request will start within the longest queue, nineteen times in twenty."""
        before = [t.seats for t in self.waiting]
        if self.room < sum(before) + ticket.seats and self._light(ticket.cls, now):
            # The free seats, those that are kept included, are for classes below their share, whoever else waits.
            light = self._lights(self.waiting.classes(), now)
            before = [t.seats for t in self.waiting if t.cls in light]
        if self.room >= sum(before) + ticket.seats:
            return True
        longest = self.rules.max_queue_s
        if booking is None:
            return self._wait_s(ticket, self.bookings.due(now, longest), SURE) <= longest
        return now >= booking.due_s - EARLY_S and self._wait_s(ticket, {}, 0.0) <= longest

    def _wait_s(self, ticket: Ticket, beside: Mapping[str, float], deviations: float, slack: float = 1.0) -> float:
        """Return how long a request will wait that comes now, behind what waits and `beside`, with `slack` times the seats."""
        mean = max(1.0, self._typical or self.lengths.mean(ticket.cls))
        light = self._light(ticket.cls, ticket.arrived_s)
        seats = self.waiting.ahead(ticket.cls, beside, light=light) / mean + 1.0
        return self._seats_in_s((seats + deviations * sqrt(seats)) * slack)

    def _seats_in_s(self, seats: float) -> float:
        """Return after how many seconds so many seats will have come free."""
        if not self.running:
            return seats * max(1.0, self._typical or 1.0) / self.rate
        if self._frees is None:
            made: dict[str, list[float]] = {}
            for t in self.running:
                told = t.told / t.seats
                if (
                    t.made is None and t.sent_s is not None and self._ticked_s is not None
                ):  # it says nothing before its end
                    told = max(0.0, self._ticked_s - t.sent_s) * self.speed
                made.setdefault(t.cls, []).extend([told] * t.seats)
            means = {cls: self.lengths.mean(cls) for cls in made}
            # With 16 classes it takes 27 ms of the loop that hands on all tokens.
            self._frees_until_s = (self._ticked_s or 0.0) + (0.0 if len(made) <= FEW_CLASSES else 1.0)
            self._frees = frees(made, {cls: self.lengths.seen(cls) for cls in made}, means, self.speed)
        return self._frees.time_of(seats)

    def _book(self, ticket: Ticket, booking: Booking | None, now: float, full: bool) -> int:
        """Return when a request that is refused will be let in, and keep its place."""
        if booking is not None and now < booking.due_s - EARLY_S:
            return max(1, ceil(booking.due_s - now))
        self._refused_s = now
        if booking is not None:  # it came in time, and the forecast was wrong: the next place that there is
            self.bookings.take(booking)
        if full:  # one may come for each that ends
            wait_s = (len(self.bookings) + 1) * max(1.0, self._typical or ticket.cost) / self.rate / BOOKED
        else:
            beside = {} if booking is not None else self.bookings.all()
            wait_s = self._wait_s(ticket, beside, 0.0, 1.0 / BOOKED) - 0.5 * self.rules.max_queue_s
        after = min(LONGEST_RETRY_S, max(1, ceil(wait_s)))
        if ticket.key:
            self.bookings.add(ticket.cls, ticket.key, ticket.cost, now, after)
        return after

    def due(self, now: float) -> list[Ticket]:
        """Return the requests that go to an engine now, in their order."""
        out: list[Ticket] = []
        while len(self.waiting) and self.room > 0:
            light = self._lights(self.waiting.classes(), now)
            # Those who found the kept seats taken: by turns the next of a class waits until all have been charged what its last one was.
            soon = {cls for cls in light if self._few(cls)}
            ticket = self.waiting.pop(soon) or self.waiting.pop(None if self.room > self._kept(now) else light)
            if ticket is None:
                break
            ticket.sent_s, ticket.charged = now, ticket.cost
            self.running.add(ticket)
            self._use(ticket.cls, ticket.seats)
            out.append(ticket)
        return out

    def leave(self, ticket: Ticket, now: float, made: int | None = None) -> None:
        """Take a request out that is over, or whose client went away. `made`: what it came to; None: it did not end."""
        if ticket not in self.running:
            self.waiting.remove(ticket)
            return
        self.running.remove(ticket)
        self._use(ticket.cls, -ticket.seats)
        self._ends.note(now, ticket.seats)
        tokens = made if made is not None else ticket.made() if ticket.made is not None else ticket.told
        if ticket.made is not None:
            self._made_since += max(0, tokens - ticket.told)
        cost = tokens + PROMPT_COST * ticket.prompt_tokens
        self.waiting.charge(ticket.cls, cost - ticket.charged)
        if made:
            self.lengths.ended(ticket.cls, made / ticket.seats)

    def _use(self, cls: str, seats: int) -> None:
        self._seats_used += seats
        self._used_by[cls] = self._used_by.get(cls, 0) + seats

    # What is learnt as time passes.

    def tick(self, now: float) -> None:
        """Look at what was made since the last tick: the speed, the lengths, what classes owe, the pressure."""
        passed = now - self._ticked_s if self._ticked_s is not None else 0.0
        self._ticked_s = now
        if now >= self._frees_until_s:
            self._frees = None
        counted, heads_s = 0, 0.0
        for ticket in self.running:
            if ticket.made is None:
                continue
            made = ticket.made()
            new = max(0, made - ticket.told)
            self._made_since += new
            if ticket.told:
                counted += ticket.seats
            elif new and ticket.sent_s is not None:
                # While a burst's prompts are read nothing is made, and no engine is slow.
                ticket.head_s = now - ticket.sent_s
            heads_s += ticket.head_s * new / max(1.0, self.lengths.mean(ticket.cls, ticket.most))
            ticket.told = max(ticket.told, made)
            cost = ticket.told + PROMPT_COST * ticket.prompt_tokens
            if cost > ticket.charged:  # a chain that runs on is paid for as it runs, not at its end
                self.waiting.charge(ticket.cls, cost - ticket.charged)
                ticket.charged = cost
        counted = min(counted, max(0, self._seats_used - self._idle_used))
        if passed > 0.0 and (counted or self._made_since):
            keep = 0.5 ** (passed / SPEED_KEEP_S)
            tokens, seconds = self._speed or (0.0, 0.0)
            self._speed = (tokens * keep + self._made_since, seconds * keep + counted * passed + heads_s)
        self._made_since = 0
        self.lengths.learn((t.cls, t.told / t.seats) for t in self.running)
        used = sum(self._used_by.values())
        self._typical = sum(n * self.lengths.mean(c) for c, n in self._used_by.items()) / used if used else None
        queued = sum(ticket.cost for ticket in self.waiting)
        share = queued / (self.rate * self.rules.max_queue_s)
        # Who is refused waits elsewhere: where the longest queue is a few requests long, it is never half full of them.
        refusing = self._refused_s is not None and now - self._refused_s < UP_S
        self.pressure.see(now, 1.0 if refusing else share, self.rules.pressure_steps)

    # Shares of the seats.

    @property
    def _seats(self) -> int:
        """Sequences that run, and those that could start now."""
        return self._seats_used + max(0, self.room)

    def _active(self, now: float) -> set[str]:
        asked = [cls for cls, rate in self._asks.items() if rate.per_s(now) * ACTIVE_S > 0.5]
        return {*asked, *(cls for cls, seats in self._used_by.items() if seats)}

    def _lights(self, classes: Iterable[str], now: float) -> set[str]:
        """Return those of the classes that run less than their share of the seats."""
        active = self._active(now)
        total = sum(map(self.waiting.weight, active))

        def share(cls: str) -> float:
            weight = self.waiting.weight(cls)
            return self._seats * weight / (total if cls in active else total + weight)

        return {cls for cls in classes if self._used_by.get(cls, 0) < share(cls)}

    def _light(self, cls: str, now: float) -> bool:
        return cls in self._lights((cls,), now)

    def _few(self, cls: str) -> bool:
        """Tell whether those of a class that wait take no more seats than are kept at most."""
        most = most_kept(self._seats)
        return self.waiting.number(cls) <= most and sum(t.seats for t in self.waiting.of(cls)) <= most

    def _kept(self, now: float) -> int:
        """Return the free seats that are kept for classes below their share, which none waits of now."""
        lacking = self._lights([cls for cls in self._active(now) if not self.waiting.number(cls)], now)
        if not lacking:
            return 0
        asks = sum(self._asks[cls].per_s(now) for cls in lacking if cls in self._asks)
        return reserved(self._seats, asks, self._ends.per_s(now))
