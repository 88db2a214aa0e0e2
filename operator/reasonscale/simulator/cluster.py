"""A model of a fleet: engines that start, serve, drain and cost; a router before them; a ledger that is scraped.

Time goes on in reports of `REPORT_S`: the router learns what each replica holds, replicas that have drained go, and what
was held because none was ready is sent. Between reports it counts what it sent itself. An engine steps on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from reasonscale.api.constants import TOKEN_BINS
from reasonscale.simulator import engine as e
from reasonscale.simulator.engine import Floats, Ints
from reasonscale.simulator.profile import Profile
from reasonscale.simulator.workload import Workload

REPORT_S: Final = 1.0
MOST_REPLICAS: Final = 4096
LEAST_KV, TWO_CHOICES, EXPECTED_LOAD = range(3)
ROUTERS: Final = {"least-kv": LEAST_KV, "two-choices": TWO_CHOICES, "expected-load": EXPECTED_LOAD}
PREFILL_WEIGHT = 5.0  # KV tokens that one prompt token not yet computed counts for
# What each request will yet add to a replica's KV, about: else one that is new and empty gets all that comes, until it
# is slower than any other.
TOKENS_TO_COME = 2000.0
# What a place for a replica is.
EMPTY, ORDERED, DRAINING = range(3)
# Columns of the router's knowledge of a replica.
HELD_KV, PROMPTS, ONGOING = range(3)
# Places in the cluster's own counts.
NEXT, QUEUE_HEAD, QUEUE_TAIL, QUEUED, PLACES, SEED, HEAP, KNOWN, FOLLOWED = range(9)
NOBODY = e.NOBODY
BINS: Ints = np.array(TOKEN_BINS, dtype=np.int64)


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _random(g: Ints) -> int:
    """Return the next number of a linear congruential generator, 0 .. 2**31 - 1."""
    g[SEED] = (g[SEED] * 1103515245 + 12345) % 2147483648
    return int(g[SEED])


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _push(g: Ints, when: Floats, who: Ints, at: float, r: int) -> None:
    """Put a follow-up request into the heap by its time."""
    i = g[HEAP]
    g[HEAP] += 1
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
    g[HEAP] -= 1
    n = g[HEAP]
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
def _choose(g: Ints, t: float, life: Ints, ready: Floats, known: Floats, router: int, weight: float, to_come: float
) -> int:  # fmt: skip
    """Return the replica for a request; NOBODY where none is ready."""
    if router == TWO_CHOICES:
        n = 0
        for k in range(g[PLACES]):
            if life[k] == ORDERED and ready[k] <= t:
                n += 1
        if n == 0:
            return NOBODY
        a, b = _random(g) // 65536 % n, _random(g) // 65536 % n
        one = two = NOBODY
        n = 0
        for k in range(g[PLACES]):
            if life[k] == ORDERED and ready[k] <= t:
                if n == a:
                    one = k
                if n == b:
                    two = k
                n += 1
        return one if known[one, ONGOING] <= known[two, ONGOING] else two
    best, least = NOBODY, np.inf
    for k in range(g[PLACES]):
        if life[k] == ORDERED and ready[k] <= t:
            score = known[k, HELD_KV]
            if router == EXPECTED_LOAD:
                score += weight * known[k, PROMPTS] + to_come * known[k, ONGOING]
            if score < least:
                best, least = k, score
    return best


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _send(k: int, r: int, engines: Ints, req: Ints, known: Floats) -> None:
    e.enqueue(engines[k], req, r)
    known[k, HELD_KV] += req[e.PROMPT, r]
    known[k, PROMPTS] += req[e.PROMPT, r]
    known[k, ONGOING] += 1


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _report(k: int, engines: Ints, run: Ints, req: Ints, known: Floats) -> None:
    """Tell the router what replica `k` holds."""
    s = engines[k]
    left = s[e.WAITING_TOKENS]
    for i in range(s[e.RUNNING]):
        r = run[k, i]
        todo = req[e.PROMPT, r] + req[e.MADE, r] - req[e.DONE, r]
        if todo > 1:
            left += todo
    known[k, HELD_KV] = (s[e.TOTAL] - s[e.FREE]) * s[e.BLOCK] + s[e.WAITING_TOKENS]
    known[k, PROMPTS] = left
    known[k, ONGOING] = s[e.RUNNING] + s[e.WAITING]


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def play(
    t: float, until: float, g: Ints, engines: Ints, clock: Floats, run: Ints, sums: Floats, life: Ints, ready: Floats,
    gone: Floats, known: Floats, arrival: Floats, req: Ints, first: Floats, last: Floats, ended: Ints,
    follower: Ints, think: Floats, when: Floats, who: Ints, router: int, weight: float, to_come: float,
    base: Floats, slope: Floats, linear: Floats, overhead: float, pair: float,
) -> float:  # fmt: skip
    """Let the fleet run from `t` to `until`, which are whole reports, and return `until`."""
    n = g[KNOWN]  # requests whose arrival is known; the others follow these
    while t < until:
        edge = min(until, t + REPORT_S)
        while True:
            r, at = NOBODY, edge
            if g[NEXT] < n and arrival[g[NEXT]] < edge:
                r, at = g[NEXT], arrival[g[NEXT]]
            chained = g[HEAP] > 0 and when[0] < at
            if chained:
                r, at = who[0], when[0]
            if r == NOBODY:
                break
            if chained:
                _pop(g, when, who)
                arrival[r] = at
            else:
                g[NEXT] += 1
            if req[e.PROMPT, r] + req[e.OUTPUT, r] - 1 > engines[0, e.TOTAL] * engines[0, e.BLOCK]:
                continue
            k = _choose(g, at, life, ready, known, router, weight, to_come)
            if k == NOBODY:
                req[e.NEXT, r] = NOBODY
                if g[QUEUED] == 0:
                    g[QUEUE_HEAD] = r
                else:
                    req[e.NEXT, g[QUEUE_TAIL]] = r
                g[QUEUE_TAIL] = r
                g[QUEUED] += 1
                continue
            clock[k] = e.advance(
                engines[k], clock[k], at, run[k], req, first, last, sums[k], ended, base, slope, linear, overhead, pair
            )
            clock[k] = max(clock[k], at)
            _send(k, r, engines, req, known)
        t = edge
        for k in range(g[PLACES]):
            if life[k] == EMPTY or ready[k] > t:
                continue
            clock[k] = e.advance(
                engines[k], clock[k], t, run[k], req, first, last, sums[k], ended, base, slope, linear, overhead, pair
            )
            _report(k, engines, run, req, known)
            if life[k] == DRAINING and engines[k, e.RUNNING] + engines[k, e.WAITING] == 0:
                life[k] = EMPTY
                gone[k] = max(t - REPORT_S, min(t, clock[k]))
        while g[QUEUED] > 0:
            k = _choose(g, t, life, ready, known, router, weight, to_come)
            if k == NOBODY:
                break
            r = g[QUEUE_HEAD]
            g[QUEUE_HEAD] = req[e.NEXT, r]
            g[QUEUED] -= 1
            clock[k] = max(clock[k], t)
            _send(k, r, engines, req, known)
        while g[FOLLOWED] < ended[0]:
            g[FOLLOWED] += 1
            r = ended[g[FOLLOWED]]
            if follower[r] != NOBODY:
                _push(g, when, who, max(t, last[r] + think[r]), follower[r])
    return t


# Rows of what a scrape counts by class, and of what it counts by class and bin.
(C_WAITING, C_WAITING_PROMPT, C_ARRIVALS, C_PROMPT, C_REASONING, C_ANSWER) = range(6)
(B_REASONING, B_ANSWERING, B_PROMPT, B_REACHED, B_ENDED) = range(5)


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _count(r: int, req: Ints, bins: Ints, by_class: Floats, by_bin: Floats, live: bool) -> None:
    """Add one request to the counts; what it has made since the last scrape goes to the counters."""
    c, made, seen = req[e.CLASS, r], req[e.MADE, r], req[e.COUNTED, r]
    if made == 0:
        by_class[C_WAITING, c] += 1
        by_class[C_WAITING_PROMPT, c] += req[e.PROMPT, r]
        return
    b = req[e.BIN, r] - 1  # BIN is one more than the last bin counted
    while b + 1 < len(bins) and bins[b + 1] <= made:
        b += 1
        by_bin[B_REACHED, c, b] += 1
    req[e.BIN, r] = b + 1
    if made > seen:
        chain = req[e.REASONING, r]
        thought = max(0, min(made, chain) - min(seen, chain))
        by_class[C_REASONING, c] += thought
        by_class[C_ANSWER, c] += made - seen - thought
        req[e.COUNTED, r] = made
    if live:
        by_bin[B_REASONING if made < req[e.REASONING, r] else B_ANSWERING, c, b] += 1
        by_bin[B_PROMPT, c, b] += req[e.PROMPT, r]
    else:
        by_bin[B_ENDED, c, b] += 1


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _scrape(
    g: Ints, engines: Ints, run: Ints, life: Ints, req: Ints, bins: Ints, ended: Ints, since: int,
    by_class: Floats, by_bin: Floats,
) -> None:  # fmt: skip
    for i in range(since + 1, ended[0] + 1):
        _count(ended[i], req, bins, by_class, by_bin, False)
    for k in range(g[PLACES]):
        if life[k] == EMPTY:
            continue
        for i in range(engines[k, e.RUNNING]):
            _count(run[k, i], req, bins, by_class, by_bin, True)
        r = engines[k, e.HEAD]
        for _ in range(engines[k, e.WAITING]):
            # A preempted request is waiting in the engine, and in flight to its client.
            _count(r, req, bins, by_class, by_bin, True)
            r = req[e.NEXT, r]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What the metrics say at one moment. Counters are increments since the scrape before."""

    time: float
    window_s: float
    by_class: Floats  # rows C_*, classes
    by_bin: Floats  # rows B_*, classes, bins
    replicas: Ints  # places of the replicas that report
    running: Ints  # by replica, as the rest
    waiting: Ints
    kv_used: Floats
    kv_capacity: float
    prompts_left: Floats  # prompt tokens not yet computed
    preemptions: Ints
    steps: Ints
    sums: Floats  # rows by replica: SECONDS, BATCH, KV, PREFILL
    held: int
    ttft_s: Floats  # of the requests that had their first token
    tpot_s: Floats  # of those that ended
    input_tokens: Floats  # of those that ended
    output_tokens: Floats


@dataclass(frozen=True, slots=True)
class Span:
    """One replica's life: from the order to its end."""

    ordered: float
    gone: float


class Cluster:
    """The fleet under one model. `scale` sets the number; `advance` lets time pass; `scrape` reads the metrics."""

    def __init__(
        self, profile: Profile, work: Workload, *, router: str, cold_start_s: Callable[[], float], replicas: int,
        seed: int = 1, max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None,
    ) -> None:  # fmt: skip
        n = len(work.arrival_s)
        self._seats = max_num_seqs or profile.max_num_seqs
        self._step_tokens = min(
            max_num_batched_tokens or profile.max_num_batched_tokens, profile.max_num_batched_tokens
        )
        self._tables = profile.tables(self._seats)
        self._blocks = profile.kv_tokens // profile.block_tokens
        self._empty = e.empty_engine(self._blocks, profile.block_tokens, self._seats, self._step_tokens)
        self._work, self._cold = work, cold_start_s
        self._router = ROUTERS[router]
        size = 64
        self._engines = np.tile(self._empty, (size, 1))
        self._clock, self._ready, self._gone = np.zeros(size), np.zeros(size), np.zeros(size)
        self._run = np.zeros((size, self._seats), dtype=np.int64)
        self._sums, self._known = np.zeros((size, 4)), np.zeros((size, 3))
        self._life, self._ordered = np.zeros(size, dtype=np.int64), np.zeros(size)
        self._taken = np.zeros(size, dtype=np.bool_)
        self._req = np.zeros((e.ROWS, n), dtype=np.int64)
        self._req[e.PROMPT], self._req[e.OUTPUT] = work.prompt_tokens, work.reasoning_tokens + work.answer_tokens
        self._req[e.REASONING], self._req[e.CLASS] = work.reasoning_tokens, work.cls
        # Requests that never fit an empty KV cache.
        self.refused: npt.NDArray[np.bool_] = (
            self._req[e.PROMPT] + self._req[e.OUTPUT] - 1 > self._blocks * profile.block_tokens
        )
        self.arrival_s = work.arrival_s.copy()
        self.first_s, self.last_s = np.full(n, np.nan), np.full(n, np.nan)
        self._ended = np.zeros(n + 1, dtype=np.int64)
        self._when, self._who = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
        self._g = np.zeros(9, dtype=np.int64)
        self._g[KNOWN] = int((work.arrival_s >= 0.0).sum())
        self._g[[QUEUE_HEAD, QUEUE_TAIL]] = NOBODY
        self._g[SEED] = seed
        self.time = 0.0
        self.target = 0
        self.spans: list[Span] = []
        self.ups = self.downs = 0
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
        idle = self._g[QUEUED] == 0 and self._g[HEAP] == 0 and self._g[NEXT] == self._g[KNOWN]
        return bool(idle and (self._engines[:, e.RUNNING] + self._engines[:, e.WAITING]).sum() == 0)

    def advance(self, until: float) -> None:
        """Let time pass."""
        w, tables = self._work, self._tables
        self.time = play(
            self.time, until, self._g, self._engines, self._clock, self._run, self._sums, self._life, self._ready, self._gone,
            self._known, self.arrival_s, self._req, self.first_s, self.last_s, self._ended, w.follower,
            w.think_s, self._when, self._who, self._router, PREFILL_WEIGHT, TOKENS_TO_COME,
            tables.base, tables.slope, tables.linear, tables.overhead, tables.pair,
        )  # fmt: skip
        for k in np.flatnonzero(self._taken & (self._life == EMPTY)):
            self._end(int(k), float(self._gone[k]))

    def fleet(self) -> tuple[int, int, tuple[float, ...], int]:
        """Return the number asked for, ready ones, ages of those that start, and draining ones."""
        ordered = self._life == ORDERED
        young = ordered & (self._ready > self.time)
        ages = tuple(float(self.time - t) for t in self._ordered[young])
        return self.target, int((ordered & ~young).sum()), ages, int((self._life == DRAINING).sum())

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
            alive = np.flatnonzero(self._life == ORDERED)
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
        self._taken[k], self._life[k], self._ordered[k] = True, ORDERED, self.time
        self._ready[k] = self._clock[k] = self.time + cold_s
        self._g[PLACES] = max(self._g[PLACES], k + 1)

    def _stop(self, alive: Ints) -> None:
        held = self._engines[alive, e.RUNNING] + self._engines[alive, e.WAITING]
        starting = self._ready[alive] > self.time
        k = int(alive[np.lexsort((-self._ordered[alive], held, ~starting))[0]])
        if self._ready[k] <= self.time:
            self.owed_at_stop.append((self._owed(k), self._owed(int(alive[np.argmin(self._ready[alive])]))))
        if self._ready[k] > self.time or held[alive == k][0] == 0:
            self._life[k] = EMPTY
            self._end(k, self.time)
        else:
            self._life[k] = DRAINING

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
        for name in ("_engines", "_clock", "_ready", "_gone", "_run", "_sums", "_known", "_life", "_ordered", "_taken"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        t, ended, due, *counts = self._scraped
        self._scraped = (t, ended, due, *(np.concatenate([c, np.zeros_like(c)]) for c in counts))  # type: ignore[assignment]

    def close(self) -> None:
        """End every replica now."""
        for k in np.flatnonzero(self._taken):
            self._end(int(k), self.time)
            self._life[k] = EMPTY

    def scrape(self) -> Scrape:
        """Return what the metrics say now."""
        then, since, due, steps, preemptions, sums = self._scraped
        classes = len(self._work.classes)
        by_class, by_bin = np.zeros((6, classes)), np.zeros((5, classes, len(BINS)))
        _scrape(
            self._g, self._engines, self._run, self._life, self._req, BINS, self._ended, since, by_class, by_bin
        )  # fmt: skip
        # Arrivals are counted where they are sent; follow-ups (arrival not known before) when they come.
        new = np.arange(due, int(self._g[NEXT]), dtype=np.int64)
        ended = self._ended[since + 1 : int(self._ended[0]) + 1]
        for rows in (new, ended):
            if rows is ended:
                rows = self._work.follower[rows]
                rows = rows[rows != NOBODY]
            by_class[C_ARRIVALS] += np.bincount(self._work.cls[rows], minlength=classes)
            by_class[C_PROMPT] += np.bincount(
                self._work.cls[rows], weights=self._work.prompt_tokens[rows], minlength=classes
            )
        live = np.flatnonzero((self._life != EMPTY) & (self._ready <= self.time))
        self._late.extend(int(r) for r in new)
        self._late.extend(int(r) for r in self._work.follower[ended] if r != NOBODY)
        late = np.array(self._late, dtype=np.int64)
        started = late[~np.isnan(self.first_s[late])]
        self._late = [int(r) for r in late[np.isnan(self.first_s[late]) & ~self.refused[late]]]
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
            prompts_left=self._known[live, PROMPTS].copy(),
            preemptions=(self._engines[live, e.PREEMPTIONS] - preemptions[live]).astype(np.int64),
            steps=(self._engines[live, e.STEPS] - steps[live]).astype(np.int64),
            sums=self._sums[live] - sums[live],
            held=int(self._g[QUEUED]),
            ttft_s=self.first_s[started] - self.arrival_s[started],
            tpot_s=(self.last_s[long] - self.first_s[long]) / (self._req[e.OUTPUT, long] - 1),
            input_tokens=self._req[e.PROMPT, ended].astype(np.float64),
            output_tokens=made.astype(np.float64),
        )
        self._scraped = (
            self.time, int(self._ended[0]), int(self._g[NEXT]), self._engines[:, e.STEPS].astype(np.float64),
            self._engines[:, e.PREEMPTIONS].astype(np.float64), self._sums.copy(),
        )  # fmt: skip
        return found
