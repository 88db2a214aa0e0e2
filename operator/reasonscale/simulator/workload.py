"""Workloads: requests with arrival times and lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_CLASSES: Final = 4  # the three with most requests keep their names, the rest is `other`
OTHER: Final = "other"
NOBODY: Final = -1


class BadWorkload(ValueError):
    """A workload that can't be used; the message names the file and the line, or the field."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of arrival. Times are seconds, lengths tokens.

    `follower` is the request that its client sends `think_s` after this one has ended; its own arrival is -1 until then.
    """

    name: str
    arrival_s: Floats
    prompt_tokens: Ints
    reasoning_tokens: Ints
    answer_tokens: Ints
    cls: Ints
    classes: tuple[str, ...]
    follower: Ints
    think_s: Floats
    skipped: tuple[str, ...] = ()  # what was wrong with rows left out: file, line, reason

    @property
    def output_tokens(self) -> Ints:
        """Return tokens that each request makes."""
        return self.reasoning_tokens + self.answer_tokens


def make(
    name: str, t: Floats, prompt: Ints, reasoning: Ints, answer: Ints, cls: list[str] | None = None,
    skipped: tuple[str, ...] = (),
) -> Workload:  # fmt: skip
    """Return the workload of open-loop requests, in the order of arrival, its classes folded to the most frequent."""
    if not len(t):
        raise BadWorkload(f"{name}: holds no request" + (f"; {skipped[0]}" if skipped else ""))
    names, codes = _fold(cls if cls is not None else ["default"] * len(t))
    order = np.argsort(t, kind="stable")
    n = len(t)
    return Workload(
        name=name,
        arrival_s=np.asarray(t, dtype=np.float64)[order],
        prompt_tokens=np.maximum(1, prompt)[order],
        reasoning_tokens=np.asarray(reasoning, dtype=np.int64)[order],
        answer_tokens=np.where(reasoning + answer < 1, 1, answer)[order],
        cls=codes[order],
        classes=names,
        follower=np.full(n, NOBODY, dtype=np.int64),
        think_s=np.zeros(n),
        skipped=skipped,
    )


def _fold(cls: list[str]) -> tuple[tuple[str, ...], Ints]:
    counts = Counter(cls)
    kept = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    names = kept if len(kept) <= MOST_CLASSES else [*kept[: MOST_CLASSES - 1], OTHER]
    index = {name: i for i, name in enumerate(names)}
    return tuple(names), np.array([index.get(name, len(names) - 1) for name in cls], dtype=np.int64)


def scaled(work: Workload, *, rate: float = 1.0, time: float = 1.0, seed: int = 1) -> Workload:
    """Return the workload with so many times the requests per second, and its time stretched by `time`.

    Fewer: each request is kept with that probability. More: each comes so often, the copies moved by up to a minute. Where the
    next request of a client follows from the one before, clients are kept or come so often, with all that they send.
    """
    if rate != 1.0:
        rng = np.random.default_rng(seed)
        first = np.flatnonzero(work.arrival_s >= 0.0)
        copies = np.floor(rate + rng.random(len(first))).astype(np.int64)
        rows = np.repeat(first, copies)
        if not len(rows):
            raise BadWorkload(f"{work.name}: --scale {rate:g} leaves no request")
        again = np.concatenate([[False], rows[1:] == rows[:-1]])
        t = work.arrival_s[rows] + np.where(again, rng.random(len(rows)) * 60.0, 0.0)
        order = np.argsort(t, kind="stable")
        work = _rows(work, rows[order], t[order])
    return replace(work, arrival_s=np.where(work.arrival_s >= 0.0, work.arrival_s * time, work.arrival_s))


def between(work: Workload, start_s: float, end_s: float) -> Workload:
    """Return the requests of a stretch of time, which then begins at 0; of clients that follow their answers, those that come in it."""
    rows = np.flatnonzero((work.arrival_s >= start_s) & (work.arrival_s < end_s))
    if not len(rows):
        raise BadWorkload(f"{work.name}: holds no request from {start_s:g} to {end_s:g} s")
    return _rows(work, rows, work.arrival_s[rows] - start_s)


def _rows(work: Workload, first: Ints, t: Floats) -> Workload:
    """Return the requests `first`, at the times `t`, each with those that follow it."""
    rows, chains = first, np.ones(len(first), dtype=np.int64)
    if (work.follower != NOBODY).any():
        found = [_chain(work, int(r)) for r in first]
        rows, chains = np.concatenate(found), np.array([len(chain) for chain in found])
    n, ends = len(rows), np.cumsum(chains)
    follower = np.arange(1, n + 1)
    follower[ends - 1] = NOBODY
    arrival = np.full(n, -1.0)
    arrival[ends - chains] = t
    order, follower = in_order(arrival, follower)
    rows = rows[order]
    return replace(
        work,
        arrival_s=arrival[order],
        prompt_tokens=work.prompt_tokens[rows],
        reasoning_tokens=work.reasoning_tokens[rows],
        answer_tokens=work.answer_tokens[rows],
        cls=work.cls[rows],
        follower=follower,
        think_s=work.think_s[rows],
    )


def _chain(work: Workload, first: int) -> list[int]:
    chain = [first]
    while work.follower[chain[-1]] != NOBODY:
        chain.append(int(work.follower[chain[-1]]))
    return chain


def in_order(arrival_s: Floats, follower: Ints) -> tuple[Ints, Ints]:
    """Return the order of requests, those whose time is known first, and the followers as they are numbered then."""
    n = len(arrival_s)
    order = np.lexsort((np.arange(n), np.where(arrival_s >= 0.0, arrival_s, np.inf)))
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    return order, np.where(follower[order] == NOBODY, NOBODY, place[follower[order]])
