"""Proof that two models are one: the scores of both on a fixed prompt, and weights that a format rounds, compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.model import GPTModel


@dataclasses.dataclass(frozen=True)
class Proof:
    """How far the results lie from the source's: over all positions and tokens of a fixed prompt."""

    largest_difference: float
    """Of two scores."""
    same_choice: float
    """Fraction of the positions where both take the same best token."""
    largest_score: float
    """Of the source's, without its sign: what the difference is to be seen against."""

    rounding: float | None = None
    """Where the format rounds weights: the largest difference of one, in parts of what its number type may round."""

    def holds(self) -> bool:
        """Whether the scores differ by no more than float32's rounding, 1e-4 for scores around 1.

        Where weights are rounded, no bound on the scores would be both sure and sharp: there every single weight must
        be within its number type's rounding, and the scores finite.
        """
        if self.rounding is not None:
            return self.rounding <= 1 and math.isfinite(self.largest_difference)
        return self.largest_difference < 1e-4 * max(1, self.largest_score)

    def verdict(self) -> str:
        """What the figures mean, in words."""
        if self.rounding is not None:
            bound = "every weight within" if self.holds() else "a weight beyond"
            return f"{bound} its number type's rounding"
        if not self.holds():
            return "different"
        return "equal within float32's rounding" if self.largest_difference else "identical"

    def __str__(self) -> str:
        scores = f"largest difference of scores {self.largest_difference:.2g}"
        if self.rounding is not None:  # then the best tokens of a random prompt say little: see `weights.quality`
            return f"{self.verdict()}, the worst at {self.rounding:.2f} of it; {scores}"
        return f"{self.verdict()}: {scores}, same best token {self.same_choice:.1%}"


def prompt_for(model: GPTModel, n_tokens: int = 64) -> Tensor:
    """The fixed prompt: (1, up to `n_tokens`) ids spread over the whole vocabulary, the same every time."""
    random = torch.Generator().manual_seed(20190214)
    n_tokens = min(n_tokens, model.config.context_length)
    return torch.randint(0, model.config.vocab_size, (1, n_tokens), generator=random)


@torch.no_grad()
def prove(source: GPTModel, result: GPTModel, rounding: Callable[[str, Tensor], Tensor] | None = None) -> Proof:
    """Compare two models, both in `eval` mode, on `prompt_for(source)`.

    `rounding(name, weights)` gives the largest error of each weight, where the result's are rounded.
    """
    prompt = prompt_for(source)
    proof = compare(source(prompt.to(source.device)), result(prompt.to(result.device)))
    if rounding is None:
        return proof
    found, worst = result.state_dict(), 0.0
    for name, expected in source.state_dict().items():
        error = (expected.float() - found[name].float()).abs()
        parts = torch.where(error == 0, 0.0, error / rounding(name, expected.float()))  # of what may be lost
        worst = max(worst, float(parts.nan_to_num(nan=math.inf).max()))
    return dataclasses.replace(proof, rounding=worst)


def compare(expected: Tensor, found: Tensor) -> Proof:
    """Compare two score tensors of one shape; `ValueError` where the shapes differ."""
    if expected.shape != found.shape:
        raise ValueError(f"scores of shape {list(found.shape)} where {list(expected.shape)} were expected")
    expected, found = expected.float().cpu(), found.float().cpu()
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean()
    return Proof(float((expected - found).abs().max()), float(same), float(expected.abs().max()))
