"""`bench.png`: speed of each contender, of several rows together, and the cost of a token over the context."""

from __future__ import annotations

from typing import Any

from glassgpt.bench.plan import OURS
from glassgpt.bench.results import Bench, threads_of

# from plain to fast; the peers are warm colours
_COLOURS = dict(
    zip(OURS, ("#c3ccd9", "#8fa3bf", "#1f5fae", "#2a8fa8", "#2e9e6b", "#7a52b3", "#3b3b6d", "#151533"), strict=True)
)
_PEER_COLOURS = {"transformers": ("#d9a441",), "ctranslate2": ("#d1495b", "#e58c98"), "llama.cpp": (
    "#8c510a", "#bf812d", "#cfa15f", "#dfc27d")}  # fmt: skip


def plot(bench: Bench) -> Any:
    """A matplotlib figure with a panel for each work that was done; prompts and first tokens only where alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not before it is needed
    from matplotlib.figure import Figure

    works = [work for work in ("decode", "rows", "context") if bench.contenders(work)]
    works = works or [turn.work for turn in bench.turns[:1]]
    figure = Figure(figsize=(1 + 4 * len(works), 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    colours = colours_of(bench.contenders())
    for work, axes in zip(works, figure.subplots(1, len(works), squeeze=False)[0], strict=True):
        {"rows": _draw_rows, "context": _draw_context}.get(work, _draw_bars)(axes, bench, colours, work)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{bench.model['n_parameters'] / 1e6:,.3g}M parameters, {threads_of(bench)}", fontsize=10)
    return figure


def _draw_bars(axes: Any, bench: Bench, colours: dict[str, str], work: str) -> None:
    figure, unit, title = {
        "decode": ("rate", "tokens/s", "one row"),
        "prompt": ("rate", "tokens/s", "a long prompt"),
        "first": ("seconds", "seconds", "first token"),
    }[work]
    names = bench.contenders(work)
    values = [bench.median(name, work, figure) or 0.0 for name in names]
    bars = axes.barh(names, values, color=[colours[name] for name in names])
    axes.bar_label(bars, [f" {value:,.0f}" if value >= 100 else f" {value:.3g}" for value in values], fontsize=8)
    axes.invert_yaxis()  # in the order of the table
    axes.margins(x=0.15)
    axes.set(xlabel=unit, title=title)


def _draw_rows(axes: Any, bench: Bench, colours: dict[str, str], work: str) -> None:
    for name in bench.contenders(work):
        rates = bench.series(name, work, "rates")
        axes.plot(list(rates), list(rates.values()), color=colours[name], marker="o", markersize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(rates), labels=[str(n) for n in rates])
        axes.minorticks_off()
    axes.set(xlabel="rows", ylabel="tokens/s", title="rows decoded together")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _draw_context(axes: Any, bench: Bench, colours: dict[str, str], work: str) -> None:
    for name in bench.contenders(work):
        costs = bench.series(name, work, "seconds")
        milliseconds = [1e3 * cost for cost in costs.values()]
        axes.plot(list(costs), milliseconds, color=colours[name], marker="o", markersize=3, label=name)
    axes.set(xlabel="tokens before it", ylabel="ms", title="one more token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def colours_of(contenders: list[str]) -> dict[str, str]:
    """A colour for each contender, the same in every picture."""
    colours = dict(_COLOURS)
    for peer, shades in _PEER_COLOURS.items():
        colours |= dict(zip((name for name in contenders if name.startswith(peer)), shades, strict=False))
    return colours
