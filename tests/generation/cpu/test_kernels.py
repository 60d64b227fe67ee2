"""Each kernel beside its plain formula."""

import math
import subprocess
import sys

import numpy as np
import pytest

from glassgpt.generation.cpu import kernels
from glassgpt.generation.cpu.tiles import GROUP
from glassgpt.generation.cpu.weights import PRECISIONS, to_precision

RANDOM = np.random.default_rng(7)


def plain(data: np.ndarray, scales: np.ndarray, precision: str) -> np.ndarray:
    """What packed numbers stand for, in float64."""
    if precision == "float32":
        return data.astype(np.float64)
    if precision == "bfloat16":
        return (data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if precision == "int4":
        groups = data.reshape(len(data), -1, GROUP // 2)
        data = np.concatenate([groups & 15, groups >> 4], axis=2).reshape(len(data), -1).astype(np.int64) - 8
    return data.astype(np.float64) * np.repeat(scales, GROUP, axis=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 40])
@pytest.mark.parametrize(("n_in", "n_out"), [(32, 1), (64, 7), (768, 1000), (96, 4)])
def test_linear(precision: str, rows: int, n_in: int, n_out: int) -> None:
    x = RANDOM.standard_normal((rows, n_in)).astype(np.float32)
    data, scales = to_precision(RANDOM.standard_normal((n_out, n_in)).astype(np.float32), precision)
    bias = RANDOM.standard_normal(n_out).astype(np.float32)
    out = np.full((rows, n_out + 3), 9, np.float32)
    kernels.linear(x, data, scales, bias, out)
    expected = x.astype(np.float64) @ plain(data, scales, precision).T + bias
    np.testing.assert_allclose(out[:, :n_out], expected, atol=2e-4, rtol=1e-5)
    assert (out[:, n_out:] == 9).all(), "columns beyond the result are left alone"


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 2**-8), ("int8", 1 / 254), ("int4", 1 / 8)])
def test_rounding_is_bounded_by_the_largest_of_its_group(precision: str, most: float) -> None:
    matrix = RANDOM.standard_normal((20, 96)).astype(np.float32)
    matrix[3] = 0
    matrix[4, 40] = 100  # a number that stands out costs its own group alone
    data, scales = to_precision(matrix, precision)
    error = np.abs(plain(data, scales, precision) - matrix).reshape(20, -1, GROUP)
    largest = np.abs(matrix).reshape(20, -1, GROUP).max(axis=2)[:, :, None]
    assert (error <= most * largest * 1.0001).all()
    assert (error[3] == 0).all()


def test_layer_norm() -> None:
    x = (RANDOM.standard_normal((4, 45)) * 3 + 1).astype(np.float32)
    scale, shift = RANDOM.standard_normal((2, 45)).astype(np.float32)
    out = np.zeros((4, 64), np.float32)
    kernels.layer_norm(x, scale, shift, np.float32(1e-5), out)
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    np.testing.assert_allclose(out[:, :45], (x - mean) / np.sqrt(variance + 1e-5) * scale + shift, atol=2e-6)
    assert (out[:, 45:] == 0).all()


@pytest.mark.parametrize("is_erf", [False, True])
def test_gelu(is_erf: bool) -> None:
    x = np.linspace(-60, 60, 40_000, dtype=np.float32).reshape(2, -1)
    wide = x.astype(np.float64)
    if is_erf:
        expected = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
    else:
        expected = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    kernels.gelu(x, x.shape[1], is_erf)
    np.testing.assert_allclose(x, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("window", [1, 3, 1000])
@pytest.mark.parametrize("n", [1, 4, 40])
def test_attention(window: int, n: int) -> None:
    heads, head_dim, before = 2, 5, 3
    total = before + n
    keys, values = RANDOM.standard_normal((2, heads, total, head_dim)).astype(np.float32)
    queries = RANDOM.standard_normal((n, heads, head_dim)).astype(np.float32)
    q, k = np.zeros((n, heads, 32), np.float32), np.zeros((2, heads, total, 32), np.float32)
    v = np.zeros((2, heads, head_dim, kernels.filled(total)), np.float32)
    q[..., :head_dim], k[1, ..., :head_dim] = queries, keys
    v[1, ..., :total] = values.transpose(0, 2, 1)
    positions, slots = np.arange(before, total), np.ones(n, np.int64)
    blocks = np.array([*range(0, n, 6), n])
    out = np.zeros((n, 32), np.float32)
    kernels.attention(q, k, v, np.zeros((1, 1), np.float32), slots, positions, blocks, head_dim, window, out)
    for i in range(n):
        for head in range(heads):
            seen = slice(max(0, before + i + 1 - window), before + i + 1)
            scores = keys[head, seen].astype(np.float64) @ queries[i, head] / math.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            expected = weights / weights.sum() @ values[head, seen]
            found = out[i, head * head_dim : (head + 1) * head_dim]
            np.testing.assert_allclose(found, expected, atol=2e-6)


def test_transpose_and_total() -> None:
    matrix = RANDOM.standard_normal((70, 37)).astype(np.float32)
    out = np.zeros((37, 96), np.float32)
    kernels.transpose(matrix, out)
    assert np.array_equal(out[:, :70], matrix.T)
    assert np.isfinite(kernels.total(matrix.reshape(-1)))
    matrix[69, 36] = np.nan
    assert not np.isfinite(kernels.total(matrix.reshape(-1)))


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from glassgpt.generation.cpu import kernels
from glassgpt.generation.cpu.weights import to_precision
libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE

def at_the_end(array):
    # a copy whose last byte is the last one of a page, before a page that nobody may read
    pages = -(-array.nbytes // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + pages * page), page, 0) == 0
    view = np.frombuffer(memory, np.uint8)[pages * page - array.nbytes : pages * page].view(array.dtype)
    view = view.reshape(array.shape)
    view[...] = array
    return view

random = np.random.default_rng(0)
for precision in ("float32", "bfloat16", "int8", "int4"):
    for rows in (1, 5, 6, 13):
        for n_in, n_out in ((32, 1), (96, 5), (64, 9)):
            x = at_the_end(random.standard_normal((rows, n_in)).astype(np.float32))
            w = random.standard_normal((n_out, n_in)).astype(np.float32)
            data, scales = map(at_the_end, to_precision(w, precision))
            bias, out = at_the_end(np.zeros(n_out, np.float32)), at_the_end(np.zeros((rows, n_out), np.float32))
            kernels.linear(x, data, scales, bias, out)
print("nothing read beyond")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards its arrays by mprotect")
def test_nothing_is_read_beyond_a_buffer() -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nothing read beyond\n"
