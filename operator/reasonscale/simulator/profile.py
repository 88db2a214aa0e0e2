"""A hardware profile: how long one engine step takes, fitted from a decode sweep and prefill points.

The time of a step with B requests decoding over K tokens of KV cache and P prompt tokens (ms):

    base(B) + slope(B) * K + [linear(P + B) - linear(B) + overhead] + pair * (pairs of prompt tokens that attend)

The bracket and the last term are there only where P > 0. `base` and `slope` are lines through the sweep, one for each
B in it; `linear` goes through the prefill points less their attention; `overhead` is what a step with any prompt in it
costs more than a pure decode step (it does not run as one CUDA graph); `pair` shows in prompts longer than a step.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from reprlib import repr as said
from typing import Any

import numpy as np
import numpy.typing as npt

from reasonscale.scaling.types import StepTime

Floats = npt.NDArray[np.float64]
FORMAT = 1
TILE = 64  # rows of a matrix tile: 65 requests decode at the price of 128, as tensor cores work on whole tiles
NOISE = 0.15  # a time may be so much below that of a smaller load before it is taken for a wrong file


class BadProfile(ValueError):
    """A profile or a measurement that can't be used; the message names the file and the field."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine on its GPUs. Times are in ms, sizes in tokens."""

    name: str
    model: str
    kv_tokens: int
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpus_per_replica: int
    decode: tuple[tuple[int, float, float], ...]  # requests, ms at an empty cache, ms per token of KV cache
    prefill: tuple[tuple[int, float], ...]  # prompt tokens in one step, ms without their attention
    prefill_overhead_ms: float
    attention_ms_per_pair: float
    start_s: float | None = None  # constructor to ready, where it was measured

    def tables(self, max_num_seqs: int | None = None) -> Tables:
        """Return the step's terms by number of requests or tokens, for the inner loop."""
        batch = max_num_seqs or self.max_num_seqs
        points = np.array(self.decode, dtype=np.float64)
        counts = np.arange(batch + 1, dtype=np.float64)
        tiled = np.where(counts <= TILE, counts, np.ceil(counts / TILE) * TILE)
        most = points[-1, 0]
        # Beyond the sweep the last two points' line goes on.
        base = _extend(tiled, points[:, 0], points[:, 1])
        slope = np.interp(np.minimum(counts, most), points[:, 0], points[:, 2])
        tokens = np.arange(self.max_num_batched_tokens + batch + 1, dtype=np.float64)
        prompt = np.array(self.prefill, dtype=np.float64)
        linear = _extend(tokens, prompt[:, 0], prompt[:, 1])
        return Tables(
            base / 1e3,
            slope / 1e3,
            linear / 1e3,
            self.prefill_overhead_ms / 1e3,
            self.attention_ms_per_pair / 1e3,
        )

    def too_long(self, prompt_tokens: npt.NDArray[Any], output_tokens: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Tell which requests never fit an empty KV cache; the last token needs no place in it."""
        return np.asarray(prompt_tokens + output_tokens - 1 > self.kv_tokens // self.block_tokens * self.block_tokens)

    def step_time(self) -> StepTime:
        """Return the least-squares `a + b*B + c*K` (s), and s per prompt token, as `scaling` takes them for a prior."""
        points = np.array(self.decode, dtype=np.float64)
        b, a = np.polyfit(points[:, 0], points[:, 1], 1)
        rows = np.array(self.prefill, dtype=np.float64)
        d = float(np.polyfit(rows[:, 0], rows[:, 1], 1)[0])
        return StepTime(float(a) / 1e3, max(0.0, float(b)) / 1e3, float(points[:, 2].mean()) / 1e3, d / 1e3)


@dataclass(frozen=True, slots=True)
class Tables:
    """The terms of a step's time in seconds: base and slope by requests decoding, linear by tokens in the step."""

    base: Floats
    slope: Floats
    linear: Floats
    overhead: float
    pair: float


def _extend(at: Floats, x: Floats, y: Floats) -> Floats:
    """Return y at `at`: constant below the first point, straight between points and beyond the last."""
    inside = np.interp(at, x, y)
    if len(x) < 2:
        return inside
    rise = max(0.0, float((y[-1] - y[-2]) / (x[-1] - x[-2])))
    return np.asarray(np.where(at > x[-1], y[-1] + rise * (at - x[-1]), inside))


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
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise BadProfile(f"{where}: {field} was {said(value)}; it must be a whole number greater than 0")
        read[field] = value
    decode = _decode_lines(_rows(data, "sweep", 3, where), where)
    prefill, overhead, pair = _prefill_line(
        _rows(data, "prefill", 2, where), read["max_num_batched_tokens"], decode[0][1], where
    )
    start = data.get("engine_start_s")
    return Profile(
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
        start_s=float(start) if isinstance(start, int | float) else None,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; BadProfile says what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadProfile(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise BadProfile(f"{path}: can't be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadProfile(f"{path}: must be a JSON object")
    return data


def dump(profile: Profile) -> str:
    """Return the profile as the text of its file."""
    return json.dumps({"format": FORMAT, **asdict(profile)}, indent=1) + "\n"


def shipped() -> list[str]:
    """Return the names of the profiles that come with the project."""
    folder = resources.files("reasonscale.simulator") / "profiles"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load(name: str) -> Profile:
    """Return a shipped profile by name, or one from a file."""
    if name in shipped():
        path = Path(str(resources.files("reasonscale.simulator") / "profiles" / f"{name}.json"))
    elif Path(name).is_file():
        path = Path(name)
    else:
        raise BadProfile(f"profile {name!r}: no such name or file; there are {', '.join(shipped())}")
    data = read_json(path)
    if data.pop("format", None) != FORMAT:
        raise BadProfile(f"{path}: format must be {FORMAT}; `reasonscale profile fit FILE` makes such a file")
    try:
        data["decode"] = tuple((int(n), float(ms), float(slope)) for n, ms, slope in data["decode"])
        data["prefill"] = tuple((int(n), float(ms)) for n, ms in data["prefill"])
        return _checked(Profile(**data), str(path))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadProfile):
            raise
        raise BadProfile(f"{path}: is not as `reasonscale profile fit` writes it: {error}") from None


def _checked(profile: Profile, where: str) -> Profile:
    for field in ("kv_tokens", "block_tokens", "max_num_seqs", "max_num_batched_tokens", "gpus_per_replica"):
        value = getattr(profile, field)
        if not isinstance(value, int) or value <= 0:
            raise BadProfile(f"{where}: {field} was {value!r}; it must be a whole number greater than 0")
    for field in ("decode", "prefill"):
        rows = getattr(profile, field)
        if not rows or any(later[0] <= row[0] for row, later in pairwise(rows)):
            raise BadProfile(f"{where}: {field} must have rows, by rising size")
        if any(later[1] < row[1] for row, later in pairwise(rows)) or rows[0][1] <= 0:
            raise BadProfile(f"{where}: the times of {field} must be greater than 0 and never fall")
    if (
        min(slope for *_, slope in profile.decode) < 0
        or profile.attention_ms_per_pair < 0
        or profile.prefill_overhead_ms < 0
    ):
        raise BadProfile(f"{where}: slopes, attention_ms_per_pair and prefill_overhead_ms must not be below 0")
    return profile
