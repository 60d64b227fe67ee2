"""What a run leaves for people and programs to look at, and who hears of it; of several processes one does this."""

from __future__ import annotations

import shutil
from pathlib import Path

from glassgpt.checkpoint import load_model
from glassgpt.device import DTYPES, peak_memory_on
from glassgpt.files import link_or_copy, replacing
from glassgpt.generation.text import generate
from glassgpt.model import GPTModel
from glassgpt.training.build import Trainee
from glassgpt.training.log import RunLog
from glassgpt.training.look import look
from glassgpt.training.plot import plot_losses
from glassgpt.training.progress import Progress
from glassgpt.training.ranks import ALONE, Ranks
from glassgpt.training.records import Prepared, RunState
from glassgpt.training.report import write_report
from glassgpt.training.state import checkpoint_at, save_checkpoint
from glassgpt.training.step import evaluate_loss


class RunWriter:
    """Writes the files of a run and reports to a `Progress`; of several ranks the first does."""

    def __init__(self, directory: Path, prepared: Prepared, progress: Progress, *, ranks: Ranks = ALONE) -> None:
        self._directory, self._prepared, self._progress = directory, prepared, progress
        self._ranks, self._writes = ranks, ranks.first
        self._log = RunLog(directory)

    def rewind(self, state: RunState) -> None:
        """The log as the checkpoint of `state` left it; the view is told what is in it."""
        if self._writes:
            self._progress.history(self._log.rewind(state.step, state.evaluated))

    def message(self, text: str) -> None:
        """One line worth knowing."""
        if self._writes:
            self._progress.message(text)

    def step(self, step: int, loss: float, norm: float, rate: float, tokens_per_second: float) -> None:
        """See `RunLog.step`."""
        if self._writes:
            self._progress.step(self._log.step(step, loss, norm, rate, tokens_per_second))

    def save(self, trainee: Trainee, state: RunState) -> None:
        """Save a checkpoint and measure nothing: the published model stays, unless the last is what is kept."""
        checkpoint = self._save(trainee, state)
        if not self._writes:
            return
        if self._prepared.settings.keep == "last":
            publish(checkpoint, self._directory)
        self._progress.saved(state.step)

    def measure_and_save(self, trainee: Trainee, state: RunState, epoch: float) -> RunState:
        """Measure the model on the validation part, save a checkpoint, publish it if no earlier one was better."""
        prepared, settings = self._prepared, self._prepared.settings
        val_loss = evaluate_loss(
            trainee.objective,
            prepared.validation.tokens,
            min(settings.rows_at_once, settings.batch_size // self._ranks.world_size),
            settings.eval_blocks,
            DTYPES[settings.dtype],
            ranks=self._ranks,
        )
        regular, skipping = prepared.is_due(state.step), state.guard.skipped > 0
        state = state.after_evaluation(val_loss, regular)
        if not self._writes:
            self._save(trainee, state)
            return state
        # first the log, whose last lines a resume drops if the checkpoint was never written
        memory = peak_memory_on(trainee.model.device)
        bits = prepared.bits_per_byte(val_loss)
        record = self._log.evaluation(state.step, val_loss, bits, epoch, memory, regular=regular, skipping=skipping)
        checkpoint = self._save(trainee, state)
        if state.is_best or settings.keep == "last":
            publish(checkpoint, self._directory)
        self._progress.evaluation(record, state.is_best)
        if settings.sample_tokens and (settings.sample_prompt or prepared.tokenizer.eot_id is not None):
            # of a sharded model no rank has all; what was just saved needs no other ranks
            text = sample(load_model(checkpoint)[0] if trainee.sharded else trainee.model, prepared)
            self._log.sample(state.step, text)
            self._progress.sample(text)
        write_pictures(self._directory)
        return state

    def _save(self, trainee: Trainee, state: RunState) -> Path:
        """See `save_checkpoint`: of an unsharded model rank 0 alone saves."""
        if self._writes:
            self._log.sync()
        if self._writes or trainee.sharded:
            return save_checkpoint(self._directory, trainee, self._prepared.tokenizer, state, self._ranks)
        return checkpoint_at(self._directory, state.step)


def sample(model: GPTModel, prepared: Prepared) -> str:
    """What the model writes after the sample prompt."""
    settings = prepared.settings
    text = generate(
        model,
        prepared.tokenizer,
        settings.sample_prompt,
        max_new_tokens=settings.sample_tokens,
        temperature=0.8,
        top_p=0.95,
        seed=settings.seed,
        overflow="slide",
    )
    return settings.sample_prompt + text


def write_pictures(run: Path) -> None:
    """The chart and the report, by the log as it is."""
    seen = look(run)
    plot_losses(run, seen)
    write_report(run, seen)


def publish(checkpoint: Path, run: Path) -> None:
    """Make a checkpoint the model at the top of the run.

    The weights are a hard link where the disk has them, so the best model costs no second copy. The small files are
    copies: people edit those, and an edited link would damage the checkpoint.
    """
    for source in sorted((path for path in checkpoint.iterdir() if path.is_file()), key=_weights_last):
        if source.suffix == ".safetensors":
            link_or_copy(source, run / source.name)
        else:
            with replacing(run / source.name) as temporary:
                shutil.copyfile(source, temporary)


def _weights_last(path: Path) -> tuple[bool, str]:
    return path.suffix == ".safetensors", path.name
