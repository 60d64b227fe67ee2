"""Compiled kernels of the CPU decoder: small parts, each beside the plain formula that it computes.

Every product is the same loop, the dot product of a row of activations with a row of weights: a *tile* of a few rows of
both is kept in vector registers while their columns stream past (see `tiles`). A number in the result is the sum of
`LANES` partial sums, each over every `LANES`-th column in order, whatever the tile and however many rows are computed
together. So a row's scores are equal bit for bit alone and in any batch, and in pieces of any size.

Numba fits the code to this machine's instructions and keeps it on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from glassgpt.generation.cpu.tiles import COLUMNS, GROUP, ROWS, WEIGHT_ROWS, tile

_tile_1x1, _tile_1xw = tile(1, 1), tile(1, WEIGHT_ROWS)
_tile_xx1, _tile_xxw = tile(ROWS, 1), tile(ROWS, WEIGHT_ROWS)

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_ELEMENTWISE = {"contract", "nnan", "ninf", "nsz"}


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile when first called, and keep it on the disk where that can be: in the package, or in the user's cache."""

    def decorate(function: Callable[..., Any]) -> Any:
        options.update(nogil=True, error_model="numpy")  # a division by 0 is infinite, not an exception in each loop
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to write
            return njit(**options)(function)

    return decorate


def filled(n: int) -> int:
    """The number of columns in memory for `n` columns: those that are left over are 0."""
    return -(-n // COLUMNS) * COLUMNS


@compiled()
def products(
    x, x_at, x_stride, n_x, w, w_at, w_stride, scales, scales_at, scales_stride, n_w, out, out_at, out_stride, n
):
    """out[i, j] = x[i] . w[j] over `n` columns, for flat arrays, offsets and strides in numbers, on this thread."""
    x_base, out_base = x.ctypes.data, out.ctypes.data
    i = 0
    while i < n_x:
        many = n_x - i >= ROWS
        xa = x_base + 4 * (x_at + i * x_stride)
        j = 0
        while j < n_w:
            oa = out_base + 4 * (out_at + i * out_stride + j)
            wa, sa = w_at + j * w_stride, scales_at + j * scales_stride
            if n_w - j >= WEIGHT_ROWS:
                if many:
                    _tile_xxw(xa, x_stride, w, wa, w_stride, scales, sa, scales_stride, oa, out_stride, n)
                else:
                    _tile_1xw(xa, x_stride, w, wa, w_stride, scales, sa, scales_stride, oa, out_stride, n)
                j += WEIGHT_ROWS
            else:
                if many:
                    _tile_xx1(xa, x_stride, w, wa, w_stride, scales, sa, scales_stride, oa, out_stride, n)
                else:
                    _tile_1x1(xa, x_stride, w, wa, w_stride, scales, sa, scales_stride, oa, out_stride, n)
                j += 1
        i += ROWS if many else 1


_BLOCK = 2**16
"""Weights that one thread reads at a time: they stay in its cache while all rows of activations pass."""
_SERIAL = 2**18
"""Multiplications that are done before a second thread has begun."""


@compiled()
def _linear_block(x, w, scales, bias, out, first, n):
    K = x.shape[1]
    w_stride, s_stride = w.shape[1], scales.shape[1]
    products(
        x.reshape(-1), 0, K, len(x),
        w.reshape(-1), first * w_stride, w_stride, scales.reshape(-1), first * s_stride, s_stride, n,
        out.reshape(-1), first, out.shape[1], K,
    )  # fmt: skip
    for m in range(len(x)):
        for i in range(first, first + n):
            out[m, i] += bias[i]


@compiled(parallel=True)
def _linear_parallel(x, w, scales, bias, out, block):
    for b in prange((len(bias) + block - 1) // block):
        _linear_block(x, w, scales, bias, out, b * block, min(block, len(bias) - b * block))


@compiled()
def linear(x, w, scales, bias, out):
    """out[:, :N] = x @ w.T + bias: (M, K) activations, (N, K) weights, N biases."""
    M, K = x.shape
    if M * K * len(bias) < _SERIAL:
        _linear_block(x, w, scales, bias, out, 0, len(bias))
    else:
        _linear_parallel(x, w, scales, bias, out, max(WEIGHT_ROWS, _BLOCK // K // WEIGHT_ROWS * WEIGHT_ROWS))


@compiled(fastmath=True)
def layer_norm(x, scale, shift, eps, out):
    """out = (x - mean) / sqrt(variance + eps) * scale + shift, for each row; columns beyond len(scale) are left."""
    n = len(scale)
    for m in range(len(x)):
        row, result = x[m], out[m]
        total = np.float32(0)
        for i in range(n):
            total += row[i]
        mean = total / np.float32(n)
        total = np.float32(0)
        for i in range(n):
            total += (row[i] - mean) * (row[i] - mean)
        factor = np.float32(1) / np.float32(math.sqrt(total / np.float32(n) + eps))
        for i in range(n):
            result[i] = (row[i] - mean) * factor * scale[i] + shift[i]


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


@compiled(fastmath=_ELEMENTWISE)
def _exp(x):
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


@compiled(fastmath=_ELEMENTWISE)
def _gelu_tanh_row(row, n):
    for i in range(n):
        v = row[i]
        u = np.float32(1.5957691216) * (v + np.float32(0.044715) * v * v * v)  # 2 sqrt(2 / pi) (...)
        row[i] = v / (np.float32(1) + _exp(-u))  # (1 + tanh(u / 2)) / 2 is the logistic function of u


@compiled()
def _gelu_erf_row(row, n):
    for i in range(n):
        row[i] = row[i] * np.float32(0.5) * (np.float32(1) + np.float32(math.erf(row[i] * 0.7071067811865476)))


@compiled(parallel=True)
def _gelu_parallel(x, n, is_erf):
    for m in prange(len(x)):
        if is_erf:
            _gelu_erf_row(x[m], n)
        else:
            _gelu_tanh_row(x[m], n)


@compiled()
def gelu(x, n, is_erf):
    """x = x Phi(x), exactly or by the tanh form, in place, of the first `n` columns of each row."""
    if len(x) > 1 and len(x) * n > 2**14:
        _gelu_parallel(x, n, is_erf)
    else:
        for m in range(len(x)):
            if is_erf:
                _gelu_erf_row(x[m], n)
            else:
                _gelu_tanh_row(x[m], n)


@compiled(fastmath=_ELEMENTWISE)
def _exponentials(row, first, last, factor, largest):
    for s in range(first, last):
        row[s] = _exp((row[s] - largest) * factor)


@compiled(fastmath=True)
def _softmax(row, first, last, n, factor):
    """row[first:last] = softmax of row[first:last] * factor; the rest of the first `n` numbers is 0."""
    largest = row[first]
    for s in range(first, last):
        largest = max(largest, row[s])
    _exponentials(row, first, last, factor, largest)
    total = np.float32(0)
    for s in range(first, last):
        total += row[s]
    inverse = np.float32(1) / total
    for s in range(first, last):
        row[s] *= inverse
    row[:first] = 0
    row[last:n] = 0


@compiled()
def _attend(q, keys, values, none, slots, positions, first, n, head, head_dim, factor, window, out):
    """One head for `n` neighbouring tokens of one row."""
    width, capacity = keys.shape[3], keys.shape[2]
    seen = positions[first + n - 1] + 1
    columns = (seen + COLUMNS - 1) // COLUMNS * COLUMNS
    weights = np.empty((n, columns), np.float32)
    flat = weights.reshape(-1)
    place = (slots[first] * keys.shape[1] + head) * capacity * width
    products(
        q.reshape(-1), (first * q.shape[1] + head) * width, q.shape[1] * width, n,
        keys.reshape(-1), place, width, none, 0, 0, seen, flat, 0, columns, width,
    )  # fmt: skip
    for i in range(n):
        last = positions[first + i] + 1
        _softmax(weights[i], max(0, last - window), last, columns, factor)
    place = (slots[first] * values.shape[1] + head) * values.shape[2] * values.shape[3]
    products(
        flat, 0, columns, n, values.reshape(-1), place, values.shape[3], none, 0, 0, head_dim,
        out.reshape(-1), first * out.shape[1] + head * head_dim, out.shape[1], columns,
    )  # fmt: skip


@compiled(parallel=True)
def _attention_parallel(q, keys, values, none, slots, positions, blocks, head_dim, factor, window, out):
    n_heads = q.shape[1]
    for task in prange((len(blocks) - 1) * n_heads):
        b, head = task // n_heads, task % n_heads
        first, n = blocks[b], blocks[b + 1] - blocks[b]
        _attend(q, keys, values, none, slots, positions, first, n, head, head_dim, factor, window, out)


@compiled()
def attention(q, keys, values, none, slots, positions, blocks, head_dim, window, out):
    """out = softmax(q keys / sqrt(head_dim)) values, for each head; a token sees the `window` last ones up to itself.

    q: (M, heads, width), heads filled up to `width` with zeros; keys: (slots, heads, capacity, width); values, whose
    columns are tokens: (slots, heads, head_dim, capacity); blocks: the first token of each group of neighbours in one
    row, and M; out: (M, heads * head_dim or more).
    """
    factor = np.float32(1 / math.sqrt(head_dim))
    work = 0
    for m in range(len(positions)):
        work += positions[m] + 1
    n_heads = q.shape[1]
    if work * n_heads * head_dim < _SERIAL // 4:
        for b in range(len(blocks) - 1):
            for head in range(n_heads):
                first, n = blocks[b], blocks[b + 1] - blocks[b]
                _attend(q, keys, values, none, slots, positions, first, n, head, head_dim, factor, window, out)
    else:
        _attention_parallel(q, keys, values, none, slots, positions, blocks, head_dim, factor, window, out)


@compiled()
def split_heads(qkv, head_dim, slots, positions, q, keys, values):
    """Queries to `q`; keys and values to the cache, at each token's slot and position (shapes: see `attention`)."""
    M, n_heads, _ = q.shape
    d = n_heads * head_dim
    for m in range(M):
        slot, position = slots[m], positions[m]
        for head in range(n_heads):
            for i in range(head_dim):
                at = head * head_dim + i
                q[m, head, i] = qkv[m, at]
                keys[slot, head, position, i] = qkv[m, d + at]
                values[slot, head, i, position] = qkv[m, 2 * d + at]


@compiled()
def add(x, y):
    """x += y."""
    for m in range(len(x)):
        for i in range(x.shape[1]):
            x[m, i] += y[m, i]


# ---- reading and packing weights ---------------------------------------------------------------------------------


@intrinsic
def _from_bits(typingctx, bits):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.uint32), codegen


def number(w, scales, row, column):
    """One number of a matrix of any number type, as float32."""
    raise NotImplementedError("only in compiled code")


@overload(number, inline="always")
def _number(w, scales, row, column):
    half = GROUP // 2
    if w.dtype == types.float32:
        return lambda w, scales, row, column: w[row, column]
    if w.dtype == types.uint16:
        return lambda w, scales, row, column: _from_bits(  # type: ignore[call-arg]
            np.uint32(w[row, column]) << np.uint32(16)
        )
    if w.dtype == types.int8:
        return lambda w, scales, row, column: np.float32(w[row, column]) * scales[row, column // GROUP]

    def nibble(w, scales, row, column):
        group, place = column // GROUP, column % GROUP
        byte = w[row, group * half + place % half]
        four = byte >> 4 if place >= half else byte & 15
        return np.float32(np.int32(four) - 8) * scales[row, group]

    return nibble


@compiled()
def embed(tokens, w, scales, positions, vectors, out):
    """out = the row of `w` of each token + the row of `vectors` of its position, (M, d)."""
    for m in range(len(tokens)):
        for i in range(vectors.shape[1]):
            out[m, i] = number(w, scales, tokens[m], i) + vectors[positions[m], i]


@compiled(parallel=True)
def transpose(matrix, out):
    """out[:, : len(matrix)] = matrix.T, in squares that stay in the cache."""
    rows, columns, size = len(matrix), matrix.shape[1], 32
    for b in prange((columns + size - 1) // size):
        for first in range(0, rows, size):
            for c in range(b * size, min(columns, (b + 1) * size)):
                for r in range(first, min(rows, first + size)):
                    out[c, r] = matrix[r, c]


@compiled(parallel=True, fastmath={"contract", "reassoc"})
def total(numbers):
    """The sum of a flat array: not finite if one of its numbers is not, unless the finite ones are far too large."""
    result = np.float32(0)
    for i in prange(len(numbers)):
        result += numbers[i]
    return result


@compiled(parallel=True)
def to_bfloat16(bits):
    """The upper halves of float32 numbers, given by their bits, rounded to the nearest even one."""
    out = np.empty(bits.shape, np.uint16)
    for r in prange(bits.shape[0]):
        for c in range(bits.shape[1]):
            b = bits[r, c]
            out[r, c] = np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
    return out
