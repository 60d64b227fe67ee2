"""Pictures of a sweep and of a search for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glassgpt.training.look import Look
from glassgpt.training.plot import colours_for, draw_runs, figure_of

if TYPE_CHECKING:
    from glassgpt.training.find_rate import FoundRate

_MOST_PANELS = 3  # of settings; more would be too small to read


def plot_sweep(values: Mapping[str, dict[str, Any]], looks: Mapping[str, Look]) -> Any:
    """A matplotlib figure: the curves of a sweep's runs, and the best bits per byte of each over each setting."""
    names = [name for name in values if name in looks]
    settings = list(values[names[0]])[:_MOST_PANELS] if names else []
    figure = figure_of(5.5 * (1 + len(settings)), 4.5)
    first, *panels = figure.subplots(1, 1 + len(settings), squeeze=False)[0]
    draw_runs([first], [(name, looks[name]) for name in names])
    colours = dict(zip(names, colours_for(len(names)), strict=True)) if names else {}
    for axes, setting in zip(panels, settings, strict=True):
        points = [(values[name][setting], looks[name].best, colours[name]) for name in names]
        _draw_setting(axes, setting, [(value, best["bits_per_byte"], colour) for value, best, colour in points if best])
    return figure


def _draw_setting(axes: Any, setting: str, points: list[tuple[Any, float, Any]]) -> None:
    """The best bits per byte of each run over its value; values that are no numbers stand side by side."""
    given = [value for value, _, _ in points]
    if given and all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        places = {str(value): value for value in given}
        if min(given) > 0 and max(given) >= 10 * min(given):
            axes.set_xscale("log")
    else:
        places = {text: n for n, text in enumerate(dict.fromkeys(map(str, given)))}
        axes.set_xticks(list(places.values()), labels=list(places))
        axes.margins(x=0.2)
    for value, loss, colour in points:
        axes.plot([places[str(value)]], [loss], color=colour, marker="o", markersize=7, linestyle="")
    axes.set(xlabel=setting, ylabel="best bits per byte")
    axes.spines[["top", "right"]].set_visible(False)


def plot_rate(found: FoundRate) -> Any:
    """A matplotlib figure: the loss over the rate, and where to read it."""
    figure = figure_of(8, 4.5)
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="#b8c4d6", linewidth=0.8, label="loss of each step")
    axes.plot(found.rates, found.smoothed, color="#1f5fae", label="smoothed")
    for rate, name, colour in (
        (found.steepest, "falls fastest", "#2e9e6b"),
        (found.lowest / 10, "a tenth of the lowest", "#d9a441"),
        (found.lowest, "lowest", "#d1495b"),
    ):
        axes.axvline(rate, color=colour, linewidth=1, linestyle="--", label=f"{name}: {rate:.2g}")
    finite = [loss for loss in found.smoothed if math.isfinite(loss)]
    margin = 0.1 * (max(finite) - min(finite)) or 0.1
    axes.set_ylim(min(finite) - margin, max(finite) + margin)
    axes.set(xscale="log", xlabel=found.setting, ylabel="loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
