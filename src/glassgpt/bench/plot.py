"""`bench.png`: speed of each contender, of several rows together, and the cost of a token over the context."""

from __future__ import annotations

from typing import Any

from glassgpt.bench.plan import OURS
from glassgpt.bench.results import Bench, threads_of

# from plain to fast; the peers are warm colours
_COLOURS = dict(zip(OURS, ("#c3ccd9", "#8fa3bf", "#1f5fae", "#2a8fa8", "#2e9e6b", "#7a52b3"), strict=True))
_PEER_COLOURS = {"transformers": ("#d9a441",), "ctranslate2": ("#d1495b", "#e58c98"), "llama.cpp": (
    "#8c510a", "#bf812d", "#cfa15f", "#dfc27d")}  # fmt: skip


def plot(bench: Bench) -> Any:
    """A matplotlib figure of what was measured, which may be a part of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not before it is needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    speed, rows, context = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    colours = colours_of(bench.contenders())
    _draw_speed(speed, bench, colours)
    for name in bench.contenders("rows"):
        rates = bench.series(name, "rows", "rates")
        rows.plot(list(rates), list(rates.values()), color=colours[name], marker="o", markersize=3, label=name)
        rows.set_xscale("log", base=2)
        rows.set_xticks(list(rates), labels=[str(n) for n in rates])
        rows.minorticks_off()
    for name in bench.contenders("context"):
        costs = bench.series(name, "context", "seconds")
        milliseconds = [1e3 * cost for cost in costs.values()]
        context.plot(list(costs), milliseconds, color=colours[name], marker="o", markersize=3, label=name)
    rows.set(xlabel="rows", ylabel="tokens/s", title="rows decoded together")
    context.set(xlabel="tokens before it", ylabel="ms", title="one more token")
    for axes in (rows, context):
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    for axes in (speed, rows, context):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{bench.model['n_parameters'] / 1e6:,.3g}M parameters, {threads_of(bench)}", fontsize=10)
    return figure


def _draw_speed(axes: Any, bench: Bench, colours: dict[str, str]) -> None:
    names = bench.contenders("decode")
    rates = [bench.median(name, "decode", "rate") or 0.0 for name in names]
    bars = axes.barh(names, rates, color=[colours[name] for name in names])
    axes.bar_label(bars, [f" {rate:,.0f}" if rate >= 100 else f" {rate:.3g}" for rate in rates], fontsize=8)
    axes.invert_yaxis()  # in the order of the table
    axes.margins(x=0.15)
    axes.set(xlabel="tokens/s", title="one row")


def colours_of(contenders: list[str]) -> dict[str, str]:
    """A colour for each contender, the same in every picture."""
    colours = dict(_COLOURS)
    for peer, shades in _PEER_COLOURS.items():
        colours |= dict(zip((name for name in contenders if name.startswith(peer)), shades, strict=False))
    return colours
