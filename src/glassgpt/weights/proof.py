"""Proof that two models are one: the scores of both on a fixed prompt, compared."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from glassgpt.model import GPTModel


@dataclasses.dataclass(frozen=True)
class Proof:
    """How far the results lie from the source's: over all places and tokens of a fixed prompt."""

    largest_difference: float
    """Of two scores."""
    same_choice: float
    """Fraction of the places where both take the same best token."""
    largest_score: float
    """Of the source's, without its sign: what the difference is to be seen against."""

    def holds(self, *, rounded: bool = False) -> bool:
        """Whether the difference is no more than float32's, 1e-4 for scores around 1; any number if `rounded`."""
        return self.largest_difference < (math.inf if rounded else 1e-4 * max(1, self.largest_score))

    def __str__(self) -> str:
        return f"largest difference of scores {self.largest_difference:.2g}, same best token {self.same_choice:.1%}"


def prompt_for(model: GPTModel, n_tokens: int = 64) -> Tensor:
    """The fixed prompt: (1, up to `n_tokens`) ids spread over the whole vocabulary, the same every time."""
    random = torch.Generator().manual_seed(20190214)
    n_tokens = min(n_tokens, model.config.context_length)
    return torch.randint(0, model.config.vocab_size, (1, n_tokens), generator=random)


@torch.no_grad()
def prove(source: GPTModel, result: GPTModel) -> Proof:
    """Compare two models, both in `eval` mode, on `prompt_for(source)`."""
    prompt = prompt_for(source)
    return compare(source(prompt.to(source.device)), result(prompt.to(result.device)))


def compare(expected: Tensor, found: Tensor) -> Proof:
    """Compare two score tensors of one shape; `ValueError` where the shapes differ."""
    if expected.shape != found.shape:
        raise ValueError(f"scores of shape {list(found.shape)} where {list(expected.shape)} were expected")
    expected, found = expected.float().cpu(), found.float().cpu()
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean()
    return Proof(float((expected - found).abs().max()), float(same), float(expected.abs().max()))
