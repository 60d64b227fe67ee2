"""Decoders that run the readable model itself: naive, the oracle, and with a key-value cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from glassgpt.generation.decoder import Decoder, Prefix, Row, Scores
from glassgpt.kv_cache import KVCache
from glassgpt.language_model import LanguageModel, evaluating

Held = TypeVar("Held", list[int], KVCache)


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """See `decoder.Prefix`: the tokens themselves, or the cache of one row that holds their keys and values."""

    n_tokens: int
    scores: Row
    held: list[int] | KVCache


class _TorchDecoder(Decoder):
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

    def _check(self, n_new: int, n_before: int = 0) -> None:
        n_tokens = n_before + n_new
        if n_new < 1 or n_tokens > self.context_length:
            raise ValueError(f"a prompt of {n_tokens} tokens must have from 1 to {self.context_length}")


class NaiveDecoder(_TorchDecoder):
    """Recomputes all tokens of each row for every new one: slow, and the oracle."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self._rows: list[list[int]] = []

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> _Prefix:
        """See `Decoder`."""
        before = [] if after is None else _held(after, list)
        self._check(len(tokens), len(before))
        ids = [*before, *tokens]
        return _Prefix(len(ids), to_scores(self._scores([ids]))[0], ids)

    def join(self, prefix: Prefix) -> None:
        """See `Decoder`."""
        self._rows.append(list(_held(prefix, list)))

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`."""
        rows = [[*row, token] for row, token in zip(self._rows, tokens, strict=True)]
        for row in rows:
            self._check(len(row))
        self._rows = rows
        return to_scores(torch.cat([self._scores([row]) for row in rows]))

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()


class CachedDecoder(_TorchDecoder):
    """Reads each token once and keeps its keys and values."""

    def __init__(self, model: LanguageModel, capacity: int | None = None) -> None:
        """`capacity`: tokens a row may hold, at most the model's context length, which is the default."""
        super().__init__(model)
        self.context_length = min(capacity or model.context_length, model.context_length)
        self._cache = model.new_cache(0, self.context_length)
        self.row_bytes = self._cache.row_bytes

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> _Prefix:
        """See `Decoder`. What is read is alone in its passes, so its scores do not depend on the live rows."""
        n_before = 0 if after is None else after.n_tokens
        self._check(len(tokens), n_before)
        cache = self._model.new_cache(0, n_before + len(tokens))  # as large as what it will hold
        if after is None:
            cache.add(1)
        else:
            cache.join(_held(after, KVCache))
        return _Prefix(n_before + len(tokens), to_scores(self._scores([tokens], cache))[0], cache)

    def join(self, prefix: Prefix) -> None:
        """See `Decoder`."""
        self._cache.join(_held(prefix, KVCache))

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`. All rows share one pass over the weights, so a row's last bits may depend on the others."""
        return to_scores(self._scores([[token] for token in tokens], self._cache))

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._cache.drop(row)


def _held(prefix: Prefix, kind: type[Held]) -> Held:
    assert isinstance(prefix, _Prefix)
    assert isinstance(prefix.held, kind), "another decoder's prefix"
    return prefix.held


def to_scores(scores: Tensor) -> Scores:
    """(rows, vocab_size) scores of any floating type as an array: one copy, and on a GPU one wait, for all rows."""
    return scores.float().cpu().numpy()
