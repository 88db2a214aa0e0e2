"""What the scaler is told of a profile before any engine has reported a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reasonscale.profiles.profile import Profile
from reasonscale.scaling.types import StepTime

_LEAST_MS: Final = 0.01  # of a step


def prior_of(profile: Profile) -> StepTime:
    """Return the least-squares `a + b*B + c*K` (s), and s per prompt token."""
    a, b = _line([(requests, ms) for requests, ms, _ in profile.decode])
    slope = sum(slope for *_, slope in profile.decode) / len(profile.decode)
    if a < _LEAST_MS:  # times that rise faster than their number: the best line from (almost) 0
        squares = sum(requests**2 for requests, *_ in profile.decode)
        a, b = _LEAST_MS, sum(requests * (ms - _LEAST_MS) for requests, ms, _ in profile.decode) / squares
    d = _line(profile.prefill)[1] if len(profile.prefill) > 1 else profile.prefill[0][1] / profile.prefill[0][0]
    return StepTime(a / 1e3, max(0.0, b) / 1e3, slope / 1e3, d / 1e3)


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the constant and the rise of the least-squares line; of one point, a flat one."""
    n = len(points)
    x_mean, y_mean = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    rise = sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0
    return y_mean - rise * x_mean, rise
