"""GPT-2 from the kernels, in the order of `model.py`. Another family puts the same parts together in another order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glassgpt.config import GPTConfig
from glassgpt.generation.cpu.compiled import compiled
from glassgpt.generation.cpu.draw import NONE, draw
from glassgpt.generation.cpu.kernels import (
    ADD,
    NOTHING,
    Rows,
    attention,
    embed,
    linear,
    new_rows,
    norms,
    store,
    to_bytes,
)
from glassgpt.generation.cpu.numbers import Array, zeros
from glassgpt.generation.cpu.panels import filled
from glassgpt.generation.cpu.team import finish, take, wait


class Room(NamedTuple):
    """Where the activations of M tokens are while they pass through the layers, and of those that get scores."""

    x: Array
    """(M, d): what the layers add to."""
    normed: Rows
    qkv: Array
    result: Array
    wide: Rows
    chosen: Array
    chosen_normed: Rows
    none: Rows
    """For products without 8-bit activations."""


def new_room(config: GPTConfig, n_tokens: int, n_scores: int) -> Room:
    """Room for so many."""
    d = config.emb_dim
    return Room(
        np.empty((n_tokens, d), np.float32),
        new_rows(n_tokens, d),
        zeros((n_tokens, filled(3 * d)), np.float32),
        zeros((n_tokens, filled(d)), np.float32),
        new_rows(n_tokens, 4 * d),
        np.empty((n_scores, d), np.float32),
        new_rows(n_scores, d),
        new_rows(1, 1),
    )


def n_phases(config: GPTConfig) -> int:
    """Phases of one pass of `forward`, at most."""
    return 6 + 10 * config.n_layers


@compiled()
def forward(
    phases, w, room, n_heads, head_dim, window, eps, gelu, offset, tokens, slots, positions, blocks, last, keys, values,
    scores, draws,
):  # fmt: skip
    """`scores` of the next token after each of the `last` ones of M new tokens, whose keys and values are kept.

    Called by each thread of a team (see `team.Team.run`). Token m belongs to the row in `slots[m]` and is its number
    `positions[m]`; `blocks` are the first tokens of groups of neighbours in one row, and M. `w`: `weights.Weights`;
    `offset`: what was added to integer weights, 0 for floats; `keys` and `values`: see `cache`.

    `phases` are those of one pass or of several: after each but the last a token is drawn for each row (`draws`, see
    `draw.Draws`) and comes next, which changes `tokens` and `positions`, unless one of them is too close to call.
    """
    for step in range(len(phases)):
        p = _pass(
            phases[step], w, room, n_heads, head_dim, window, eps, gelu, offset, tokens, slots, positions, blocks, last,
            keys, values, scores,
        )  # fmt: skip
        if step + 1 == len(phases):
            break
        p = draw(phases[step], p, draws, step, scores)
        if min(draws.tokens[step]) == NONE:
            break
        if take(phases[step], p, 1) == 0:
            for m in range(len(tokens)):
                tokens[m] = draws.tokens[step, m]
                positions[m] += 1
            finish(phases[step], p)
        wait(phases[step], p, 1)


@compiled()
def _pass(
    phases, w, room, n_heads, head_dim, window, eps, gelu, offset, tokens, slots, positions, blocks, last, keys, values,
    scores,
):  # fmt: skip
    """One pass: see `forward`. The number of the next phase."""
    x, normed, wide = room.x, room.normed, room.wide
    p = embed(phases, 0, tokens, w.tokens, w.token_scales, positions, w.positions, x)
    for n in range(len(w.qkv)):
        p = norms(phases, p, x, w.norm1_scale[n], w.norm1_shift[n], eps, offset, normed)
        p = linear(phases, p, normed, w.qkv[n], w.qkv_scales[n], w.qkv_bias[n], room.qkv, NOTHING, x)
        p = store(phases, p, room.qkv, n_heads, head_dim, slots, positions, keys[n], values[n])
        p = attention(
            phases, p, room.qkv, keys[n], values[n], room.none, slots, positions, blocks, n_heads, head_dim, window,
            normed.values,
        )  # fmt: skip
        p = to_bytes(phases, p, normed, offset)
        p = linear(
            phases, p, normed, w.projection[n], w.projection_scales[n], w.projection_bias[n], room.result, ADD, x
        )

        p = norms(phases, p, x, w.norm2_scale[n], w.norm2_shift[n], eps, offset, normed)
        p = linear(phases, p, normed, w.widen[n], w.widen_scales[n], w.widen_bias[n], wide.values, gelu, x)
        p = to_bytes(phases, p, wide, offset)
        p = linear(phases, p, wide, w.narrow[n], w.narrow_scales[n], w.narrow_bias[n], room.result, ADD, x)

    if take(phases, p, 1) == 0:
        for r in range(len(last)):
            room.chosen[r] = x[last[r]]
        finish(phases, p)
    p = wait(phases, p, 1)
    p = norms(phases, p, room.chosen, w.final_scale, w.final_shift, eps, offset, room.chosen_normed)
    return linear(phases, p, room.chosen_normed, w.head, w.head_scales, w.head_bias, scores, NOTHING, x)
