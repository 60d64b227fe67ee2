"""Layers as training on a CPU computes them: the same functions as the plain model's, in a fraction of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def use_quick_layers(model: nn.Module) -> None:
    """Replace each dropout of `model`, in place; it has no parameters."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, QuickDropout(child.p))


class QuickDropout(nn.Dropout):
    """Dropout that draws 64 random bits at a time, and takes 16 for each number, where PyTorch draws for each anew.

    They are PyTorch's global random numbers, so that a seed decides the mask. The probability is exact to 2^-15.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, float32 or bfloat16, on the CPU."""
        if not self.training or self.p == 0:
            return input
        return _Masked.apply(input, _kept(input, self.p), 1 / (1 - self.p))  # type: ignore[no-untyped-call]


_INTEGERS = {2: torch.int16, 4: torch.int32}


def _kept(like: Tensor, p: float) -> Tensor:
    """An integer as large as each number of `like`: all its bits are set, or with probability `p` none."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: like.numel()].view(like.shape)
    # one bit less leaves room for the difference, whose sign then fills all bits
    threshold = round((2 * p - 1) * 2**14)
    kept = lanes.bitwise_right_shift_(1).sub_(threshold).bitwise_right_shift_(15).bitwise_not_()
    return kept.to(_INTEGERS[like.element_size()])


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _masked(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _masked(grad, kept, ctx.scale), None, None


def _masked(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    return (x.contiguous().view(kept.dtype) & kept).view(x.dtype).mul_(scale)
