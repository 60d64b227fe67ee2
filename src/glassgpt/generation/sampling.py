"""Which token comes next: greedy, temperature, top-k, top-p, min-p, repetition penalty.

Everything is computed in float32 or better over the set of tokens that were kept, so a token that was excluded, or
whose probability is 0, cannot be drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw. The filters apply in the order of the fields, each to what the one before it kept.

    Raises `ValueError` for a value outside its range, naming the field.
    """

    repetition_penalty: float = 1.0
    """Scores of tokens already in the text are divided by this if positive, multiplied if negative (Keskar et al.
    2019); 1 is off."""
    temperature: float = 1.0
    """Scores are divided by this; 0 takes the best token always."""
    top_k: int | None = None
    """Keep the k best; None keeps all."""
    top_p: float | None = None
    """Keep the fewest best tokens whose probabilities reach p (nucleus, Holtzman et al. 2020); None or 1: all."""
    min_p: float | None = None
    """Keep tokens at least this fraction as probable as the best one (Nguyen et al. 2024); None or 0: all."""

    def __post_init__(self) -> None:
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0")
        _check("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or above")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(f"top_k {self.top_k} must be a whole number from 1 up; leave it out to keep every token")
        if self.top_p is not None:
            _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        if self.min_p is not None:
            _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")

    def candidates(self, logits: Tensor, history: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The kept token ids, most probable first, and their probabilities, float64, which sum to 1.

        `logits` is (vocab_size,), of any floating type; `history` holds the ids already in the text. Raises
        `ValueError` for scores that are not numbers: the model is broken, or its dtype too narrow.
        """
        scores = logits.detach().to("cpu", torch.float32)
        if self.repetition_penalty != 1 and history:
            seen = torch.tensor(sorted({i for i in history if i < len(scores)}), dtype=torch.int64)
            old = scores[seen]
            scores = scores.index_put(
                (seen,), torch.where(old > 0, old / self.repetition_penalty, old * self.repetition_penalty)
            )
        if scores.isnan().any() or not scores.max().isfinite():  # single ones may be -inf: excluded
            raise ValueError("the model's scores are not finite: its weights are damaged or its dtype overflows")
        if self.temperature == 0 or self.top_k == 1:
            return scores.argmax(keepdim=True), torch.ones(1, dtype=torch.float64)
        if self.top_k is not None and self.top_k < len(scores):
            scores, ids = scores.topk(self.top_k)
        else:
            scores, ids = scores.sort(descending=True, stable=True)
        # shifted to a best score of 0 first, so that no temperature, however small, overflows
        probabilities = torch.softmax((scores.double() - scores[0].double()) / self.temperature, dim=0)
        kept = len(ids)
        if self.top_p is not None and self.top_p < 1:
            before = probabilities.cumsum(0) - probabilities
            kept = max(1, int((before < self.top_p).sum()))
            probabilities = probabilities[:kept] / probabilities[:kept].sum()
        if self.min_p:
            kept = int((probabilities >= self.min_p * probabilities[0]).sum())
            probabilities = probabilities[:kept] / probabilities[:kept].sum()
        return ids[:kept], probabilities

    def draw(self, logits: Tensor, history: Sequence[int], random: torch.Generator) -> int:
        """One token id, by inverting the cumulative distribution at one uniform number from `random`."""
        ids, probabilities = self.candidates(logits, history)
        if len(ids) == 1:
            return int(ids[0])
        cumulative = probabilities.cumsum(0)
        uniform = torch.rand((), generator=random, dtype=torch.float64) * cumulative[-1]
        # right=True: the first place strictly above, so a probability of 0 is never hit, not even by 0.0 itself
        place = int(torch.searchsorted(cumulative, uniform, right=True))
        return int(ids[min(place, int(probabilities.count_nonzero()) - 1)])


def _check(name: str, value: float, fits: bool, wanted: str) -> None:
    if not math.isfinite(value) or not fits:
        raise ValueError(f"{name} {value} must be {wanted}")
