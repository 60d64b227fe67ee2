"""What a model expects at each token of a text. Loads no torch for a decoder that needs none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glassgpt.generation.decoder import Row, Scores
from glassgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from glassgpt.generation.cpu.decoder import CPUDecoder
    from glassgpt.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class TokenTrace:
    """One token of a text: how probable it was, and what the model finds likeliest to come after it."""

    text: str
    probability: float | None
    """None for the first token, which nothing predicts."""
    likeliest: list[tuple[str, float]]
    """(text, probability) of the best tokens to follow this one, best first."""


def trace(model: LanguageModel | CPUDecoder, tokenizer: Tokenizer, text: str, k: int = 5) -> list[TokenTrace]:
    """For each token of `text`: its probability given those before it, and the `k` likeliest to come after it.

    `ValueError` for an empty text or one longer than the context.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("no tokens to look at: the text is empty")
    if len(ids) > model.context_length:
        raise ValueError(f"{len(ids)} tokens exceed the context length of {model.context_length}")
    result = []
    probability = None
    for token, following, scores in zip(ids, [*ids[1:], None], scores_along(model, ids), strict=True):
        probabilities = _softmax(scores[: tokenizer.n_vocab])
        best = np.argpartition(-probabilities, k - 1)[:k] if k < len(probabilities) else np.arange(len(probabilities))
        best = best[np.argsort(-probabilities[best])]
        likeliest = [(tokenizer.decode([i]), float(probabilities[i])) for i in best.tolist()]
        result.append(TokenTrace(tokenizer.decode([token]), probability, likeliest))
        probability = None if following is None else float(probabilities[following])
    return result


def scores_along(model: Any, ids: Sequence[int]) -> Iterator[Row]:
    """The (vocab_size,) scores after each token of a text that fits the context; `model` as in `trace`."""
    if hasattr(model, "scores_of"):  # a compiled decoder
        for _, scores in model.scores_of(ids):
            yield from scores
        return
    import torch

    from glassgpt.generation.torch_decoder import to_scores
    from glassgpt.language_model import evaluating

    with torch.no_grad(), evaluating(model):
        every: Scores = to_scores(model(torch.tensor([list(ids)], device=model.device))[0])
    yield from every


def _softmax(scores: Any) -> Any:
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return powers / powers.sum()
