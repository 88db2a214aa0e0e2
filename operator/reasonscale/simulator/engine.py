"""A model of one vLLM V1 engine, step by step: continuous batching, chunked prefill, paged KV, preemption.

What a step does is vLLM's scheduler in short: running requests first, in order of admission, each with its next token or
the next chunk of its prompt; where blocks run out the newest running request is preempted and computed again later; then
waiting requests first come first served, as long as tokens of the step, seats and blocks for the whole prompt are there.
Steps in which nothing can change but lengths are taken many at once. The functions take flat arrays, because numba
compiles those well and keeps them in its cache: one state of counts and clock, and arrays by request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from reasonscale.profiles.profile import Profile
from reasonscale.simulator.tables import Tables, tables_of, too_long

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Places in the integer state.
(
    RUNNING, WAITING, HEAD, TAIL, FREE, PREEMPTIONS, STEPS, COMPUTED, BLOCK, SEATS, STEP_TOKENS, TOTAL, WAITING_TOKENS,
) = range(13)  # fmt: skip
STATE = 13
# Rows of the array of requests; those after TAKE are for the ledger of a cluster.
PROMPT, OUTPUT, MADE, DONE, BLOCKS, NEXT, PREEMPTED, TAKE, REASONING, CLASS, COUNTED, BIN = range(12)
ROWS = 12
# Places in the sums over steps.
SECONDS, BATCH, KV, PREFILL = range(4)
NOBODY = -1


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def enqueue(s: Ints, req: Ints, r: int) -> None:
    """Put request `r` at the end of the waiting queue."""
    req[NEXT, r] = NOBODY
    if s[WAITING] == 0:
        s[HEAD] = r
    else:
        req[NEXT, s[TAIL]] = r
    s[TAIL] = r
    s[WAITING] += 1
    s[WAITING_TOKENS] += req[PROMPT, r] + req[MADE, r]


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _preempt(s: Ints, run: Ints, req: Ints) -> int:
    """Send the newest running request back to the head of the queue, without its KV; return it."""
    s[RUNNING] -= 1
    victim = run[s[RUNNING]]
    s[FREE] += req[BLOCKS, victim]
    req[BLOCKS, victim] = 0
    req[DONE, victim] = 0
    req[PREEMPTED, victim] += 1
    req[NEXT, victim] = s[HEAD] if s[WAITING] > 0 else NOBODY
    if s[WAITING] == 0:
        s[TAIL] = victim
    s[HEAD] = victim
    s[WAITING] += 1
    s[WAITING_TOKENS] += req[PROMPT, victim] + req[MADE, victim]
    s[PREEMPTIONS] += 1
    return int(victim)


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _schedule(s: Ints, run: Ints, req: Ints) -> int:
    """Decide how many tokens each running request computes in this step; return how many requests do."""
    budget, block = s[STEP_TOKENS], s[BLOCK]
    preempted = False
    i = 0
    while i < s[RUNNING] and budget > 0:
        r = run[i]
        take = min(req[PROMPT, r] + req[MADE, r] - req[DONE, r], budget)
        need = (req[DONE, r] + take + block - 1) // block - req[BLOCKS, r]
        while need > s[FREE]:
            preempted = True
            if _preempt(s, run, req) == r:
                break
        if i >= s[RUNNING]:
            break
        s[FREE] -= need
        req[BLOCKS, r] += need
        req[TAKE, r] = take
        budget -= take
        i += 1
    while not preempted and s[WAITING] > 0 and s[RUNNING] < s[SEATS] and budget > 0:
        r = s[HEAD]
        whole = req[PROMPT, r] + req[MADE, r]
        if (whole + block - 1) // block > s[FREE]:
            break
        take = min(whole, budget)
        need = (take + block - 1) // block
        s[FREE] -= need
        req[BLOCKS, r] = need
        req[TAKE, r] = take
        budget -= take
        s[HEAD] = req[NEXT, r]
        s[WAITING] -= 1
        s[WAITING_TOKENS] -= whole
        run[s[RUNNING]] = r
        s[RUNNING] += 1
        i += 1
    return i


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _step(
    s: Ints, clock: float, run: Ints, req: Ints, first: Floats, last: Floats, sums: Floats, ended: Ints,
    base: Floats, slope: Floats, linear: Floats, overhead: float, pair: float,
) -> float:  # fmt: skip
    """Do one step and return the time at its end. `ended` lists those that ended, after their number."""
    scheduled = _schedule(s, run, req)
    decoding, kv, prompt, pairs = 0, 0, 0, 0.0
    for i in range(scheduled):
        r = run[i]
        take, done = req[TAKE, r], req[DONE, r]
        if take == 1 and done >= req[PROMPT, r]:
            decoding += 1
            kv += done
        else:
            prompt += take
            pairs += take * (done + 0.5 * take)
    took = base[decoding] + slope[decoding] * kv
    if prompt > 0:
        took += linear[prompt + decoding] - linear[decoding] + overhead + pair * pairs
    clock += took
    s[STEPS] += 1
    sums[SECONDS] += took
    sums[BATCH] += s[RUNNING]
    sums[KV] += (s[TOTAL] - s[FREE]) * s[BLOCK]
    sums[PREFILL] += prompt
    kept = 0
    for i in range(s[RUNNING]):
        r = run[i]
        if i < scheduled:
            req[DONE, r] += req[TAKE, r]
            s[COMPUTED] += req[TAKE, r]
            if req[DONE, r] == req[PROMPT, r] + req[MADE, r]:
                req[MADE, r] += 1
                if req[MADE, r] == 1:
                    first[r] = clock
                if req[MADE, r] >= req[OUTPUT, r]:
                    last[r] = clock
                    s[FREE] += req[BLOCKS, r]
                    req[BLOCKS, r] = 0
                    ended[0] += 1
                    ended[ended[0]] = r
                    continue
        run[kept] = r
        kept += 1
    s[RUNNING] = kept
    return clock


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _leap(
    s: Ints, clock: float, until: float, run: Ints, req: Ints, sums: Floats, base: Floats, slope: Floats
) -> float:  # fmt: skip
    """Do as many pure decode steps as nobody joins, ends or lacks a block in, and return the time after them.

    It leaves the step in which the first one ends, and the one that reaches `until`, to `_step`.
    """
    n, block = s[RUNNING], s[BLOCK]
    if n == 0 or n > s[STEP_TOKENS]:
        return clock
    steps, kv = 1 << 60, 0
    for i in range(n):
        r = run[i]
        if req[DONE, r] != req[PROMPT, r] + req[MADE, r] - 1 or req[MADE, r] == 0:
            return clock
        steps = min(steps, req[OUTPUT, r] - req[MADE, r] - 1)
        kv += req[DONE, r]
    if s[WAITING] > 0 and n < s[SEATS]:
        r = s[HEAD]
        if (req[PROMPT, r] + req[MADE, r] + block - 1) // block <= s[FREE]:
            return clock
    # A request takes at most one block more than its steps fill.
    steps = min(steps, (s[FREE] // n - 1) * block)
    a, c = base[n] + slope[n] * kv, slope[n] * n
    if steps > 0 and until < np.inf:
        # The time of k steps is k*a + c*k*(k-1)/2; all of the k leapt end before `until`.
        left, half = until - clock, 0.5 * c
        u = a - half
        k = left / a if half <= 0.0 else (np.sqrt(u * u + 4.0 * half * left) - u) / (2.0 * half)
        steps = min(steps, int(k) - 1)
    if steps <= 0:
        return clock
    for i in range(n):
        r = run[i]
        req[DONE, r] += steps
        req[MADE, r] += steps
        need = (req[DONE, r] + block - 1) // block - req[BLOCKS, r]
        req[BLOCKS, r] += need
        s[FREE] -= need
    s[STEPS] += steps
    s[COMPUTED] += steps * n
    took = steps * a + 0.5 * c * steps * (steps - 1)
    sums[SECONDS] += took
    sums[BATCH] += steps * n
    sums[KV] += steps * (kv + 0.5 * n * (steps - 1))
    return float(clock + took)


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def advance(
    s: Ints, clock: float, until: float, run: Ints, req: Ints, first: Floats, last: Floats, sums: Floats, ended: Ints,
    base: Floats, slope: Floats, linear: Floats, overhead: float, pair: float,
) -> float:  # fmt: skip
    """Step until the clock reaches `until` or nobody is left, and return the clock; a step once begun is finished."""
    while clock < until and (s[RUNNING] > 0 or s[WAITING] > 0):
        clock = _leap(s, clock, until, run, req, sums, base, slope)
        clock = _step(s, clock, run, req, first, last, sums, ended, base, slope, linear, overhead, pair)
    return clock


@njit(cache=True)  # type: ignore[misc,unused-ignore]
def _replay(
    s: Ints, arrival: Floats, until: float, run: Ints, req: Ints, first: Floats, last: Floats, sums: Floats, ended: Ints,
    base: Floats, slope: Floats, linear: Floats, overhead: float, pair: float,
) -> float:  # fmt: skip
    clock, capacity = 0.0, s[FREE] * s[BLOCK]
    for r in range(len(arrival)):
        if arrival[r] >= until:
            break
        clock = advance(s, clock, arrival[r], run, req, first, last, sums, ended, base, slope, linear, overhead, pair)
        clock = max(clock, arrival[r])
        # The last token is never computed, so it needs no place.
        if req[PROMPT, r] + req[OUTPUT, r] - 1 <= capacity:
            enqueue(s, req, r)
    return float(advance(s, clock, until, run, req, first, last, sums, ended, base, slope, linear, overhead, pair))


def empty_engine(blocks: int, block_tokens: int, seats: int, step_tokens: int) -> Ints:
    """Return the state of an engine that holds nobody."""
    state = np.zeros(STATE, dtype=np.int64)
    state[[HEAD, TAIL]] = NOBODY
    state[[FREE, TOTAL, BLOCK, SEATS, STEP_TOKENS]] = blocks, blocks, block_tokens, seats, step_tokens
    return state


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of each request, in the order given. Times are seconds; NaN where it didn't happen."""

    first_s: Floats
    last_s: Floats
    made_tokens: Ints
    preempted: Ints  # times
    refused: npt.NDArray[np.bool_]  # prompt and output don't fit an empty KV cache
    end_s: float
    steps: int
    computed_tokens: int  # prompt and output tokens put through the model, those computed again included
    preemptions: int
    free_blocks: int
    blocks: int


def replay(
    profile: Profile,
    arrival_s: Floats,
    prompt_tokens: Ints,
    output_tokens: Ints,
    *,
    until_s: float = np.inf,
    kv_tokens: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
) -> Replay:
    """Send requests to one engine at their times and return what became of them.

    Arrivals must not go back, and every request has at least one prompt and one output token. `until_s` cuts the replay
    off at the end of the step that reaches it.
    """
    n = len(arrival_s)
    if len(prompt_tokens) != n or len(output_tokens) != n:
        raise ValueError(f"{n} arrivals, {len(prompt_tokens)} prompts, {len(output_tokens)} outputs: must be as many")
    if n and (np.diff(arrival_s).min(initial=0.0) < 0 or prompt_tokens.min() < 1 or output_tokens.min() < 1):
        raise ValueError("arrivals must not go back, and prompts and outputs must have one token or more")
    seats = max_num_seqs or profile.max_num_seqs
    step_tokens = min(max_num_batched_tokens or profile.max_num_batched_tokens, profile.max_num_batched_tokens)
    tables: Tables = tables_of(profile, seats)
    blocks = (kv_tokens or profile.kv_tokens) // profile.block_tokens
    state = empty_engine(blocks, profile.block_tokens, seats, step_tokens)
    req = np.zeros((ROWS, n), dtype=np.int64)
    req[PROMPT], req[OUTPUT] = prompt_tokens, output_tokens
    first, last = np.full(n, np.nan), np.full(n, np.nan)
    end = _replay(
        state, np.asarray(arrival_s, dtype=np.float64), float(until_s), np.zeros(seats, dtype=np.int64), req, first, last,
        np.zeros(4), np.zeros(n + 1, dtype=np.int64), tables.base, tables.slope, tables.linear, tables.overhead, tables.pair,
    )  # fmt: skip
    return Replay(
        first_s=first,
        last_s=last,
        made_tokens=req[MADE].copy(),
        preempted=req[PREEMPTED].copy(),
        refused=too_long(profile, prompt_tokens, output_tokens),
        end_s=float(end),
        steps=int(state[STEPS]),
        computed_tokens=int(state[COMPUTED]),
        preemptions=int(state[PREEMPTIONS]),
        free_blocks=int(state[FREE]),
        blocks=blocks,
    )
