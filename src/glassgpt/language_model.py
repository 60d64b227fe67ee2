"""What the rest of the house asks of a model, so that another family is a second file and not a flag in the first."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from glassgpt.kv_cache import CachePass, KVCache


class LanguageModel(nn.Module, abc.ABC):
    """Token ids in, scores of the next token out. Training, decoding and explaining need no more than this."""

    vocab_size: int
    context_length: int
    """The longest sequence the model can read, in tokens."""
    window: int | None
    """Each position sees itself and the `window - 1` tokens before it; None: all of them."""
    out_head: nn.Linear

    @abc.abstractmethod
    def forward(self, in_idx: Tensor, cache: KVCache | None = None, *, last_only: bool = False) -> Tensor:
        """Scores after each of (B, T) ids, (B, T, vocab_size), or after the last alone, (B, 1, vocab_size)."""

    @abc.abstractmethod
    def hidden(self, in_idx: Tensor, cached: CachePass | None = None, *, last_only: bool = False) -> Tensor:
        """The vectors that `out_head` reads, (B, T or 1, d)."""

    @abc.abstractmethod
    def new_cache(self, batch_size: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache of this model's shape, in its dtype and on its device, `capacity` tokens a row."""

    @abc.abstractmethod
    def parameter_roles(self) -> dict[str, str]:
        """One of `config.ROLES` for each parameter, by name."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.out_head.weight.device

    def n_parameters(self) -> int:
        """Number of parameters; one that is used twice counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


@contextlib.contextmanager
def evaluating(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Dropout off inside, and every module back as it was: some may be frozen in `eval` mode.

    `modules`: all of the model's, for who comes often and has walked the tree before.
    """
    training = [module for module in modules or model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """PyTorch's global random numbers begin at `seed` inside (None: where they are), and are as before afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield
