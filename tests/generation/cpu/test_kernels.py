"""Each kernel beside its plain formula, and each tile in the forms of other machines."""

import math
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from glassgpt.generation.cpu import kernels
from glassgpt.generation.cpu import panels as panels_of
from glassgpt.generation.cpu.cache import CACHES, new_cache
from glassgpt.generation.cpu.numbers import GROUP, Groups, to_groups, zeros
from glassgpt.generation.cpu.panels import filled
from glassgpt.generation.cpu.team import Team, finish, new_phases, take, wait
from glassgpt.generation.cpu.tiles import PANEL, Machine, features, tile
from glassgpt.generation.cpu.weights import PRECISIONS

RANDOM = np.random.default_rng()
OFFSETS = {"float32": 0, "bfloat16": 0, "int8": 128, "int4": 8}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """For each test, whichever ran before it."""
    RANDOM.bit_generator.state = np.random.default_rng(7).bit_generator.state


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def in_panels(matrix: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix as the kernels read it, its scales, and what both stand for, in float64."""
    n_out, columns = matrix.shape[0], filled(matrix.shape[1])
    panels = filled(n_out) // PANEL
    scales = zeros((panels, columns // GROUP * PANEL if OFFSETS[precision] else 0), np.uint16)
    if precision == "float32":
        data = zeros((panels, columns * PANEL), np.float32)
        panels_of.pack(matrix, 0, data)
        return data, scales, matrix.astype(np.float64)
    if precision == "bfloat16":
        data = zeros((panels, columns * PANEL), np.uint16)
        panels_of.pack(matrix, 0, data)
        bits = matrix.view(np.uint32).astype(np.uint64)
        upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
        return data, scales, upper.view(np.float32).astype(np.float64)
    groups = to_groups(matrix, 8 if precision == "int8" else 4)
    data = zeros((panels, columns * PANEL // (1 if precision == "int8" else 2)), np.int8)
    data = data if precision == "int8" else data.view(np.uint8)
    panels_of.pack(groups.numbers, 0, data)
    panels_of.pack_scales(groups.scales, scales)
    return data, scales, groups.to_float32().astype(np.float64)


def rows_of(x: np.ndarray, precision: str) -> tuple[kernels.Rows, np.ndarray]:
    """Activations as the kernels read them, and what they stand for."""
    rows = kernels.new_rows(*x.shape)
    rows.values[:, : x.shape[1]] = x
    if not OFFSETS[precision]:
        return rows, x.astype(np.float64)
    kernels.to_bytes(new_phases(1), 0, rows, OFFSETS[precision])
    groups = rows.values.reshape(len(x), -1, GROUP)
    scales = np.abs(groups).max(axis=2) / np.float32(127)
    safe = np.where(scales == 0, 1, scales)[:, :, None]
    rounded = np.floor(groups / safe + np.float32(0.5)) * safe
    return rows, rounded.reshape(len(x), -1)[:, : x.shape[1]].astype(np.float64)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 200])
@pytest.mark.parametrize(("n_in", "n_out"), [(32, 1), (70, 7), (768, 1000), (1100, 4)])
def test_linear(precision: str, rows: int, n_in: int, n_out: int) -> None:
    x, rounded = rows_of(normal(rows, n_in), precision)
    data, scales, matrix = in_panels(normal(n_out, n_in), precision)
    bias = np.zeros(filled(n_out), np.float32)
    bias[:n_out] = normal(n_out)
    out = np.full((rows, filled(n_out)), 9, np.float32)
    phases = new_phases(1)
    assert kernels.linear(phases, 0, x, data, scales, bias, out, kernels.NOTHING, out) == 1
    expected = rounded @ matrix.T + bias[:n_out]
    # in 8 bits, numbers half-way between two may go either way: one step of one activation
    np.testing.assert_allclose(out[:, :n_out], expected, atol=3e-4 if not OFFSETS[precision] else 0.1, rtol=1e-5)
    assert (out[:, n_out:] == 0).all(), "rows of a panel that the matrix does not have are 0"


@pytest.mark.parametrize("then", [kernels.ADD, kernels.GELU_TANH, kernels.GELU_ERF])
def test_what_follows_a_product(then: int) -> None:
    x, rounded = rows_of(normal(5, 40), "float32")
    data, scales, matrix = in_panels(normal(70, 40), "float32")
    bias, out, residual = np.zeros(128, np.float32), np.zeros((5, 128), np.float32), normal(5, 70)
    before = residual.astype(np.float64)
    kernels.linear(new_phases(1), 0, x, data, scales, bias, out, then, residual)
    product = rounded @ matrix.T
    if then == kernels.ADD:
        np.testing.assert_allclose(residual, before + product, atol=1e-4)
    else:
        np.testing.assert_allclose(out[:, :70], gelu(product, then == kernels.GELU_ERF), atol=1e-4)
        assert np.array_equal(residual, before)


def gelu(x: np.ndarray, is_erf: bool) -> np.ndarray:
    if is_erf:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("is_erf", [False, True])
def test_gelu(is_erf: bool) -> None:
    x = np.linspace(-60, 60, 40_000, dtype=np.float32)
    expected = gelu(x.astype(np.float64), is_erf)
    (kernels._gelu_erf_row if is_erf else kernels._gelu_tanh_row)(x)
    np.testing.assert_allclose(x, expected, atol=2e-6, rtol=2e-6)


def test_norms() -> None:
    x = normal(4, 45) * 3 + 1
    scale, shift = normal(45), normal(45)
    out = kernels.new_rows(4, 45)
    kernels.norms(new_phases(1), 0, x, scale, shift, np.float32(1e-5), 128, out)
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + shift
    np.testing.assert_allclose(out.values[:, :45], expected, atol=2e-6)
    assert (out.values[:, 45:] == 0).all()
    again = kernels.new_rows(4, 45)
    again.values[:] = out.values
    kernels.to_bytes(new_phases(1), 0, again, 128)
    for mine, its in zip(out, again, strict=True):
        assert np.array_equal(mine, its), "norms writes the 8-bit form, too"


@pytest.mark.parametrize("window", [1, 3, 70, 1000])
@pytest.mark.parametrize("n", [1, 4, 40, 150])
@pytest.mark.parametrize("head_dim", [5, 64, 72])
@pytest.mark.parametrize("cache", CACHES)
def test_attention(window: int, n: int, head_dim: int, cache: str) -> None:
    heads, before = 2, 3
    total, d = before + n, heads * head_dim
    qkv = normal(total, 3 * d)
    slots, positions = np.ones(total, np.int64), np.arange(total)
    keys, values = (memory[0] for memory in new_cache(cache, 1, 2, heads, total, head_dim))
    kernels.store(new_phases(1), 0, qkv, heads, head_dim, slots, positions, keys, values)
    assert not keys[0].any()
    assert not values[0].any()
    blocks, out = np.array([*range(0, n, 6), n]), np.zeros((n, filled(d)), np.float32)
    kernels.attention(
        new_phases(1), 0, qkv[before:].copy(), keys, values, kernels.new_rows(1, 1), slots[before:], positions[before:],
        blocks, heads, head_dim, window, out,
    )  # fmt: skip
    q, k, v = (qkv.astype(np.float64).reshape(total, 3, heads, head_dim)[:, which] for which in range(3))
    k, v = as_kept(k, cache), as_kept(v, cache)
    for i in range(n):
        for head in range(heads):
            seen = slice(max(0, before + i + 1 - window), before + i + 1)
            scores = k[seen, head] @ q[before + i, head] / math.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            expected = weights / weights.sum() @ v[seen, head]
            np.testing.assert_allclose(out[i, head * head_dim : (head + 1) * head_dim], expected, atol=5e-6)


def as_kept(x: np.ndarray, cache: str) -> np.ndarray:
    """What the cache makes of the numbers of each token and head."""
    if cache == "int8":
        x = x.astype(np.float32)
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        # in float32 and halves away from 0, as the kernel, or one in a million is another number
        steps = x * (1 / scale)
        return np.trunc(steps + np.copysign(np.float32(0.5), steps)).astype(np.float64) * scale
    return x.astype(cache).astype(np.float64)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_embed_reads_what_was_packed(precision: str) -> None:
    data, scales, matrix = in_panels(normal(130, 45), precision)
    tokens, positions, vectors = np.array([0, 63, 64, 129, 7]), np.array([3, 1, 0, 2, 3]), normal(4, 45)
    out = np.zeros((5, 45), np.float32)
    kernels.embed(new_phases(1), 0, tokens, data, scales, positions, vectors, out)
    np.testing.assert_allclose(out, matrix[tokens] + vectors[positions], atol=1e-6)


@pytest.mark.parametrize(("bits", "most"), [(8, 1 / 254), (4, 1 / 8)])
def test_rounding_is_bounded_by_the_largest_of_its_group(bits: int, most: float) -> None:
    matrix = normal(20, 96)
    matrix[3] = 0
    matrix[4, 40] = 100  # a number that stands out costs its own group alone
    error = np.abs(to_groups(matrix, bits).to_float32() - matrix).reshape(20, -1, GROUP)
    largest = np.abs(matrix).reshape(20, -1, GROUP).max(axis=2)[:, :, None]
    # a scale is rounded to 8 bits, which moves the largest number by up to 1/256 more
    assert (error <= (most + 1 / 256) * largest * 1.0001).all()
    assert (error[3] == 0).all()


@given(st.integers(1, 70), st.integers(1, 100), st.sampled_from([4, 8]))
def test_groups_of_any_shape(rows: int, columns: int, bits: int) -> None:
    matrix = np.random.default_rng(rows * 1000 + columns).standard_normal((rows, columns)).astype(np.float32)
    groups = to_groups(matrix, bits)
    assert groups.numbers.shape == matrix.shape
    assert groups.scales.shape == (rows, -(-columns // GROUP))
    assert ((groups.scales.view(np.uint32) & 0xFFFF) == 0).all(), "a scale is a bfloat16"
    again = to_groups(groups.to_float32(), bits)
    np.testing.assert_allclose(again.to_float32(), groups.to_float32(), rtol=0.01, atol=1e-6)


@given(st.integers(1, 150), st.integers(1, 140), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 2**32))
def test_rounding_into_panels_is_rounding_and_packing(
    rows: int, columns: int, bits: int, turned: bool, seed: int
) -> None:
    """In pieces of columns, as the matrices of a file are packed, or all at once."""
    random = np.random.default_rng(seed)
    shape = (columns, rows) if turned else (rows, columns)
    matrix = random.standard_normal(shape).astype(np.float32) * random.lognormal(0, 5, shape).astype(np.float32)
    matrix[random.random(shape) < 0.2] = 0
    matrix = matrix.T if turned else matrix
    expected, scales, _ = in_panels(matrix, f"int{bits}")
    data, found = np.zeros_like(expected), np.zeros_like(scales)
    step = GROUP * int(random.integers(1, 5))
    for first in range(0, columns, step):
        panels_of.pack_rounded(matrix[:, first : first + step], first, data, found)
    assert np.array_equal(data, expected)
    assert np.array_equal(found, scales)


def test_total() -> None:
    numbers = normal(5000)
    assert np.isfinite(panels_of.total(numbers))
    numbers[4999] = np.nan
    assert not np.isfinite(panels_of.total(numbers))


def test_zeros_begin_at_a_line_of_the_cache() -> None:
    for n in (1, 3, 1000):
        assert zeros((n, 2), np.uint16).ctypes.data % 64 == 0


# ---- tiles for other machines ------------------------------------------------------------------------------------

MACHINES = [Machine(lanes, dot) for lanes in (8, 16) for dot in ("vnni", "pairs", "plain")]


def can_run(machine: Machine) -> bool:
    needs = {"vnni": {"avx512vnni", "avx512vl"}, "pairs": {"avx2"}, "plain": set()}[machine.dot]
    return needs | ({"avx512bw"} if machine.lanes == 16 else set()) <= features()


def run_tile(machine: Machine, n_x: int, precision: str, x: np.ndarray, groups: Groups) -> np.ndarray:
    """out = x @ w.T of one panel, with the layouts written out in NumPy."""
    compute, lanes = tile(n_x, machine.vectors, machine), machine.lanes
    panel, K = lanes * machine.vectors, x.shape[1]

    @njit(error_model="numpy")
    def call(x, words, x_scales, x_zeros, w, scales, init, out):
        compute(
            x.ctypes.data, x.shape[1], words.ctypes.data, words.shape[1], x_scales.ctypes.data, x_zeros.ctypes.data,
            x_scales.shape[1], w, 0, out.shape[1], scales, 0, init.ctypes.data, 0, out.ctypes.data, out.shape[1],
            x.shape[1],
        )  # fmt: skip

    numbers, by_group = groups.numbers.astype(np.int64), x.reshape(n_x, -1, GROUP)
    scales = np.abs(by_group).max(axis=2) / np.float32(127)
    whole = np.rint(by_group / scales[:, :, None]).astype(np.int64).reshape(n_x, K)
    x_zeros = -OFFSETS.get(precision, 0) * whole.reshape(n_x, -1, GROUP).sum(axis=2)
    if machine.dot == "vnni":
        words = whole.astype(np.int8).view(np.int32)
    else:
        words = whole.reshape(n_x, -1, 4)[:, :, [0, 2, 1, 3]].astype(np.int16).reshape(n_x, -1).view(np.int32)
    if precision == "float32":
        w = numbers.T.astype(np.float32)
    elif precision == "cache float16":
        w = numbers.T.astype(np.float16).view(np.int16)
    elif precision == "cache int8":
        w = numbers.T.astype(np.int8)
    elif precision == "bfloat16":
        halves = (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        w = halves.reshape(panel, -1, 2).transpose(1, 0, 2)
    elif precision == "int8":
        w = (numbers + 128).astype(np.uint8).view(np.int8).reshape(panel, -1, 4).transpose(1, 0, 2)
    else:
        eights = (numbers + 8).astype(np.uint8).reshape(panel, -1, 8)
        w = (eights[:, :, :4] | (eights[:, :, 4:] << 4)).transpose(1, 0, 2)
    upper = (groups.scales.T.copy().view(np.uint32) >> 16).astype(np.uint16)
    out, init = np.zeros((n_x, panel), np.float32), np.arange(panel, dtype=np.float32)
    if precision.startswith("cache"):
        upper = upper.astype(np.float32)  # not read, and not bfloat16, which says that integers have a sign
    flat = [np.ascontiguousarray(a).reshape(-1) for a in (w, upper)]
    call(x, words, scales, x_zeros.astype(np.int32), *flat, init, out)
    return out - init


@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("precision", [*PRECISIONS, "cache float16", "cache int8"])
@pytest.mark.parametrize("n_x", [1, 4, 6])
def test_tiles_of_other_machines(machine: Machine, precision: str, n_x: int) -> None:
    if not can_run(machine):
        pytest.skip(f"this CPU has no instructions for {machine}")
    K, panel = 96, machine.lanes * machine.vectors
    random = np.random.default_rng(3)
    least, most = (-8, 7) if precision == "int4" else (-127, 127)
    numbers = random.integers(least, most + 1, (panel, K)).astype(np.int8)
    scales = np.ones((panel, K // GROUP), np.float32)
    if OFFSETS.get(precision):
        scales[:] = 2.0 ** random.integers(-3, 3, scales.shape)
    x = random.integers(-127, 128, (n_x, K)).astype(np.float32)  # whole numbers: every product is exact
    x[:, ::GROUP] = 127
    found = run_tile(machine, n_x, precision, x, Groups(numbers, scales))
    assert np.array_equal(found, x.astype(np.float64) @ Groups(numbers, scales).to_float32().astype(np.float64).T)


# ---- threads -----------------------------------------------------------------------------------------------------


@njit(nogil=True)
def _sums(phases: Any, numbers: Any, parts: Any, totals: Any) -> None:
    """Twice: the parts' sums, items of one phase, then the total of the parts, the one item of the next."""
    p = 0
    for turn in range(2):
        n = len(parts)
        i = take(phases, p, n)
        while i < n:
            parts[i] = numbers[i].sum() * (turn + 1)
            finish(phases, p)
            i = take(phases, p, n)
        p = wait(phases, p, n)
        if take(phases, p, 1) == 0:
            totals[turn] = parts.sum()
            finish(phases, p)
        p = wait(phases, p, 1)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_team_does_each_item_once_and_in_order(threads: int) -> None:
    team, numbers = Team(threads), np.arange(64 * 50).reshape(64, 50)
    for _ in range(50):
        parts, totals = np.zeros(64, np.int64), np.zeros(2, np.int64)
        team.run(_sums, new_phases(4), numbers, parts, totals)
        assert totals.tolist() == [numbers.sum(), 2 * numbers.sum()]


@pytest.mark.parametrize(("asked", "woken"), [(None, 4), (4, 4), (3, 3), (1, 1)])
def test_a_team_wakes_as_many_as_are_asked_for(asked: int | None, woken: int) -> None:
    team, meeting = Team(4), threading.Barrier(woken, timeout=10)
    for _ in range(3):
        team.run(meeting.wait, threads=asked)  # goes on when they are all there
    assert meeting.n_waiting == 0


def test_a_team_ends_with_its_owner() -> None:
    team = Team(4)
    team.run(_sums, new_phases(4), np.ones((3, 2), np.int64), np.zeros(3, np.int64), np.zeros(2, np.int64))
    threads = list(team._threads)
    assert [thread.is_alive() for thread in threads] == [True] * 3
    del team
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_two_teams_at_once() -> None:
    """As in a server, where two models answer."""
    results: list[list[int]] = []

    def work() -> None:
        team = Team(2)
        for _ in range(100):
            totals = np.zeros(2, np.int64)
            team.run(_sums, new_phases(4), np.ones((9, 4), np.int64), np.zeros(9, np.int64), totals)
            results.append(totals.tolist())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[36, 72]] * 300
