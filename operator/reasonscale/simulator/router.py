"""Which replica takes a request, and, before ours, the gate that the product has: who waits, who is refused.

The gate is `serving.gate` and `serving.routing` in short, for one ingress and one class: a request goes at once where a
replica has a seat, is not nearly full and has not just preempted; else it waits here and is bound late, unless it can't be
expected to start within the longest queue. Then it is refused, and its client does not come back.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

import numpy as np
from numba import njit

from reasonscale.simulator import engine as e
from reasonscale.simulator.engine import Floats, Ints

LEAST_KV, TWO_CHOICES, EXPECTED_LOAD, GATED = range(4)
ROUTERS: Final = {"least-kv": LEAST_KV, "two-choices": TWO_CHOICES, "expected-load": EXPECTED_LOAD, "gated": GATED}
PREFILL_WEIGHT = 5.0  # KV tokens that one prompt token not yet computed counts for
# What each request will yet add to a replica's KV, about: else one that is new and empty gets all that comes, until it
# is slower than any other.
TOKENS_TO_COME = 2000.0
# The gate's own numbers are those of the product.
FULL = 0.95  # of a replica's KV cache: filled no further
SURE = 1.64
SPEED_KEEP = 0.5 ** (1.0 / 10.0)  # a second
LEAST_LOOKED_AT = 64
PRIOR_WEIGHT = 4.0
# What a place for a replica is.
EMPTY, ORDERED, DRAINING, SPARED, RESTING, WAKING = range(6)  # SPARED: kept, and nothing is sent to it
# Columns of the router's knowledge of a replica.
HELD_KV, PROMPTS, ONGOING, PREEMPTED, PREEMPTIONS = range(5)
# Places in the cluster's own counts.
NEXT, QUEUE_HEAD, QUEUE_TAIL, QUEUED, PLACES, SEED, HEAP, KNOWN, FOLLOWED = range(9)
# Places in what the gate knows: the longest wait, the mean output (below 0: to be looked up), tokens and seat-seconds of late,
# tokens made at the last report, and what it supposes before it has seen anything.
LONGEST_S, MEAN, TOKENS, SECONDS, MADE, PRIOR_MEAN, PRIOR_SPEED = range(7)
NOBODY = e.NOBODY


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _random(g: Ints) -> int:
    """Return the next number of a linear congruential generator, 0 .. 2**31 - 1."""
    g[SEED] = (g[SEED] * 1103515245 + 12345) % 2147483648
    return int(g[SEED])


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _open(k: int, known: Floats, engines: Ints) -> bool:
    """Tell whether a replica takes one more."""
    s = engines[k]
    room = known[k, ONGOING] < s[e.SEATS] and known[k, HELD_KV] < FULL * s[e.TOTAL] * s[e.BLOCK]
    return bool(room and known[k, PREEMPTED] == 0.0)


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def choose(g: Ints, t: float, life: Ints, ready: Floats, known: Floats, engines: Ints, router: int) -> int:
    """Return the replica for a request; NOBODY where none is ready, or, behind a gate, where none has room."""
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
            if router == GATED and not _open(k, known, engines):
                continue
            if router >= EXPECTED_LOAD:
                score += PREFILL_WEIGHT * known[k, PROMPTS] + TOKENS_TO_COME * known[k, ONGOING]
            if score < least:
                best, least = k, score
    return best


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def send(k: int, r: int, engines: Ints, req: Ints, known: Floats) -> None:
    """Give request `r` to replica `k`."""
    e.enqueue(engines[k], req, r)
    known[k, HELD_KV] += req[e.PROMPT, r]
    known[k, PROMPTS] += req[e.PROMPT, r]
    known[k, ONGOING] += 1


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def report(k: int, engines: Ints, run: Ints, req: Ints, known: Floats) -> None:
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
    known[k, PREEMPTED] = s[e.PREEMPTIONS] > known[k, PREEMPTIONS]
    known[k, PREEMPTIONS] = s[e.PREEMPTIONS]


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def look(g: Ints, gate: Floats, engines: Ints, life: Ints, sums: Floats) -> None:
    """Let the gate take the reports: how fast tokens are made. What a request will make is looked up when it is asked for."""
    made, running = 0.0, 0.0
    for k in range(g[PLACES]):
        if life[k] != EMPTY:
            made += sums[k, e.BATCH]
            running += engines[k, e.RUNNING]
    # A replica that went takes its sum with it.
    gate[TOKENS] = gate[TOKENS] * SPEED_KEEP + max(0.0, made - gate[MADE])
    gate[SECONDS] = gate[SECONDS] * SPEED_KEEP + running
    gate[MADE], gate[MEAN] = made, -1.0


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _mean_tokens(
    g: Ints, gate: Floats, engines: Ints, life: Ints, run: Ints, req: Ints, ended: Ints, running: int
) -> float:
    """Return the output that a request is expected to make: of the last that ended, and of those that run longer."""
    looked_at = min(ended[0], max(LEAST_LOOKED_AT, 4 * running))
    total, n = PRIOR_WEIGHT * gate[PRIOR_MEAN], PRIOR_WEIGHT + looked_at
    for i in range(looked_at):
        total += req[e.MADE, ended[ended[0] - i]]
    mean, beyond = total / n, 0.0
    for k in range(g[PLACES]):
        if life[k] == ORDERED:
            for i in range(engines[k, e.RUNNING]):
                beyond += max(0.0, req[e.MADE, run[k, i]] - mean)
    return float((total + beyond) / n)


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def admits(
    g: Ints, gate: Floats, t: float, engines: Ints, life: Ints, ready: Floats, known: Floats, run: Ints, req: Ints,
    ended: Ints,
) -> bool:  # fmt: skip
    """Tell whether a request that has to wait will start within the longest queue, nineteen times in twenty."""
    seats, there = 0.0, False
    running = 0
    for k in range(g[PLACES]):
        if life[k] == RESTING or life[k] == WAKING:  # nobody is refused while a replica sleeps
            return True
        if life[k] == ORDERED and ready[k] <= t:
            there = True
            running += engines[k, e.RUNNING]
            seats += engines[k, e.SEATS] if _open(k, known, engines) else known[k, ONGOING]
    if not there:  # it waits for a start, as one before a model that sleeps
        return True
    if gate[MEAN] < 0.0:
        gate[MEAN] = max(1.0, _mean_tokens(g, gate, engines, life, run, req, ended, running))
    speed = (gate[TOKENS] + gate[PRIOR_SPEED]) / (gate[SECONDS] + 1.0)
    tokens = (g[QUEUED] + 1) * gate[MEAN]
    wait_s = (tokens + SURE * sqrt(tokens * gate[MEAN])) / (speed * max(1.0, seats))
    return bool(wait_s <= gate[LONGEST_S])
