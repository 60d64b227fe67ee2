"""The GPT of *Build a Large Language Model From Scratch*, chapters 3 and 4: architecture and nothing else.

Read from top to bottom. B is the batch size, T the number of tokens, d the embedding width, H the number of heads.
Names, creation order and PyTorch's default initialisation are the book's, so a seed gives the book's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import GPTConfig
from glassgpt.kv_cache import KVCache


class LayerNorm(nn.Module):
    """Normalise the last dimension to mean 0 and (biased) variance 1, then scale and shift it."""

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The Gaussian error linear unit in the tanh form that GPT-2 was trained with (Hendrycks and Gimpel, 2016)."""

    def __init__(self, kind: str = "tanh") -> None:
        """`kind` "erf" computes x Phi(x) exactly, as nanoGPT does (see `GPTConfig.gelu`)."""
        super().__init__()
        self.approximate = "none" if kind == "erf" else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), elementwise."""
        return F.gelu(x, approximate=self.approximate)


class FeedForward(nn.Module):
    """Each position on its own: widen to 4 d, bend, narrow back to d."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        super().__init__()
        cfg = GPTConfig.of(cfg)
        self.layers = nn.Sequential(
            nn.Linear(cfg.emb_dim, 4 * cfg.emb_dim),
            GELU(cfg.gelu),
            nn.Linear(4 * cfg.emb_dim, cfg.emb_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        out: Tensor = self.layers(x)
        return out


def causal_mask(n_tokens: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """(T, T) bool, True where row i may look at column j: j <= i and, with a window, j > i - window."""
    mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


class MultiHeadAttention(nn.Module):
    """Causal self-attention with `num_heads` heads side by side, each of width d_out / num_heads."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        *,
        kind: str = "explicit",
        window: int | None = None,
    ) -> None:
        """`kind` is "explicit" or "sdpa" (see `GPTConfig.attention`); ValueError where the heads do not fit."""
        super().__init__()
        if d_out % num_heads:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        self.context_length = context_length
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.kind = kind
        self.window = window
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(_forget_the_books_mask)  # type: ignore[no-untyped-call]

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """(B, T, d_in) to (B, T, d_out).

        `mask` is bool, True to look, and broadcasts to (B, H, T, keys); None is plain causal attention. With a
        `cache` (in a pass that `KVCache.begin` started) the keys and values of earlier tokens come from `layer`.
        """
        return self._merge_heads(self.context(*self._project(x, cache, layer), mask))

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights for `x`, (B, H, T, T): each row sums to 1, the future has exactly 0."""
        queries, keys, _ = self._project(x, None, 0)
        return self._weights(queries, keys, mask)

    def context(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted sums of the values, (B, H, T, head_dim), by either of two ways that give the same."""
        if self.kind == "explicit":
            dropped: Tensor = self.dropout(self._weights(queries, keys, mask))
            return dropped @ values
        n_tokens = queries.shape[2]
        if mask is None and self.window is not None:
            mask = causal_mask(n_tokens, self.window, queries.device)
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and n_tokens > 1,
            dropout_p=self.dropout.p if self.training else 0.0,
        )

    def _weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        n_tokens = queries.shape[2]
        if mask is None and (n_tokens > 1 or self.window is not None):
            mask = causal_mask(n_tokens, self.window, queries.device)
        scores = queries @ keys.transpose(2, 3)  # (B, H, T, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return torch.softmax(scores / self.head_dim**0.5, dim=-1)

    def _project(self, x: Tensor, cache: KVCache | None, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, n_tokens, _ = x.shape
        queries, keys, values = (
            project(x).view(batch, n_tokens, self.num_heads, self.head_dim).transpose(1, 2)
            for project in (self.W_query, self.W_key, self.W_value)
        )  # each (B, H, T, head_dim)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        return queries, keys, values

    def _merge_heads(self, context: Tensor) -> Tensor:
        batch, _, n_tokens, _ = context.shape
        out: Tensor = self.out_proj(context.transpose(1, 2).reshape(batch, n_tokens, -1))
        return out


def _forget_the_books_mask(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The book keeps each layer's causal mask in its checkpoints; it carries nothing that the shapes do not."""
    state.pop(prefix + "mask", None)


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward network, each behind a norm (pre-norm) and around a shortcut."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        super().__init__()
        cfg = GPTConfig.of(cfg)
        self.att = MultiHeadAttention(
            d_in=cfg.emb_dim,
            d_out=cfg.emb_dim,
            context_length=cfg.context_length,
            dropout=cfg.drop_rate,
            num_heads=cfg.n_heads,
            qkv_bias=cfg.qkv_bias,
            kind=cfg.attention,
            window=cfg.sliding_window,
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg.emb_dim)
        self.norm2 = LayerNorm(cfg.emb_dim)
        self.drop_shortcut = nn.Dropout(cfg.drop_rate)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """(B, T, d) to (B, T, d); arguments as in `MultiHeadAttention.forward`."""
        x = x + self.drop_shortcut(self.att(self.norm1(x), mask, cache, layer))
        out: Tensor = x + self.drop_shortcut(self.ff(self.norm2(x)))
        return out


class GPTModel(nn.Module):
    """Token ids in, a score for every next token out."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        """Build from a `GPTConfig` or the book's dict; `ValueError` where the config cannot work."""
        super().__init__()
        self.config = cfg = GPTConfig.of(cfg)
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.emb_dim)
        self.pos_emb = nn.Embedding(cfg.context_length, cfg.emb_dim)
        self.drop_emb = nn.Dropout(cfg.drop_rate)
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg.n_layers)])
        self.final_norm = LayerNorm(cfg.emb_dim)
        self.out_head = nn.Linear(cfg.emb_dim, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.out_head.weight = self.tok_emb.weight

    def forward(self, in_idx: Tensor, cache: KVCache | None = None, *, last_only: bool = False) -> Tensor:
        """Scores (logits) of the next token after each of (B, T) ids: (B, T, vocab_size).

        With a `cache` the ids continue what it holds. `last_only` gives those after the last token alone,
        (B, 1, vocab_size): all that generation needs. Raises `ValueError` for more tokens than there are positions,
        or another number of rows than the cache has.
        """
        logits: Tensor = self.out_head(self.hidden(in_idx, cache, last_only=last_only))
        if cache is not None:
            cache.commit()  # last: a pass that fails anywhere has not moved the cache
        return logits

    def hidden(self, in_idx: Tensor, cache: KVCache | None = None, *, last_only: bool = False) -> Tensor:
        """The normalised vectors that the output head reads: (B, T or 1, d); `forward` moves a `cache` on."""
        n_tokens = in_idx.shape[1]
        if n_tokens > self.config.context_length:
            raise ValueError(f"{n_tokens} tokens pass the context length of {self.config.context_length}")
        if cache is None:
            positions, mask = torch.arange(n_tokens, device=in_idx.device), None
        else:
            if cache.batch_size != len(in_idx):
                raise ValueError(f"{len(in_idx)} rows of tokens, but the cache has {cache.batch_size}")
            positions, mask = cache.begin(n_tokens)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (B, T, d)
        for layer, block in enumerate(self.trf_blocks):
            x = block(x, mask, cache, layer)
        out: Tensor = self.final_norm(x[:, -1:] if last_only else x)
        return out

    def new_cache(self, batch_size: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache in this model's dtype and on its device, `capacity` tokens a row (the context length)."""
        weight = self.tok_emb.weight
        return KVCache(self.config, batch_size, capacity=capacity, dtype=weight.dtype, device=weight.device)


def generate_text_simple(model: nn.Module, idx: Tensor, max_new_tokens: int, context_size: int) -> Tensor:
    """Greedy generation as the book writes it (chapter 4): recompute everything for every token.

    `idx` is (B, T); returns (B, T + max_new_tokens). Slow and plain: every faster path is tested against it.
    """
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])[:, -1, :]
        idx = torch.cat((idx, logits.argmax(dim=-1, keepdim=True)), dim=1)
    return idx
