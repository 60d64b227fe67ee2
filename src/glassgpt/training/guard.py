"""What a run does about steps that would spoil it: it skips them, rolls back with a lower rate, and at last stops.

A step is skipped where its loss or gradient norm is not finite and, where the settings say so, where one of them is far
above the median of the steps before. `MAX_SKIPPED` of them in a row roll the run back to a checkpoint. What is decided
hangs on the losses and norms alone, and what is remembered is saved with each checkpoint, so a resumed run decides the
same.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any, Self

from glassgpt.training.settings import Settings

MAX_SKIPPED = 10
"""Steps skipped in a row after which a run rolls back, or gives up."""
BACK_OFF = 0.5
"""Factor of the learning rate for each time a run went back."""
WINDOW, LEAST = 64, 16
"""Steps whose median is the measure of a spike, and how many there must be."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """What is remembered from step to step."""

    skipped: int = 0
    """Steps in a row that were skipped, up to now."""
    rollbacks: int = 0
    """How often the run went back."""
    back_to: int = -1
    """The step of the last regular evaluation before which none was skipped; -1: not known."""
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    """Of the last `WINDOW` steps that were not skipped; empty where no setting asks for them."""

    @property
    def rate(self) -> float:
        """Factor of the learning rate."""
        return BACK_OFF**self.rollbacks

    def refusal(self, loss: float, norm: float, settings: Settings) -> str | None:
        """Why a step with this loss and gradient norm must not reach the weights; None: it may."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite"
        for name, value, factor, before in (
            ("loss", loss, settings.spike_loss, self.losses),
            ("gradient norm", norm, settings.spike_norm, self.norms),
        ):
            if factor and len(before) >= LEAST and value > factor * statistics.median(before):
                return f"the {name} is above {factor:g} times the median of the last {len(before)} steps"
        return None

    def after(self, loss: float, norm: float, refusal: str | None, settings: Settings) -> Self:
        """One more step was taken, or skipped for the reason in `refusal`."""
        if refusal is not None:
            return dataclasses.replace(self, skipped=self.skipped + 1)
        losses = (*self.losses, loss)[-WINDOW:] if settings.spike_loss else ()
        norms = (*self.norms, norm)[-WINDOW:] if settings.spike_norm else ()
        return dataclasses.replace(self, skipped=0, losses=losses, norms=norms)

    def measured(self, step: int, loss: float) -> Self:
        """After a regular evaluation at `step`: whether this is where the run may roll back to."""
        return dataclasses.replace(self, back_to=step) if not self.skipped and math.isfinite(loss) else self

    def rolled_back(self, before: Self) -> Self:
        """The run rolls back to where it remembered `before`."""
        return dataclasses.replace(before, skipped=0, rollbacks=self.rollbacks + 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From a checkpoint's `state.json`; KeyError, TypeError or ValueError where it is damaged."""
        losses, norms = (tuple(map(float, values[name])) for name in ("losses", "norms"))
        return cls(int(values["skipped"]), int(values["rollbacks"]), int(values["back_to"]), losses, norms)


UNGUARDED = Guard()
"""Before the first step; alone, it skips what is not finite."""
