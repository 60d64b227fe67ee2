"""What a training run can be given: the fields are `train`'s keywords, the command line's options and their help."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self, TypedDict

from glassgpt.config import ROLES
from glassgpt.options import Options, nearest, option

OPTIMIZERS = ("muon", "adamw")
DECAYS = ("cosine", "linear")
DTYPE_NAMES = ("auto", "float32", "bfloat16")
KEEP = ("best", "last")
AUTO = "auto"
DEFAULT_EVAL_BATCHES = 20

LEARNING_RATE, MUON_LEARNING_RATE = 4e-3, 0.02
"""Of a model from scratch."""
_PARTS = ((50e6, 1 / 3), (math.inf, 1 / 10))
"""Of these, for a run that begins with weights, up to so many parameters: see docs/small_texts.md."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """How to train. `ValueError` for values that cannot work."""

    noun = "setting"

    steps: int | None = option(
        None, "optimizer steps in all", unit="steps", at_least=1, at_most=99_999_999, derived="what the minutes allow"
    )
    batch_size: int = option(
        16,
        "rows of context_length tokens in one step; auto leaves them as they are and picks micro_batch_size",
        unit="rows",
        at_least=1,
        choices=(AUTO,),
    )
    micro_batch_size: int | str | None = option(
        None,
        "rows computed at once; their gradients are accumulated; auto: what a short measurement finds fastest, of "
        "those that fit into memory",
        unit="rows",
        at_least=1,
        choices=(AUTO,),
        derived="all",
    )
    optimizer: str = option(
        "muon",
        "muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: AdamW for all",
        choices=OPTIMIZERS,
    )
    learning_rate: float | None = option(
        None,
        "peak learning rate of AdamW",
        unit="rate",
        above=0,
        derived=f"{LEARNING_RATE:g}, from weights a third of it, and a tenth above 50 million parameters",
    )
    muon_learning_rate: float | None = option(
        None,
        "peak learning rate of Muon",
        unit="rate",
        above=0,
        derived=f"{MUON_LEARNING_RATE:g}, from weights as above",
    )
    muon_momentum: float = option(
        0.95,
        "part of Muon's momentum that stays from step to step; a run of a few hundred steps wants less",
        unit="part",
        at_least=0,
        below=1,
    )
    freeze: tuple[str, ...] = option(
        (),
        f"parameters of this role stay as they are, may be given more than once: {', '.join(ROLES)}",
        unit="role",
    )
    weight_decay: float = option(0.1, "decay of matrices, times the learning rate", unit="factor", at_least=0)
    warmup_steps: int | None = option(
        None,
        "steps in which the learning rate rises to its peak",
        unit="steps",
        at_least=0,
        derived="1/20 of all, at most 100",
    )
    final_rate: float = option(
        0.05,
        "part of its peak to which the learning rate falls",
        unit="part",
        at_least=0,
        at_most=1,
    )
    decay: str = option("cosine", "how it falls: along a half cosine, or a straight line", choices=DECAYS)
    grad_clip: float = option(1.0, "maximum gradient norm; 0 disables clipping", unit="norm", at_least=0)
    spike_loss: float = option(
        0.0,
        "skip a step whose loss is above so many times the median of the last 64; 0: never",
        unit="factor",
        at_least=0,
    )
    spike_norm: float = option(
        0.0,
        "skip a step whose gradient norm, before clipping, is above so many times the median of the last 64; 0: never",
        unit="factor",
        at_least=0,
    )
    rollbacks: int = option(
        3,
        "how often ten skipped steps in a row, not finite or spikes, roll the run back to the last evaluation, with "
        "half the learning rate from there on; then the run gives up",
        unit="times",
        at_least=0,
    )
    activation_checkpointing: bool = option(
        False,
        "keep of each block what goes in, and compute the rest again for the backward pass: less memory, a fifth more "
        "time, the same numbers",
    )
    fsdp: bool = option(
        False,
        "under torchrun, each rank holds a part of weights, gradients and optimizer state, and the others send it the "
        "rest while it is needed: less memory, more traffic, the same numbers",
    )
    compile: bool = option(
        False,
        "compile the model by torch.compile, which needs a C++ compiler on a CPU: a wait of 15 seconds or more, for "
        "faster steps (docs/recipes.md); where it fails the run goes on without it",
    )
    dtype: str = option("auto", "number type of matrix products; weights are float32 always", choices=DTYPE_NAMES)
    seed: int = option(
        1,
        "decides the initial weights, the order of the data and the dropout",
        unit="N",
        at_least=0,
        at_most=2**63 - 1,
    )
    eval_every: int | None = option(
        None,
        "steps between evaluations, each of which saves a checkpoint",
        unit="steps",
        at_least=1,
        derived="1/8 of all",
    )
    save_minutes: float = option(
        10.0,
        "minutes by the clock after which a checkpoint is saved between evaluations, too; 0: never",
        unit="minutes",
        at_least=0,
    )
    eval_batches: int | None = option(
        None,
        "batches of one evaluation, spread evenly over the validation part",
        unit="batches",
        at_least=1,
        derived="20, or what 1/7 of the minutes allows",
    )
    patience: int | None = option(
        None,
        "evaluations in a row without a better one after which training stops; 0: never",
        unit="evaluations",
        at_least=0,
        derived="4 in a new run with minutes, else 0",
    )
    keep: str = option(
        "best",
        "which model the run's directory holds: the best by validation loss, or the last, which knows the text better "
        "by heart",
        choices=KEEP,
    )
    sample_prompt: str = option("", "beginning of the samples shown at each evaluation", unit="text")
    sample_tokens: int = option(60, "length of those samples; 0 shows none", unit="tokens", at_least=0)
    tensorboard: bool = option(False, "write event files for TensorBoard, which need not be installed, into the run")
    wandb: bool = option(False, "tell Weights & Biases of the run; WANDB_PROJECT and its other variables count")

    def __post_init__(self) -> None:
        freeze = [self.freeze] if isinstance(self.freeze, str) else self.freeze
        object.__setattr__(self, "freeze", tuple(freeze))  # JSON and the command line give lists
        super().__post_init__()
        if self.batch_size % self.rows_at_once:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        for name, factor in (("spike_loss", self.spike_loss), ("spike_norm", self.spike_norm)):
            if 0 < factor <= 1:
                raise ValueError(f"{name} {factor:g} would skip every other step: take more than 1, or 0 for never")
        if self.fsdp and self.compile:
            raise ValueError("compile cannot be had with fsdp, which gathers the weights block by block: leave one out")
        for role in self.freeze:
            if role not in ROLES:
                raise ValueError(f"freeze {role!r} is not a role of parameters: {nearest(role, ROLES)}")

    @property
    def rows_at_once(self) -> int:
        """Rows that one forward pass computes, in training and in evaluation; all, while they are to be picked."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else self.batch_size

    @classmethod
    def check_fields(cls, values: Mapping[str, Any]) -> None:
        """See `Options`."""
        super().check_fields(spelled_out(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """See `Options`."""
        return super().from_dict(spelled_out(values))

    def tired(self, steps: int) -> bool:
        """Whether a model that has not become better for so many steps was measured in vain as often as is borne."""
        assert self.eval_every is not None, "settings must be resolved first"
        return 0 < (self.patience or 0) <= steps // self.eval_every

    @property
    def eval_blocks(self) -> int:
        """Blocks of context_length tokens of one evaluation."""
        assert self.eval_batches is not None, "settings must be resolved first"
        return self.eval_batches * self.batch_size

    def with_rates(self, n_parameters: int | None = None) -> Self:
        """With the learning rates that were left to be derived: lower ones from weights of so many parameters."""
        part = 1.0 if n_parameters is None else next(part for most, part in _PARTS if n_parameters <= most)
        return dataclasses.replace(
            self,
            learning_rate=self.learning_rate or LEARNING_RATE * part,
            muon_learning_rate=self.muon_learning_rate or MUON_LEARNING_RATE * part,
        )

    def resolved(self, steps: int) -> Self:
        """For a run of `steps`: what was left to be derived is filled in; the rates are those of a new model."""
        return dataclasses.replace(
            self.with_rates(),
            steps=steps,
            warmup_steps=min(100, max(1, steps // 20)) if self.warmup_steps is None else self.warmup_steps,
            eval_every=max(1, -(-steps // 8)) if self.eval_every is None else self.eval_every,
            eval_batches=DEFAULT_EVAL_BATCHES if self.eval_batches is None else self.eval_batches,
            patience=0 if self.patience is None else self.patience,
        )

    def prolonged(self, steps: int, patience: int | None = None) -> Self:
        """For a resumed run that now ends at `steps`.

        More steps raise the learning rate, and that makes a model worse before it makes it better: then only a
        `patience` that is asked for counts.
        """
        if patience is None:
            patience = 0 if self.steps is not None and steps > self.steps else self.patience
        return dataclasses.replace(self, steps=steps, patience=patience)


def spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose `batch_size` may be "auto" as what that stands for: the micro-batch is picked, the batch is not.

    `ValueError` where the micro-batch is given, too.
    """
    if values.get("batch_size") != AUTO:
        return dict(values)
    if (rows := values.get("micro_batch_size")) not in (None, AUTO):
        raise ValueError(f"batch_size {AUTO!r} picks micro_batch_size, which is {rows!r}: leave one of them out")
    return {name: value for name, value in values.items() if name != "batch_size"} | {"micro_batch_size": AUTO}


class SettingsKeywords(TypedDict, total=False):
    """The fields of `Settings`, for type checkers and editors; a test keeps the two alike."""

    steps: int | None
    batch_size: int | str
    micro_batch_size: int | str | None
    optimizer: str
    learning_rate: float | None
    muon_learning_rate: float | None
    muon_momentum: float
    freeze: tuple[str, ...]
    weight_decay: float
    warmup_steps: int | None
    final_rate: float
    decay: str
    grad_clip: float
    spike_loss: float
    spike_norm: float
    rollbacks: int
    activation_checkpointing: bool
    fsdp: bool
    compile: bool
    dtype: str
    seed: int
    eval_every: int | None
    save_minutes: float
    eval_batches: int | None
    patience: int | None
    keep: str
    sample_prompt: str
    sample_tokens: int
    tensorboard: bool
    wandb: bool
