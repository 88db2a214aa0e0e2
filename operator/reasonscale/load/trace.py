"""Traces: requests with their arrival times, read from files or made from a named workload.

A trace is JSON lines or CSV, `.gz` or not: `t` (s, from the start), `input`, `reasoning`, `answer` (tokens), `cls`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reasonscale.demo import tasks
from reasonscale.load import rows
from reasonscale.load.rows import BadRow, BadTrace


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send: when, what, and the right answer where it is known."""

    t: float
    question: str
    answer: str | None
    cls: str = ""
    max_tokens: int | None = None
    effort: str | None = None


def read_trace(path: Path, *, limit: int = 1_000_000) -> list[tuple[float, int, int, int, str]]:
    """Return a trace's rows (t, input, reasoning, answer, cls), in the order of arrival; BadTrace names what is wrong."""
    out: list[tuple[float, int, int, int, str]] = []
    last = 0.0
    for number, row in rows.read(path):
        try:
            if isinstance(row, BadRow):
                raise row
            found = rows.lengths(row)
            rows.later(found[0], last)
        except BadRow as error:
            raise BadTrace(f"{path}: line {number}: {error}") from None
        last = found[0]
        out.append(found)
        if len(out) > limit:
            raise BadTrace(f"{path}: more than {limit} rows")
    if not out:
        raise BadTrace(f"{path}: holds no request")
    return out


def from_trace(path: Path) -> list[Planned]:
    """Return the requests of a trace: prompts of about the right length, outputs cut at the right length."""
    return [
        Planned(t, "x" * max(1, inp), None, cls, max_tokens=max(1, reasoning + answer))
        for t, inp, reasoning, answer, cls in read_trace(path)
    ]


def _arrivals(rng: random.Random, rate: float, duration_s: float) -> list[float]:
    """Return arrivals at a constant rate, each at a random place of its own slot: even, and not in step."""
    count = round(rate * duration_s)
    return [(i + rng.random()) / rate for i in range(count)]


def _sum(rng: random.Random) -> tasks.Task:
    return tasks.random_sum(rng, rng.randint(2, tasks.MAX_DIGITS), held_out=True)


def _collatz(rng: random.Random) -> tasks.Task:
    return tasks.collatz_task(rng.randint(2, tasks.MAX_N))


def _each(draw: Callable[[random.Random], tasks.Task]) -> Callable[[random.Random, int], list[tasks.Task]]:
    return lambda rng, count: [draw(rng) for _ in range(count)]


_LONG = tuple(n for n in range(2, tasks.MAX_N + 1) if len(tasks.collatz_task(n).chain) > 500)
SHIFT_FROM, SHIFT_FULL, SHIFT_BACK = 0.12, 0.65, 0.72  # shares of the whole time
SHIFT_LONG = 0.6  # share of long chains where they are most


def short_sum(rng: random.Random) -> tasks.Task:
    """Draw what the load shifts from and back to: a sum of two to five digits."""
    return tasks.random_sum(rng, rng.randint(2, 5), held_out=True)


def _shift(rng: random.Random, count: int) -> list[tasks.Task]:
    """Draw short sums, with more and more long chains among them, then short sums alone again.

    The long ones are spread evenly, so that the seed decides which they are, not whether they come in heaps.
    """
    out, due = [], rng.random()
    for i in range(count):
        at = (i + 0.5) / count
        grown = min(1.0, (at - SHIFT_FROM) / (SHIFT_FULL - SHIFT_FROM))
        due += SHIFT_LONG * grown if SHIFT_FROM <= at < SHIFT_BACK else 0.0
        long = due >= 1.0
        due -= long
        out.append(tasks.collatz_task(rng.choice(_LONG)) if long else short_sum(rng))
    return out


WORKLOADS: dict[str, tuple[Callable[[random.Random, int], list[tasks.Task]], str]] = {
    "sums": (_each(_sum), "column additions of 2 to 8 digits"),
    "collatz": (_each(_collatz), "Collatz counts: chains that can't be told from the question"),
    "mixed": (_each(lambda rng: _sum(rng) if rng.random() < 0.5 else _collatz(rng)), "half of each"),
    "cot-shift": (_shift, "short chains, then more and more long ones at the same rate, then short ones"),
}


def workload(name: str, rate: float, duration_s: float, seed: int) -> list[Planned]:
    """Return a named workload's requests; the same for the same seed."""
    rng = random.Random(seed)
    times = _arrivals(rng, rate, duration_s)
    found = WORKLOADS[name][0](rng, len(times))
    return [Planned(t, task.question, task.answer, task.skill) for t, task in zip(times, found, strict=True)]


def warm_up(seed: int, count: int = 12, rate: float = 2.0) -> list[Planned]:
    """Return a few short sums, so that what follows finds engines that have run and lengths that are known."""
    rng = random.Random(seed)
    found = [short_sum(rng) for _ in range(count)]
    return [Planned(i / rate, task.question, task.answer, task.skill) for i, task in enumerate(found)]
