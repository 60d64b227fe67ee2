"""One narrow interface between the loop that writes text and the ways to compute its next scores.

A decoder holds a batch of live rows side by side. `prefill` adds rows, `step` gives each live row one more token,
`drop` removes a row; the last row takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glassgpt.model import GPTModel

OVERFLOW = ("error", "slide")
"""What happens past the context length: refuse before any work, or read only the last tokens that fit."""


class Decoder(Protocol):
    """Computes the scores of the next token for a batch of rows."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Start the rows; scores after each prompt, (rows, vocab_size)."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each live row; scores after them, (live rows, vocab_size)."""
        ...

    def drop(self, row: int) -> None:
        """Remove a live row; the last row takes its place."""
        ...


class NaiveDecoder:
    """Recomputes the last `context_length` tokens of each row for every token: slow, and the oracle."""

    def __init__(self, model: GPTModel) -> None:
        self._model = model
        self._rows: list[list[int]] = []

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder`."""
        self._rows = [list(prompt) for prompt in prompts]
        return torch.cat([last_window_scores(self._model, row) for row in self._rows])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Decoder`."""
        return self.prefill([[*row, token] for row, token in zip(self._rows, tokens, strict=True)])

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()


class CachedDecoder:
    """Reads each token once and keeps its keys and values.

    A row that has filled the context goes on by `NaiveDecoder`'s rule: GPT-2's positions are absolute, so when the
    window moves every key and value changes, and nothing in the cache can be kept.
    """

    def __init__(self, model: GPTModel, capacity: int | None = None) -> None:
        """`capacity`: tokens a row may reach, at most the context length, which is the default."""
        self._model = model
        self._capacity = min(capacity or model.config.context_length, model.config.context_length)
        self._rows: list[list[int]] = []

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder`. Each prompt is read alone, so a row's scores do not depend on its neighbours."""
        self._rows = [list(prompt) for prompt in prompts]
        self._cache = self._model.new_cache(len(prompts), self._capacity)
        return torch.cat([self._read(row, tokens) for row, tokens in enumerate(self._rows)])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Decoder`."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        if max(map(len, self._rows)) <= self._capacity:
            new = torch.tensor(tokens, device=self._model.tok_emb.weight.device)[:, None]
            scores: Tensor = self._model(new, self._cache, last_only=True)[:, -1]
            return scores
        return torch.cat([self._read(row, [token]) for row, token in enumerate(tokens)])

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._cache.drop(row)
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def _read(self, row: int, tokens: Sequence[int]) -> Tensor:
        if len(self._rows[row]) > self._capacity:
            return last_window_scores(self._model, self._rows[row])
        new = torch.tensor(tokens, device=self._model.tok_emb.weight.device)[None]
        # with a sliding window, pieces of its size keep the memory within the window's bound
        for piece in new.split(self._model.config.sliding_window or new.shape[1], dim=1):
            scores: Tensor = self._model(piece, self._cache.row(row), last_only=True)[:, -1]
        return scores


def last_window_scores(model: GPTModel, tokens: Sequence[int]) -> Tensor:
    """Scores after the last `context_length` of `tokens`, computed anew: (1, vocab_size)."""
    window = torch.tensor(tokens[-model.config.context_length :], device=model.tok_emb.weight.device)
    scores: Tensor = model(window[None], last_only=True)[:, -1]
    return scores
