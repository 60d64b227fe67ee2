"""From a matrix to small numbers: to the nearest, with searched scales, or with each column's error made up for later.

W is (out, in) and E = W - W' what rounding changes. Of a layer y = W x the expected squared error is trace(E H E^T),
H = mean of x x^T over calibration tokens: columns that large activations meet count for more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glassgpt.generation.cpu.numbers import GROUP, Groups, to_groups

METHODS = ("nearest", "search", "gptq")

_FACTORS = {8: (0.96, 0.97, 0.98, 0.99, 1.0), 4: tuple(0.6 + 0.025 * n for n in range(22))}
"""Scales that are tried, as parts of the one that clips nothing."""
_DAMPING = 0.01
"""Added to the diagonal of H, as a part of its mean: GPTQ's own."""
_ROWS = 4096


def quantized(matrix: Tensor, bits: int, method: str, hessian: Tensor | None = None) -> Groups:
    """(out, in) float32 in `bits` 8 or 4 by one of `METHODS`; without a `hessian`, (in, in), columns count alike.

    "gptq" without a `hessian` is "search". The same input gives the same numbers.
    """
    if method == "nearest":
        return to_groups(matrix.numpy(), bits)
    if method == "gptq" and hessian is not None:
        return compensated(matrix, hessian, bits)
    weights = torch.ones(matrix.shape[1]) if hessian is None else hessian.diagonal()
    parts = [_searched(rows, weights, bits) for rows in matrix.split(_ROWS)]
    numbers, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return Groups(numbers.to(torch.int8).numpy(), scales.numpy())


def compensated(matrix: Tensor, hessian: Tensor, bits: int) -> Groups:
    """GPTQ (Frantar et al. 2022): the columns in turn, each one's error made up for by those that are still to come."""
    rest, H = matrix.clone(), hessian.double()
    H.diagonal().add_(_DAMPING * H.diagonal().mean() + 1e-12)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True).float()
    weights = hessian.diagonal()
    numbers, scales = torch.empty(matrix.shape, dtype=torch.int8), []
    for start in range(0, matrix.shape[1], GROUP):
        end = min(start + GROUP, matrix.shape[1])
        scale = torch.cat([_searched(rows, weights[start:end], bits)[1] for rows in rest[:, start:end].split(_ROWS)])
        group, errors = rest[:, start:end].T.contiguous(), torch.empty(end - start, len(matrix))
        for at in range(end - start):
            column, row = start + at, inverse[start + at]
            number = _rounded(group[at], scale[:, 0], bits)
            errors[at] = (group[at] - number * scale[:, 0]) / row[column]
            group[at + 1 :] -= torch.outer(row[column + 1 : end], errors[at])
            numbers[:, column] = number
        rest[:, end:] -= errors.T @ inverse[start:end, end:]
        scales.append(scale)
    return Groups(numbers.numpy(), torch.cat(scales, 1).numpy())


def _searched(matrix: Tensor, weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Numbers (rows, columns) and scales (rows, groups) of least weighted squared error among the scales tried.

    Each scale that is tried is once more fitted to the numbers that it gives.
    """
    rows, columns = matrix.shape
    n_groups = -(-columns // GROUP)
    whole = torch.nn.functional.pad(matrix, (0, n_groups * GROUP - columns)).view(rows, n_groups, GROUP)
    weight = torch.nn.functional.pad(weights, (0, n_groups * GROUP - columns)).view(n_groups, GROUP)
    weight = weight + 1e-6 * weight.mean() + 1e-30  # columns that never meet an activation still count a little
    extreme = whole.gather(2, whole.abs().argmax(2, keepdim=True))[..., 0]
    base = extreme.abs() / 127 if bits == 8 else extreme / -8
    best, least = torch.zeros_like(base), torch.full_like(base, torch.inf)
    for factor in _FACTORS[bits]:
        for sign in (1,) if bits == 8 else (1, -1):  # 4 bits reach from -8 to 7: one side has more room
            scale = _bfloat16(base * (sign * factor))
            number = _rounded(whole, scale[..., None], bits)
            fitted = _bfloat16((weight * whole * number).sum(2) / (weight * number * number).sum(2).clamp_min(1e-30))
            for candidate in (scale, fitted):
                error = whole - _rounded(whole, candidate[..., None], bits) * candidate[..., None]
                loss = (weight * error * error).sum(2)
                better = loss < least
                best, least = torch.where(better, candidate, best), torch.where(better, loss, least)
    return _rounded(whole, best[..., None], bits).view(rows, -1)[:, :columns], best


def _rounded(numbers: Tensor, scale: Tensor, bits: int) -> Tensor:
    least, most = (-127, 127) if bits == 8 else (-8, 7)
    return (numbers / torch.where(scale == 0, 1, scale)).round().clamp(least, most)


def _bfloat16(scale: Tensor) -> Tensor:
    return scale.bfloat16().float()
