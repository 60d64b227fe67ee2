"""How good a rounded export still is: beside its source in float32, on real text, with a verdict.

A proof on a fixed prompt says that a file is what it should be, and nothing about how well the model writes: random
tokens have no best continuation to agree on. `docs/formats.md` says where the limits come from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glassgpt.data.corpus import Document
from glassgpt.data.mixture import Tokens
from glassgpt.language_model import LanguageModel
from glassgpt.tokenizer import Tokenizer

MAY_LOSE = {"f16": 0.001, "q8_0": 0.01}
"""What a number type may cost: rise of the perplexity, as a part of it, and divergence, in nats per token."""

N_TOKENS = 1024
"""How many tokens of a text are predicted: nine seconds of one core for 124M parameters."""

_TOKENS_AT_ONCE = 512
_SCORES_AT_ONCE = 128  # rows of vocab_size scores, in float64


@dataclasses.dataclass(frozen=True)
class Sample:
    """A text to judge by, in the model's own tokens."""

    title: str
    """Which text it is, in words."""
    tokens: Tokens
    """(n,) ids, at least two."""

    def __post_init__(self) -> None:
        if len(self.tokens) < 2:
            raise ValueError(f"{self.title} is too short to judge a model by: give a longer text")

    @classmethod
    def of_documents(cls, title: str, documents: Sequence[Document], tokenizer: Tokenizer) -> Sample:
        """The beginning of a text, as much of it as is needed. `ValueError` for less than two tokens."""
        ids: list[int] = []
        for document in documents:
            for piece in document.pieces(max_bytes=1 << 16):
                ids += tokenizer.encode(piece)
                if len(ids) > N_TOKENS:
                    return cls(title, np.array(ids[: N_TOKENS + 1]))
        return cls(title, np.array(ids))

    def windows(self, context_length: int) -> Tensor:
        """(rows, T + 1) ids: `N_TOKENS` targets at most, in windows that are spread evenly over the tokens."""
        available = len(self.tokens) - 1
        length = min(context_length, available, N_TOKENS)
        starts = np.linspace(0, available - length, min(available, N_TOKENS) // length).astype(int)
        rows = [np.asarray(self.tokens[start : start + length + 1], dtype=np.int64) for start in starts]
        return torch.from_numpy(np.stack(rows))


@dataclasses.dataclass(frozen=True)
class Quality:
    """A rounded model and its source in float32, both predicting the same tokens."""

    number_type: str
    """A key of `MAY_LOSE`."""
    text: str
    """Which text it was."""
    n_tokens: int
    """How many tokens were predicted."""
    perplexity: float
    """Of the result: e to the power of its loss in nats per token."""
    source_perplexity: float
    """Of the source, in float32."""
    divergence: float
    """Of the result's probabilities from the source's: the mean Kullback-Leibler divergence, in nats per token."""
    same_choice: float
    """Fraction of the tokens before which both find the same one likeliest."""

    @property
    def rise(self) -> float:
        """How much higher the perplexity is, as a part of the source's."""
        return self.perplexity / self.source_perplexity - 1

    def is_good(self) -> bool:
        """Whether no more was lost than `MAY_LOSE` says."""
        limit = MAY_LOSE[self.number_type]
        return self.rise <= limit and self.divergence <= limit

    def __str__(self) -> str:
        limit = MAY_LOSE[self.number_type]
        figures = (
            f"perplexity {self.perplexity:.4g}, float32's {self.source_perplexity:.4g} ({self.rise:+.3%}), same best "
            f"token {self.same_choice:.1%}, divergence {self.divergence:.2g} nats"
        )
        if self.is_good():
            verdict, judged = "good", f"as expected of {self.number_type}"
        else:
            verdict = "poor"
            judged = f"where {self.number_type} should lose at most {limit:.1%} and {limit:g} nats: keep more bits"
        return f"{verdict}: {figures}, {judged}; over {self.n_tokens:,} tokens of {self.text}"


@torch.no_grad()
def measure(source: LanguageModel, result: LanguageModel, sample: Sample, number_type: str) -> Quality:
    """Let both models, in `eval` mode, predict `sample`; `number_type` is a key of `MAY_LOSE`."""
    windows = sample.windows(source.context_length)
    sums = torch.zeros(4, dtype=torch.float64)
    for rows in windows.split(max(1, _TOKENS_AT_ONCE // windows.shape[1])):
        targets = rows[:, 1:].flatten()
        vectors = [model.hidden(rows[:, :-1].to(model.device)).flatten(0, 1) for model in (source, result)]
        pieces = (part.split(_SCORES_AT_ONCE) for part in (*vectors, targets))
        for ours, theirs, target in zip(*pieces, strict=True):
            p, q = (
                model.out_head(vector).cpu().double().log_softmax(-1)
                for model, vector in ((source, ours), (result, theirs))
            )
            sums[0] -= p.gather(1, target[:, None]).sum()
            sums[1] -= q.gather(1, target[:, None]).sum()
            sums[2] += (p.exp() * (p - q)).sum()
            sums[3] += (p.argmax(-1) == q.argmax(-1)).sum()
    n_tokens = windows[:, 1:].numel()
    loss, rounded_loss, divergence, same = (sums / n_tokens).tolist()
    return Quality(
        number_type=number_type,
        text=sample.title,
        n_tokens=n_tokens,
        perplexity=math.exp(min(rounded_loss, 700)),
        source_perplexity=math.exp(min(loss, 700)),
        divergence=divergence,
        same_choice=same,
    )
