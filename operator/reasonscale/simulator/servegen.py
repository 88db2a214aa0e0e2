"""Draws from a folder of ServeGen's: clients with fitted arrivals by window and lengths by segment."""

from __future__ import annotations

import ast
import csv
import json
from dataclasses import dataclass
from math import gamma
from pathlib import Path
from typing import Final

import numpy as np

from reasonscale.simulator.workload import BadWorkload, Floats, Ints, Workload, between, make

WINDOW_S: Final = 600.0  # of its arrivals
SEGMENT_S: Final = 21_600.0  # of its lengths


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


def sample(
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
