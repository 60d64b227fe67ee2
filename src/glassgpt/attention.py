"""Causal attention in the way that is fastest where it is computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_WEIGHTS = 2**23  # of one layer, which training keeps: 16 MB in bfloat16


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """softmax(Q K^T / sqrt(h)) V for (B, H, T, h) queries and (B, H, S, h) keys and values: (B, H, T, h).

    `mask` says what each query sees, True where it does; None: itself and what is before it. `dropout` acts on the
    weights. PyTorch's fused kernel computes this, but on a CPU not in bfloat16, where forward and backward take it
    three to nine times as long as plain products, and not with dropout, which it does not know there.
    """
    T = queries.shape[2]
    if mask is None and _by_products(queries, keys, dropout):
        return _products(queries, keys, values, dropout)
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and T > 1,
        dropout_p=dropout.p if dropout.training else 0.0,
    )


def _by_products(queries: Tensor, keys: Tensor, dropout: nn.Dropout) -> bool:
    B, H, T, _ = queries.shape
    return (
        queries.device.type == "cpu"
        and keys.shape[2] == T
        and (queries.dtype == torch.bfloat16 or (dropout.training and dropout.p > 0))
        and B * H * T * T <= _MOST_WEIGHTS
    )


def _products(queries: Tensor, keys: Tensor, values: Tensor, dropout: nn.Dropout) -> Tensor:
    B, H, T, h = queries.shape
    q, k, v = (x.reshape(B * H, T, h) for x in (queries, keys, values))
    with torch.autocast("cpu", enabled=False):  # they have its number type already
        later = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
        weights = torch.softmax(torch.baddbmm(later, q, k.mT, alpha=h**-0.5), dim=-1)  # (B H, T, T)
        return torch.bmm(dropout(weights), v).view(B, H, T, h)
