"""What a training run can be told, checked, in one place; no torch here, so the command line reads it quickly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

OPTIMIZERS = ("muon", "adamw")


_KINDS: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "int | None": (int | None, "a whole number or None"),
    "float": (int | float, "a finite number"),
    "str": (str, "a text"),
}


def _setting(default: Any, unit: str, help_text: str, shown: str | None = None) -> Any:
    """`shown` is the default in words, where it is not a fixed value."""
    return dataclasses.field(default=default, metadata={"unit": unit, "help": help_text, "default": shown or default})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. The fields' metadata is the command line's help. `ValueError` for values that cannot work."""

    steps: int = _setting(1000, "steps", "optimizer steps in all", "what --minutes allows")
    batch_size: int = _setting(16, "rows", "rows of context_length tokens in one step")
    micro_batch_size: int | None = _setting(None, "rows", "rows computed at once; the step adds them up", "all")
    optimizer: str = _setting("muon", "muon|adamw", "muon: Muon for the hidden matrices, AdamW for the rest")
    learning_rate: float = _setting(4e-3, "", "peak rate of AdamW")
    muon_learning_rate: float = _setting(0.02, "", "peak rate of Muon")
    weight_decay: float = _setting(0.1, "", "decay of matrices, times the rate")
    warmup_steps: int = _setting(20, "steps", "steps in which the rate rises to its peak", "1/20 of all, at most 100")
    final_rate: float = _setting(0.05, "fraction", "the rate falls to this part of its peak along a half cosine")
    grad_clip: float = _setting(1.0, "norm", "longest gradient; 0 is off")
    dtype: str = _setting("auto", "auto|float32|bfloat16", "number type of matrix products; weights are float32")
    seed: int = _setting(1, "", "decides the initial weights, the order of the data and the dropout")
    eval_every: int = _setting(
        125, "steps", "steps between evaluations, each of which saves a checkpoint", "1/8 of all"
    )
    eval_batches: int = _setting(20, "batches", "batches of one evaluation, evenly over the validation part")
    sample_prompt: str = _setting("", "text", "beginning of the samples shown at each evaluation", "none")
    sample_tokens: int = _setting(60, "tokens", "length of those samples; 0 is off")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind, wanted = _KINDS[str(field.type)]
            self._check(field.name, isinstance(value, kind) and value not in (math.inf, -math.inf), wanted)
        for name in ("steps", "batch_size", "eval_every", "eval_batches"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "muon_learning_rate"):
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "warmup_steps", "grad_clip", "sample_tokens"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown: use {' or '.join(OPTIMIZERS)}")
        self._check("final_rate", 0 <= self.final_rate <= 1, "from 0 to 1")
        self._check("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{name} {getattr(self, name)!r} must be {wanted}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a dict with all or some of the fields; `ValueError` for an unknown one."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"unknown setting {unknown[0]!r}: known are {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)
