"""What training minimises, as a module: wrap this to compile, checkpoint or distribute a training step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from glassgpt.language_model import LanguageModel
from glassgpt.training.loss import IGNORE, linear_cross_entropy


class NextTokenLoss(nn.Module):
    """The cross-entropy of each next token; targets of `IGNORE` count nothing."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.compiled: Callable[[Tensor], Tensor] | None = None
        """What to call in place of `model.hidden`."""

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, T) ids and targets: the sum over all targets in nats, and how many there are.

        A sum and a count, because a mean over rows, micro-batches or processes must weigh each target alike.
        """
        hidden = (self.compiled or self.model.hidden)(inputs).flatten(0, 1)  # (B T, d)
        targets = targets.flatten()
        return linear_cross_entropy(hidden, self.model.out_head.weight, targets), (targets != IGNORE).sum()
