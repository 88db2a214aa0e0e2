"""Line plots as SVG text: enough for the demo's report, with nothing to install and nothing to run in the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 190, 64, 16, 30, 26


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) with a colour; `kind` is line, step, area or dots."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    kind: str = "line"


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at x with a word."""

    x: float
    text: str
    color: str = "#888"


def _ticks(top: float) -> list[float]:
    step = 10.0 ** len(str(int(top))) / 10 if top >= 1 else 0.1
    for divisor in (10, 5, 4, 2, 1):
        if top / (step / divisor) <= 5:
            step /= divisor
            break
    return [i * step for i in range(int(top / step) + 1)]


def _label(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _path(points: Sequence[tuple[float, float]], step: bool) -> str:
    out, last = [], None
    for x, y in points:
        if last is None:
            out.append(f"M{x:.1f} {y:.1f}")
        elif step:
            out.append(f"H{x:.1f}V{y:.1f}")
        else:
            out.append(f"L{x:.1f} {y:.1f}")
        last = y
    return "".join(out)


def plot(
    title: str, unit: str, series: Sequence[Series], x_max: float, marks: Sequence[Mark] = (), y_min_top: float = 1.0
) -> str:
    """Return one plot over time in seconds; all series share the axes."""
    top = max([y_min_top, *(y for s in series for _, y in s.points)]) * 1.08
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / x_max * inner_w, TOP + inner_h * (1 - y / top)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text x="{LEFT}" y="16" class="t">{escape(title)} <tspan class="u">{escape(unit)}</tspan></text>')
    for value in _ticks(top):
        x, y = at(0, value)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="g"/><text x="{x - 6}" y="{y + 4:.1f}" class="y">{_label(value)}</text>'
        )
    for second in range(0, int(x_max) + 1, 60):
        x, y = at(second, 0)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" class="x">{second // 60} min</text>')
    for mark in marks:
        x, _ = at(mark.x, 0)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{mark.color}" stroke-dasharray="3 3"/>')
        if mark.text:
            room = WIDTH - RIGHT - x > 6 * len(mark.text) + 4  # else the word goes to the left of its line
            place = f'x="{x + 4:.1f}"' if room else f'x="{x - 4:.1f}" text-anchor="end"'
            parts.append(f'<text {place} y="{TOP + 11}" class="m">{escape(mark.text)}</text>')
    for s in series:
        points = [at(x, y) for x, y in s.points]
        if not points:
            continue
        if s.kind == "dots":
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{s.color}" fill-opacity=".55"/>' for x, y in points
            ]
            continue
        path = _path(points, s.kind == "step")
        if s.kind == "area":
            base = TOP + inner_h
            parts.append(
                f'<path d="{path}L{points[-1][0]:.1f} {base}L{points[0][0]:.1f} {base}Z" fill="{s.color}" fill-opacity=".25"/>'
            )
        parts.append(f'<path d="{path}" fill="none" stroke="{s.color}" stroke-width="1.8"/>')
    x = WIDTH - RIGHT
    for s in reversed(series):
        width = 7 * len(s.name) + 20
        x -= width
        parts.append(
            f'<rect x="{x}" y="8" width="10" height="10" fill="{s.color}"/><text x="{x + 14}" y="17" class="l">{escape(s.name)}</text>'
        )
    return "".join([*parts, "</svg>"])
