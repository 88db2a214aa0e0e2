"""A hardware profile: how long one engine step takes, fitted from a decode sweep and prefill points.

The time of a step with B requests decoding over K tokens of KV cache and P prompt tokens (ms):

    base(B) + slope(B) * K + [linear(P + B) - linear(B) + overhead] + pair * (pairs of prompt tokens that attend)

The bracket and the last term are there only where P > 0. `base` and `slope` are lines through the sweep, one for each
B in it; `linear` goes through the prefill points less their attention; `overhead` is what a step with any prompt in it
costs more than a pure decode step (it does not run as one CUDA graph); `pair` shows in prompts longer than a step.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from math import isfinite
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1
LARGEST: Final = sys.float_info.max


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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; BadProfile says what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadProfile(f"{path}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadProfile(f"{path}: can't be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadProfile(f"{path}: must be a JSON object")
    return data


def dump(profile: Profile) -> str:
    """Return the profile as the text of its file."""
    return json.dumps({"format": FORMAT, **asdict(profile)}, indent=1) + "\n"


def read(path: Path) -> Profile:
    """Return the profile in a file; BadProfile says what is wrong with it."""
    data = read_json(path)
    if data.pop("format", None) != FORMAT:
        raise BadProfile(f"{path}: format must be {FORMAT}; `reasonscale profile fit FILE` makes such a file")
    try:
        data["decode"] = tuple((int(n), float(ms), float(slope)) for n, ms, slope in data["decode"])
        data["prefill"] = tuple((int(n), float(ms)) for n, ms in data["prefill"])
        return checked(Profile(**data), str(path))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, BadProfile):
            raise
        raise BadProfile(f"{path}: is not as `reasonscale profile fit` writes it: {error}") from None


def is_positive(value: Any) -> bool:
    """Tell whether a value of a file is a number greater than 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= LARGEST


def is_size(value: Any) -> bool:
    """Tell whether it is a whole one."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def checked(profile: Profile, where: str) -> Profile:
    """Return the profile; BadProfile where a field can't be right."""
    for field in ("name", "model"):
        value = getattr(profile, field)
        if not isinstance(value, str) or not value:
            raise BadProfile(f"{where}: {field} was {value!r}; it must be a text")
    for field in ("kv_tokens", "block_tokens", "max_num_seqs", "max_num_batched_tokens", "gpus_per_replica"):
        value = getattr(profile, field)
        if not is_size(value):
            raise BadProfile(f"{where}: {field} was {value!r}; it must be a whole number greater than 0")
    if profile.block_tokens > profile.kv_tokens:
        raise BadProfile(
            f"{where}: block_tokens was {profile.block_tokens}; it must not be more than kv_tokens, {profile.kv_tokens}"
        )
    if profile.start_s is not None and not is_positive(profile.start_s):
        raise BadProfile(f"{where}: start_s was {profile.start_s!r}; it must be a number greater than 0, or absent")
    numbers = [profile.prefill_overhead_ms, profile.attention_ms_per_pair]
    if not all(isfinite(x) for x in [*numbers, *chain(*profile.decode), *chain(*profile.prefill)]):
        raise BadProfile(f"{where}: holds a number that is none, such as NaN or Infinity")
    for field in ("decode", "prefill"):
        rows = getattr(profile, field)
        if not rows or any(later[0] <= row[0] for row, later in pairwise(rows)):
            raise BadProfile(f"{where}: {field} must have rows, by rising size")
        if rows[0][0] <= 0:
            raise BadProfile(f"{where}: {field} must begin with a size greater than 0; it was {rows[0][0]}")
        if any(later[1] < row[1] for row, later in pairwise(rows)) or rows[0][1] <= 0:
            raise BadProfile(f"{where}: the times of {field} must be greater than 0 and never fall")
    if (
        min(slope for *_, slope in profile.decode) < 0
        or profile.attention_ms_per_pair < 0
        or profile.prefill_overhead_ms < 0
    ):
        raise BadProfile(f"{where}: slopes, attention_ms_per_pair and prefill_overhead_ms must not be below 0")
    return profile
