"""Traces: requests with their arrival times, read from files or made from a named workload.

A trace is JSON lines or CSV, `.gz` or not: `t` (s, from the start), `input`, `reasoning`, `answer` (tokens), `cls`.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonscale.demo import tasks


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send: when, what, and the right answer where it is known."""

    t: float
    question: str
    answer: str | None
    cls: str = ""
    max_tokens: int | None = None
    effort: str | None = None


class BadTrace(ValueError):
    """A trace that can't be read; the message names the file and the line."""


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            if plain.suffix == ".csv":
                for number, row in enumerate(csv.DictReader(file), 2):
                    yield number, row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise BadTrace(f"{path}: line {number}: is no JSON: {error}") from None
                    if not isinstance(row, dict):
                        raise BadTrace(
                            f"{path}: line {number}: must be an object with t, input, reasoning, answer and cls"
                        )
                    yield number, row
    except FileNotFoundError:
        raise BadTrace(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise BadTrace(f"{path}: can't be read: {error}") from None


def read_trace(path: Path, *, limit: int = 1_000_000) -> list[tuple[float, int, int, int, str]]:
    """Return a trace's rows (t, input, reasoning, answer, cls), in the order of arrival; BadTrace names what is wrong."""
    out: list[tuple[float, int, int, int, str]] = []
    last = 0.0
    for number, row in _rows(path):
        try:
            t, numbers = float(row["t"]), [int(row[k]) for k in ("input", "reasoning", "answer")]
        except KeyError as error:
            raise BadTrace(f"{path}: line {number}: {error.args[0]} is missing") from None
        except (TypeError, ValueError):
            raise BadTrace(f"{path}: line {number}: t, input, reasoning and answer must be numbers") from None
        if t < last:
            raise BadTrace(f"{path}: line {number}: t goes back from {last:g} to {t:g}")
        if min(numbers) < 0 or max(numbers) > 10_000_000:
            raise BadTrace(f"{path}: line {number}: tokens must lie between 0 and 10,000,000")
        last = t
        out.append((t, numbers[0], numbers[1], numbers[2], str(row.get("cls") or "")))
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


def _sum(rng: random.Random, _: float) -> tasks.Task:
    return tasks.random_sum(rng, rng.randint(2, tasks.MAX_DIGITS), held_out=True)


def _collatz(rng: random.Random, _: float) -> tasks.Task:
    return tasks.collatz_task(rng.randint(2, tasks.MAX_N))


def _mixed(rng: random.Random, at: float) -> tasks.Task:
    return _sum(rng, at) if rng.random() < 0.5 else _collatz(rng, at)


_LONG = tuple(n for n in range(2, tasks.MAX_N + 1) if len(tasks.collatz_task(n).chain) > 500)


SHIFT_FROM, SHIFT_FULL, SHIFT_BACK = 0.2, 0.5, 0.65  # shares of the whole time


def _shift(rng: random.Random, at: float) -> tasks.Task:
    """Short sums; more and more long chains among them, then nothing else; then short sums again."""
    long = min(1.0, (at - SHIFT_FROM) / (SHIFT_FULL - SHIFT_FROM)) if SHIFT_FROM <= at < SHIFT_BACK else 0.0
    if rng.random() < long:
        return tasks.collatz_task(rng.choice(_LONG))
    return tasks.random_sum(rng, rng.randint(2, 5), held_out=True)


WORKLOADS: dict[str, tuple[Callable[[random.Random, float], tasks.Task], str]] = {
    "sums": (_sum, "column additions of 2 to 8 digits"),
    "collatz": (_collatz, "Collatz counts: chains that can't be told from the question"),
    "mixed": (_mixed, "half of each"),
    "cot-shift": (_shift, "short chains, then more and more long ones at the same rate, then short ones"),
}


def workload(name: str, rate: float, duration_s: float, seed: int) -> list[Planned]:
    """Return a named workload's requests; the same for the same seed."""
    draw = WORKLOADS[name][0]
    rng = random.Random(seed)
    out = []
    for t in _arrivals(rng, rate, duration_s):
        task = draw(rng, t / duration_s)
        out.append(Planned(t, task.question, task.answer, task.skill))
    return out
