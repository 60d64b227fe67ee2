"""The losses of a run as a chart of characters: training as a line of Braille dots, validation as points, baselines.

The line's dots are an eighth of a character: two side by side and four above each other. Nothing here knows of a
terminal but its width and height.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text

SMOOTHING = 0.95
"""Part of the smoothed loss that the next step keeps."""

LINE, POINT = "cyan", "bold yellow"
_MOST_POINTS = 4096  # of the line that are remembered: as many dots as no screen has
_MOST = 1e12  # losses beyond are drawn there: differences of larger numbers overflow
_SETTLED = 0.2  # of the steps, at the start, whose fall may leave the chart
_LEAST_SHARE = 0.6  # of the height that the curve keeps when a baseline is brought into view
_LEAST_SPAN = 0.1  # nats that the chart is high: less is noise
_MARGIN = 0.05
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # Unicode's bits of a Braille character, top to bottom


class Curve:
    """The losses of a run, smoothed as they come; a long run is remembered in less detail."""

    def __init__(self) -> None:
        self.last: tuple[int, float] | None = None
        """Step and smoothed loss, in nats per token."""
        self.points: list[tuple[int, float]] = []
        """The validation losses."""
        self._line: list[tuple[int, float]] = []
        self._stride = 1

    def step(self, step: int, loss: float | None) -> None:
        """The loss of step number `step`; one that is no number, a step that was skipped, must not hide the others."""
        before = None if self.last is None else self.last[1]
        if loss is not None and math.isfinite(loss):
            smoothed = loss if before is None else SMOOTHING * before + (1 - SMOOTHING) * loss
        elif before is not None:
            smoothed = before
        else:
            return
        self.last = (step, smoothed)
        if step % self._stride == 0:
            self._line.append(self.last)
        if len(self._line) > _MOST_POINTS:
            self._stride *= 2
            self._line = [point for point in self._line if point[0] % self._stride == 0]

    def evaluation(self, step: int, loss: float | None) -> None:
        """The validation loss after `step` steps."""
        if loss is not None and math.isfinite(loss):
            self.points.append((step, loss))

    def line(self) -> list[tuple[int, float]]:
        """Steps and smoothed losses, the last one among them."""
        line, last = list(self._line), self.last
        return [*line, last] if last is not None and line and line[-1][0] < last[0] else line


@dataclasses.dataclass(frozen=True)
class Frame:
    """What part of the plane a chart shows: steps from `first` to `last`, losses from `bottom` to `top`."""

    first: int
    last: int
    bottom: float
    top: float

    def row(self, loss: float, rows: int) -> int:
        """The row of a loss, from the top; it lies outside where it is below 0 or not below `rows`."""
        return math.floor((self.top - loss) / (self.top - self.bottom) * rows)


def frame(line: Sequence[tuple[int, float]], points: Sequence[tuple[int, float]], levels: Iterable[float]) -> Frame:
    """Where the curve lives: the fall at the start may leave the chart at the top, and the nearest of the baselines
    `levels` are in it as long as the curve keeps most of the height.
    """
    everything = [*line, *points]
    first, last = min(step for step, _ in everything), max(step for step, _ in everything)
    settled = [loss for step, loss in everything if step >= first + _SETTLED * (last - first)]
    low, high = min(settled), max(settled)
    span = max(high - low, _LEAST_SPAN)
    middle, span = (low + high) / 2, span * (1 + 2 * _MARGIN)
    bottom, top = middle - span / 2, middle + span / 2
    for level in sorted([*levels, *(loss for _, loss in everything)], key=lambda level: abs(level - middle)):
        lower, upper = min(bottom, level - _MARGIN * span), max(top, level + _MARGIN * span)
        if bottom <= level <= top or span < _LEAST_SHARE * (upper - lower):
            continue
        bottom, top = lower, upper
    return Frame(first, last, bottom, top)


def chart(curve: Curve, baselines: Mapping[str, float], width: int, rows: int) -> list[Text]:
    """`rows` lines of the curve and two of its steps, each at most `width` characters; [] where there is no room."""
    line = [(step, max(-_MOST, min(loss, _MOST))) for step, loss in curve.line()]
    points = [(step, max(-_MOST, min(loss, _MOST))) for step, loss in curve.points]
    if len(line) < 2 or rows < 3:
        return []
    view = frame(line, points, baselines.values())
    ticks = _ticks(view, rows)
    names = _names(view, baselines, rows)
    left = max(map(len, ticks.values()), default=1) + 2
    right = max(map(len, [*names.values(), *_LEGEND])) + 1
    columns = width - left - 2 - right
    if columns < 20:
        columns, names, legend = width - left - 2, {}, ("", "")
    else:
        legend = _LEGEND
    if columns < 20:
        return []
    cells = _cells(view, line, points, baselines.values(), columns, rows)
    lines = []
    for row in range(rows):
        text = Text().append(f"{ticks.get(row, ''):>{left}} {'┤' if row in ticks else '│'}", "dim")
        for column in range(columns):
            text.append(*cells.get((row, column), (" ", "")))
        lines.append(_with(text, names.get(row, ""), "dim"))
    lines.append(_with(Text().append(f"{'':{left}} └{_axis(columns)}", "dim"), legend[0], LINE))
    steps = _steps(view, columns)
    lines.append(_with(Text().append(f"{'':{left + 2}}{steps:{columns}}", "dim"), legend[1], POINT))
    return lines


_LEGEND = ("⠒⠒ training", "●  validation")


def _with(text: Text, name: str, style: str) -> Text:
    """A line and what stands to the right of it; it ends with a letter, so no terminal has blanks to wrap."""
    if name:
        text.append(f" {name}", style)
    text.rstrip()
    return text


def _cells(
    view: Frame,
    line: Sequence[tuple[int, float]],
    points: Sequence[tuple[int, float]],
    levels: Iterable[float],
    columns: int,
    rows: int,
) -> dict[tuple[int, int], tuple[str, str]]:
    """What is drawn, by row and column: a character and its style."""
    bits: dict[tuple[int, int], int] = {}
    for dot, heights in enumerate(_heights(view, line, 2 * columns, 4 * rows)):
        for height in heights:
            cell = (height // 4, dot // 2)
            bits[cell] = bits.get(cell, 0) | _DOTS[dot % 2][height % 4]
    cells = {cell: (chr(0x2800 + mask), LINE) for cell, mask in bits.items()}
    for level in levels:
        height = view.row(level, 4 * rows)
        if 0 <= height < 4 * rows:
            for column in range(columns):
                cells.setdefault((height // 4, column), (chr(0x2800 + _DOTS[0][height % 4]), "dim"))
    for step, loss in points:
        row, column = view.row(loss, rows), round((step - view.first) / (view.last - view.first) * (columns - 1))
        if 0 <= row < rows:
            cells[row, column] = ("●", POINT)
    return cells


def _heights(view: Frame, line: Sequence[tuple[int, float]], dots: int, high: int) -> list[range]:
    """For each dot along the steps, the dots above each other that connect the curve there with the one before."""
    steps = [step for step, _ in line]
    found: list[range] = []
    before = None
    for dot in range(dots):
        at = view.first + dot * (view.last - view.first) / (dots - 1)
        if not steps[0] <= at <= steps[-1]:
            found.append(range(0))
            continue
        n = min(max(1, bisect.bisect_left(steps, at)), len(line) - 1)
        (a, loss_a), (b, loss_b) = line[n - 1], line[n]
        height = view.row(loss_a + (loss_b - loss_a) * (at - a) / (b - a), high)
        low, top = (height, height) if before is None else (min(height, before + 1), max(height, before - 1))
        found.append(range(max(0, low), min(high, top + 1)))
        before = height
    return found


def _ticks(view: Frame, rows: int) -> dict[int, str]:
    """Round numbers on the axis of the losses, by row, at least one row apart."""
    least = (view.top - view.bottom) / rows * 1.2
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    digits = max(1, -math.floor(math.log10(step) + 1e-9))
    ticks = {}
    for n in range(math.ceil(view.bottom / step), math.floor(view.top / step) + 1):
        value = n * step
        text = f"{value:.{digits}f}"
        row = view.row(value, rows)
        if 0 <= row < rows:
            ticks[row] = text if len(text) <= 8 else f"{value:.1e}"
    return ticks


def _names(view: Frame, baselines: Mapping[str, float], rows: int) -> dict[int, str]:
    """The baselines' names by row: at their lines, those outside at the edge with an arrow; one for each row."""
    at = {name: view.row(level, rows) for name, level in baselines.items()}
    falling = sorted(baselines, key=lambda name: -baselines[name])
    inside = [name for name in falling if 0 <= at[name] < rows]
    above = [name for name in falling if at[name] < 0]
    below = [name for name in reversed(falling) if at[name] >= rows]
    names: dict[int, str] = {}
    for arrow, group in (("", inside), ("↑ ", above), ("↓ ", below)):
        for name in group:
            row = min(max(at[name], 0), rows - 1)
            free = (r for part in (range(row, rows), range(row, -1, -1)) for r in part if r not in names)
            names.setdefault(next(free, row), f"{arrow}{name} {baselines[name]:.2f}")
    return names


def _axis(columns: int) -> str:
    marks = {0, columns // 2, columns - 1}
    return "".join("┬" if column in marks else "─" for column in range(columns))


def _steps(view: Frame, columns: int) -> str:
    """The first, the middle and the last step under their marks, those that have room."""
    first, last = f"{view.first:,}", f"{view.last:,}"
    middle = f"{(view.first + view.last) // 2:,}"
    start = columns // 2 - len(middle) // 2
    end = columns - len(last)
    if view.last - view.first > 1 and len(first) < start and start + len(middle) < end:
        return f"{first:{start}}{middle:{end - start}}{last}"
    return f"{first:{end}}{last}" if len(first) < end else last
