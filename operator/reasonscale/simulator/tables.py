"""A profile's step times as tables, for the engine model's inner loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reasonscale.profiles.profile import Profile

Floats = npt.NDArray[np.float64]
TILE = 64  # rows of a matrix tile: 65 requests decode at the price of 128, as tensor cores work on whole tiles


@dataclass(frozen=True, slots=True)
class Tables:
    """The terms of a step's time in seconds: base and slope by requests decoding, linear by tokens in the step."""

    base: Floats
    slope: Floats
    linear: Floats
    overhead: float
    pair: float


def tables_of(profile: Profile, max_num_seqs: int | None = None) -> Tables:
    """Return the step's terms by number of requests or tokens, for the inner loop."""
    batch = max_num_seqs or profile.max_num_seqs
    points = np.array(profile.decode, dtype=np.float64)
    counts = np.arange(batch + 1, dtype=np.float64)
    tiled = np.where(counts <= TILE, counts, np.ceil(counts / TILE) * TILE)
    most = points[-1, 0]
    # Beyond the sweep the last two points' line goes on.
    base = _extend(tiled, points[:, 0], points[:, 1])
    slope = np.interp(np.minimum(counts, most), points[:, 0], points[:, 2])
    tokens = np.arange(profile.max_num_batched_tokens + batch + 1, dtype=np.float64)
    prompt = np.array(profile.prefill, dtype=np.float64)
    linear = _extend(tokens, prompt[:, 0], prompt[:, 1])
    return Tables(
        base / 1e3,
        slope / 1e3,
        linear / 1e3,
        profile.prefill_overhead_ms / 1e3,
        profile.attention_ms_per_pair / 1e3,
    )


def too_long(
    profile: Profile, prompt_tokens: npt.NDArray[Any], output_tokens: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Tell which requests never fit an empty KV cache; the last token needs no place in it."""
    return np.asarray(
        prompt_tokens + output_tokens - 1 > profile.kv_tokens // profile.block_tokens * profile.block_tokens
    )


def _extend(at: Floats, x: Floats, y: Floats) -> Floats:
    """Return y at `at`: constant below the first point, straight between points and beyond the last."""
    inside = np.interp(at, x, y)
    if len(x) < 2:
        return inside
    rise = max(0.0, float((y[-1] - y[-2]) / (x[-1] - x[-2])))
    return np.asarray(np.where(at > x[-1], y[-1] + rise * (at - x[-1]), inside))
