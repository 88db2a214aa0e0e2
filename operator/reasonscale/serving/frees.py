"""When seats come free: how many within a time, from how far each running request has got. Pure.

A steady rate is wrong where lengths are alike: seats that were all taken within a second come free within a few, half a
minute later, and whoever is told a time in between comes for nothing. So each class has a hazard by tokens made, from the lengths
seen and from what runs on beyond them, and what runs is carried on by it; a seat that comes free is taken at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

STEPS_A_MEAN: Final = 16
STEPS: Final = 4 * STEPS_A_MEAN  # then all ages are mixed, and the rate is steady
PRIOR: Final = 4.0  # requests that a hazard without memory counts for


@dataclass(frozen=True, slots=True)
class Frees:
    """Seats that come free, cumulated after each step, and the steady rate after the last."""

    step_s: float
    after: tuple[float, ...]
    per_s: float

    def time_of(self, seats: float) -> float:
        """Return the seconds after which so many seats have come free."""
        before = 0.0
        for i, there in enumerate(self.after):
            if there >= seats:
                return self.step_s * (i + (seats - before) / (there - before) if there > before else i + 1.0)
            before = there
        return self.step_s * len(self.after) + (seats - before) / self.per_s


def _hazard(ended: Sequence[float], running: Iterable[float], mean: float, width: float) -> list[float]:
    """Return the chance to end in each step of `width` tokens, for one that got there."""
    ends, reached = [0.0] * STEPS, [0.0] * STEPS
    beyond = 0.0  # steps that were gone through after the last one: it stands for all from there on
    for tokens in ended:
        step = int(tokens / width)
        last = min(STEPS - 1, step)
        ends[last] += 1.0
        reached[last] += 1.0
        beyond += step - last
    for tokens in running:  # those have reached all steps before the one they are in
        step = int(tokens / width) - 1
        if step >= 0:
            last = min(STEPS - 1, step)
            reached[last] += 1.0
            beyond += step - last
    exposed = list(accumulate(reversed(reached)))[::-1]
    exposed[-1] += beyond
    plain = min(1.0, width / mean)
    return [min(1.0, (e + PRIOR * plain) / (x + PRIOR)) for e, x in zip(ends, exposed, strict=True)]


def frees(
    running: Mapping[str, Sequence[float]],
    ended: Mapping[str, Sequence[float]],
    means: Mapping[str, float],
    speed: float,
) -> Frees:
    """Return when seats come free. `running`: tokens made by each that runs, by class; `ended`: lengths seen, the newest last."""
    number = sum(map(len, running.values()))
    tokens = sum(means[cls] * len(made) for cls, made in running.items())
    if not number:
        return Frees(1.0, (), 1e-9)
    width = max(1.0, tokens / number) / STEPS_A_MEAN
    out = [0.0] * STEPS
    for cls, made in running.items():
        hazard = _hazard(ended.get(cls, ()), made, max(1.0, means[cls]), width)
        at = [0.0] * STEPS
        for n in made:  # shared by the two steps that it lies between, else each would be half a step late
            below = min(STEPS - 1, int(n / width))
            share = min(1.0, n / width - below)
            at[below] += 1.0 - share
            at[min(STEPS - 1, below + 1)] += share
        for step in range(STEPS):
            gone = [a * h for a, h in zip(at, hazard, strict=True)]
            ends = sum(gone)
            stay = [a - g for a, g in zip(at, gone, strict=True)]
            # Who takes such a seat has been there for half a step on average.
            at = [0.5 * ends, 0.5 * ends + stay[0], *stay[1:-2], stay[-2] + stay[-1]]
            out[step] += ends
    return Frees(width / speed, tuple(accumulate(out)), number * speed / max(1.0, tokens / number))
