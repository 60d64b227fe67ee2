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
            grad_hidden = torch.empty_like(hidden) if needs_grad else None
            total = hidden.new_zeros((), dtype=torch.float32)
            for rows in torch.arange(len(hidden)).split(max(1, _PIECE // len(weight))):
                piece = slice(int(rows[0]), int(rows[-1]) + 1)
                x, target = low_hidden[piece], targets[piece]
                counts = (target != IGNORE).float()
                index = target.clamp(min=0)[:, None]
                scores = (x @ low_weight.T).float()
                normaliser = scores.logsumexp(dim=1)
                total += ((normaliser - scores.gather(1, index)[:, 0]) * counts).sum()
                if grad_weight is not None and grad_hidden is not None:
                    # d loss / d scores = softmax - onehot, made in place; both are 0 for a target that is ignored
                    normaliser = normaliser.masked_fill(counts == 0, torch.inf)
                    probabilities = scores.sub_(normaliser[:, None]).exp_()
                    probabilities.scatter_add_(1, index, -counts[:, None])
                    low = probabilities.to(dtype)
                    grad_hidden[piece] = low @ low_weight
                    if dtype == weight.dtype:
                        grad_weight.addmm_(low.T, x)
                    else:
                        grad_weight += low.T @ x
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None, None
