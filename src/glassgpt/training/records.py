"""What the parts of a training run hand to each other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Self

from glassgpt.config import GPTConfig
from glassgpt.data.baselines import Baselines
from glassgpt.data.sources import TrainingSide, ValidationSide
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.guard import UNGUARDED, Guard
from glassgpt.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that is fixed before the first step."""

    config: GPTConfig
    settings: Settings
    tokenizer: Tokenizer
    train: TrainingSide
    validation: ValidationSide
    baselines: Baselines
    choices: list[str]
    """What was picked and why, one line each, to be shown."""
    source: str | None = None
    """Where the weights came from that the run began with; None: from scratch."""
    early: tuple[int, ...] = ()
    """Steps before the first regular evaluation after which the model is measured, too."""

    def is_due(self, step: int) -> bool:
        """Whether the model is to be measured after `step` steps."""
        assert self.settings.eval_every is not None
        return step % self.settings.eval_every == 0 or step in self.early

    @property
    def tokens_per_step(self) -> int:
        """Tokens that the batch of a step has."""
        return self.settings.batch_size * self.config.context_length

    def epochs(self, steps: int) -> float:
        """How often `steps` read the training part."""
        return steps * self.tokens_per_step / self.train.n_tokens

    def parameters_per_token(self) -> float:
        """Parameters of the model for each token of the training part: how easily it learns the text by heart."""
        return self.config.n_parameters() / self.train.n_tokens

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss on the validation part, comparable between tokenizers."""
        return nats_per_token / math.log(2) * self.validation.n_tokens / self.validation.n_bytes


@dataclasses.dataclass(frozen=True)
class RunState:
    """How far a run is. Losses are in nats per token of the validation part."""

    step: int = 0
    """Steps that were taken."""
    evaluated: int = -1
    """The step after which the model was measured last; -1: not yet."""
    val_loss: float = math.inf
    best_val_loss: float = math.inf
    best_step: int = -1
    guard: Guard = UNGUARDED
    best_regular_loss: float = math.inf
    best_regular_step: int = -1
    """Of regular evaluations alone: when a run is `tired` does not depend on where it was stopped."""

    def after_step(self, guard: Guard) -> Self:
        """One more step was taken, and this is what the guard remembers now."""
        return dataclasses.replace(self, step=self.step + 1, guard=guard)

    def after_evaluation(self, val_loss: float, regular: bool) -> Self:
        """The model was measured, as at every `regular` evaluation or because a stop was asked for.

        Between steps that are skipped it is not the best: it may be one of those that a rollback drops.
        """
        now = val_loss, self.step
        best, regular_best = (self.best_val_loss, self.best_step), (self.best_regular_loss, self.best_regular_step)
        guard = self.guard
        if val_loss < self.best_val_loss and not guard.skipped:
            best = now
        if regular:
            guard = guard.measured(self.step, val_loss)
            regular_best = now if val_loss < self.best_regular_loss and not self.guard.skipped else regular_best
        return type(self)(self.step, self.step, val_loss, *best, guard, *regular_best)

    def rolled_back(self, before: Self) -> Self:
        """Back at the state `before`; what is published stays, were it one of the steps that are dropped."""
        return dataclasses.replace(
            before,
            best_val_loss=self.best_val_loss,
            best_step=min(self.best_step, before.step),
            guard=self.guard.rolled_back(before.guard),
        )

    @property
    def is_best(self) -> bool:
        """No model measured earlier in this run was better than the last one."""
        return self.best_step == self.evaluated

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From a checkpoint's `state.json`; KeyError, TypeError or ValueError where it is damaged.

        Runs of version 0.1 did not write `best_step`: there the best is the last where the two losses are equal. Nor
        did they write `guard`: such a run rolls back to where it was resumed.
        """
        last, best = float(values["val_loss"]), float(values["best_val_loss"])
        best_step = values.get("best_step", values["evaluated"] if last == best else -1)
        step = int(values["step"])
        guard = Guard.from_dict(values["guard"]) if "guard" in values else Guard(back_to=step)
        regular = float(values.get("best_regular_loss", best)), int(values.get("best_regular_step", best_step))
        return cls(step, int(values["evaluated"]), last, best, int(best_step), guard, *regular)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended. Losses are in nats per token; `finished` is False after Ctrl-C.

    A run that stopped because it grew no better is finished, with fewer `steps` than were planned.
    """

    directory: Path
    steps: int
    finished: bool
    epochs: float
    """How often the training part was read."""
    keep: str
    """Which model the directory holds: "best" or "last"."""
    best_step: int
    best_val_loss: float
    val_loss: float
    val_bits_per_byte: float
    bigram_loss: float


class TrainingFailedError(RuntimeError):
    """Training cannot continue; the last checkpoint is untouched."""
