"""What `train` was asked for: checked before anything is read, and the weights it begins with."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from glassgpt.checkpoint import load_model
from glassgpt.config import WEIGHTS_LEAVE_OPEN, GPTConfig, preset
from glassgpt.data.sources import sources_of
from glassgpt.data.vocabulary import TOKENIZERS, check_tokenizer
from glassgpt.device import check_dtype
from glassgpt.model import GPTModel
from glassgpt.packages import require
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.choose import changed, shapes_for
from glassgpt.training.run_file import RunRecord
from glassgpt.training.settings import Settings, spelled_out
from glassgpt.training.shards import check_torch

IN_MEMORY = "a model in memory"
"""The name of weights that come from nowhere else."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights that a run begins with, and the tokenizer that they were trained with."""

    name: str
    """Where they come from, in words."""
    model: GPTModel
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Like:
    """The run that is repeated."""

    run: Path
    record: RunRecord


@dataclasses.dataclass(frozen=True)
class Request:
    """What `train` was asked for, as it was given; None is for what it picks itself."""

    texts: Sequence[str | Path] = ()
    shape: GPTConfig | str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: GPTModel | str | Path | None = None
    tokenizer: Tokenizer | str | Path | None = None
    minutes: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_fields: str | Sequence[str] = ()
    world_size: int = 1
    """Processes that share each batch."""
    agents: Sequence[str] = ()
    """See `Ranks.agents`."""
    began: float = dataclasses.field(default_factory=time.monotonic)
    """When it was asked: the minutes count from here."""
    like: Like | None = None
    """The run that is repeated; what it had is in the other fields then."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", spelled_out(self.settings))

    @property
    def tokenizer_name(self) -> str | None:
        """Of one of `TOKENIZERS`; None for another, and for that of weights or of datasets."""
        if self.like is not None:
            return self.like.record.tokenizer
        if self.tokenizer is None and self.model is None:
            return None if sources_of(self.texts) else "bpe"
        return self.tokenizer if isinstance(self.tokenizer, str) and self.tokenizer in TOKENIZERS else None

    def fields(self) -> list[str]:
        """The fields of records that were chosen."""
        return [self.text_fields] if isinstance(self.text_fields, str) else list(self.text_fields)

    def checked(self, device: torch.device) -> Settings:
        """The settings, once everything that needs neither text nor weights has been checked (`ValueError`)."""
        settings = Settings.from_dict(self.settings)
        if settings.wandb:
            require("wandb")
        if settings.fsdp:
            check_torch()
            if not self.agents:
                raise ValueError(
                    "fsdp spreads the model over several processes, and this is one: start it with torchrun, as "
                    "docs/distributed.md shows, or leave it out"
                )
        check_dtype(settings.dtype, device)
        check_tokenizer(self.tokenizer)
        GPTConfig.check_fields(self.config)
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes {self.minutes} must be above 0")
        if self.minutes is not None and settings.steps is not None:
            raise ValueError("minutes and steps exclude each other: give one of them")
        if self.model is not None:
            self._check_model()
        elif self.shape is not None:
            self.shapes(0)
        return settings

    def _check_model(self) -> None:
        if self.shape is not None:
            raise ValueError("shape and model exclude each other: weights have their shape")
        for key, value in self.config.items():
            if key not in WEIGHTS_LEAVE_OPEN:
                free = ", ".join(WEIGHTS_LEAVE_OPEN)
                raise ValueError(f"{key} {value!r}: the weights that the run begins with decide it; free are {free}")
        if self.tokenizer in TOKENIZERS:
            raise ValueError(
                f"tokenizer {self.tokenizer!r}: a model keeps the tokenizer that it was trained with; leave it out"
            )
        if isinstance(self.model, GPTModel) and not isinstance(self.tokenizer, Tokenizer):
            raise ValueError("a model in memory comes without a tokenizer: give the one it was trained with")

    def start(self) -> Start | None:
        """The weights to begin with, on the CPU; None for a model from scratch. Raises what `load_model` raises."""
        if self.model is None:
            return None
        if isinstance(self.model, GPTModel):
            assert isinstance(self.tokenizer, Tokenizer)
            return Start(IN_MEMORY, self.model, self.tokenizer)
        return Start(str(self.model), *load_model(self.model, tokenizer=self.tokenizer))

    def shapes(self, n_bytes: int, start: Start | None = None) -> list[tuple[str, GPTConfig]]:
        """The shapes to choose from for a text of `n_bytes`, the best first: a preset's name, or "", and its config.

        `ValueError` for what cannot work. The vocabulary's size is still to be filled in.
        """
        if start is not None:
            config, length = start.model.config, self.config.get("context_length", 0)
            if length > config.context_length:
                raise ValueError(
                    f"context_length {length} is more than the {config.context_length} positions of {start.name}: "
                    "use as many or fewer"
                )
            return [("", config.replace(**self.config))]
        if isinstance(self.shape, GPTConfig):
            return [("", changed(self.shape, self.config))]
        if self.shape is None and GPTConfig.rules().keys() - self.config.keys() <= {"sliding_window"}:
            return [("", GPTConfig.from_dict(self.config))]  # nothing is left to pick
        names = shapes_for(n_bytes) if self.shape is None else [self.shape]
        return [(name, changed(preset(name), self.config)) for name in names]
