"""The book's model classes: the core's, with explicit attention, and with a cache kept inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glassgpt import model
from glassgpt.config import GPTConfig
from glassgpt.kv_cache import KVCache

GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
"""The book's dict for the smallest GPT-2; 163 million parameters, 124 with a tied output head."""


def book_config(cfg: GPTConfig | Mapping[str, Any]) -> GPTConfig:
    """A config as the book means it: explicit attention unless it says otherwise, and `kv_window_size`.

    Explicit attention draws its dropout as the book does, so a seed gives the book's losses. A
    `kv_window_size` below the context length is the core's `sliding_window`, for cached and uncached passes
    alike.
    """
    if isinstance(cfg, Mapping):
        cfg = {"attention": "explicit"} | dict(cfg)
        if "kv_window_size" in cfg:
            cfg["sliding_window"] = cfg.pop("kv_window_size")
    config = GPTConfig.of(cfg)
    if config.sliding_window is not None and config.sliding_window >= config.context_length:
        config = config.replace(sliding_window=None)
    return config


class TransformerBlock(model.TransformerBlock):
    """The core's block, built from the book's dict."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        super().__init__(book_config(cfg))


class GPTModel(model.GPTModel):
    """The core's model, built from the book's dict: its weights from a seed, its checkpoints, its results."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        super().__init__(book_config(cfg))


class CachedGPTModel(GPTModel):
    """The model of the book's cache chapter: `use_cache=True` continues what the model was fed before.

    The state is one `KVCache`, which owns the positions: an uncached call in between changes nothing, and a
    call that fails half-way is as if it had not been.
    """

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        super().__init__(cfg)
        self._kv_cache: KVCache | None = None

    def forward(self, in_idx: Tensor, use_cache: bool | KVCache | None = False, *, last_only: bool = False) -> Tensor:
        """Scores of the next token after each of (B, T) ids, (B, T, vocab_size), as the core gives them.

        With `use_cache` the ids continue those of earlier cached calls, and no gradients are kept; a
        `KVCache` is used as it is, as the core does. Raises `ValueError` for more tokens than there are
        positions, and where the batch, the dtype or the device is not that of the tokens in the cache.
        """
        if isinstance(use_cache, KVCache) or not use_cache:
            return super().forward(in_idx, use_cache or None, last_only=last_only)
        with torch.no_grad():
            return super().forward(in_idx, self._cache_for(len(in_idx)), last_only=last_only)

    def reset_kv_cache(self) -> None:
        """Forget the tokens of all cached calls, and free their memory."""
        self._kv_cache = None

    def _cache_for(self, batch_size: int) -> KVCache:
        if self._kv_cache is None or not self._kv_cache.lengths.any():
            self._kv_cache = self.new_cache(batch_size)
        cached, weight = self._kv_cache.keys, self.tok_emb.weight
        held = self._kv_cache.batch_size, cached.dtype, cached.device
        wanted = batch_size, weight.dtype, weight.device
        if held != wanted:
            raise ValueError(
                "the cache was begun with batch size {}, {} on {}, ".format(*held)
                + "this call has batch size {}, {} on {}: call reset_kv_cache() first".format(*wanted)
            )
        return self._kv_cache
