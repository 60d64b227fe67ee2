"""Decoders that run the readable model itself: naive, the oracle, and with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glassgpt.generation.decoder import Scores
from glassgpt.kv_cache import KVCache
from glassgpt.language_model import LanguageModel, evaluating


class _TorchDecoder:
    """What both share: the model's sizes, and passes through it without gradients or dropout.

    The model's mode is switched around each pass, not around the text: between two tokens the caller may train.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self._model = model
        self._modules = tuple(model.modules())

    def _scores(self, ids: Sequence[Sequence[int]], cache: KVCache | None = None) -> Tensor:
        """Scores after the last of (rows, tokens) ids, (rows, vocab_size), on the model's device."""
        tokens = torch.tensor(ids, device=self._model.device)
        with torch.inference_mode(), evaluating(self._model, self._modules):
            if cache is None:
                return self._model(tokens, last_only=True)[:, -1]
            # with a sliding window, pieces of its size keep the memory within the window's bound
            for piece in tokens.split(self._model.window or tokens.shape[1], dim=1):
                scores = self._model(piece, cache, last_only=True)[:, -1]
            return scores

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        for prompt in prompts:
            if not 1 <= len(prompt) <= self.context_length:
                raise ValueError(f"a prompt of {len(prompt)} tokens must have from 1 to {self.context_length}")


class NaiveDecoder(_TorchDecoder):
    """Recomputes all tokens of each row for every new one: slow, and the oracle."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self._rows: list[list[int]] = []

    def add(self, prompts: Sequence[Sequence[int]]) -> Scores:
        """See `Decoder`."""
        self._check(prompts)
        self._rows += map(list, prompts)
        return self._recompute(self._rows[len(self._rows) - len(prompts) :])

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`."""
        rows = [[*row, token] for row, token in zip(self._rows, tokens, strict=True)]
        self._check(rows)
        self._rows = rows
        return self._recompute(rows)

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def _recompute(self, rows: list[list[int]]) -> Scores:
        return to_scores(torch.cat([self._scores([row]) for row in rows]))


class CachedDecoder(_TorchDecoder):
    """Reads each token once and keeps its keys and values."""

    def __init__(self, model: LanguageModel, capacity: int | None = None) -> None:
        """`capacity`: tokens a row may hold, at most the model's context length, which is the default."""
        super().__init__(model)
        self.context_length = min(capacity or model.context_length, model.context_length)
        self._cache = model.new_cache(0, self.context_length)

    def add(self, prompts: Sequence[Sequence[int]]) -> Scores:
        """See `Decoder`. Each prompt is read alone, so its scores do not depend on its neighbours."""
        self._check(prompts)
        first = self._cache.batch_size
        self._cache.add(len(prompts))
        return to_scores(torch.cat([self._scores([p], self._cache.row(first + n)) for n, p in enumerate(prompts)]))

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`. All rows share one pass over the weights, so a row's last bits may depend on the others."""
        return to_scores(self._scores([[token] for token in tokens], self._cache))

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._cache.drop(row)


def to_scores(scores: Tensor) -> Scores:
    """(rows, vocab_size) scores of any floating type as an array: one copy, and on a GPU one wait, for all rows."""
    return scores.float().cpu().numpy()
