"""A profile is fitted from measured step times: a decode sweep, and prefill points."""

from __future__ import annotations

import difflib
from reprlib import repr as said
from typing import Any

import numpy as np

from reasonscale.profiles.profile import BadProfile, Profile, checked, is_positive, is_size

NOISE = 0.15  # a time may be so much below that of a smaller load before it is taken for a wrong file


def _pooled(values: list[float], where: str, at: list[int]) -> list[float]:
    """Return the nearest values that never fall (pool adjacent violators); a fall beyond noise is an error."""
    for i in range(1, len(values)):
        highest = max(values[:i])
        if values[i] < highest * (1.0 - NOISE):
            raise BadProfile(
                f"{where}: the time at {at[i]} is {values[i]:.2f} ms, {1 - values[i] / highest:.0%} below that of a smaller"
                f" load ({highest:.2f} ms); more work never takes less time, measure it again"
            )
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v1, n1), (v2, n2) = blocks[-2:]
            blocks[-2:] = [((v1 * n1 + v2 * n2) / (n1 + n2), n1 + n2)]
    return [v for v, n in blocks for _ in range(n)]


def _rows(data: dict[str, Any], field: str, width: int, where: str) -> list[list[float]]:
    rows = data.get(field)
    right = f"it must be a list of rows of {width} numbers or more"
    if rows is None:
        raise BadProfile(f"{where}: {field} is missing; {right}")
    if not isinstance(rows, list) or not rows:
        raise BadProfile(f"{where}: {field} was {said(rows)}; {right}")
    out = []
    for i, row in enumerate(rows):
        good = isinstance(row, list) and len(row) >= width
        if not good or not all(isinstance(v, int | float) and np.isfinite(v) and v > 0 for v in row[:width]):
            raise BadProfile(f"{where}: {field}[{i}] was {row!r}; it must hold {width} numbers greater than 0")
        out.append([float(v) for v in row[:width]])
    return out


def _decode_lines(rows: list[list[float]], where: str) -> tuple[tuple[int, float, float], ...]:
    """Return (requests, ms at an empty cache, ms per KV token) for each number of requests in the sweep."""
    by_count: dict[int, list[tuple[float, float]]] = {}
    for requests, context, ms in rows:
        by_count.setdefault(int(requests), []).append((requests * context, ms))
    if len(by_count) < 2:
        raise BadProfile(
            f"{where}: sweep has {len(by_count)} number of requests; it must have two or more, such as 1 and 256"
        )
    counts = sorted(by_count)
    slopes: dict[int, float] = {}
    for count in counts:
        points = sorted(by_count[count])
        _pooled(
            [ms for _, ms in points], f"{where}: sweep with {count} requests, by tokens", [int(k) for k, _ in points]
        )
        if points[-1][0] > 1.5 * points[0][0]:
            kv, ms = np.array(points).T
            slopes[count] = max(0.0, float(np.polyfit(kv, ms, 1)[0]))
    if not slopes:
        raise BadProfile(f"{where}: sweep has one context length only; it must have two, such as 256 and 8192 tokens")
    lines, known = [], sorted(slopes)
    for count in counts:
        # Where there is one context only, the nearest number of requests lends its slope.
        slope = slopes[min(known, key=lambda other: abs(np.log(other / count)))]
        empty = float(np.mean([t - slope * k for k, t in by_count[count]]))
        lines.append((count, empty, slope))
    bases = _pooled([ms for _, ms, _ in lines], f"{where}: sweep, by requests", counts)
    return tuple((count, round(base, 6), slope) for (count, _, slope), base in zip(lines, bases, strict=True))


def _prefill_line(
    rows: list[list[float]], step_tokens: int, idle_ms: float, where: str
) -> tuple[tuple[tuple[int, float], ...], float, float]:
    """Return the prompt's linear part by tokens in a step, the overhead of a step with a prompt, ms per pair."""
    ordered = sorted((int(tokens), ms) for tokens, ms in rows)
    tokens, times = [n for n, _ in ordered], [ms for _, ms in ordered]
    times = _pooled(times, f"{where}: prefill", tokens)
    if tokens[-1] < step_tokens:
        raise BadProfile(
            f"{where}: prefill ends at {tokens[-1]} tokens; it must reach max_num_batched_tokens, {step_tokens}"
        )
    whole = float(np.interp(step_tokens, tokens, times))
    # A prompt of m whole steps takes m times one step, and every later step attends to those before it.
    excess, pairs = [], []
    for n, ms in zip(tokens, times, strict=True):
        if n >= 2 * step_tokens:
            excess.append(ms - n / step_tokens * whole)
            pairs.append(n * n / 2 - n * step_tokens / 2)
    pair = max(0.0, float((np.array(excess) / np.array(pairs)).mean())) if pairs else 0.0
    points = [(n, ms - pair * n * n / 2) for n, ms in zip(tokens, times, strict=True) if n <= step_tokens]
    if points[-1][0] < step_tokens:
        points.append((step_tokens, whole - pair * step_tokens**2 / 2))
    linear = _pooled([ms for _, ms in points], f"{where}: prefill", [n for n, _ in points])
    overhead = max(0.0, linear[0] - idle_ms)
    return tuple((n, round(ms, 6)) for (n, _), ms in zip(points, linear, strict=True)), round(overhead, 6), pair


def fit(data: dict[str, Any], *, name: str, where: str = "measurements") -> Profile:
    """Return the profile of a measurement file's `sweep` and `prefill`; its replays are not looked at."""
    sizes = {
        "kv_tokens": None,
        "max_num_batched_tokens": 2048,
        "block_size": 16,
        "max_num_seqs": 256,
        "gpus_per_replica": 1,
    }
    fields = (*sizes, "sweep", "prefill", "model", "engine_start_s")
    for key in data:
        # What describes the machine is kept beside the measurements, under any name; but a slip would leave a default.
        near = difflib.get_close_matches(key, [f for f in fields if f not in data], n=1, cutoff=0.8)
        if key not in fields and near:
            raise BadProfile(f"{where}: {key} is no field; did you mean {near[0]}?")
    read: dict[str, int] = {}
    for field, default in sizes.items():
        value = data.get(field, default)
        if value is None:
            raise BadProfile(f"{where}: {field} is missing; it must be a whole number greater than 0")
        if not is_size(value):
            raise BadProfile(f"{where}: {field} was {said(value)}; it must be a whole number greater than 0")
        read[field] = value
    decode = _decode_lines(_rows(data, "sweep", 3, where), where)
    prefill, overhead, pair = _prefill_line(
        _rows(data, "prefill", 2, where), read["max_num_batched_tokens"], decode[0][1], where
    )
    start = data.get("engine_start_s")
    if start is not None and not is_positive(start):
        raise BadProfile(f"{where}: engine_start_s was {said(start)}; it must be a number greater than 0, or absent")
    made = Profile(
        name=name,
        model=str(data.get("model", name)),
        kv_tokens=read["kv_tokens"],
        block_tokens=read["block_size"],
        max_num_seqs=read["max_num_seqs"],
        max_num_batched_tokens=read["max_num_batched_tokens"],
        gpus_per_replica=read["gpus_per_replica"],
        decode=decode,
        prefill=prefill,
        prefill_overhead_ms=overhead,
        attention_ms_per_pair=pair,
        start_s=None if start is None else float(start),
    )
    return checked(made, where)
