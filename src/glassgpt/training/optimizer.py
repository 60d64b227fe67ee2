"""Optimizers by the role of each parameter: Muon for the hidden matrices, AdamW for the rest, or AdamW for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from glassgpt.device import has_bfloat16_products
from glassgpt.language_model import LanguageModel
from glassgpt.training.settings import Settings
from glassgpt.training.shards import is_sharded, local, on_whole, shares

_MAX_STACK = 2**24  # numbers in one batched product, of which Newton-Schulz holds about five: 320 MB in float32


class Muon(torch.optim.Optimizer):
    """Momentum whose every update matrix is made orthogonal first (Jordan et al., 2024, "Muon").

    All singular values of the update become about 1, so rare directions are learned as fast as common ones. Equal
    shapes are orthogonalised together, in batched products of bounded size.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Every parameter must be a matrix (`ValueError`). `dtype`: the number type of `orthogonalise`."""
        self._dtype = dtype
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        for group in self.param_groups:
            if wrong := [tuple(p.shape) for p in group["params"] if p.ndim != 2]:
                raise ValueError(f"Muon takes matrices only, got shape {wrong[0]}: give it to AdamW")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    rows, columns = p.shape
                    by_shape[min(rows, columns), max(rows, columns)].append(p)
            for shape, params in by_shape.items():
                n = max(1, _MAX_STACK // (shape[0] * shape[1])) * shares(params[0])
                for start in range(0, len(params), n):
                    self._update(params[start : start + n], group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [local(self.state[p]["momentum"]) for p in params]
        grads = [local(p.grad) for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = list(torch._foreach_lerp(grads, buffers, momentum))
        if is_sharded(params[0]):
            updates = on_whole(nesterov, params, self._orthogonalised)
        else:
            updates = self._orthogonalised(nesterov)
        rows = [local(p) for p in params]
        torch._foreach_mul_(rows, 1 - lr * weight_decay)
        # a taller matrix maps to more outputs, and its update is scaled so that each of them moves as much
        rates = [-lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 for p in params]
        torch._foreach_add_(rows, torch._foreach_mul(updates, rates))

    def _orthogonalised(self, matrices: list[Tensor]) -> list[Tensor]:
        if not matrices:
            return []  # fewer than there are ranks
        # tall matrices are transposed, so that all of them fit into one stack
        flat = torch.stack([m if m.shape[0] <= m.shape[1] else m.T for m in matrices])
        updates = orthogonalise(flat, self._dtype).unbind()
        return [u if m.shape == u.shape else u.T for u, m in zip(updates, matrices, strict=True)]


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """(n, rows <= columns) stacks: U V^T of each one's singular value decomposition, nearly, by Newton-Schulz.

    The quintic of Jordan et al. (2024) brings all singular values to between about 0.7 and 1.2, which is near enough
    for an update. It was designed for bfloat16: `dtype` is that where its products are fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if dtype == torch.float32 and x.shape[1] * 2 <= x.shape[2]:
        return (_factor(x @ x.mT, steps, a, b, c) @ x).to(matrices.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def _factor(gram: Tensor, steps: int, a: float, b: float, c: float) -> Tensor:
    """What Newton-Schulz multiplies flat matrices by, from their X X^T alone: half the work where they are four times
    as long as high. Its rounding would be too much for bfloat16.
    """
    product: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor  # X becomes factor X, and all of these commute
    assert product is not None
    return product


def build_optimizers(model: LanguageModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon and AdamW, for the parameters that are trained (`requires_grad`).

    Each group keeps its peak rate as `peak_lr`, which the schedule multiplies. Weight decay applies to matrices and not
    to scales and biases.
    """
    assert settings.learning_rate and settings.muon_learning_rate, "settings must have their rates"
    roles = model.parameter_roles()
    by_role: dict[str, list[Tensor]] = defaultdict(list)
    for name, p in model.named_parameters():
        if p.requires_grad:
            by_role[_GROUPS[roles[name]]].append(p)
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [
        dict(params=by_role["outer"], weight_decay=decay),
        dict(params=by_role["vector"], weight_decay=0.0),
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon" and by_role["inner"]:
        # a GPU's float32 training has no reason to do without its bfloat16 products here
        fast = settings.dtype == "bfloat16" or has_bfloat16_products(by_role["inner"][0].device)
        dtype = torch.bfloat16 if fast else torch.float32
        rate, momentum = settings.muon_learning_rate, settings.muon_momentum
        optimizers.append(Muon(by_role["inner"], rate, momentum, weight_decay=decay, dtype=dtype))
    else:
        groups.append(dict(params=by_role["inner"], weight_decay=decay))
    groups = [group for group in groups if group["params"]]
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True))
    if not optimizers:
        raise ValueError("no parameter of the model is trained: all are frozen")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


_GROUPS = {
    "embedding": "outer",
    "head": "outer",
    "hidden": "inner",
    "residual": "inner",
    "scale": "vector",
    "bias": "vector",
}
