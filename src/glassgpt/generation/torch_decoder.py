"""Decoders that run the readable model itself: naive, the oracle, and with a key-value cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from glassgpt.generation.decoder import Prefix, ReadsAll, Row, Scores, Speculative
from glassgpt.kv_cache import KVCache
from glassgpt.language_model import LanguageModel, evaluating

Held = TypeVar("Held", list[int], KVCache)


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """See `decoder.Prefix`: the tokens themselves, or the cache of one row that holds their keys and values."""

    n_tokens: int
    scores: Row
    held: list[int] | KVCache


class _TorchDecoder(Speculative):
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

    def _all_scores(self, ids: Sequence[Sequence[int]], cache: KVCache | None = None) -> Tensor:
        """As `_scores`, but after each token: (rows, tokens, vocab_size)."""
        tokens = torch.tensor(ids, device=self._model.device)
        with torch.inference_mode(), evaluating(self._model, self._modules):
            return self._model(tokens, cache)

    def _check(self, n_new: int, n_before: int = 0) -> None:
        n_tokens = n_before + n_new
        if n_new < 1 or n_tokens > self.context_length:
            raise ValueError(f"a prompt of {n_tokens} tokens must have from 1 to {self.context_length}")


class NaiveDecoder(_TorchDecoder):
    """Recomputes all tokens of each row for every new one: slow, and the oracle."""

    can_cut = True

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

    def extend(self, tokens: Sequence[Sequence[int]]) -> Scores:
        """See `Speculative`."""
        rows = [[*row, *new] for row, new in zip(self._rows, tokens, strict=True)]
        self._check(max(map(len, rows)))
        scores = [
            self._all_scores([row])[0, len(row) - len(new) :] for row, new in zip(rows, tokens, strict=True) if new
        ]
        self._rows = rows
        return to_scores(torch.cat(scores))

    def cut(self, row: int, n_tokens: int) -> None:
        """See `Speculative`."""
        del self._rows[row][n_tokens:]

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()


class CachedDecoder(_TorchDecoder, ReadsAll):
    """Reads each token once and keeps its keys and values."""

    def __init__(self, model: LanguageModel, capacity: int | None = None) -> None:
        """`capacity`: tokens a row may hold, at most the model's context length, which is the default."""
        super().__init__(model)
        self.context_length = min(capacity or model.context_length, model.context_length)
        self._cache = model.new_cache(0, self.context_length)
        self.row_bytes = self._cache.row_bytes
        self.can_cut = (model.window or self.context_length) >= self.context_length

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> _Prefix:
        """See `Decoder`. What is read is alone in its passes, so its scores do not depend on the live rows."""
        n_tokens, cache = self._cache_for(tokens, after)
        return _Prefix(n_tokens, to_scores(self._scores([tokens], cache))[0], cache)

    def read_all(self, tokens: Sequence[int], after: Prefix | None = None) -> tuple[_Prefix, Scores]:
        """See `ReadsAll`. A sliding window's memory is as large as the window and `tokens` together."""
        n_tokens, cache = self._cache_for(tokens, after)
        scores = to_scores(self._all_scores([tokens], cache)[0])
        return _Prefix(n_tokens, scores[-1], cache), scores

    def _cache_for(self, tokens: Sequence[int], after: Prefix | None) -> tuple[int, KVCache]:
        """A cache of one row that holds `after`, as large as with `tokens`, and how many tokens that are."""
        n_before = 0 if after is None else after.n_tokens
        self._check(len(tokens), n_before)
        cache = self._model.new_cache(0, n_before + len(tokens))
        if after is None:
            cache.add(1)
        else:
            cache.join(_held(after, KVCache))
        return n_before + len(tokens), cache

    def join(self, prefix: Prefix) -> None:
        """See `Decoder`."""
        self._cache.join(_held(prefix, KVCache))

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`. All rows share one pass over the weights, so a row's last bits may depend on the others."""
        return to_scores(self._scores([[token] for token in tokens], self._cache))

    def extend(self, tokens: Sequence[Sequence[int]]) -> Scores:
        """See `Speculative`. One pass as wide as the most tokens of a row; what fills up the others is cut again."""
        before = self._cache.lengths.tolist()
        after = [n + len(new) for n, new in zip(before, tokens, strict=True)]
        self._check(max(after))
        width = max(map(len, tokens))
        if max(before) + width <= self.context_length:
            filled = [[*new, *[0] * (width - len(new))] for new in tokens]
            every = self._all_scores(filled, self._cache)
            for row, n in enumerate(after):
                self._cache.cut(row, n)
            return to_scores(torch.cat([of_row[: len(new)] for of_row, new in zip(every, tokens, strict=True)]))
        rows = [(self._cache.row(row), new) for row, new in enumerate(tokens) if new]
        return to_scores(torch.cat([self._all_scores([new], row)[0] for row, new in rows]))

    def cut(self, row: int, n_tokens: int) -> None:
        """See `Speculative`."""
        self._cache.cut(row, n_tokens)

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
