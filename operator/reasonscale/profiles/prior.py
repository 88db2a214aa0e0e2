"""What the scaler is told of a profile before any engine has reported a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from reasonscale.profiles.profile import Profile
from reasonscale.scaling.types import BEND, BENDS_AT, StepTime

_LEAST_MS: Final = 0.01  # of a step


def prior_of(profile: Profile) -> StepTime:
    """Return the step time that the scaler starts from: the plane, but with the bend that the sweep shows."""
    plane = plane_of(profile)
    beyond = [(requests, max(0.0, requests - BENDS_AT)) for requests, *_ in profile.decode]
    flat, rise = _line(beyond)
    # Least squares on (1, B, beyond): what of the last the others don't say, against the times.
    own = [y - flat - rise * x for x, y in beyond]
    squares = sum(x * x for x in own)
    if squares < 1.0:  # a sweep that ends at the bend, or has but two points
        return replace(plane, bend=BEND * plane.b)
    bend = sum(x * ms for x, (_, ms, _) in zip(own, profile.decode, strict=True)) / squares
    a, b = _line([(n, ms - bend * x) for (n, x), (_, ms, _) in zip(beyond, profile.decode, strict=True)])
    return replace(plane, a=a / 1e3, b=b / 1e3, bend=bend / 1e3) if a >= _LEAST_MS and b > 0.0 and bend > 0.0 else plane


def plane_of(profile: Profile) -> StepTime:
    """Return the least-squares `a + b*B + c*K` (s), and s per prompt token."""
    a, b = _line([(requests, ms) for requests, ms, _ in profile.decode])
    slope = sum(slope for *_, slope in profile.decode) / len(profile.decode)
    if a < _LEAST_MS:  # times that rise faster than their number: the best line from (almost) 0
        squares = sum(requests**2 for requests, *_ in profile.decode)
        a, b = _LEAST_MS, sum(requests * (ms - _LEAST_MS) for requests, ms, _ in profile.decode) / squares
    d = _line(profile.prefill)[1] if len(profile.prefill) > 1 else profile.prefill[0][1] / profile.prefill[0][0]
    return StepTime(a / 1e3, max(0.0, b) / 1e3, slope / 1e3, d / 1e3)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the constant and the rise of the least-squares line; of one point, a flat one."""
    n = len(points)
    x_mean, y_mean = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    rise = sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0
    return y_mean - rise * x_mean, rise
