"""The key-value cache: preallocated, owner of its positions, an argument of the model and never hidden in it.

Each row of a batch has its own length, so prompts of unequal length, rows that finish and rows that start anew share
one cache without padding. A forward pass calls `begin`, then `append` once per layer, then `commit`; one that fails
half-way has not moved the cache.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from glassgpt.config import GPTConfig


class KVCache:
    """Keys and values of every layer for `batch_size` rows of up to `capacity` tokens.

    Shapes: `keys` and `values` are (n_layers, batch, n_heads, slots, head_dim); `lengths`, (batch,) on the CPU, counts
    the tokens each row has seen. Token p of a row lies in slot p; with a sliding window W there are only W slots and
    it lies in slot p mod W.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int = 1,
        *,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate. `capacity`, in tokens, defaults to the context length and may not pass it (`ValueError`)."""
        self.capacity = config.context_length if capacity is None else capacity
        if not 1 <= self.capacity <= config.context_length:
            raise ValueError(f"cache capacity {capacity} is outside 1..{config.context_length} (the context length)")
        self.window = config.sliding_window
        slots = min(self.capacity, self.window or self.capacity)
        shape = (config.n_layers, batch_size, config.n_heads, slots, config.head_dim)
        with torch.inference_mode(False):  # a cache made inside inference mode stays usable outside it
            # zeros, not empty: a masked slot has weight 0, and 0 times the NaN that stale memory may hold is NaN
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
            self.lengths = torch.zeros(batch_size, dtype=torch.int64)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def row(self, row: int) -> Self:
        """One row as a cache of its own that shares this one's memory: how a single prompt is prefilled."""
        view = object.__new__(type(self))
        view.capacity, view.window = self.capacity, self.window
        view.keys, view.values = self.keys[:, row : row + 1], self.values[:, row : row + 1]
        view.lengths = self.lengths[row : row + 1]
        return view

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its place, so that the live rows stay side by side."""
        last = self.batch_size - 1
        for tensor in (self.keys, self.values):
            tensor[:, row] = tensor[:, last]
        self.lengths[row] = self.lengths[last]
        self.keys, self.values, self.lengths = self.keys[:, :last], self.values[:, :last], self.lengths[:last]

    def reset(self) -> None:
        """Forget every token; the memory stays allocated."""
        for tensor in (self.keys, self.values, self.lengths):
            tensor.zero_()  # the numbers too: see `__init__` on NaN

    def begin(self, n_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Start a pass over the next `n_tokens` of every row.

        Returns their positions, (1, n) where all rows agree and (batch, n) otherwise, and the mask of the keys each
        may see, bool of shape (1 or batch, 1, n, keys), True to look; None means plain causal attention among the
        new tokens and all that `append` returns. Raises `ValueError` where the tokens do not fit.
        """
        longest = int(self.lengths.max())
        if longest + n_tokens > self.capacity:
            raise ValueError(
                f"{longest} cached and {n_tokens} new tokens pass the cache's capacity of {self.capacity}: "
                "shorten the prompt or ask for fewer tokens"
            )
        device = self.keys.device
        uniform = bool((self.lengths == longest).all())
        starts = self.lengths[:1] if uniform else self.lengths
        positions = (starts[:, None] + torch.arange(n_tokens)).to(device)
        self._end = longest + n_tokens
        self._positions, self._uniform = positions, uniform
        self._pending: list[tuple[Tensor, Tensor]] = []
        if self.window is None:
            if uniform and (n_tokens == 1 or longest == 0):
                return positions, None
            key = torch.arange(self._end, device=device)[None, :]
        else:
            # slot s holds the newest token p < length with p mod slots = s; a slot not yet filled comes out negative
            newest = starts[:, None] - 1
            slot = torch.arange(self.keys.shape[3])
            key = (newest - (newest - slot) % len(slot)).to(device)
            key = torch.cat([key, positions], dim=1)
        key, query = key[:, None, :], positions[:, :, None]
        mask = (key >= 0) & (key <= query)
        if self.window is not None:
            mask &= key > query - self.window
        return positions, mask[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add one layer's new keys and values, each (batch, n_heads, n, head_dim); gives those to attend to.

        The cache serves inference: no gradient flows through it, whatever mode it is used in.
        """
        keys, values = keys.detach(), values.detach()
        if self.window is not None:  # the first new tokens still need the slots that the last ones will take
            self._pending.append((keys, values))
            return torch.cat([self.keys[layer], keys], dim=2), torch.cat([self.values[layer], values], dim=2)
        if self._uniform:
            new = slice(self._end - keys.shape[2], self._end)
            self.keys[layer, :, :, new] = keys
            self.values[layer, :, :, new] = values
        else:
            self._scatter(layer, self._positions, keys, values)
        return self.keys[layer, :, :, : self._end], self.values[layer, :, :, : self._end]

    def commit(self) -> None:
        """The pass went through every layer: its tokens now belong to the cache."""
        kept = min(self._positions.shape[1], self.keys.shape[3])
        for layer, (keys, values) in enumerate(self._pending):
            slots = self._positions[:, -kept:] % self.keys.shape[3]
            self._scatter(layer, slots, keys[:, :, -kept:], values[:, :, -kept:])
        self._pending = []
        self.lengths += self._positions.shape[1]

    def _scatter(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write (batch, n_heads, n, head_dim) to `slots`, (1 or batch, n), of each row."""
        rows = torch.arange(self.batch_size, device=slots.device)[:, None]
        # index tensors with a slice between them put their dimensions first: (batch, n, n_heads, head_dim)
        self.keys[layer][rows, :, slots] = keys.transpose(1, 2)
        self.values[layer][rows, :, slots] = values.transpose(1, 2)
