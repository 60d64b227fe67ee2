"""Chapter 3: from the simplest trainable attention to several heads, class by class.

Each class adds one thing to the one before it; `glassgpt.model.MultiHeadAttention` is where the road ends. Names and
creation order are the book's, so a seed gives its weights and its checkpoints load. B is the batch size, T the number
of tokens, H the number of heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention_v1(nn.Module):
    """Every token looks at every token, through three matrices that are bare parameters."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., T, d_in) to (..., T, d_out)."""
        queries, keys, values = x @ self.W_query, x @ self.W_key, x @ self.W_value  # each (..., T, d_out)
        scores = queries @ keys.mT  # (..., T, T)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # each row sums to 1
        return weights @ values  # (..., T, d_out)


class SelfAttention_v2(nn.Module):
    """The same with `nn.Linear`, which stores its matrix transposed and starts it better: around 0, scaled by d_in."""

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., T, d_in) to (..., T, d_out)."""
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)  # each (..., T, d_out)
        scores = queries @ keys.mT  # (..., T, T)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # each row sums to 1
        return weights @ values  # (..., T, d_out)


class CausalAttention(nn.Module):
    """No token looks ahead, and training drops some of the weights."""

    mask: Tensor

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, qkv_bias: bool = False) -> None:
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        ahead = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", ahead)  # moves with the module from device to device, and is never trained

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_in) to (B, T, d_out); `ValueError` for more tokens than the context length."""
        T = x.shape[-2]
        if len(self.mask) < T:
            raise ValueError(f"{T} tokens exceed the context length of {len(self.mask)}")
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)  # each (B, T, d_out)
        scores = (queries @ keys.mT).masked_fill(self.mask[:T, :T], -torch.inf)  # (B, T, T)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # 0 above the diagonal: e^-inf
        return self.dropout(weights) @ values  # (B, T, d_out)


class MultiHeadAttentionWrapper(nn.Module):
    """Several single heads, one after the other, and their results side by side."""

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False
    ) -> None:
        """`d_out` is the width of one head, not of all together as in `MultiHeadAttention`."""
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_in) to (B, T, H * d_out)."""
        return torch.cat([head(x) for head in self.heads], dim=-1)


class PyTorchMultiHeadAttention(nn.Module):
    """`MultiHeadAttention` in PyTorch's fused kernel, with one matrix for queries, keys and values together."""

    def __init__(self, d_in: int, d_out: int, num_heads: int, dropout: float = 0.0, qkv_bias: bool = False) -> None:
        """`ValueError` where the heads do not fit."""
        super().__init__()
        if d_out % num_heads:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_in, 3 * d_out, bias=qkv_bias)
        self.proj = nn.Linear(d_out, d_out)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_in) to (B, T, d_out)."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, 3, self.num_heads, -1)  # (B, T, 3, H, head_dim)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, head_dim)
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        return self.proj(context.transpose(1, 2).flatten(2))  # heads side by side again
