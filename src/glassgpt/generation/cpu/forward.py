"""GPT-2 from the kernels, in the order of `model.py`. Another family puts the same parts together in another order."""

from __future__ import annotations

import numpy as np

from glassgpt.generation.cpu.kernels import (
    add,
    attention,
    compiled,
    embed,
    gelu,
    layer_norm,
    linear,
    split_heads,
)
from glassgpt.generation.cpu.tiles import COLUMNS


@compiled()
def forward(
    w, n_heads, head_dim, window, eps, is_erf, tokens, slots, positions, blocks, last, keys, values, none, scores
):  # fmt: skip
    """`scores` of the next token after each of the `last` ones of M new tokens, whose keys and values are kept.

    Token m belongs to the row in `slots[m]` and is its number `positions[m]`; `blocks` are the first tokens of groups
    of neighbours in one row, and M. `w`: `weights.Weights`; `keys` and `values`: see `decoder.CPUDecoder`.
    """
    M, d, n_ff = len(tokens), w.norm1_scale.shape[1], w.widen_bias.shape[1]
    columns = (d + COLUMNS - 1) // COLUMNS * COLUMNS  # of what is multiplied: those beyond d stay 0
    x, result = np.empty((M, d), np.float32), np.empty((M, d), np.float32)
    normed = np.zeros((M, columns), np.float32)
    qkv, q = np.empty((M, 3 * d), np.float32), np.zeros((M, n_heads, keys.shape[4]), np.float32)
    wide = np.zeros((M, (n_ff + COLUMNS - 1) // COLUMNS * COLUMNS), np.float32)

    embed(tokens, w.tokens, w.token_scales, positions, w.positions, x)
    for layer in range(len(w.qkv)):
        layer_norm(x, w.norm1_scale[layer], w.norm1_shift[layer], eps, normed)
        linear(normed, w.qkv[layer], w.qkv_scales[layer], w.qkv_bias[layer], qkv)
        split_heads(qkv, head_dim, slots, positions, q, keys[layer], values[layer])
        attention(q, keys[layer], values[layer], none, slots, positions, blocks, head_dim, window, normed)
        linear(normed, w.projection[layer], w.projection_scales[layer], w.projection_bias[layer], result)
        add(x, result)

        layer_norm(x, w.norm2_scale[layer], w.norm2_shift[layer], eps, normed)
        linear(normed, w.widen[layer], w.widen_scales[layer], w.widen_bias[layer], wide)
        gelu(wide, n_ff, is_erf)
        linear(wide, w.narrow[layer], w.narrow_scales[layer], w.narrow_bias[layer], result)
        add(x, result)

    chosen = np.empty((len(last), d), np.float32)
    for r in range(len(last)):
        chosen[r] = x[last[r]]
    normed = np.zeros((len(last), columns), np.float32)
    layer_norm(chosen, w.final_scale, w.final_shift, eps, normed)
    linear(normed, w.head, w.head_scales, w.head_bias, scores)
