"""Cross-entropy of the output head in pieces, so that the scores of a whole batch never exist at once.

The scores of one step, batch x context x vocabulary, are the largest thing in training a small GPT: 400 MB for 2048
tokens of GPT-2's vocabulary, three times over with their softmax and gradient. Here each piece of rows computes its
scores, its loss and its gradients, and is gone: less memory, and on a CPU less time, which goes into moving memory.
The same idea as in Liger Kernel (Hsu et al., 2024) and Cut Your Losses (Wijmans et al., 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""A target that does not count, as in `torch.nn.functional.cross_entropy`."""

_PIECE = 2**24  # scores at once: 64 MB in float32
_COLUMNS = 2**13  # of the vocabulary, in one product
_ALIGNED = 64  # columns: a GPU's matrix units want rows that begin at a multiple of 16 bytes
_BLOCK = 2**19  # of these, so many at a time go through the softmax, which stays in the processor's cache


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over all tokens of the cross-entropy of `hidden @ weight.T`, in nats; divide by the count yourself.

    `hidden` is (N, d), `weight` (vocab_size, d), `targets` (N,), of which `IGNORE` counts nothing. Under autocast the
    products are in its dtype; softmax and sums are in float32 always. The gradient is that of the plain formula.
    """
    # asked here: inside the function gradients are always off, and `needs_input_grad` ignores no_grad
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, needs_grad)  # type: ignore[no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            low_weight, low_hidden = weight.to(dtype), hidden.to(dtype)
            grad_weight = torch.zeros_like(weight) if needs_grad else None
            grad_hidden = torch.zeros_like(hidden) if needs_grad else None
            total = hidden.new_zeros((), dtype=torch.float32)
            parts = _slices(len(weight), _COLUMNS)
            width = -(-len(weight) // _ALIGNED) * _ALIGNED
            for piece in _slices(len(hidden), _PIECE // len(weight)):
                x, target = low_hidden[piece], targets[piece]
                scores = torch.empty(len(x), width, dtype=dtype, device=hidden.device)[:, : len(weight)]
                for part in parts:
                    torch.mm(x, low_weight[part].T, out=scores[:, part])
                for block in _slices(len(x), (_BLOCK if device == "cpu" else _PIECE) // len(weight)):
                    total += _softmax_loss(scores[block], target[block], needs_grad)
                if grad_weight is not None and grad_hidden is not None:
                    for part in parts:
                        grad_hidden[piece] += scores[:, part] @ low_weight[part]
                        grad_weight[part] += scores[:, part].T @ x
        if needs_grad:
            ctx.grads = grad_hidden, grad_weight
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads  # the weight's gradient becomes `weight.grad` as it is, if nobody else holds it
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None, None


def _softmax_loss(scores: Tensor, targets: Tensor, needs_grad: bool) -> Tensor:
    """The loss of some rows of scores, which are lost; with `needs_grad` they become its gradient: softmax - onehot."""
    counts = (targets != IGNORE).float()
    index = targets.clamp(min=0)[:, None]
    wide = scores.float()
    largest = wide.amax(dim=1, keepdim=True)
    of_targets = wide.gather(1, index) - largest
    weights = wide.sub_(largest).exp_()
    total = weights.sum(dim=1, keepdim=True)
    loss = ((total.log() - of_targets)[:, 0] * counts).sum()
    if needs_grad:
        weights.mul_(counts[:, None] / total)  # what is ignored has no gradient
        scores.copy_(weights.scatter_add_(1, index, -counts[:, None]))
    return loss


def _slices(n: int, size: int) -> list[slice]:
    """From 0 to `n` in parts of `size`, or of 1 where it is less."""
    return [slice(start, start + max(1, size)) for start in range(0, n, max(1, size))]
