"""`loss.png`: how a run went, between the baselines of its own text."""

from __future__ import annotations

from pathlib import Path

from glassgpt.data.baselines import Baselines
from glassgpt.files import replacing
from glassgpt.training.log import read_log
from glassgpt.training.run_directory import PLOT


def plot_losses(run: Path, baselines: Baselines) -> None:
    """Draw `loss.png`: training and validation loss over the steps, between the text's own baselines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not before it is needed
    from matplotlib.figure import Figure

    records = read_log(run)
    steps = [(r["step"], r["loss"]) for r in records if r["kind"] == "step" and r["loss"] is not None]
    evaluations = [
        (r["step"], r["val_loss"]) for r in records if r["kind"] == "evaluation" and r["val_loss"] is not None
    ]
    if not evaluations:
        return
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        x, y = zip(*steps, strict=True)
        axes.plot(x, y, color="#b8c4d6", linewidth=0.8, label="training")
    axes.plot(*zip(*evaluations, strict=True), color="#1f5fae", marker="o", markersize=3, label="validation")
    for name, value in (
        ("every token alike, ln V", baselines.uniform),
        ("how common each token is", baselines.unigram),
        ("the token before (bigram)", baselines.bigram),
    ):
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
    axes.set(xlabel="step", ylabel="loss, nats per token", title=f"validation loss {evaluations[-1][1]:.3f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    with replacing(run / PLOT) as temporary:
        figure.savefig(temporary, format="png")
