"""The key-value cache: preallocated, owner of its positions, an argument of the model and never hidden in it.

Each row of a batch has its own length, so prompts of unequal length, rows that end and rows that join share one cache
without padding. A forward pass is a `CachePass`: `begin` gives one, `extend` is called once per layer, then `commit`;
a pass that fails half-way has not moved the cache.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import torch
from torch import Tensor

from glassgpt.options import check_int


class KVCache:
    """Keys and values of every layer for the live rows of a batch, each of up to `capacity` tokens.

    Shapes: `keys` and `values` are (n_layers, batch, n_kv_heads, slots, head_dim); `lengths`, (batch,) on the CPU,
    counts the tokens each row has seen. Token p of a row lies in slot p; with a sliding window W there are only W
    slots and it lies in slot p mod W.
    """

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor, *, capacity: int, window: int | None) -> None:
        """Over memory that is there already, such as a view of another cache's; `allocate` makes some."""
        self.capacity, self.window = capacity, window
        self._memory = (keys, values, lengths)
        self.batch_size = len(lengths)
        """Number of live rows: the first ones of the memory."""

    @classmethod
    def allocate(
        cls,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        capacity: int,
        batch_size: int = 1,
        window: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """`batch_size` empty rows; `capacity` is in tokens (`ValueError` below 1)."""
        check_int("capacity", capacity, at_least=1)
        shape = (n_layers, batch_size, n_kv_heads, min(capacity, window or capacity), head_dim)
        with torch.inference_mode(False):  # a cache made inside inference mode stays usable outside it
            # zeros, not empty: a masked slot has weight 0, and 0 times the NaN that stale memory may hold is NaN
            keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            lengths = torch.zeros(batch_size, dtype=torch.int64)
        return cls(keys, values, lengths, capacity=capacity, window=window)

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, the live ones first; replaced by larger ones where rows join."""
        return self._memory[:2]

    @property
    def keys(self) -> Tensor:
        """Keys of the live rows: (n_layers, batch, n_kv_heads, slots, head_dim)."""
        return self._memory[0][:, : self.batch_size]

    @property
    def values(self) -> Tensor:
        """Values of the live rows, shaped as `keys`."""
        return self._memory[1][:, : self.batch_size]

    @property
    def lengths(self) -> Tensor:
        """Tokens that each live row has seen: (batch,)."""
        return self._memory[2][: self.batch_size]

    @property
    def row_bytes(self) -> int:
        """Memory of one row, in bytes: all its slots, used or not, in every layer."""
        n_layers, _, *rest = self._memory[0].shape
        return 2 * n_layers * math.prod(rest) * self._memory[0].element_size()

    def row(self, row: int) -> KVCache:
        """One row as a cache of its own that shares this one's memory."""
        one = slice(row, row + 1)
        return KVCache(
            self.keys[:, one], self.values[:, one], self.lengths[one], capacity=self.capacity, window=self.window
        )

    def add(self, n_rows: int) -> None:
        """Empty rows after the live ones, in the memory of dropped rows or, where that is used up, in new memory."""
        old, needed = self.batch_size, self.batch_size + n_rows
        with torch.inference_mode(False):
            keys, values, lengths = self._memory
            if needed > len(lengths):
                more = max(needed, 2 * old) - old  # doubled, so that rows joining one by one are seldom copied
                keys, values = (
                    torch.cat([memory[:, :old], memory.new_zeros((len(memory), more, *memory.shape[2:]))], dim=1)
                    for memory in (keys, values)
                )
                lengths = torch.cat([lengths[:old], lengths.new_zeros(more)])
            for memory in (keys[:, old:needed], values[:, old:needed], lengths[old:needed]):
                memory.zero_()  # the numbers too: see `allocate` on NaN
        self._memory, self.batch_size = (keys, values, lengths), needed

    def join(self, other: KVCache) -> None:
        """Copies of another cache's rows after the live ones; it is of the same model, and may be smaller.

        `ValueError`, with nothing changed, where one of them holds more than `capacity` tokens.
        """
        longest = int(other.lengths.max())
        if longest > self.capacity:
            raise ValueError(f"a row of {longest} tokens exceeds the cache's capacity of {self.capacity}")
        old, slots = self.batch_size, other.keys.shape[3]
        self.add(other.batch_size)
        # where a window makes slots wrap around, both caches have as many; where none did, a token lies in its own
        n = min(slots, self.keys.shape[3])
        self.keys[:, old:, :, :n] = other.keys[:, :, :, :n]
        self.values[:, old:, :, :n] = other.values[:, :, :, :n]
        self.lengths[old:] = other.lengths

    def drop(self, row: int) -> None:
        """Remove a live row; the last live row takes its index, so that the live rows stay together."""
        last = self.batch_size - 1
        keys, values, lengths = self._memory
        keys[:, row], values[:, row], lengths[row] = keys[:, last], values[:, last], lengths[last]
        self.batch_size = last

    def cut(self, row: int, n_tokens: int) -> None:
        """Forget all but a row's first `n_tokens`; `ValueError` for more than it has, or where a window wrapped."""
        length = int(self.lengths[row])
        if not 0 <= n_tokens <= length:
            raise ValueError(f"n_tokens {n_tokens} must be from 0 to the row's {length}")
        if length > self.keys.shape[3] and n_tokens < length:
            raise ValueError(f"a row of {length} tokens in a window of {self.window} cannot be cut: read it again")
        self.lengths[row] = n_tokens

    def reset(self) -> None:
        """Forget every token; the rows and their memory stay."""
        for tensor in (self.keys, self.values, self.lengths):
            tensor.zero_()

    def begin(self, n_rows: int, n_tokens: int) -> CachePass:
        """Start a pass over the next `n_tokens` of every row; `ValueError` where rows or tokens do not fit."""
        if n_rows != self.batch_size:
            raise ValueError(f"{n_rows} rows of tokens, but the cache has {self.batch_size}")
        longest = int(self.lengths.max())
        if longest + n_tokens > self.capacity:
            raise ValueError(
                f"{longest} cached and {n_tokens} new tokens exceed the cache's capacity of {self.capacity}: "
                "shorten the prompt or ask for fewer tokens"
            )
        device = self.keys.device
        uniform = bool((self.lengths == longest).all())
        starts = self.lengths[:1] if uniform else self.lengths
        positions = (starts[:, None] + torch.arange(n_tokens)).to(device)
        mask = None
        if self.window is not None:
            # slot s holds the newest token p < length with p mod slots = s; a slot not yet filled comes out negative
            newest = starts[:, None] - 1
            slot = torch.arange(self.keys.shape[3])
            held = (newest - (newest - slot) % len(slot)).to(device)
            mask = causal_mask(positions, torch.cat([held, positions], dim=1), self.window)
        elif not (uniform and (n_tokens == 1 or longest == 0)):
            mask = causal_mask(positions, torch.arange(longest + n_tokens, device=device)[None, :])
        return CachePass(self, positions, None if mask is None else mask[:, None], uniform, longest + n_tokens)


def causal_mask(queries: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
    """Which positions may see which: bool (..., T, S), True to look, from positions (..., T) and (..., S).

    A key is seen from its own position on and, with a window, for `window` positions in all; negative keys never.
    """
    queries, keys = queries[..., :, None], keys[..., None, :]
    mask = (keys >= 0) & (keys <= queries)
    return mask if window is None else mask & (keys > queries - window)


@dataclasses.dataclass
class CachePass:
    """One forward pass over new tokens of every row of a cache."""

    cache: KVCache
    positions: Tensor
    """Of the new tokens: (1, T) where all rows agree, else (B, T)."""
    mask: Tensor | None
    """(1 or B, 1, T, S) bool, True to look; None: causal among the new tokens, and all earlier ones are seen."""
    uniform: bool
    end: int
    """The longest row's length after this pass."""
    pending: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)

    def layer(self, layer: int) -> LayerCache:
        """What one layer's attention needs of this pass."""
        return LayerCache(self, layer)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `LayerCache.extend`."""
        keys, values = keys.detach(), values.detach()
        cache = self.cache
        if cache.window is not None:  # the first new tokens still need the slots that the last ones will take
            self.pending.append((keys, values))
            return torch.cat([cache.keys[layer], keys], dim=2), torch.cat([cache.values[layer], values], dim=2)
        if self.uniform:
            new = slice(self.end - keys.shape[2], self.end)
            cache.keys[layer, :, :, new] = keys
            cache.values[layer, :, :, new] = values
        else:
            self._scatter(layer, self.positions, keys, values)
        return cache.keys[layer, :, :, : self.end], cache.values[layer, :, :, : self.end]

    def commit(self) -> None:
        """The pass went through every layer: its tokens now belong to the cache."""
        n_slots = self.cache.keys.shape[3]
        kept = min(self.positions.shape[1], n_slots)
        for layer, (keys, values) in enumerate(self.pending):
            self._scatter(layer, self.positions[:, -kept:] % n_slots, keys[:, :, -kept:], values[:, :, -kept:])
        self.cache.lengths.add_(self.positions.shape[1])  # in place: a `row` shares this memory

    def _scatter(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write (B, n_kv_heads, n, head_dim) to `slots`, (1 or B, n), of each row."""
        rows = torch.arange(self.cache.batch_size, device=slots.device)[:, None]
        # index tensors with a slice between them put their dimensions first: (B, n, n_kv_heads, head_dim)
        self.cache.keys[layer][rows, :, slots] = keys.transpose(1, 2)
        self.cache.values[layer][rows, :, slots] = values.transpose(1, 2)


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer's share of a `CachePass`: the only thing about a cache that attention sees."""

    of: CachePass
    layer: int

    @property
    def positions(self) -> Tensor:
        """See `CachePass`; for attention that turns its queries and keys by their positions."""
        return self.of.positions

    @property
    def mask(self) -> Tensor | None:
        """See `CachePass`."""
        return self.of.mask

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new keys and values, each (B, n_kv_heads, T, head_dim); gives all to attend to, (B, ..., S, ...).

        The cache serves inference: no gradient flows through it, whatever mode it is used in.
        """
        return self.of.extend(self.layer, keys, values)
