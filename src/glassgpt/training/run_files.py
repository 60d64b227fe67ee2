"""The files of a run that people and programs look at: `log.jsonl`, `loss.png`, and the model at its top."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from glassgpt.data.baselines import Baselines
from glassgpt.files import replacing, write_text

LOG = "log.jsonl"
_KEYS = {"step": {"step", "loss"}, "evaluation": {"step", "val_loss"}}


class RunLog:
    """Appends records to `log.jsonl`, one JSON object a line; they are in step order whatever was resumed."""

    def __init__(self, run: Path, first_step: int) -> None:
        """Drop what a killed run wrote after the checkpoint at `first_step`: those steps come again."""
        self._path = run / LOG
        kept = [r for r in read_log(run) if r["step"] < first_step + (r["kind"] == "evaluation")]
        write_text(self._path, "".join(_line(record) for record in kept if first_step))

    def step(self, step: int, loss: float, norm: float, rate: float, tokens_per_second: float) -> dict[str, Any]:
        """Step number `step`, from 0: its loss before the update."""
        return self._write(
            {
                "kind": "step",
                "step": step,
                "loss": loss,
                "gradient_norm": norm,
                "rate": rate,
                "tokens_per_second": round(tokens_per_second, 1),
            }
        )

    def evaluation(self, step: int, val_loss: float, bits_per_byte: float, epoch: float) -> dict[str, Any]:
        """The validation loss after `step` steps."""
        record = {"kind": "evaluation", "step": step, "val_loss": val_loss, "bits_per_byte": bits_per_byte}
        return self._write(record | {"epoch": round(epoch, 4)})

    def _write(self, record: dict[str, Any]) -> dict[str, Any]:
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(record))
        return record


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of `log.jsonl`, up to the first line that a kill cut off or that is none of ours."""
    path = run / LOG
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not _KEYS.get(str(record.get("kind")), {""}) <= record.keys():
            break
        records.append(record)
    return records


def _line(record: dict[str, Any]) -> str:
    """JSON has no word for the loss of a step whose numbers broke: null."""
    broken = {key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(record | dict.fromkeys(broken)) + "\n"


def publish(checkpoint: Path, run: Path) -> None:
    """Make a checkpoint the model at the top of the run: the same files, as links where the disk has links."""
    for source in (path for path in checkpoint.iterdir() if path.is_file()):
        with replacing(run / source.name) as temporary:
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)


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
    with replacing(run / "loss.png") as temporary:
        figure.savefig(temporary, format="png")
