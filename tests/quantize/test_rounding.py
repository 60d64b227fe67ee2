"""The three ways of quantising a matrix: what they give, and that each is better than the one before it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.generation.cpu.numbers import GROUP, Groups
from glassgpt.quantize.rounding import METHODS, quantized


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and the mean of x x^T of inputs that depend on each other and of which two columns stand out."""
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=random)
    x = torch.randn(512, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    x[:, :2] *= 30
    return matrix, x.T @ x / len(x)


def output_error(matrix: torch.Tensor, found: Groups, hessian: torch.Tensor) -> float:
    error = (matrix - torch.from_numpy(found.to_float32())).double()
    return float(((error @ hessian.double()) * error).sum())


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    bits=st.sampled_from([8, 4]),
    method=st.sampled_from(METHODS),
    size=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
)
def test_numbers_and_scales_are_what_the_kernels_take(
    rows: int, columns: int, bits: int, method: str, size: float
) -> None:
    matrix, hessian = problem(rows, columns)
    matrix = matrix * size
    numbers, scales = quantized(matrix, bits, method, hessian)
    assert (numbers.shape, numbers.dtype) == ((rows, columns), np.int8)
    assert (scales.shape, scales.dtype) == ((rows, -(-columns // GROUP)), np.float32)
    least, most = (-127, 127) if bits == 8 else (-8, 7)
    assert numbers.min() >= least and numbers.max() <= most
    assert np.isfinite(scales).all()
    assert not (scales.view(np.uint32) & 0xFFFF).any()  # a bfloat16 holds each exactly
    again = quantized(matrix, bits, method, hessian)
    assert np.array_equal(numbers, again.numbers) and np.array_equal(scales, again.scales)


@pytest.mark.parametrize("columns", [64, 83])
def test_each_method_of_4_bits_is_better_than_the_one_before(columns: int) -> None:
    matrix, hessian = problem(48, columns)
    nearest, search, gptq = (output_error(matrix, quantized(matrix, 4, m, hessian), hessian) for m in METHODS)
    assert search < 0.9 * nearest  # a weighted search
    assert gptq < 0.7 * search  # dependent columns make up for each other


def test_without_activations_the_search_lowers_the_plain_error() -> None:
    matrix, _ = problem(32, 70)
    equal = torch.eye(70)
    assert output_error(matrix, quantized(matrix, 4, "search"), equal) < output_error(
        matrix, quantized(matrix, 4, "nearest"), equal
    )


def test_columns_that_no_activation_meets_are_rounded_all_the_same() -> None:
    matrix, hessian = problem(8, 40)
    hessian[3], hessian[:, 3] = 0, 0
    for method in METHODS:
        found = quantized(matrix, 8, method, hessian).to_float32()
        np.testing.assert_allclose(found[:, 3], matrix[:, 3].numpy(), atol=0.05)
