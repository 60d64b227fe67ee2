"""What a run leaves for people and programs to look at: `log.jsonl`, `loss.png`, checkpoints, the best model."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from glassgpt.data.baselines import Baselines
from glassgpt.device import DTYPES
from glassgpt.files import replacing, write_text
from glassgpt.generation import generate
from glassgpt.training.build import Trainee
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared, RunState
from glassgpt.training.run_directory import LOG, PLOT
from glassgpt.training.state import save_checkpoint
from glassgpt.training.step import evaluate_loss

_KEYS = {"step": {"step", "loss"}, "evaluation": {"step", "val_loss"}}


class RunWriter:
    """Writes the files of a run and reports to a `Progress`; of several processes only rank 0 does either."""

    def __init__(self, directory: Path, prepared: Prepared, progress: Progress, *, rank: int = 0) -> None:
        self._directory, self._prepared = directory, prepared
        self._progress = progress if rank == 0 else Progress()
        self._writes = rank == 0

    def begin(self, first_step: int) -> None:
        """Drop what a killed run logged after the checkpoint at `first_step`: those steps come again."""
        if self._writes:
            kept = [r for r in read_log(self._directory) if r["step"] < first_step + (r["kind"] == "evaluation")]
            write_text(self._directory / LOG, "".join(map(_line, kept)))

    def message(self, text: str) -> None:
        """One line worth knowing."""
        self._progress.message(text)

    def step(self, step: int, loss: float, norm: float, rate: float, tokens_per_second: float) -> None:
        """Step number `step`, from 0, was taken; `loss` is that before the update, `rate` a part of the peak rate."""
        record = {"kind": "step", "step": step, "loss": loss, "gradient_norm": norm, "rate": rate}
        self._progress.step(self._append(record | {"tokens_per_second": round(tokens_per_second, 1)}))

    def measure_and_save(self, trainee: Trainee, state: RunState, epoch: float) -> RunState:
        """Measure the model on the validation part, save a checkpoint, publish it if no earlier one was better."""
        prepared, settings = self._prepared, self._prepared.settings
        val_loss = evaluate_loss(
            trainee.objective,
            prepared.validation.tokens,
            settings.rows_at_once,
            settings.eval_blocks,
            DTYPES[settings.dtype],
        )
        state = state.after_evaluation(val_loss)
        # first the log, whose last lines a resume drops if the checkpoint was never written
        record = {"kind": "evaluation", "step": state.step, "val_loss": val_loss}
        record |= {"bits_per_byte": prepared.bits_per_byte(val_loss), "epoch": round(epoch, 4)}
        self._append(record)
        if self._writes:
            checkpoint = save_checkpoint(self._directory, trainee, prepared.tokenizer, state)
            if state.is_best:
                publish(checkpoint, self._directory)
        self._progress.evaluation(record, state.is_best)
        if self._writes:
            plot_losses(self._directory, prepared.baselines)
            if settings.sample_tokens and (settings.sample_prompt or prepared.tokenizer.eot_id is not None):
                self._progress.sample(sample(trainee, prepared))
        return state

    def _append(self, record: dict[str, Any]) -> dict[str, Any]:
        if self._writes:
            with (self._directory / LOG).open("a", encoding="utf-8", newline="\n") as file:
                file.write(_line(record))
        return record


def sample(trainee: Trainee, prepared: Prepared) -> str:
    """What the model writes after the sample prompt."""
    settings = prepared.settings
    text = generate(
        trainee.model,
        prepared.tokenizer,
        settings.sample_prompt,
        max_new_tokens=settings.sample_tokens,
        temperature=0.8,
        top_p=0.95,
        seed=settings.seed,
        overflow="slide",
    )
    return settings.sample_prompt + text


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
    """Make a checkpoint the model at the top of the run.

    The weights are a hard link where the disk has them, so the best model costs no second copy. The small files are
    copies: people edit those, and an edited link would damage the checkpoint.
    """
    for source in sorted((path for path in checkpoint.iterdir() if path.is_file()), key=_weights_last):
        with replacing(run / source.name) as temporary:
            try:
                if source.suffix != ".safetensors":
                    raise OSError
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)


def _weights_last(path: Path) -> tuple[bool, str]:
    return path.suffix == ".safetensors", path.name


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
