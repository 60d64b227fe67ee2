"""How keys and values lie in memory, in float32, float16 or int8.

    keys      (layers, slots, heads, panels of tokens, head_dim, `PANEL`): a panel as of weights (see `tiles`)
    values    (layers, slots, heads, tokens, width)

A float16 is kept as its bits, int16. In int8 a token has two scales for each head, of its key and of its value: number
times scale is what was kept, within half a scale. The scales of a panel's tokens are float32 in its last bytes, as if
head_dim were `_ROWS_OF_SCALES` more, so who copies a panel copies them, too. Numbers are multiplied without them:
the product with a key is multiplied by its scale afterwards, the weight of a value by its scale before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from glassgpt.generation.cpu.compiled import compiled
from glassgpt.generation.cpu.numbers import Array, zeros
from glassgpt.generation.cpu.panels import filled
from glassgpt.generation.cpu.tiles import LANES, PANEL

_KINDS: dict[str, Any] = {"float32": np.float32, "float16": np.int16, "int8": np.int8}
CACHES = tuple(_KINDS)
"""Number types of keys and values."""

OF_KEYS, OF_VALUES = 0, 1
"""Which scales."""

_ROWS_OF_SCALES = 8  # of bytes: two float32 for each token of a panel
_LARGEST_FLOAT16 = 65504.0
_LEAST = 1e-30  # what is smaller becomes 0: its scale could not be divided by


def new_cache(
    cache: str, n_layers: int, n_slots: int, n_heads: int, n_tokens: int, head_dim: int
) -> tuple[Array, Array]:
    """Keys and values of so many tokens, all 0, in the number type `cache`."""
    kind, panels = _KINDS[cache], -(-n_tokens // PANEL)
    # zeros, not empty: a weight of 0 times the NaN that stale memory may hold is NaN
    shape = (n_layers, n_slots, n_heads)
    rows = head_dim + (_ROWS_OF_SCALES if cache == "int8" else 0)
    return zeros((*shape, panels, rows, PANEL), kind), zeros((*shape, n_tokens, filled(head_dim, LANES)), kind)


def keep(keys, values, scales, slot, head, position, key, value):
    """Keep a token's key and value in one head, (head_dim,) float32, in one layer of the cache.

    `scales`: `scales_of(keys)`.
    """
    raise NotImplementedError("only in compiled code")


@overload(keep)
def _keep(keys, values, scales, slot, head, position, key, value):
    def keep_floats(keys, values, scales, slot, head, position, key, value):
        panel, lane, into = keys[slot, head, position // PANEL], position % PANEL, values[slot, head, position]
        for i in range(len(key)):
            panel[i, lane] = _rounded(keys, key[i])
            into[i] = _rounded(keys, value[i])

    def keep_integers(keys, values, scales, slot, head, position, key, value):
        panel, lane, into = keys[slot, head, position // PANEL], position % PANEL, values[slot, head, position]
        n_before = (slot * keys.shape[1] + head) * keys.shape[2] + position // PANEL
        at = (n_before + 1) * (keys.shape[3] * PANEL // 4) - 2 * PANEL + lane
        scales[at + OF_KEYS * PANEL], scales[at + OF_VALUES * PANEL] = _scale(key), _scale(value)
        of_key, of_value = _inverse(scales[at + OF_KEYS * PANEL]), _inverse(scales[at + OF_VALUES * PANEL])
        for i in range(len(key)):
            panel[i, lane] = _nearest(key[i] * of_key)
        for i in range(len(value)):
            into[i] = _nearest(value[i] * of_value)

    return keep_integers if keys.dtype == types.int8 else keep_floats


def times_scales(panels, which, rows, begin):
    """rows[:, s] *= the scale of token s, from `begin`, where a panel begins, to the end, where one ends."""
    raise NotImplementedError("only in compiled code")


@overload(times_scales)
def _times_scales(panels, which, rows, begin):
    if panels.dtype != types.int8:
        return lambda panels, which, rows, begin: None

    def integers(panels, which, rows, begin):
        scales, words = scales_of(panels), panels.shape[1] * PANEL // 4
        for panel in range(begin // PANEL, rows.shape[1] // PANEL):
            at = (panel + 1) * words + (which - 2) * PANEL
            of_panel = scales[at : at + PANEL]
            for row in range(len(rows)):
                part = rows[row, panel * PANEL : (panel + 1) * PANEL]
                for i in range(PANEL):
                    part[i] *= of_panel[i]

    return integers


def scales_of(keys):
    """Keys in int8 as float32, flat, which is where scales are; of other number types nothing to be read."""
    raise NotImplementedError("only in compiled code")


@overload(scales_of)
def _scales_of(keys):
    if keys.dtype == types.int8:
        return lambda keys: keys.reshape(-1).view(np.float32)
    return lambda keys: keys


@compiled()
def _scale(numbers):
    largest = np.float32(0)
    for i in range(len(numbers)):
        largest = max(largest, abs(numbers[i]))
    return largest / np.float32(127) if largest > np.float32(_LEAST) else np.float32(0)


@compiled()
def _inverse(scale):
    return np.float32(1) / scale if scale > np.float32(0) else np.float32(0)


@compiled()
def _nearest(x):
    return np.int8(np.int32(x + np.float32(0.5) if x > np.float32(0) else x - np.float32(0.5)))


def _rounded(cache, x):
    """A float as the cache keeps it."""
    raise NotImplementedError("only in compiled code")


@overload(_rounded, inline="always")
def _rounded_to(cache, x):
    if cache.dtype == types.float32:
        return lambda cache, x: x
    most = _LARGEST_FLOAT16
    return lambda cache, x: _float16_bits(  # type: ignore[call-arg]  # numba gives the first
        min(max(np.float32(x), np.float32(-most)), np.float32(most))
    )


@intrinsic
def _float16_bits(typingctx, x):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), codegen
