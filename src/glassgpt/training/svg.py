"""A small chart as SVG, whose colours are the page's own: lines, points, levels, and numbers on the axes."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

Point = tuple[float, float]

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 12, 26
_LOGARITHMIC = 50.0
"""From this ratio of the largest value to the smallest on, a chart that may be logarithmic is."""


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    style: str
    """The class that the page gives a colour."""
    dots: bool = False


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most`."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(f * power for f in (1, 2, 5, 10) if f * power * most >= (high - low) * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def chart(
    series: Sequence[Series],
    *,
    levels: Sequence[tuple[str, float]] = (),
    bounds: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> str:
    """An `<svg>` of `series` over the steps, with horizontal `levels` by name; "" where there is nothing to draw.

    `bounds` are the values at the bottom and the top: what lies outside is cut off. A `logarithmic` chart is one where
    the values are positive and far apart.
    """
    points = [point for each in series for point in each.points if all(map(math.isfinite, point))]
    if not points:
        return ""
    ys = [y for _, y in points]
    logarithmic = logarithmic and min(ys) > 0 and max(ys) > _LOGARITHMIC * min(ys)
    low, high = bounds or _bounds(ys, logarithmic)
    plane = _Plane(min(x for x, _ in points), max(x for x, _ in points), low, high, logarithmic)
    parts = [*_axes(plane), *_levels(plane, levels)]
    lines = "".join(part for each in series for part in _line(plane, each))
    width, height = _WIDTH - _LEFT, _HEIGHT - _TOP - _BOTTOM + 8  # room for half of a dot; the rest is cut off
    place = f'x="{_LEFT - 4}" y="{_TOP - 4}" width="{width}" height="{height}"'
    parts.append(f'<svg {place} viewBox="{_LEFT - 4} {_TOP - 4} {width} {height}">{lines}</svg>')
    label = html.escape(", ".join(each.name for each in series))
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bounds(ys: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """A little more than the values take; from 0 on where they are not far from it."""
    low, high = min(ys), max(ys)
    if logarithmic:
        return low / 1.2, high * 1.2
    if 0 <= low < 0.5 * high:
        low = 0.0
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


@dataclasses.dataclass(frozen=True)
class _Plane:
    """From steps and values to the places of the picture."""

    first: float
    last: float
    low: float
    high: float
    logarithmic: bool

    def x(self, step: float) -> float:
        part = (step - self.first) / ((self.last - self.first) or 1)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        part = min(max((value - low) / ((high - low) or 1), -1), 2)  # what lies far outside is cut off anyway
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return nice_ticks(self.low, self.high)
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [10.0**power for power in powers]


def _axes(plane: _Plane) -> list[str]:
    parts = []
    for value in plane.ticks():
        y = plane.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in nice_ticks(plane.first, plane.last):
        if value == int(value):
            text = f"{int(value):,}"
            parts.append(f'<text x="{plane.x(value):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{text}</text>')
    return parts


def _levels(plane: _Plane, levels: Sequence[tuple[str, float]]) -> list[str]:
    parts = []
    for name, value in levels:
        if plane.low <= value <= plane.high:
            y, x = plane.y(value), _WIDTH - _RIGHT
            parts.append(f'<line class="level" x1="{_LEFT}" x2="{x}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{x}" y="{y - 4:.1f}" text-anchor="end">{html.escape(name)} {value:.2f}</text>')
    return parts


def _line(plane: _Plane, series: Series) -> list[str]:
    points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    places = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in points)
    parts = [f'<polyline class="{series.style}" points="{places}"/>'] if len(points) > 1 else []
    if series.dots or len(points) == 1:
        for x, y in points:
            if plane.low <= y <= plane.high:
                title = f"{series.name} {y:.4g} at step {x:,.0f}"
                parts.append(
                    f'<circle class="{series.style}" cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="3">'
                    f"<title>{html.escape(title)}</title></circle>"
                )
    return parts


def _number(value: float) -> str:
    """A number on an axis, short."""
    size = abs(value)
    if size >= 1e4:
        return f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    return "0" if size < 1e-12 else f"{value:.4g}"
