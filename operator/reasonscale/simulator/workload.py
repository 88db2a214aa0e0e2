"""Workloads: requests with arrival times and lengths, from trace files of several kinds or from stated parameters."""

from __future__ import annotations

import ast
import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from math import gamma
from pathlib import Path
from reprlib import repr as said
from typing import Final

import numpy as np
import numpy.typing as npt

from reasonscale.load import rows as trace_rows
from reasonscale.load.rows import BadRow, BadTrace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_CLASSES: Final = 4  # the three with most requests keep their names, the rest is `other`
OTHER: Final = "other"
WANTED: Final = "t, input, reasoning, answer (or Azure's or Mooncake's)"
WINDOW_S: Final = 600.0  # of ServeGen's arrivals
SEGMENT_S: Final = 21_600.0  # of its lengths
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

    Fewer: each request is kept with that probability. More: each comes so often, the copies moved by up to a minute.
    """
    if rate != 1.0 and (work.follower != NOBODY).any():
        raise BadWorkload(f"{work.name}: is closed loop; its number of users is scaled where it is made, not after")
    if rate != 1.0:
        rng = np.random.default_rng(seed)
        copies = np.floor(rate + rng.random(len(work.arrival_s))).astype(np.int64)
        rows = np.repeat(np.arange(len(work.arrival_s)), copies)
        if not len(rows):
            raise BadWorkload(f"{work.name}: --scale {rate:g} leaves no request")
        again = np.concatenate([[False], rows[1:] == rows[:-1]])
        t = work.arrival_s[rows] + np.where(again, rng.random(len(rows)) * 60.0, 0.0)
        order = np.argsort(t, kind="stable")
        work = _rows(work, rows[order], t[order])
    return replace(work, arrival_s=np.where(work.arrival_s >= 0.0, work.arrival_s * time, work.arrival_s))


def between(work: Workload, start_s: float, end_s: float) -> Workload:
    """Return the requests of a stretch of time, which then begins at 0."""
    if (work.follower != NOBODY).any():
        if start_s > 0.0:
            raise BadWorkload(f"{work.name}: is closed loop and can't be cut at its start")
        return work
    rows = np.flatnonzero((work.arrival_s >= start_s) & (work.arrival_s < end_s))
    if not len(rows):
        raise BadWorkload(f"{work.name}: holds no request from {start_s:g} to {end_s:g} s")
    return _rows(work, rows, work.arrival_s[rows] - start_s)


def _rows(work: Workload, rows: Ints, t: Floats) -> Workload:
    return replace(
        work,
        arrival_s=t,
        prompt_tokens=work.prompt_tokens[rows],
        reasoning_tokens=work.reasoning_tokens[rows],
        answer_tokens=work.answer_tokens[rows],
        cls=work.cls[rows],
        follower=np.full(len(rows), NOBODY, dtype=np.int64),
        think_s=np.zeros(len(rows)),
    )


# Files


def read(path: Path, *, seed: int = 1, reason_share: float = 0.7) -> Workload:
    """Return the workload of a trace file or ServeGen folder; the kind is told by its content.

    `reason_share` is the chain's part of an output where the trace doesn't say.
    """
    if path.is_dir():
        return servegen(path, seed=seed)
    if not path.is_file():
        raise BadWorkload(f"{path}: there is no such file or folder")
    good: list[tuple[float, int, int, int, str]] = []
    bad: list[str] = []
    last, began = 0.0, None
    try:
        for number, row in trace_rows.read(path):
            try:
                if isinstance(row, BadRow):
                    raise row
                found = _row(row, reason_share)
                if began is None:
                    began = found[0] if "TIMESTAMP" in row else 0.0
                found = (found[0] - began, *found[1:])
                trace_rows.later(found[0], last)
                last = found[0]
                good.append(found)
            except BadRow as error:
                bad.append(f"{path}: line {number}: {error}; left out")
    except BadTrace as error:
        raise BadWorkload(str(error)) from None
    if not good:
        why = bad[0].removeprefix(f"{path}: ").removesuffix("; left out") if bad else ""
        raise BadWorkload(
            f"{path}: no row could be read; wanted are {WANTED}; {why}" if bad else f"{path}: holds no request"
        )
    t, prompt, reasoning, answer = (np.array(c) for c in zip(*(g[:4] for g in good), strict=True))
    return make(path.name, t, prompt, reasoning, answer, [g[4] or "default" for g in good], tuple(bad))


def _row(row: trace_rows.Row, reason_share: float) -> tuple[float, int, int, int, str]:
    """Return t, prompt, reasoning, answer, class of a row of ours, Azure's or Mooncake's."""
    if "TIMESTAMP" in row:
        day, _, rest = str(row["TIMESTAMP"]).partition(".")
        try:
            at = datetime.fromisoformat(day + "+00:00").timestamp() + float("0." + (rest or "0"))
        except ValueError:
            right = "a time such as 2023-11-16 18:15:46.68"
            raise BadRow(f"TIMESTAMP was {said(row['TIMESTAMP'])}; must be {right}") from None
        return (
            at,
            trace_rows.tokens(row, "ContextTokens"),
            *_split(trace_rows.tokens(row, "GeneratedTokens"), reason_share),
            "",
        )
    if "timestamp" in row:
        at = trace_rows.number(row, "timestamp", "a number of milliseconds") / 1e3
        return (
            at,
            trace_rows.tokens(row, "input_length"),
            *_split(trace_rows.tokens(row, "output_length"), reason_share),
            "",
        )
    return trace_rows.lengths(row)


def _split(output: int, share: float) -> tuple[int, int]:
    reasoning = int(output * share)
    return reasoning, output - reasoning


# ServeGen: clients with fitted arrivals by window and lengths by segment.


def renewals(rng: np.random.Generator, pattern: str, shape: float, rate: float) -> Floats:
    """Return the arrival times within one window of a renewal process whose mean gap is 1 / rate."""
    n = int(rate * WINDOW_S * 2 + 20)
    mean = shape if pattern == "Gamma" else gamma(1.0 + 1.0 / shape) if pattern == "Weibull" else 1.0
    times = np.zeros(0)
    while len(times) == 0 or times[-1] < WINDOW_S:
        if pattern == "Gamma":
            gaps = rng.gamma(shape, 1.0, n)
        elif pattern == "Weibull":
            gaps = rng.weibull(shape, n)
        else:
            gaps = rng.exponential(1.0, n)
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + np.cumsum(gaps / (mean * rate))])
    return times[times < WINDOW_S]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Distributions of one client's lengths in one segment: values and cumulated probabilities."""

    prompt: tuple[Floats, Floats]
    output: tuple[Floats, Floats]
    ratio: tuple[Floats, Floats]

    def draw(self, rng: np.random.Generator, n: int, correlation: float) -> tuple[Ints, Ints, Ints]:
        """Return prompts, reasoning and answers, drawn independently, or as a Gaussian copula says."""
        u = rng.random((3, n))
        if correlation:
            common = rng.standard_normal(n)
            z = np.sqrt(correlation) * common + np.sqrt(1.0 - correlation) * rng.standard_normal((3, n))
            u = np.argsort(np.argsort(z, axis=1), axis=1) / max(1, n) + u / max(1, n)
        drawn = [v[np.searchsorted(p, x).clip(max=len(v) - 1)] for (v, p), x in zip(self._all(), u, strict=True)]
        output = np.maximum(1, drawn[1]).astype(np.int64)
        reasoning = np.round(output * drawn[2].clip(0.0, 1.0)).astype(np.int64)
        return np.maximum(1, drawn[0]).astype(np.int64), reasoning, output - reasoning

    def _all(self) -> tuple[tuple[Floats, Floats], ...]:
        return self.prompt, self.output, self.ratio


def _distribution(text: str) -> tuple[Floats, Floats]:
    pairs = sorted(ast.literal_eval(text).items())
    values = np.array([float(v) for v, _ in pairs])
    shares = np.array([float(p) for _, p in pairs])
    return values, np.cumsum(shares / shares.sum())


def _lengths_of(path: Path) -> dict[int, Lengths]:
    out = {}
    for start, row in json.loads(path.read_text(encoding="utf-8")).items():
        if all(isinstance(row.get(k), str) and len(row[k]) > 2 for k in ("input_tokens", "output_tokens")):
            ratio = row.get("reason_ratio")
            out[int(start)] = Lengths(
                _distribution(row["input_tokens"]), _distribution(row["output_tokens"]),
                _distribution(ratio) if isinstance(ratio, str) and len(ratio) > 2 else (np.zeros(1), np.ones(1)),
            )  # fmt: skip
    return out


def servegen(
    folder: Path, *, seed: int = 1, start_s: float = 0.0, end_s: float = np.inf, lengths: Path | None = None,
    correlation: float = 0.0,
) -> Workload:  # fmt: skip
    """Return a draw from a folder of ServeGen's: `chunk-N-trace.csv`, and `chunk-N-dataset.json` of it or of `lengths`.

    Clients are kept apart as classes. Where lengths come from another folder, each client draws from those of all.
    """
    traces = sorted(folder.glob("chunk-*-trace.csv"), key=lambda p: int(p.name.split("-")[1]))
    if not traces:
        raise BadWorkload(f"{folder}: holds no chunk-N-trace.csv; it must be a folder as ServeGen's")
    other = _all_lengths(lengths) if lengths is not None else None
    parts: list[tuple[Floats, Ints, Ints, Ints]] = []
    names: list[str] = []
    for path in traces:
        client = path.name.removesuffix("-trace.csv")
        try:
            own = other or _lengths_of(path.with_name(f"{client}-dataset.json"))
            rows = [(float(r[0]), float(r[1]), r[3], float(r[4])) for r in csv.reader(path.open())]
        except FileNotFoundError:
            raise BadWorkload(f"{folder}: {client}-dataset.json is missing; lengths must come from there") from None
        except (ValueError, SyntaxError, AttributeError, IndexError) as error:
            raise BadWorkload(f"{path}: is not as ServeGen's: {error}") from None
        rng = np.random.default_rng([seed, int(client.split("-")[1])])
        for begin, rate, pattern, shape in rows:
            if rate <= 0.0 or begin + WINDOW_S <= start_s or begin >= end_s or not own:
                continue
            t = begin + renewals(rng, pattern, shape, rate)
            segment = max((s for s in own if s <= begin % 86_400), default=min(own))
            parts.append((t, *own[segment].draw(rng, len(t), correlation)))
            names += [client] * len(t)
    if not parts:
        raise BadWorkload(f"{folder}: holds no request from {start_s:g} to {end_s:g} s")
    t, prompt, reasoning, answer = (np.concatenate([p[i] for p in parts]) for i in range(4))
    return between(make(folder.name, t, prompt, reasoning, answer, names), start_s, end_s)


def _all_lengths(folder: Path) -> dict[int, Lengths]:
    """Return the lengths of all clients of a folder as one distribution, each by its number of requests."""
    found: dict[int, list[tuple[float, Lengths]]] = {}
    for path in sorted(folder.glob("chunk-*-dataset.json")):
        trace = path.with_name(path.name.replace("-dataset.json", "-trace.csv"))
        rates = [(float(r[0]), float(r[1])) for r in csv.reader(trace.open())]
        for start, lengths in _lengths_of(path).items():
            weight = sum(rate for begin, rate in rates if start <= begin < start + SEGMENT_S)
            if weight > 0:
                found.setdefault(start, []).append((weight, lengths))
    if not found:
        raise BadWorkload(f"{folder}: holds no chunk-N-dataset.json with lengths")

    def mixed(parts: list[tuple[float, tuple[Floats, Floats]]]) -> tuple[Floats, Floats]:
        values = np.concatenate([v for _, (v, _) in parts])
        shares = np.concatenate([w * np.diff(p, prepend=0.0) for w, (_, p) in parts])
        order = np.argsort(values, kind="stable")
        return values[order], np.cumsum(shares[order] / shares.sum())

    return {
        start: Lengths(*(mixed([(w, getattr(x, field)) for w, x in rows]) for field in ("prompt", "output", "ratio")))
        for start, rows in found.items()
    }


# Made from parameters


def _lognormal(rng: np.random.Generator, n: int, mean: float, sigma: float, most: int) -> Ints:
    drawn = rng.lognormal(np.log(mean) - sigma * sigma / 2.0, sigma, n)
    return np.clip(drawn, 1, most).astype(np.int64)


def _poisson(rng: np.random.Generator, rate: Callable[[Floats], Floats], seconds: float, peak: float) -> Floats:
    """Return the arrivals of a Poisson process with a changing rate, by thinning."""
    n = rng.poisson(peak * seconds)
    t = np.sort(rng.random(n) * seconds)
    return t[rng.random(n) * peak < rate(t)]


def _parts(rng: np.random.Generator, output: Ints, share: float) -> tuple[Ints, Ints]:
    reasoning = np.round(output * rng.beta(6.0 * share, 6.0 * (1.0 - share), len(output))).astype(np.int64)
    return reasoning, output - reasoning


def r1_day(seed: int) -> Workload:
    """12 h with a daily swing of the rate, and a mix of short chats, long chains and long prompts that shifts by itself."""
    rng = np.random.default_rng(seed)
    seconds, kinds = 43_200.0, []
    for name, rate, phase, prompt, output, share in (
        ("chat", 5.0, 0.0, 250.0, 700.0, 0.5),
        ("hard", 1.6, 2.4, 400.0, 4200.0, 0.9),
        ("documents", 0.5, 4.4, 9000.0, 1100.0, 0.6),
    ):
        walk = np.exp(np.cumsum(rng.normal(0.0, 0.18, int(seconds / 600) + 2)) * 0.7)

        def wave(t: Floats, walk: Floats = walk, rate: float = rate, phase: float = phase) -> Floats:
            level = np.interp(t, np.arange(len(walk)) * 600.0, walk / walk.mean())
            return np.asarray(rate * level * (1.0 + 0.5 * np.sin(2 * np.pi * t / seconds + phase)))

        t = _poisson(rng, wave, seconds, rate * 1.5 * float((walk / walk.mean()).max()))
        out = _lognormal(rng, len(t), output, 0.9, 32_768)
        kinds.append((name, t, _lognormal(rng, len(t), prompt, 1.0, 40_000), *_parts(rng, out, share)))
    return _joined("r1-day", kinds)


def cot_shift(seed: int) -> Workload:
    """Two hours at a constant request rate; after one, mean output grows fourfold within five minutes."""
    rng = np.random.default_rng(seed)
    t = _poisson(rng, lambda t: np.full(len(t), 12.0), 7200.0, 12.0)
    factor = np.interp(t, [3600.0, 3900.0], [1.0, 4.0])
    out = np.clip(rng.lognormal(np.log(600.0) - 0.32, 0.8, len(t)) * factor, 1, 32_768).astype(np.int64)
    return _joined("cot-shift", [("default", t, _lognormal(rng, len(t), 300.0, 0.8, 8192), *_parts(rng, out, 0.8))])


def flash_crowd(seed: int) -> Workload:
    """Two hours; in the second, for twenty minutes, five times as many requests come, within one minute."""
    rng = np.random.default_rng(seed)
    t = _poisson(rng, lambda t: 4.0 * np.interp(t, [3600, 3660, 4800, 4860], [1.0, 5.0, 5.0, 1.0]), 7200.0, 20.0)
    out = _lognormal(rng, len(t), 1500.0, 0.9, 32_768)
    return _joined("flash-crowd", [("default", t, _lognormal(rng, len(t), 500.0, 1.0, 16_384), *_parts(rng, out, 0.7))])


def math_heavy(seed: int) -> Workload:
    """Three hours of long chains: 8,000 tokens in the mean, short prompts, a rate that swings by half."""
    rng = np.random.default_rng(seed)
    t = _poisson(rng, lambda t: 1.5 * (1.0 + 0.5 * np.sin(2 * np.pi * t / 5400.0)), 10_800.0, 2.25)
    out = _lognormal(rng, len(t), 8000.0, 0.9, 32_768)
    return _joined("math-heavy", [("default", t, _lognormal(rng, len(t), 200.0, 0.7, 4096), *_parts(rng, out, 0.92))])


def rag(seed: int) -> Workload:
    """Two hours of prompts of 8k to 64k tokens and short chains; the rate swings by half."""
    rng = np.random.default_rng(seed)
    t = _poisson(rng, lambda t: 0.8 * (1.0 + 0.5 * np.sin(2 * np.pi * t / 3600.0)), 7200.0, 1.2)
    prompt = np.exp(rng.uniform(np.log(8192), np.log(65_536), len(t))).astype(np.int64)
    out = _lognormal(rng, len(t), 400.0, 0.7, 4096)
    return _joined("rag", [("default", t, prompt, *_parts(rng, out, 0.5))])


def agents(seed: int) -> Workload:
    """Two hours of 120 users at a time: each sends 3 to 20 steps, the next 1 to 20 s after the answer to the last."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.random(900) * 7200.0)
    steps = rng.integers(3, 21, len(starts))
    n = int(steps.sum())
    first = np.concatenate([[0], np.cumsum(steps)[:-1]])
    step = np.arange(n) - np.repeat(first, steps)
    out = _lognormal(rng, n, 900.0, 0.9, 16_384)
    reasoning, answer = _parts(rng, out, 0.75)
    prompt = np.minimum(32_768, _lognormal(rng, n, 600.0, 0.6, 8192) + step * 900)
    follower = np.where(np.arange(n) + 1 < np.repeat(first + steps, steps), np.arange(n) + 1, NOBODY)
    arrival = np.where(step == 0, np.repeat(starts, steps), -1.0)
    # Those whose time is known come first, in order; the cluster takes the others as they come.
    order = np.lexsort((np.arange(n), np.where(arrival >= 0, arrival, np.inf)))
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    moved = np.where(follower[order] == NOBODY, NOBODY, place[follower[order]])
    return Workload(
        name="agents", arrival_s=arrival[order], prompt_tokens=prompt[order], reasoning_tokens=reasoning[order],
        answer_tokens=np.where(out < 1, 1, answer)[order], cls=np.zeros(n, dtype=np.int64), classes=("default",),
        follower=moved, think_s=rng.uniform(1.0, 20.0, n),
    )  # fmt: skip


def _joined(name: str, kinds: list[tuple[str, Floats, Ints, Ints, Ints]]) -> Workload:
    names = [kind[0] for kind in kinds for _ in range(len(kind[1]))]
    t, prompt, reasoning, answer = (np.concatenate([kind[i] for kind in kinds]) for i in range(1, 5))
    return make(name, t, prompt, reasoning, answer, names)


BUILT_IN: Final[dict[str, Callable[[int], Workload]]] = {
    "r1-day": r1_day, "cot-shift": cot_shift, "flash-crowd": flash_crowd, "math-heavy": math_heavy, "rag": rag,
    "agents": agents,
}  # fmt: skip


def load(name: str, *, seed: int = 1) -> Workload:
    """Return a built-in workload by name, or that of a file or folder."""
    if name in BUILT_IN:
        return BUILT_IN[name](seed)
    if not Path(name).exists():
        raise BadWorkload(f"trace {name!r}: no such name, file or folder; there are {', '.join(BUILT_IN)}")
    return read(Path(name), seed=seed)
