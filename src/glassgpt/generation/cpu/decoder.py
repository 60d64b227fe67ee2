"""A decoder without PyTorch: one call into compiled code for each step of all live rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from glassgpt.config import NORM_EPS
from glassgpt.generation.cpu import kernels
from glassgpt.generation.cpu.forward import forward
from glassgpt.generation.cpu.tiles import ROWS
from glassgpt.generation.cpu.weights import Array, Packed
from glassgpt.generation.decoder import Decoder, Prefix, Row, Scores

_NONE = np.zeros((1, 1), np.float32)


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """See `decoder.Prefix`: the keys and values of one row."""

    n_tokens: int
    scores: Row
    keys: Array
    values: Array


class CPUDecoder(Decoder):
    """Runs packed weights. In float32 a row's scores are equal bit for bit alone, in any batch and in any pieces.

    Keys are (layers, slots, heads, capacity, width) and values, whose columns are tokens, (layers, slots, heads,
    head_dim, capacity), both float32 and filled up with zeros; a live row lies in one slot.
    """

    def __init__(self, packed: Packed, capacity: int | None = None) -> None:
        """`capacity`: tokens a row may hold, at most the model's context length, which is the default."""
        self._config, self._weights = packed.config, packed.weights
        self.vocab_size, self.weight_bytes = packed.config.vocab_size, packed.n_bytes
        self.context_length = min(capacity or packed.config.context_length, packed.config.context_length)
        self._keys, self._values = self._memory(0, self.context_length)
        self._slots: list[int] = []  # of each live row
        self._free: list[int] = []
        self._lengths: list[int] = []
        keys, values = self._memory(1, self.context_length)
        self.row_bytes = keys.nbytes + values.nbytes

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> _Prefix:
        """See `Decoder`."""
        return self.read_all(tokens, after, every=False)[0]

    def read_all(
        self, tokens: Sequence[int], after: Prefix | None = None, *, every: bool = True
    ) -> tuple[_Prefix, Scores]:
        """`read`, and the scores after each of `tokens`, (n, vocab_size), or after the last alone where not `every`."""
        n_before = 0 if after is None else after.n_tokens
        n_tokens = n_before + len(tokens)
        if not tokens or n_tokens > self.context_length:
            raise ValueError(f"a prompt of {n_tokens} tokens must have from 1 to {self.context_length}")
        keys, values = self._memory(1, n_tokens)
        if after is not None:
            assert isinstance(after, _Prefix), "another decoder's prefix"
            keys[:, :, :, :n_before] = after.keys[:, :, :, :n_before]
            values[..., :n_before] = after.values[..., :n_before]
        blocks = np.array([*range(0, len(tokens), ROWS), len(tokens)])
        positions = np.arange(n_before, n_tokens)
        last = np.arange(0 if every else len(tokens) - 1, len(tokens))
        scores = self._forward(tokens, np.zeros_like(positions), positions, blocks, last, keys, values)
        return _Prefix(n_tokens, scores[-1], keys, values), scores

    def join(self, prefix: Prefix) -> None:
        """See `Decoder`."""
        assert isinstance(prefix, _Prefix), "another decoder's prefix"
        if not self._free:
            self._grow()
        slot, n = self._free.pop(), prefix.n_tokens
        self._keys[:, slot, :, :n] = prefix.keys[:, 0, :, :n]
        self._values[:, slot, :, :, :n] = prefix.values[:, 0, :, :, :n]
        self._slots.append(slot)
        self._lengths.append(n)

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`."""
        if len(tokens) != len(self._slots):
            raise ValueError(f"{len(tokens)} tokens for {len(self._slots)} live rows: give one for each")
        if max(self._lengths) >= self.context_length:
            raise ValueError(f"a row holds {self.context_length} tokens already, as many as it may")
        rows = np.arange(len(tokens))
        slots, positions = np.array(self._slots), np.array(self._lengths)
        scores = self._forward(tokens, slots, positions, np.arange(len(tokens) + 1), rows, self._keys, self._values)
        self._lengths = [length + 1 for length in self._lengths]
        return scores

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._free.append(self._slots[row])
        for of_rows in (self._slots, self._lengths):
            of_rows[row] = of_rows[-1]
            of_rows.pop()

    def _forward(
        self,
        tokens: Sequence[int],
        slots: Array,
        positions: Array,
        blocks: Array,
        last: Array,
        keys: Array,
        values: Array,
    ) -> Scores:
        config = self._config
        scores = np.empty((len(last), config.vocab_size), np.float32)
        window = config.sliding_window or config.context_length
        forward(
            self._weights, config.n_heads, config.head_dim, window, np.float32(NORM_EPS), config.gelu == "erf",
            np.array(tokens), slots, positions, blocks, last, keys, values, _NONE, scores,
        )  # fmt: skip
        return scores

    def _memory(self, n_slots: int, n_tokens: int) -> tuple[Array, Array]:
        """Room for the keys and values of so many rows and tokens."""
        config, columns = self._config, kernels.filled(n_tokens)
        # zeros, not empty: a weight of 0 times the NaN that stale memory may hold is NaN
        shape = (config.n_layers, n_slots, config.n_heads)
        return (
            np.zeros((*shape, n_tokens, kernels.filled(config.head_dim)), np.float32),
            np.zeros((*shape, config.head_dim, columns), np.float32),
        )

    def _grow(self) -> None:
        """Twice as many slots, so that rows joining one by one are seldom copied."""
        n = self._keys.shape[1]
        more = max(1, n)
        keys, values = self._memory(n + more, self.context_length)
        keys[:, :n], values[:, :n] = self._keys, self._values
        self._keys, self._values = keys, values
        self._free += range(n, n + more)
