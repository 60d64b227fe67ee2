"""Compiled kernels of the CPU decoder: small parts, each beside the plain formula that it computes.

The large ones share their work among threads (see `team`): they are called by all of them, take the counters and the
number of their phase, and return the number of the next. Every product is one loop, a *tile* (see `tiles`): each number
in its result is a sum in the order of the columns, whatever the tile and however many rows are computed together. So a
row's scores are equal bit for bit alone and in any batch, in pieces of any size, and with any number of threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glassgpt.generation.cpu.cache import OF_KEYS, OF_VALUES, keep, scales_of, times_scales
from glassgpt.generation.cpu.compiled import compiled
from glassgpt.generation.cpu.numbers import GROUP, Array, zeros
from glassgpt.generation.cpu.panels import filled, number
from glassgpt.generation.cpu.team import finish, take, wait
from glassgpt.generation.cpu.tiles import HERE, LANES, PANEL, WORDS, tile

_tile_1, _tile_2, _tile_4, _tile_6 = tile(1), tile(2), tile(4), tile(6)
_narrow_1, _narrow_6 = tile(1, 1), tile(6, 1)
_VNNI = HERE.dot == "vnni"

_BLOCK = 512
"""Columns of a panel that are multiplied by many rows of activations before the next ones: they stay in the cache."""
_CHUNK = 96
"""Rows of activations in an item of a long prompt."""

NOTHING, ADD, GELU_TANH, GELU_ERF = range(4)
"""What is done to a product once it is there."""

_F32, _I32 = ir.FloatType(), ir.IntType(32)
ELEMENTWISE = {"contract", "nnan", "ninf", "nsz"}
"""What a compiler may do to formulas without changing a bit of any result from one call to the next.

Freedom to reorder sums is for loops that do nothing else: a loop that also writes is compiled twice, for arrays that
lie apart and for those that might not, and the two would round differently.
"""


class Rows(NamedTuple):
    """Activations that are about to be multiplied: rows of numbers, filled up with zeros."""

    values: Array
    """(M, columns) float32."""
    words: Array
    """(M, words) int32: the same, rounded to 8 bits, for weights that are integers; otherwise unused, like the rest."""
    scales: Array
    """(M, groups) float32."""
    zeros: Array
    """(M, groups) int32: what a group's sum begins with, as the weights are kept without a sign."""


def new_rows(n_rows: int, n_columns: int) -> Rows:
    """Room for so many."""
    columns = filled(n_columns)
    groups = columns // GROUP
    return Rows(
        zeros((n_rows, columns), np.float32),
        zeros((n_rows, groups * WORDS), np.int32),
        np.zeros((n_rows, groups), np.float32),
        np.zeros((n_rows, groups), np.int32),
    )


@compiled()
def product(x, x_at, x_stride, rows, first, group, n_x, w, w_at, scales, s_at, init, e_stride, out, f_stride, n):
    """out[i, r] = init[i, r] + x[i] . w[r] over `n` columns, for `n_x` rows of x and one panel of w.

    `x`, `init` and `out` are addresses of float32 numbers. For integer weights `rows` has the activations, from row
    `first` and group of columns `group` on.
    """
    words, w_words, w_groups = rows.words.ctypes.data, rows.words.shape[1], rows.scales.shape[1]
    x_scales, x_zeros = rows.scales.ctypes.data, rows.zeros.ctypes.data
    most = 4 if w.itemsize == 1 and scales.itemsize == 2 else 6  # integers need registers for two sums of each kind
    done = 0
    while done < n_x:
        m, left = first + done, n_x - done
        a, b = x + 4 * (x_at + done * x_stride), words + 4 * (m * w_words + group * WORDS)
        c, d = x_scales + 4 * (m * w_groups + group), x_zeros + 4 * (m * w_groups + group)
        e, f = init + 4 * done * e_stride, out + 4 * done * f_stride
        # fmt: off
        if left >= most == 6:
            _tile_6(a, x_stride, b, w_words, c, d, w_groups, w, w_at, PANEL, scales, s_at, e, e_stride, f, f_stride, n)
            done += 6
        elif left >= 4:
            _tile_4(a, x_stride, b, w_words, c, d, w_groups, w, w_at, PANEL, scales, s_at, e, e_stride, f, f_stride, n)
            done += 4
        elif left >= 2:
            _tile_2(a, x_stride, b, w_words, c, d, w_groups, w, w_at, PANEL, scales, s_at, e, e_stride, f, f_stride, n)
            done += 2
        else:
            _tile_1(a, x_stride, b, w_words, c, d, w_groups, w, w_at, PANEL, scales, s_at, e, e_stride, f, f_stride, n)
            done += 1
        # fmt: on


@compiled()
def linear(phases, phase, x, w, scales, bias, out, then, residual):
    """out = x @ w.T + bias, panel by panel; `then` it is added to `residual`, or goes through GELU.

    x: `Rows` of K columns; w: (panels, K numbers of each row of a panel); bias: (panels * `PANEL`,); out: (M, at least
    as many).
    """
    M, K, n_panels = len(out), x.values.shape[1], len(w)
    n_chunks = (M + _CHUNK - 1) // _CHUNK
    n = n_panels * n_chunks
    flat, flat_scales = w.reshape(-1), scales.reshape(-1)
    i = take(phases, phase, n)
    while i < n:
        panel, first = i % n_panels, i // n_panels * _CHUNK
        m = min(_CHUNK, M - first)
        place = out.ctypes.data + 4 * (first * out.shape[1] + panel * PANEL)
        block = K if m <= 6 else _BLOCK
        init, init_stride = bias.ctypes.data + 4 * panel * PANEL, 0
        for k in range(0, K, block):
            product(
                x.values.ctypes.data, first * K + k, K, x, first, k // GROUP, m,
                flat, (panel * w.shape[1]) + k * w.shape[1] // K,
                flat_scales, panel * scales.shape[1] + k // GROUP * PANEL,
                init, init_stride, place, out.shape[1], min(block, K - k),
            )  # fmt: skip
            init, init_stride = place, out.shape[1]
        _then(then, out, residual, first, m, panel * PANEL)
        finish(phases, phase)
        i = take(phases, phase, n)
    return wait(phases, phase, n)


@compiled()
def _then(then, out, residual, first, m, column):
    if then == NOTHING:
        return
    for row in range(first, first + m):
        part = out[row, column : column + PANEL]
        if then == ADD:
            into = residual[row, column : column + PANEL]
            for i in range(len(into)):
                into[i] += part[i]
        elif then == GELU_TANH:
            _gelu_tanh_row(part)
        else:
            _gelu_erf_row(part)


@intrinsic
def _floor(typingctx, x):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        floor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_F32, [_F32]), "llvm.floor.f32")
        return builder.call(floor, args)

    return types.float32(types.float32), codegen


@intrinsic
def _power_of_two(typingctx, n):
    """2^n for a whole n from -126 to 127, by its exponent's bits."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        exponent = builder.add(builder.fptosi(args[0], _I32), ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), codegen


@compiled(fastmath=ELEMENTWISE)
def exponential(x):
    """e^x within 2 units in the last place, in operations that a compiler turns into vectors (Cody and Waite, 1980)."""
    x = np.float32(87.0) if x > np.float32(87.0) else x
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    n: Any = _floor(x * np.float32(1.44269504) + np.float32(0.5))  # type: ignore[call-arg]  # numba gives the first
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * _power_of_two(n)


@compiled(fastmath=ELEMENTWISE)
def _gelu_tanh_row(row):
    """x Phi(x) by the tanh form, in place."""
    for i in range(len(row)):
        v = row[i]
        u = np.float32(1.5957691216) * (v + np.float32(0.044715) * v * v * v)  # 2 sqrt(2 / pi) (...)
        row[i] = v / (np.float32(1) + exponential(-u))  # (1 + tanh(u / 2)) / 2 is the logistic function of u


@compiled()
def _gelu_erf_row(row):
    """x Phi(x), in place."""
    for i in range(len(row)):
        row[i] = row[i] * np.float32(0.5) * (np.float32(1) + np.float32(math.erf(row[i] * 0.7071067811865476)))


@compiled()
def norms(phases, phase, x, scale, shift, eps, offset, out):
    """out = layer_norm(x), each row an item; and to 8 bits, where the weights are integers with an `offset`."""
    i = take(phases, phase, len(x))
    while i < len(x):
        _layer_norm(x[i], scale, shift, eps, out.values[i])
        if offset:
            _to_bytes(out, i, offset)
        finish(phases, phase)
        i = take(phases, phase, len(x))
    return wait(phases, phase, len(x))


@compiled(fastmath=ELEMENTWISE)
def _layer_norm(row, scale, shift, eps, result):
    """(x - mean) / sqrt(variance + eps) * scale + shift."""
    mean = _sum(row) / np.float32(len(row))
    factor = np.float32(1) / np.float32(math.sqrt(_sum_of_squares(row, mean) / np.float32(len(row)) + eps))
    for i in range(len(row)):
        result[i] = (row[i] - mean) * factor * scale[i] + shift[i]


@compiled(fastmath=True)
def _sum(row):
    total = np.float32(0)
    for i in range(len(row)):
        total += row[i]
    return total


@compiled(fastmath=True)
def _sum_of_squares(row, mean):
    total = np.float32(0)
    for i in range(len(row)):
        total += (row[i] - mean) * (row[i] - mean)
    return total


@compiled()
def to_bytes(phases, phase, x, offset):
    """The 8-bit form of rows, each an item; nothing where `offset` is 0, which is to say the weights are floats."""
    if not offset:
        return phase
    n = len(x.values)
    i = take(phases, phase, n)
    while i < n:
        _to_bytes(x, i, offset)
        finish(phases, phase)
        i = take(phases, phase, n)
    return wait(phases, phase, n)


@compiled(fastmath=ELEMENTWISE)
def _to_bytes(x, row, offset):
    """Round to whole numbers from -127 to 127, times a scale for each group of columns."""
    values, scales, zeros = x.values[row], x.scales[row], x.zeros[row]
    bytes_, halves = x.words[row].view(np.int8), x.words[row].view(np.int16)
    for group in range(len(scales)):
        part = values[group * GROUP : (group + 1) * GROUP]
        largest = np.float32(0)
        for i in range(GROUP):
            largest = max(largest, abs(part[i]))
        factor = np.float32(127) / largest if largest > 0 else np.float32(0)
        total = np.int32(0)
        if _VNNI:
            into = bytes_[group * GROUP : (group + 1) * GROUP]
            for i in range(GROUP):
                number = np.int32(_floor(part[i] * factor + np.float32(0.5)))  # type: ignore[call-arg]
                total += number
                into[i] = np.int8(number)
        else:  # columns 0 and 2 of four side by side, then 1 and 3
            for i in range(GROUP):
                number = np.int32(_floor(part[i] * factor + np.float32(0.5)))  # type: ignore[call-arg]
                total += number
                halves[group * GROUP + (i & ~3) + ((i & 1) << 1) + ((i & 2) >> 1)] = np.int16(number)
        scales[group] = largest / np.float32(127)
        zeros[group] = -np.int32(offset) * total


@compiled(fastmath=ELEMENTWISE)
def _exponentials(row, factor, largest):
    for s in range(len(row)):
        row[s] = exponential((row[s] - largest) * factor)


@compiled(fastmath=ELEMENTWISE)
def _softmax(row, factor):
    """softmax of row * factor, in place."""
    largest = row[0]
    for s in range(len(row)):
        largest = max(largest, row[s])
    _exponentials(row, factor, largest)
    inverse = np.float32(1) / _sum(row)
    for s in range(len(row)):
        row[s] *= inverse


@compiled()
def store(phases, phase, qkv, n_heads, head_dim, slots, positions, keys, values):
    """Keys and values of new tokens to one layer of the cache (see `cache`), at each one's slot and position.

    A head is an item.
    """
    d, scales = n_heads * head_dim, scales_of(keys)
    head = take(phases, phase, n_heads)
    while head < n_heads:
        for m in range(len(qkv)):
            row, position = qkv[m], positions[m]
            key, value = d + head * head_dim, 2 * d + head * head_dim
            keep(
                keys, values, scales, slots[m], head, position, row[key : key + head_dim], row[value : value + head_dim]
            )
        finish(phases, phase)
        head = take(phases, phase, n_heads)
    return wait(phases, phase, n_heads)


@compiled()
def attention(
    phases, phase, qkv, keys, values, none, slots, positions, blocks, n_heads, head_dim, window, out
):  # fmt: skip
    """out = softmax(q keys / sqrt(head_dim)) values; a token sees the `window` last ones up to itself.

    qkv: (M, at least heads * head_dim), queries first; keys and values: see `cache`; blocks: the first token of each
    group of neighbours in one row, and M; out: (M, heads * head_dim or more). An item is one head of one block.
    """
    n_blocks = len(blocks) - 1
    n = n_blocks * n_heads
    i = take(phases, phase, n)
    while i < n:  # block by block of a head, whose keys and values stay in the cache
        block = i % n_blocks
        first = blocks[block]
        _attend(
            qkv, keys, values, none, slots[first], positions, first, blocks[block + 1] - first,
            i // n_blocks, head_dim, window, out,
        )  # fmt: skip
        finish(phases, phase)
        i = take(phases, phase, n)
    return wait(phases, phase, n)


@compiled()
def _attend(qkv, keys, values, none, slot, positions, first, n, head, head_dim, window, out):
    """One head for `n` neighbouring tokens of one row."""
    width, seen = values.shape[3], positions[first + n - 1] + 1
    begin = max(0, positions[first] + 1 - window) // PANEL * PANEL
    columns = (seen + PANEL - 1) // PANEL * PANEL
    weights, zeros = np.empty((n, columns), np.float32), np.zeros(columns, np.float32)
    key_panels = keys[slot, head]
    key_numbers, per_panel = key_panels.reshape(-1), keys.shape[3] * PANEL
    for panel in range(begin // PANEL, columns // PANEL):
        product(
            qkv.ctypes.data, first * qkv.shape[1] + head * head_dim, qkv.shape[1], none, 0, 0, n,
            key_numbers, panel * per_panel, none.scales, 0,
            zeros.ctypes.data, 0, weights.ctypes.data + 4 * panel * PANEL, columns, head_dim,
        )  # fmt: skip
    times_scales(key_panels, OF_KEYS, weights, begin)
    factor = np.float32(1 / math.sqrt(head_dim))
    for i in range(n):
        row, last = weights[i], positions[first + i] + 1
        before = max(begin, last - window)
        row[begin:before] = 0
        _softmax(
            row[before:last], factor
        )  # a part, whose places begin at 0: others might be negative, for all Numba knows
        row[last:] = 0
    times_scales(key_panels, OF_VALUES, weights, begin)
    result = np.empty((n, width), np.float32)
    flat = values[slot, head].reshape(-1)
    column = 0
    while column < width:
        step = PANEL if width - column >= PANEL else LANES
        _value_tiles(
            weights.ctypes.data + 4 * begin, columns, n, none, flat, begin * width + column, width, zeros.ctypes.data,
            result.ctypes.data + 4 * column, seen - begin, step == PANEL,
        )  # fmt: skip
        column += step
    for i in range(n):
        into = out[first + i, head * head_dim : (head + 1) * head_dim]
        for c in range(head_dim):
            into[c] = result[i, c]


@compiled()
def _value_tiles(x, x_stride, n_x, none, w, w_at, width, zeros, out, n, is_wide):
    """out[i] = sum over the tokens t of x[i, t] w[t], for some columns of w."""
    done = 0
    while done < n_x:
        a, b = x + 4 * done * x_stride, out + 4 * done * width
        if n_x - done >= 6:
            if is_wide:
                _tile_6(a, x_stride, 0, 0, 0, 0, 0, w, w_at, width, none.scales, 0, zeros, 0, b, width, n)
            else:
                _narrow_6(a, x_stride, 0, 0, 0, 0, 0, w, w_at, width, none.scales, 0, zeros, 0, b, width, n)
            done += 6
        else:
            if is_wide:
                _tile_1(a, x_stride, 0, 0, 0, 0, 0, w, w_at, width, none.scales, 0, zeros, 0, b, width, n)
            else:
                _narrow_1(a, x_stride, 0, 0, 0, 0, 0, w, w_at, width, none.scales, 0, zeros, 0, b, width, n)
            done += 1


@compiled()
def embed(phases, phase, tokens, w, scales, positions, vectors, out):
    """out = the row of `w` of each token + the row of `vectors` of its position, (M, d); a token is an item."""
    n = len(tokens)
    m = take(phases, phase, n)
    while m < n:
        for i in range(vectors.shape[1]):
            out[m, i] = number(w, scales, tokens[m], i) + vectors[positions[m], i]
        finish(phases, phase)
        m = take(phases, phase, n)
    return wait(phases, phase, n)
