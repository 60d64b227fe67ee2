"""Pictures of runs: `loss.png`, how one went between the baselines of its own text, and several in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.files import replacing
from glassgpt.training.chart import frame
from glassgpt.training.look import Look
from glassgpt.training.run_directory import PLOT

_COLOURS = ("#1f5fae", "#d1495b", "#2e9e6b", "#d9a441", "#7a52b3", "#2a8fa8", "#8c510a", "#5b6573")
_MOST_ABOVE = 1.05
"""Times ln V: losses beyond are of models that fell apart, and would leave no room for the others."""


def figure_of(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not before it is needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colours_for(n: int) -> list[Any]:
    """A colour for each of `n` curves: told apart by eye up to eight, from then on as a scale."""
    if n <= len(_COLOURS):
        return list(_COLOURS[:n])
    from matplotlib import colormaps

    return [colormaps["viridis"](k / (n - 1)) for k in range(n)]


def plot_runs(named: Sequence[tuple[str, Look]]) -> Any:
    """A matplotlib figure: the losses of runs over their steps and, where all tell it, over time at work."""
    figure = figure_of(11, 4.5)
    draw_runs(figure.subplots(1, 2), named)
    return figure


def draw_runs(panels: Sequence[Any], named: Sequence[tuple[str, Look]]) -> None:
    """The losses of runs over their steps in the first panel, and over time at work in the second."""
    for (name, each), colour in zip(named, colours_for(len(named)), strict=True):
        means = means_of([(r["step"], r["loss"]) for r in each.steps if r["loss"] is not None])
        panels[0].plot(*zip(*means, strict=True) if means else ((), ()), color=colour, alpha=0.35, linewidth=0.8)
        for axes, key in zip(panels, ("step", "seconds"), strict=False):
            points = [(r[key], r["val_loss"]) for r in each.evaluations if r.get(key) is not None]
            label = f"{name}  {each.best['val_loss']:.3f}" if each.best else name
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
    for axes, label in zip(panels, ("step", "seconds at work"), strict=False):
        axes.set(xlabel=label, ylabel="loss, nats per token")
        axes.spines[["top", "right"]].set_visible(False)
        _frame_losses(axes, [each for _, each in named])
    for axes, title in zip(panels, ("training (pale) and validation", "validation"), strict=False):
        axes.set_title(title, fontsize=10)
    if 0 < len(named) <= 2 * len(_COLOURS):
        panels[-1].legend(frameon=False, fontsize=7, title="best validation loss", title_fontsize=7)


def means_of(points: Sequence[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """At most about `most` points, each the mean of as many neighbours, in the middle between them."""
    n = max(1, len(points) // most)
    blocks = (points[start : start + n] for start in range(0, len(points), n))
    return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]


def _frame_losses(axes: Any, looks: Sequence[Look]) -> None:
    """The height at which the curves live, and the baselines where all have the same."""
    points = [(r["step"], r["val_loss"]) for each in looks for r in each.evaluations]
    if not points:
        return
    most = _MOST_ABOVE * max(each.record.baselines.uniform for each in looks)
    view = frame([(step, min(loss, most)) for step, loss in points], [], [])
    axes.set_ylim(view.bottom, min(view.top, most))
    if len({each.record.digests for each in looks}) == 1:
        for name, value in looks[0].record.baselines.labelled().items():
            if view.bottom <= value <= view.top:
                _draw_baseline(axes, name, value)


def _draw_baseline(axes: Any, name: str, value: float) -> None:
    axes.axhline(value, color="#888888", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"{name}  {value:.2f}",
        (1, value),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color="#555555",
    )


def plot_losses(run: Path, seen: Look) -> None:
    """Draw `loss.png`: training and validation loss over the steps, between the text's own baselines."""
    steps = [(r["step"], r["loss"]) for r in seen.steps if r["loss"] is not None]
    evaluations = [(r["step"], r["val_loss"]) for r in seen.evaluations]
    if not evaluations:
        return
    figure = figure_of(8, 4.5)
    axes = figure.add_subplot()
    if steps:
        x, y = zip(*steps, strict=True)
        axes.plot(x, y, color="#b8c4d6", linewidth=0.8, label="training")
    axes.plot(*zip(*evaluations, strict=True), color="#1f5fae", marker="o", markersize=3, label="validation")
    for name, value in seen.record.baselines.labelled().items():
        _draw_baseline(axes, name, value)
    axes.set(xlabel="step", ylabel="loss, nats per token", title=f"validation loss {evaluations[-1][1]:.3f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    with replacing(run / PLOT) as temporary:
        figure.savefig(temporary, format="png")
