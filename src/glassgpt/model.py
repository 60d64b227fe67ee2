"""The GPT of *Build a Large Language Model From Scratch*, chapters 3 and 4: architecture and nothing else.

Read from top to bottom. B is the batch size, T the number of tokens, d the embedding width, H the number of heads; with
a cache S counts the tokens that are attended to, T of them new. Names, creation order and PyTorch's default
initialisation are the book's, so a seed gives the book's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.attention import attend
from glassgpt.config import ATTENTION_KINDS, GELU_KINDS, NORM_EPS, GPTConfig
from glassgpt.kv_cache import CachePass, KVCache, LayerCache, causal_mask
from glassgpt.language_model import LanguageModel


class LayerNorm(nn.Module):
    """Normalise the last dimension to mean 0 and (biased) variance 1, then scale and shift it."""

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.eps = NORM_EPS
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The Gaussian error linear unit (Hendrycks and Gimpel, 2016)."""

    def __init__(self, form: str = "tanh") -> None:
        """`form` as in `GPTConfig.gelu`; `ValueError` for any other."""
        super().__init__()
        if form not in GELU_KINDS:
            raise ValueError(f"gelu {form!r} must be one of {', '.join(GELU_KINDS)}")
        self.approximate = "none" if form == "erf" else form

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise: "tanh" is 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), "erf" is x Phi(x)."""
        return F.gelu(x, approximate=self.approximate)


class FeedForward(nn.Module):
    """Each position on its own: widen to 4 d, GELU, narrow back to d."""

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
        return self.layers(x)


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
        attention: str = "explicit",
        window: int | None = None,
    ) -> None:
        """The book's arguments; `attention` and `window` as `GPTConfig.attention` and `.sliding_window`.

        `context_length` is the book's and has no effect: masks are as long as the text. `ValueError` where the heads
        do not fit or `attention` is unknown.
        """
        super().__init__()
        if d_out % num_heads:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        if attention not in ATTENTION_KINDS:
            raise ValueError(f"attention {attention!r} must be one of {', '.join(ATTENTION_KINDS)}")
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.attention = attention
        self.window = window
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(_skip_saved_mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, cached: LayerCache | None = None) -> Tensor:
        """(B, T, d_in) to (B, T, d_out); with `cached` the tokens of `x` continue those in the cache."""
        B, T, _ = x.shape
        queries = self.W_query(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, T, head_dim)
        keys = self.W_key(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, T, head_dim)
        values = self.W_value(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, T, head_dim)

        if cached is not None:
            keys, values = cached.extend(keys, values)  # (B, H, S, head_dim): the earlier tokens' too
            mask = cached.mask  # (1 or B, 1, T, S) or None
        else:
            positions = torch.arange(T, device=x.device)
            mask = None if self.window is None else causal_mask(positions, positions, self.window)  # (T, T)

        if self.attention == "explicit":
            if mask is None:
                mask = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # no token looks ahead
            scores = (queries @ keys.transpose(2, 3)).masked_fill(~mask, -torch.inf)  # (B, H, T, S)
            weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (B, H, T, S), each row sums to 1
            context = self.dropout(weights) @ values  # (B, H, T, head_dim)
        else:  # the same in the fastest way
            context = attend(queries, keys, values, mask, self.dropout)  # (B, H, T, head_dim)
        context = context.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim)  # heads side by side again
        return self.out_proj(context)


def _skip_saved_mask(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The book saves each layer's causal mask in its checkpoints; the shapes already say all of it."""
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
            attention=cfg.attention,
            window=cfg.sliding_window,
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg.emb_dim)
        self.norm2 = LayerNorm(cfg.emb_dim)
        self.drop_shortcut = nn.Dropout(cfg.drop_rate)

    def forward(self, x: Tensor, cached: LayerCache | None = None) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        x = x + self.drop_shortcut(self.att(self.norm1(x), cached))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class GPTModel(LanguageModel):
    """Token ids in, a score for every next token out."""

    def __init__(self, cfg: GPTConfig | Mapping[str, Any]) -> None:
        """Build from a `GPTConfig` or the book's dict; `ValueError` where the config cannot work."""
        super().__init__()
        self.config = cfg = GPTConfig.of(cfg)
        self.vocab_size, self.context_length, self.window = cfg.vocab_size, cfg.context_length, cfg.sliding_window
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
        cached = None if cache is None else cache.begin(*in_idx.shape)
        logits = self.out_head(self.hidden(in_idx, cached, last_only=last_only))  # (B, T or 1, vocab_size)
        if cached is not None:
            cached.commit()  # last: a pass that fails anywhere has not moved the cache
        return logits

    def hidden(self, in_idx: Tensor, cached: CachePass | None = None, *, last_only: bool = False) -> Tensor:
        """The normalised vectors that the output head reads: (B, T or 1, d)."""
        T = in_idx.shape[1]
        if self.context_length < T:
            raise ValueError(f"{T} tokens exceed the context length of {self.context_length}")
        positions = torch.arange(T, device=in_idx.device) if cached is None else cached.positions  # (T) or (1 or B, T)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (B, T, d)
        for layer, block in enumerate(self.trf_blocks):
            x = block(x, None if cached is None else cached.layer(layer))  # (B, T, d)
        return self.final_norm(x[:, -1:] if last_only else x)

    def new_cache(self, batch_size: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache in this model's dtype and on its device, `capacity` tokens a row (the context length).

        `ValueError` for a capacity beyond the context length.
        """
        cfg, weight = self.config, self.tok_emb.weight
        capacity = cfg.context_length if capacity is None else capacity
        if not 1 <= capacity <= cfg.context_length:
            raise ValueError(f"capacity {capacity} must be from 1 to the context length of {cfg.context_length}")
        return KVCache.allocate(
            cfg.n_layers,
            cfg.n_heads,
            cfg.head_dim,
            batch_size=batch_size,
            capacity=capacity,
            window=cfg.sliding_window,
            dtype=weight.dtype,
            device=weight.device,
        )

    def parameter_roles(self) -> dict[str, str]:
        """See `LanguageModel`; a tied output head is the token embedding."""
        endings = {
            "tok_emb.weight": "embedding",
            "pos_emb.weight": "embedding",
            "out_head.weight": "head",
            "out_proj.weight": "residual",
            "ff.layers.2.weight": "residual",
            "W_query.weight": "hidden",
            "W_key.weight": "hidden",
            "W_value.weight": "hidden",
            "ff.layers.0.weight": "hidden",
            "scale": "scale",
            "shift": "bias",
            "bias": "bias",
        }
        return {
            name: next(role for ending, role in endings.items() if name.endswith(ending))
            for name, _ in self.named_parameters()
        }


def generate_text_simple(model: nn.Module, idx: Tensor, max_new_tokens: int, context_size: int) -> Tensor:
    """Greedy generation as the book writes it (chapter 4): recompute everything for every token.

    `idx` is (B, T); returns (B, T + max_new_tokens). Slow and plain: every faster path is tested against it.
    """
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])[:, -1, :]
        idx = torch.cat((idx, logits.argmax(dim=-1, keepdim=True)), dim=1)
    return idx
