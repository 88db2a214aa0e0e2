"""Workloads made from stated parameters; no files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from reasonscale.simulator.workload import NOBODY, Floats, Ints, Workload, in_order, make


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
    order, moved = in_order(arrival, follower)
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
