"""A model's matrices one after the other, each quantised for the activations that reach it past those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.generation.cpu.numbers import Groups
from glassgpt.model import GPTModel, TransformerBlock
from glassgpt.quantize.rounding import quantized

STANDS_OUT = 6.0
"""A column stands out whose largest number is so many times the median column's."""
_SHOWN = 8
_ROWS_AT_ONCE = 1024  # tokens

Done = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Outliers:
    """The columns of one matrix that stand out, and their part of the error."""

    matrix: str
    activations: dict[int, float]
    """Column and its largest activation over the median column's; the largest few."""
    weights: dict[int, float]
    """Column and its largest weight over the median column's; the largest few."""
    error_share: float
    """Part of the squared error of the matrix's outputs that these columns cause, from 0 to 1."""


class _Seen:
    """What came into one layer: the mean of x x^T, and each column's largest."""

    def __init__(self, columns: int) -> None:
        self._sum, self.largest, self._n = torch.zeros(columns, columns), torch.zeros(columns), 0

    def see(self, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1])
        self._sum.addmm_(x.T, x)
        self.largest = torch.maximum(self.largest, x.abs().amax(0))
        self._n += len(x)

    def hessian(self) -> Tensor:
        return self._sum / max(1, self._n)


@contextmanager
def _watched(layers: dict[str, nn.Linear]) -> Iterator[dict[str, _Seen]]:
    seen = {name: _Seen(layer.in_features) for name, layer in layers.items()}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs: seen[name].see(inputs[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def quantize_weights(
    model: GPTModel, windows: Tensor, bits: int, method: str, progress: Done
) -> tuple[dict[str, Groups], list[Outliers]]:
    """`model`, in float32 and `eval` mode, with every matrix rounded in place; the numbers under GPT-2's names.

    `windows` (rows, T) are the tokens of the calibration. `progress` hears matrices done, and of how many.
    """
    groups: dict[str, Groups] = {}
    outliers: list[Outliers] = []
    blocks = [block for block in model.trf_blocks if isinstance(block, TransformerBlock)]
    total = 4 * len(blocks) + (1 if model.config.tie_embeddings else 2)

    def take(name: str, layers: list[Any], seen: _Seen | None) -> None:
        matrix = torch.cat([layer.weight.detach() for layer in layers])
        hessian = None if seen is None else seen.hessian()
        found = groups[name] = quantized(matrix, bits, method, hessian)
        rounded = torch.from_numpy(found.to_float32())
        if seen is not None and hessian is not None:
            outliers.append(_outliers(name, matrix, matrix - rounded, seen.largest, hessian.diagonal()))
        for layer, part in zip(layers, rounded.chunk(len(layers)), strict=True):
            layer.weight.copy_(part)
        progress(len(groups), total)

    progress(0, total)
    pieces = windows.split(max(1, _ROWS_AT_ONCE // windows.shape[1]))
    positions = model.pos_emb(torch.arange(windows.shape[1]))
    if not model.config.tie_embeddings:
        take("transformer.wte.weight", [model.tok_emb], None)
    states = [model.tok_emb(piece) + positions for piece in pieces]
    for number, block in enumerate(blocks):
        att, ff = block.att, block.ff.layers
        named: dict[str, list[Any]] = {
            "attn.c_attn": [att.W_query, att.W_key, att.W_value],
            "attn.c_proj": [att.out_proj],
            "mlp.c_fc": [ff[0]],
            "mlp.c_proj": [ff[2]],
        }
        with _watched({name: layers[0] for name, layers in named.items()}) as seen:
            for state in states:
                block(state)
        for name, layers in named.items():
            take(f"transformer.h.{number}.{name}.weight", layers, seen[name])
        states = [block(state) for state in states]
    head = _Seen(model.config.emb_dim)
    for state in states:
        head.see(model.final_norm(state))
    tied = model.config.tie_embeddings
    take("transformer.wte.weight" if tied else "lm_head.weight", [model.out_head], head)
    return groups, outliers


def _outliers(name: str, matrix: Tensor, error: Tensor, largest: Tensor, squares: Tensor) -> Outliers:
    by_activation, by_weight = _standing_out(largest), _standing_out(matrix.abs().amax(0))
    by_column = error.square().sum(0) * squares
    columns = sorted({*by_activation, *by_weight})
    share = by_column[columns].sum() / by_column.sum().clamp_min(1e-30)
    return Outliers(name.removeprefix("transformer."), by_activation, by_weight, round(float(share), 4))


def _standing_out(largest: Tensor) -> dict[int, float]:
    ratios = largest / largest.median().clamp_min(1e-30)
    best = ratios.topk(min(_SHOWN, len(ratios)))
    return {int(i): round(float(r), 1) for r, i in zip(*best, strict=True) if r >= STANDS_OUT}
