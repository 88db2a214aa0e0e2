"""A model of a fleet: engines that start, serve, drain and cost; a router before them; a ledger that is scraped.

Time goes on in reports of `REPORT_S`: the router learns what each replica holds, replicas that have drained go, and what
waits because none is ready, or at the gate because none has room, is sent. Between reports the router counts what it sent
itself. An engine steps on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from reasonscale.profiles.profile import Profile
from reasonscale.scaling.types import Objectives
from reasonscale.simulator import engine as e
from reasonscale.simulator import router as rt
from reasonscale.simulator.engine import Floats, Ints
from reasonscale.simulator.ledger import BINS, C_ARRIVALS, C_PROMPT, Scrape, count_all
from reasonscale.simulator.tables import tables_of, too_long
from reasonscale.simulator.workload import Workload

REPORT_S: Final = 1.0
Flags = npt.NDArray[np.bool_]
MOST_REPLICAS: Final = 4096
DEFAULT: Final = Objectives()
EXPECTED_TOKENS: Final = 1500.0  # of a request, until one has ended


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _push(g: Ints, when: Floats, who: Ints, at: float, r: int) -> None:
    """Put a follow-up request into the heap by its time."""
    i = g[rt.HEAP]
    g[rt.HEAP] += 1
    while i > 0:
        up = (i - 1) // 2
        if when[up] <= at:
            break
        when[i], who[i] = when[up], who[up]
        i = up
    when[i], who[i] = at, r


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _pop(g: Ints, when: Floats, who: Ints) -> None:
    """Take the first follow-up request out of the heap."""
    g[rt.HEAP] -= 1
    n = g[rt.HEAP]
    at, r = when[n], who[n]
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and when[child + 1] < when[child]:
            child += 1
        if when[child] >= at:
            break
        when[i], who[i] = when[child], who[child]
        i = child
    when[i], who[i] = at, r


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def play(
    t: float, until: float, g: Ints, engines: Ints, clock: Floats, run: Ints, sums: Floats, life: Ints, ready: Floats,
    gone: Floats, known: Floats, arrival: Floats, req: Ints, first: Floats, last: Floats, ended: Ints,
    follower: Ints, think: Floats, when: Floats, who: Ints, router: int, gate: Floats,
    come: Ints, refused: Flags,
    base: Floats, slope: Floats, linear: Floats, overhead: float, pair: float,
) -> float:  # fmt: skip
    """Let the fleet run from `t` to `until`, which are whole reports, and return `until`."""
    n = g[rt.KNOWN]  # requests whose arrival is known; the others follow these
    while t < until:
        edge = min(until, t + REPORT_S)
        while True:
            r, at = rt.NOBODY, edge
            if g[rt.NEXT] < n and arrival[g[rt.NEXT]] < edge:
                r, at = g[rt.NEXT], arrival[g[rt.NEXT]]
            chained = g[rt.HEAP] > 0 and when[0] < at
            if chained:
                r, at = who[0], when[0]
            if r == rt.NOBODY:
                break
            if chained:
                _pop(g, when, who)
                arrival[r] = at
            else:
                g[rt.NEXT] += 1
            come[0] += 1
            come[come[0]] = r
            if req[e.PROMPT, r] + req[e.OUTPUT, r] - 1 > engines[0, e.TOTAL] * engines[0, e.BLOCK]:
                continue
            k = rt.NOBODY
            if router != rt.GATED or g[rt.QUEUED] == 0:  # else it would overtake who waits
                k = rt.choose(g, at, life, ready, known, engines, router)
            if k == rt.NOBODY:
                if router == rt.GATED and not rt.admits(g, gate, at, engines, life, ready, known, run, req, ended):
                    refused[r] = True
                    if follower[r] != rt.NOBODY:
                        _push(g, when, who, at + think[r], follower[r])
                    continue
                req[e.NEXT, r] = rt.NOBODY
                if g[rt.QUEUED] == 0:
                    g[rt.QUEUE_HEAD] = r
                else:
                    req[e.NEXT, g[rt.QUEUE_TAIL]] = r
                g[rt.QUEUE_TAIL] = r
                g[rt.QUEUED] += 1
                continue
            clock[k] = e.advance(
                engines[k], clock[k], at, run[k], req, first, last, sums[k], ended, base, slope, linear, overhead, pair
            )
            clock[k] = max(clock[k], at)
            rt.send(k, r, engines, req, known)
        t = edge
        for k in range(g[rt.PLACES]):
            if life[k] == rt.EMPTY or ready[k] > t:
                continue
            clock[k] = e.advance(
                engines[k], clock[k], t, run[k], req, first, last, sums[k], ended, base, slope, linear, overhead, pair
            )
            rt.report(k, engines, run, req, known)
            if life[k] == rt.WAKING:
                life[k] = rt.ORDERED
            if life[k] == rt.DRAINING and engines[k, e.RUNNING] + engines[k, e.WAITING] == 0:
                life[k] = rt.EMPTY
                gone[k] = max(t - REPORT_S, min(t, clock[k]))
        if router == rt.GATED:
            rt.look(g, gate, engines, life, sums)
        while g[rt.QUEUED] > 0:
            k = rt.choose(g, t, life, ready, known, engines, router)
            if k == rt.NOBODY:
                break
            r = g[rt.QUEUE_HEAD]
            g[rt.QUEUE_HEAD] = req[e.NEXT, r]
            g[rt.QUEUED] -= 1
            clock[k] = max(clock[k], t)
            rt.send(k, r, engines, req, known)
        while g[rt.FOLLOWED] < ended[0]:
            g[rt.FOLLOWED] += 1
            r = ended[g[rt.FOLLOWED]]
            if follower[r] != rt.NOBODY:
                _push(g, when, who, max(t, last[r] + think[r]), follower[r])
    return t


@dataclass(frozen=True, slots=True)
class Span:
    """One replica's life: from the order to its end."""

    ordered: float
    gone: float


class Cluster:
    """The fleet under one model. `scale` sets the number; `advance` lets time pass; `scrape` reads the metrics."""

    def __init__(
        self, profile: Profile, work: Workload, *, router: str, cold_start_s: Callable[[], float], replicas: int,
        objectives: Objectives = DEFAULT, seed: int = 1, wake_s: float = 0.0, max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None,
    ) -> None:  # fmt: skip
        n = len(work.arrival_s)
        self._seats = max_num_seqs or profile.max_num_seqs
        self._step_tokens = min(
            max_num_batched_tokens or profile.max_num_batched_tokens, profile.max_num_batched_tokens
        )
        self._tables = tables_of(profile, self._seats)
        self._blocks = profile.kv_tokens // profile.block_tokens
        self._empty = e.empty_engine(self._blocks, profile.block_tokens, self._seats, self._step_tokens)
        self._work, self._cold, self._wake_s = work, cold_start_s, wake_s
        self._router = rt.ROUTERS[router]
        size = 64
        self._engines = np.tile(self._empty, (size, 1))
        self._clock, self._ready, self._gone = np.zeros(size), np.zeros(size), np.zeros(size)
        self._run = np.zeros((size, self._seats), dtype=np.int64)
        self._sums, self._known = np.zeros((size, 4)), np.zeros((size, 5))
        self._life, self._ordered = np.zeros(size, dtype=np.int64), np.zeros(size)
        self._taken = np.zeros(size, dtype=np.bool_)
        self._since = np.zeros(size)
        self._req = np.zeros((e.ROWS, n), dtype=np.int64)
        self._req[e.PROMPT], self._req[e.OUTPUT] = work.prompt_tokens, work.reasoning_tokens + work.answer_tokens
        self._req[e.REASONING], self._req[e.CLASS] = work.reasoning_tokens, work.cls
        # Requests that never fit an empty KV cache, and those that the gate sends away.
        self.refused: Flags = too_long(profile, self._req[e.PROMPT], self._req[e.OUTPUT])
        self.arrival_s = work.arrival_s.copy()
        self.first_s, self.last_s = np.full(n, np.nan), np.full(n, np.nan)
        self._ended = np.zeros(n + 1, dtype=np.int64)
        self._when, self._who = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
        self._g = np.zeros(9, dtype=np.int64)
        self._g[rt.KNOWN] = int((work.arrival_s >= 0.0).sum())
        self._g[[rt.QUEUE_HEAD, rt.QUEUE_TAIL]] = rt.NOBODY
        self._g[rt.SEED] = seed
        self._come = np.zeros(n + 1, dtype=np.int64)
        self._gate = np.zeros(7)
        self._gate[rt.LONGEST_S] = objectives.max_queue_s
        self._gate[rt.PRIOR_MEAN], self._gate[rt.PRIOR_SPEED] = EXPECTED_TOKENS, 2.0 / objectives.tpot_s
        self.time = 0.0
        self.target = 0
        self.spans: list[Span] = []
        self.ups = self.downs = self.wakes = 0
        self.asleep_s = 0.0  # of replicas, in all
        self.owed_at_stop: list[
            tuple[int, int]
        ] = []  # by the replica that was told to go, and by the one that ran longest
        self._scraped = (0.0, 0, 0, np.zeros(size), np.zeros(size), np.zeros((size, 4)))
        self._late: list[int] = []
        self._set(replicas, lambda: 0.0)

    @property
    def preempted(self) -> Ints:
        """Return how often each request was preempted."""
        return np.asarray(self._req[e.PREEMPTED])

    @property
    def done(self) -> bool:
        """Return whether every request has come and gone."""
        idle = self._g[rt.QUEUED] == 0 and self._g[rt.HEAP] == 0 and self._g[rt.NEXT] == self._g[rt.KNOWN]
        return bool(idle and (self._engines[:, e.RUNNING] + self._engines[:, e.WAITING]).sum() == 0)

    def advance(self, until: float) -> None:
        """Let time pass."""
        w, tables = self._work, self._tables
        self.asleep_s += float((self._life == rt.RESTING).sum()) * (until - self.time)
        self.time = play(
            self.time, until, self._g, self._engines, self._clock, self._run, self._sums, self._life, self._ready, self._gone,
            self._known, self.arrival_s, self._req, self.first_s, self.last_s, self._ended, w.follower,
            w.think_s, self._when, self._who, self._router, self._gate, self._come, self.refused,
            tables.base, tables.slope, tables.linear, tables.overhead, tables.pair,
        )  # fmt: skip
        for k in np.flatnonzero(self._taken & (self._life == rt.EMPTY)):
            self._end(int(k), float(self._gone[k]))

    def fleet(self) -> tuple[int, int, tuple[float, ...], int]:
        """Return the number asked for, ready ones, ages of those that start, and draining ones."""
        there = self._kept()
        young = there & (self._since > self.time)
        ages = tuple(float(self.time - t) for t in self._ordered[young])
        return self.target, int((there & ~young).sum()), ages, int((self._life == rt.DRAINING).sum())

    def _kept(self) -> Flags:
        return np.asarray((self._life != rt.EMPTY) & (self._life != rt.DRAINING))

    def rest(self, emptied: Sequence[str], asleep: Sequence[str]) -> None:
        """Send nothing to these replicas, by their ids, and let those `asleep` among them sleep once they have nothing."""
        for k in np.flatnonzero(self._kept()):
            name, idle = self.id_of(int(k)), self._engines[k, e.RUNNING] + self._engines[k, e.WAITING] == 0
            if name in asleep and idle:
                self._life[k] = rt.RESTING
            elif self._life[k] == rt.RESTING:
                self._life[k] = rt.WAKING
                self._ready[k] = self._clock[k] = self.time + self._wake_s
                self.wakes += 1
            elif self._life[k] != rt.WAKING:
                self._life[k] = rt.SPARED if name in emptied else rt.ORDERED

    def id_of(self, place: int) -> str:
        """Return a replica's id: a place is taken by one after another."""
        return f"{place}-{self._ordered[place]:g}"

    def scale(self, replicas: int) -> None:
        """Ask for so many replicas. Those that have not started yet go first, then the ones with fewest requests."""
        if replicas == self.target:
            return
        self.ups += replicas > self.target
        self.downs += replicas < self.target
        self._set(replicas, self._cold)

    def _set(self, replicas: int, cold: Callable[[], float]) -> None:
        self.target = replicas
        while True:
            alive = np.flatnonzero(self._kept())
            if len(alive) < replicas:
                self._start(cold())
            elif len(alive) > replicas:
                self._stop(alive)
            else:
                return

    def _start(self, cold_s: float) -> None:
        free = np.flatnonzero(~self._taken)
        if not len(free):
            self._grow()
            free = np.flatnonzero(~self._taken)
        k = int(free[0])
        self._engines[k], self._sums[k], self._known[k] = self._empty, 0.0, 0.0
        for seen in self._scraped[3:]:
            seen[k] = 0  # type: ignore[index]
        self._taken[k], self._life[k], self._ordered[k] = True, rt.ORDERED, self.time
        self._ready[k] = self._clock[k] = self._since[k] = self.time + cold_s
        self._g[rt.PLACES] = max(self._g[rt.PLACES], k + 1)

    def _stop(self, alive: Ints) -> None:
        held = self._engines[alive, e.RUNNING] + self._engines[alive, e.WAITING]
        starting = self._since[alive] > self.time
        if (self._life[alive] != rt.ORDERED).any():  # by Serve's own rule, one replica a node, which says who is spared
            k = int(alive[np.lexsort((self._since[alive], ~starting))[0]])
        else:
            k = int(alive[np.lexsort((-self._ordered[alive], held, ~starting))[0]])
        if self._since[k] <= self.time:
            self.owed_at_stop.append((self._owed(k), self._owed(int(alive[np.argmin(self._since[alive])]))))
        if self._since[k] > self.time or held[alive == k][0] == 0:
            self._life[k] = rt.EMPTY
            self._end(k, self.time)
        else:
            self._life[k] = rt.DRAINING

    def true_remains(self) -> tuple[Ints, Ints, Ints]:
        """Return tokens made, tokens still to make and prompt tokens of all running requests: for an oracle alone."""
        there = np.flatnonzero(self._life != rt.EMPTY)
        rows = np.concatenate([self._run[k, : self._engines[k, e.RUNNING]] for k in there])
        made = self._req[e.MADE, rows]
        return made, self._req[e.OUTPUT, rows] - made, self._req[e.PROMPT, rows]

    def _owed(self, k: int) -> int:
        """Return the tokens that a replica's running requests will make yet, which nobody but the simulator knows."""
        rows = self._run[k, : self._engines[k, e.RUNNING]]
        return int((self._req[e.OUTPUT, rows] - self._req[e.MADE, rows]).sum())

    def _end(self, k: int, gone: float) -> None:
        self.spans.append(Span(float(self._ordered[k]), max(gone, float(self._ordered[k]))))
        self._taken[k] = False

    def _grow(self) -> None:
        if len(self._engines) >= MOST_REPLICAS:
            raise ValueError(f"more than {MOST_REPLICAS} replicas at once")
        for name in (
            "_engines", "_clock", "_ready", "_gone", "_run", "_sums", "_known", "_life", "_ordered", "_taken", "_since",
        ):  # fmt: skip
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        t, ended, due, *counts = self._scraped
        self._scraped = (t, ended, due, *(np.concatenate([c, np.zeros_like(c)]) for c in counts))  # type: ignore[assignment]

    def close(self) -> None:
        """End every replica now."""
        for k in np.flatnonzero(self._taken):
            self._end(int(k), self.time)
            self._life[k] = rt.EMPTY

    def scrape(self) -> Scrape:
        """Return what the metrics say now."""
        then, since, due, steps, preemptions, sums = self._scraped
        classes = len(self._work.classes)
        by_class, by_bin = np.zeros((6, classes)), np.zeros((5, classes, len(BINS)))
        # Who waits at the gate is counted as who waits at an engine; who waits for the first start is held.
        live = np.flatnonzero((self._life != rt.EMPTY) & (self._since <= self.time))
        gated = self._router == rt.GATED and bool((self._life[live] == rt.ORDERED).any())
        at_gate = int(self._g[rt.QUEUED]) if gated else 0
        count_all(
            int(self._g[rt.PLACES]), self._engines, self._run, self._life, self._req, BINS, self._ended, since,
            int(self._g[rt.QUEUE_HEAD]), at_gate, by_class, by_bin,
        )  # fmt: skip
        new = self._come[due + 1 : int(self._come[0]) + 1]
        new = new[~self.refused[new]]  # who is refused is in no ledger
        ended = self._ended[since + 1 : int(self._ended[0]) + 1]
        by_class[C_ARRIVALS] = np.bincount(self._work.cls[new], minlength=classes)
        by_class[C_PROMPT] = np.bincount(self._work.cls[new], weights=self._work.prompt_tokens[new], minlength=classes)
        self._late.extend(int(r) for r in new)
        late = np.array(self._late, dtype=np.int64)
        started = late[~np.isnan(self.first_s[late])]
        self._late = [int(r) for r in late[np.isnan(self.first_s[late])]]
        made = self._req[e.OUTPUT, ended]
        long = ended[made > 1]
        found = Scrape(
            time=self.time,
            window_s=self.time - then,
            by_class=by_class,
            by_bin=by_bin,
            replicas=live,
            running=self._engines[live, e.RUNNING],
            waiting=self._engines[live, e.WAITING],
            kv_used=((self._engines[live, e.TOTAL] - self._engines[live, e.FREE]) * self._empty[e.BLOCK]).astype(
                np.float64
            ),
            kv_capacity=float(self._blocks * self._empty[e.BLOCK]),
            prompts_left=self._known[live, rt.PROMPTS].copy(),
            preemptions=(self._engines[live, e.PREEMPTIONS] - preemptions[live]).astype(np.int64),
            steps=(self._engines[live, e.STEPS] - steps[live]).astype(np.int64),
            sums=self._sums[live] - sums[live],
            held=int(self._g[rt.QUEUED]) - at_gate,
            at_gate=at_gate,
            ttft_s=self.first_s[started] - self.arrival_s[started],
            tpot_s=(self.last_s[long] - self.first_s[long]) / (self._req[e.OUTPUT, long] - 1),
            input_tokens=self._req[e.PROMPT, ended].astype(np.float64),
            output_tokens=made.astype(np.float64),
            since_s=tuple(float(t) for t in self._since[live]),
            asleep=tuple(bool(x) for x in (self._life[live] == rt.RESTING) | (self._life[live] == rt.WAKING)),
            names=tuple(self.id_of(int(k)) for k in live),
        )
        self._scraped = (
            self.time, int(self._ended[0]), int(self._come[0]), self._engines[:, e.STEPS].astype(np.float64),
            self._engines[:, e.PREEMPTIONS].astype(np.float64), self._sums.copy(),
        )  # fmt: skip
        return found
