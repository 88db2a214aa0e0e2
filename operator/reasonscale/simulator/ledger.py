"""What a scrape of a fleet's metrics counts: the sums of the product's ledgers, and what engines say of themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from reasonscale.api.constants import TOKEN_BINS
from reasonscale.simulator import engine as e
from reasonscale.simulator.engine import Floats, Ints

BINS: Ints = np.array(TOKEN_BINS, dtype=np.int64)
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
def count_all(
    places: int, engines: Ints, run: Ints, life: Ints, req: Ints, bins: Ints, ended: Ints, since: int,
    queue_head: int, queued: int, by_class: Floats, by_bin: Floats,
) -> None:  # fmt: skip
    """Count those that ended since the last scrape, those in the engines and those in the gate's queue."""
    for i in range(since + 1, ended[0] + 1):
        _count(ended[i], req, bins, by_class, by_bin, False)
    for k in range(places):
        if life[k] == 0:  # nobody there
            continue
        for i in range(engines[k, e.RUNNING]):
            _count(run[k, i], req, bins, by_class, by_bin, True)
        r = engines[k, e.HEAD]
        for _ in range(engines[k, e.WAITING]):
            # A preempted request is waiting in the engine, and in flight to its client.
            _count(r, req, bins, by_class, by_bin, True)
            r = req[e.NEXT, r]
    r = queue_head
    for _ in range(queued):
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
    held: int  # before any replica was ready
    at_gate: int
    ttft_s: Floats  # of the requests that had their first token
    tpot_s: Floats  # of those that ended
    input_tokens: Floats  # of those that ended
    output_tokens: Floats
    names: tuple[str, ...] = ()  # of the replicas that report
    since_s: tuple[float, ...] = ()  # when each of the replicas began to serve
    asleep: tuple[bool, ...] = ()  # whether its engine sleeps, or wakes
