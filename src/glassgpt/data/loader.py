"""From tokens to batches. The batch at a step depends on (tokens, seed, step) and on nothing else.

So a resumed run replays nothing, and neither the number of processes nor their speed changes the data.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glassgpt.data.mixture import PERIOD, Mixture, Tokens
from glassgpt.data.shards import TokenSequence, forget_pages
from glassgpt.options import check_int

_MOST_IN_MEMORY = 1 << 20
"""Blocks whose order is an array; above, it is computed block by block. It decides the data of a run: it never changes.
"""
_SOURCE_STEP = 0x9E3779B97F4A7C15  # between the seeds of the sources of a mixture; the first one has the run's


class BatchLoader:
    """Shuffled training batches without end, from a 1-D array of token ids, best a memory map, or from a `Mixture`.

    An epoch cuts the tokens into consecutive blocks of `context_length` inputs, the targets being one token
    further, and shuffles the blocks. Blocks do not overlap, so in an epoch every token is an input once, but
    for a remainder of less than a block; each epoch draws anew how much of that remainder comes before the
    first block, so that blocks begin elsewhere. Sample `i` of step `s` is number `s * batch_size + i` of the
    sequence of all epochs; a batch may reach into the next. Each source of a mixture has its own epochs.

    With `world_size` processes each gets every `world_size`-th row, from row `rank` on: together they have the
    batch that one process would get. Memory does not grow with the tokens.

    Raises ValueError if the tokens are fewer than a block and one, or a number is out of range.
    """

    def __init__(
        self,
        tokens: Tokens | Mixture,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_int("batch_size", batch_size, at_least=1)
        check_int("context_length", context_length, at_least=1)
        check_int("seed", seed, at_least=0, at_most=2**64 - 1)
        if not 0 <= rank < world_size or batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} with rank {rank} of {world_size} processes: "
                "the batch must divide evenly among ranks counted from 0"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        sources = tokens.sources if isinstance(tokens, Mixture) else [tokens]
        self._orders = [
            _BlockOrder(source, context_length, (seed + i * _SOURCE_STEP) % 2**64) for i, source in enumerate(sources)
        ]
        self.blocks_per_epoch = sum(order.n_blocks for order in self._orders)
        self._rows = np.arange(rank, batch_size, world_size)
        self._period: tuple[int, npt.NDArray[np.intp], npt.NDArray[np.int64]] | None = None  # of the mixture, used last

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, targets) of a step, from 0 on; int64, each (batch_size // world_size, context_length)."""
        places = (self._place(step * self.batch_size + row) for row in self._rows.tolist())
        return _gather([(order.tokens, order.start(number)) for order, number in places], self.context_length)

    def _place(self, sample: int) -> tuple["_BlockOrder", int]:
        """The source of a sample, and its number among those of that source."""
        if not isinstance(self.tokens, Mixture):
            return self._orders[0], sample
        number, i = divmod(sample, PERIOD)
        if self._period is None or self._period[0] != number:
            self._period = number, *self.tokens.period(self.seed, number)
        _, source, row = self._period
        return self._orders[int(source[i])], int(row[i])


class _BlockOrder:
    """Where the blocks of one source start, in the order of all its epochs."""

    def __init__(self, tokens: Tokens, context_length: int, seed: int) -> None:
        if len(tokens) <= context_length:
            shorter = f"use a context length of {len(tokens) - 1} or less, or " if len(tokens) > 1 else ""
            raise ValueError(
                f"your text is {len(tokens)} tokens, but a context length of {context_length} "
                f"needs {context_length + 1}: {shorter}add text"
            )
        self.tokens, self._length, self._seed = tokens, context_length, seed
        self.n_blocks, self._remainder = divmod(len(tokens) - 1, context_length)
        self._epoch: tuple[int, int, Sequence[int] | _Permutation] | None = None  # used last: number, offset, order

    def start(self, sample: int) -> int:
        """Where the block of sample number `sample` starts."""
        epoch, block = divmod(sample, self.n_blocks)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, *self._drawn(epoch)
        _, offset, order = self._epoch
        return offset + int(order[block]) * self._length

    def _drawn(self, epoch: int) -> tuple[int, Any]:
        # Raw random words, because numpy promises their stream for all versions, but not its permutation.
        random = np.random.Philox(key=np.array([self._seed, epoch], dtype=np.uint64))
        offset = int(random.random_raw()) % (self._remainder + 1)
        if self.n_blocks > _MOST_IN_MEMORY:
            return offset, _Permutation(self.n_blocks, random.random_raw(_Permutation.ROUNDS).tolist())
        return offset, np.argsort(random.random_raw(self.n_blocks), kind="stable")


class _Permutation:
    """A permutation of 0 .. n - 1 that needs no memory: a Feistel network on the next power of four.

    What it makes of a number that comes out too large goes in again, until it fits (Black and Rogaway 2002).
    """

    ROUNDS = 6

    def __init__(self, n: int, keys: Sequence[int]) -> None:
        self._n, self._keys = n, keys
        self._half = max(1, -(-(n - 1).bit_length() // 2))
        self._mask = (1 << self._half) - 1

    def __getitem__(self, number: int) -> int:
        while True:
            left, right = number >> self._half, number & self._mask
            for key in self._keys:
                left, right = right, left ^ (_mixed(right ^ key) & self._mask)
            number = left << self._half | right
            if number < self._n:
                return number


def _mixed(value: int) -> int:
    """SplitMix64's finaliser: every bit depends on every bit."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def evaluation_batches(
    tokens: Tokens, batch_size: int, context_length: int, max_blocks: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(inputs, targets) to measure a loss on, the same every time; int64, each (at most batch_size, block).

    Consecutive blocks of `context_length` from the start, in order, and a last one of what is left: every token but the
    first is a target once. With `max_blocks`, at most that many whole blocks, evenly spread over the tokens, whatever
    the `batch_size`; a block is shorter only if there are no more tokens than that.

    Raises `ValueError`, when first asked for a batch, for fewer than two tokens or a size below 1.
    """
    check_int("batch_size", batch_size, at_least=1)
    check_int("context_length", context_length, at_least=1)
    if max_blocks is not None:
        check_int("max_blocks", max_blocks, at_least=1)
    if len(tokens) < 2:
        raise ValueError(f"the text to evaluate on is {len(tokens)} tokens, but needs 2: add text")
    length = min(context_length, len(tokens) - 1)
    n_blocks, rest = divmod(len(tokens) - 1, length)
    n_used = n_blocks if max_blocks is None else min(n_blocks, max_blocks)
    for first in range(0, n_used, batch_size):
        blocks = np.arange(first, min(first + batch_size, n_used)) * n_blocks // n_used
        yield _gather([(tokens, start) for start in (blocks * length).tolist()], length)
    if rest and max_blocks is None:
        yield _gather([(tokens, n_blocks * length)], rest)


def _gather(places: Sequence[tuple[Tokens, int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the blocks at (tokens, start): inputs, and targets one token further."""
    block = torch.empty((len(places), length + 1), dtype=torch.int64)
    rows = block.numpy()
    for row, (tokens, start) in zip(rows, places, strict=True):
        row[:] = tokens[start : start + length + 1]
    for tokens in {id(tokens): tokens for tokens, _ in places}.values():
        if isinstance(tokens, TokenSequence):
            tokens.forget_pages()
        elif isinstance(tokens, np.ndarray):
            forget_pages(tokens)
    return block[:, :-1].contiguous(), block[:, 1:].contiguous()
