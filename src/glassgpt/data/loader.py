"""From tokens to batches. The batch at a step depends on (tokens, seed, step) and on nothing else.

So a resumed run replays nothing, and neither the number of processes nor their speed changes the data.
"""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glassgpt.options import check_int


class BatchLoader:
    """Shuffled training batches without end, from a 1-D array of token ids, best a `TokenFile`'s memory map.

    An epoch cuts the tokens into consecutive blocks of `context_length` inputs, the targets being one token
    further, and shuffles the blocks. Blocks do not overlap, so in an epoch every token is an input once, but
    for a remainder of less than a block; each epoch draws anew how much of that remainder comes before the
    first block, so that blocks begin elsewhere. Sample `i` of step `s` is number `s * batch_size + i` of the
    sequence of all epochs; a batch may reach into the next.

    With `world_size` processes each gets its share of the rows, in the order of ranks: together they are the
    batch that one process would get.

    Raises ValueError if the tokens are fewer than a block and one, or a number is out of range.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
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
        if len(tokens) <= context_length:
            shorter = f"use a context length of {len(tokens) - 1} or less, or " if len(tokens) > 1 else ""
            raise ValueError(
                f"your text is {len(tokens)} tokens, but a context length of {context_length} "
                f"needs {context_length + 1}: {shorter}add text"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        self.blocks_per_epoch, self._remainder = divmod(len(tokens) - 1, context_length)
        rows = batch_size // world_size
        self._rows = np.arange(rank * rows, (rank + 1) * rows)
        self._starts_of: tuple[int, npt.NDArray[np.int64]] | None = None  # of the epoch used last

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, targets) of a step, from 0 on; int64, each (batch_size // world_size, context_length)."""
        epochs, blocks = np.divmod(step * self.batch_size + self._rows, self.blocks_per_epoch)
        starts = [self._starts(int(epoch))[block] for epoch, block in zip(epochs, blocks, strict=True)]
        return _gather(self.tokens, np.array(starts), self.context_length)

    def _starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """Where the blocks of an epoch start, in the order they are used."""
        if self._starts_of is None or self._starts_of[0] != epoch:
            # Raw random words, because numpy promises their stream for all versions, but not its permutation.
            random = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
            offset = int(random.random_raw()) % (self._remainder + 1)
            order = np.argsort(random.random_raw(self.blocks_per_epoch), kind="stable")
            self._starts_of = epoch, offset + order * self.context_length
        return self._starts_of[1]


def evaluation_batches(
    tokens: npt.NDArray[Any], batch_size: int, context_length: int, max_blocks: int | None = None
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
        yield _gather(tokens, blocks * length, length)
    if rest and max_blocks is None:
        yield _gather(tokens, np.array([n_blocks * length]), rest)


def _gather(tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the blocks at `starts`: inputs, and targets one token further."""
    indices = starts[:, None] + np.arange(length + 1)
    block = torch.from_numpy(np.asarray(tokens[indices], dtype=np.int64))
    _forget_pages(tokens)
    return block[:, :-1].contiguous(), block[:, 1:].contiguous()


def _forget_pages(tokens: npt.NDArray[Any]) -> None:
    """Give back the memory of the pages that a read-only memory map has read, or it grows to the file's size.

    They stay in the system's page cache, which costs nobody memory. Where the system knows no `madvise`
    (Windows), it trims mapped pages by itself.
    """
    base: Any = tokens
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and not tokens.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
