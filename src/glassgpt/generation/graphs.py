"""A decoder for GPUs: the readable model, each step of which is one launch of a recorded graph.

At one token for each row a GPU is done sooner than Python can ask for the next operation. So a step is recorded once,
as a CUDA graph, and replayed. For that its shapes and addresses must not change: the number of rows is rounded up to a
power of two, the part of the cache that is attended to up to a multiple of `SPAN`, and what differs from step to step,
tokens and positions, is read from memory on the device. A step is one copy to the device, one launch, one copy back and
one wait. Where there is no CUDA the same static step runs operation by operation, which is how it is tested on a CPU.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from glassgpt.generation.decoder import Scores
from glassgpt.generation.torch_decoder import CachedDecoder
from glassgpt.kv_cache import CachePass, KVCache
from glassgpt.language_model import LanguageModel, evaluating

SPAN = 128
"""Tokens: a finer multiple means more graphs, a coarser one more reads of slots that are empty."""

_WARM_UPS = 3  # before a capture, as PyTorch asks: libraries choose their kernels at the first calls


class StaticCache(KVCache):
    """The first rows and slots of a cache, for passes of one token a row whose positions are on the device."""

    def __init__(self, of: KVCache, n_rows: int, n_slots: int) -> None:
        """`of` keeps the memory, and the count of what it holds; its rows that are not live are written to, too."""
        keys, values = (memory[:, :n_rows, :, :n_slots] for memory in of.memory)
        super().__init__(keys, values, torch.zeros(n_rows, dtype=torch.int64), capacity=n_slots, window=None)
        self.positions = torch.zeros(n_rows, dtype=torch.int64, device=keys.device)
        """(n_rows,): the slot of each row's token."""

    def begin(self, n_rows: int, n_tokens: int) -> CachePass:
        """See `KVCache.begin`. Nothing here depends on what the positions are, only on where they lie."""
        assert (n_rows, n_tokens) == (self.batch_size, 1)
        positions = self.positions[:, None]
        mask = torch.arange(self.capacity, device=positions.device) <= positions
        return CachePass(self, positions, mask[:, None, None], uniform=False, end=self.capacity)


@dataclasses.dataclass
class _Step:
    """A step of fixed shapes and addresses."""

    given: Tensor
    """(2, n_rows) int64, read: tokens, and their positions."""
    scores: Tensor
    """(n_rows, vocab_size) float32, written."""
    compute: Callable[[], object]
    """Operation by operation."""
    run: Callable[[], object] | None = None
    """The same as fast as can be; None before its first time."""


class GraphDecoder(CachedDecoder):
    """`CachedDecoder` with static steps, which are graphs on a CUDA device. The weights must stay where they are.

    A model with a sliding window steps as `CachedDecoder` does.
    """

    model: LanguageModel
    """What it runs."""

    def __init__(self, model: LanguageModel, capacity: int | None = None, span: int = SPAN) -> None:
        """See `CachedDecoder`; `span` as `SPAN`."""
        super().__init__(model, capacity)
        self.model = model
        self._span = span
        self._steps: dict[tuple[int, int], _Step] = {}
        self._recorded_in: tuple[int, ...] = ()
        self._records = model.device.type == "cuda"
        self._pool: Any = None  # graphs run one at a time, so they share what they compute in

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`. The last bits depend on how far rows and slots are rounded up."""
        lengths = self._cache.lengths
        longest = int(lengths.max())
        if self._cache.window is not None or longest == self._cache.capacity:
            return super().step(tokens)  # which refuses a full row
        n = len(tokens)
        step = self._static_step(n, longest + 1)
        given = torch.zeros(step.given.shape, dtype=torch.int64, pin_memory=self._records)
        given[:, :n] = torch.stack([torch.tensor(tokens), lengths])
        step.given.copy_(given, non_blocking=True)
        if step.run is None:  # to record is to run some times: the same tokens at the same places, so nothing changes
            step.run = self._record(step.compute) if self._records else step.compute
        step.run()
        scores: Scores = step.scores[:n].to("cpu", copy=True).numpy()  # the wait
        lengths += 1
        return scores

    def _static_step(self, n_rows: int, n_tokens: int) -> _Step:
        """One for at least so many rows, and so many tokens in each."""
        keys, values = self._cache.memory
        if self._recorded_in != (where := (keys.data_ptr(), values.data_ptr())):
            self._steps.clear()  # the cache has grown: what was recorded writes to memory that is gone
            self._recorded_in = where
        rows = min(1 << (n_rows - 1).bit_length(), keys.shape[1])
        slots = min(-(-n_tokens // self._span) * self._span, keys.shape[3])
        if (rows, slots) not in self._steps:
            self._steps[rows, slots] = self._new_step(rows, slots)
        return self._steps[rows, slots]

    def _new_step(self, n_rows: int, n_slots: int) -> _Step:
        cache = StaticCache(self._cache, n_rows, n_slots)
        given = torch.zeros((2, n_rows), dtype=torch.int64, device=cache.positions.device)
        scores = torch.zeros((n_rows, self.vocab_size), dtype=torch.float32, device=given.device)

        def compute() -> None:
            with torch.inference_mode(), evaluating(self._model, self._modules):
                cache.positions.copy_(given[1])
                scores.copy_(self._model(given[0][:, None], cache, last_only=True)[:, -1])

        return _Step(given, scores, compute)

    def _record(self, compute: Callable[[], object]) -> Callable[[], object]:
        """A graph's `replay`, or `compute` where this device or model cannot be recorded, which is said once."""
        try:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    compute()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # other threads of a program may use the device meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                compute()
        except RuntimeError as error:
            self._records = False
            logging.getLogger(__name__).warning("no CUDA graph: %s; operations are launched one by one", error)
            return compute
        self._pool = graph.pool()
        return graph.replay
