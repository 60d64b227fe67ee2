"""Optimizers by the role of each parameter: Muon for the hidden matrices, AdamW for the rest, or AdamW for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.model import GPTModel
from glassgpt.training.settings import Settings


def parameter_roles(model: GPTModel) -> dict[str, str]:
    """Each parameter's name and its role, decided by where it is used and not by its shape.

    "embedding" (tokens, positions, and a tied head), "head", "hidden" (the matrices inside the blocks) or "vector"
    (norms and biases).
    """
    roles = {"tok_emb.weight": "embedding", "pos_emb.weight": "embedding"}
    if not model.config.tie_embeddings:
        roles["out_head.weight"] = "head"
    for name, module in model.trf_blocks.named_modules():
        if isinstance(module, nn.Linear):
            roles[f"trf_blocks.{name}.weight"] = "hidden"
    return {name: roles.get(name, "vector") for name, _ in model.named_parameters()}


class Muon(torch.optim.Optimizer):
    """Momentum whose every update matrix is made orthogonal first (Jordan et al., 2024, "Muon").

    All singular values of the update become about 1, so rare directions are learned as fast as common ones. Equal
    shapes are orthogonalised together, in one batched product.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        """Every parameter must be a matrix (`ValueError`)."""
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        for group in self.param_groups:
            if wrong := [tuple(p.shape) for p in group["params"] if p.ndim != 2]:
                raise ValueError(f"Muon is for matrices; {wrong[0]} is none: give it to AdamW")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    rows, columns = p.shape
                    by_shape[min(rows, columns), max(rows, columns)].append(p)
            for params in by_shape.values():
                self._update(params, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, buffers, momentum)
        # tall matrices are turned, so that all of them lie flat in one stack
        flat = torch.stack([m if m.shape[0] <= m.shape[1] else m.T for m in nesterov])
        updates = orthogonalise(flat).unbind()
        turned = [u if p.shape == u.shape else u.T for u, p in zip(updates, params, strict=True)]
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        # a taller matrix maps to more outputs, and its update is scaled so that each of them moves as much
        rates = [-lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 for p in params]
        torch._foreach_add_(params, torch._foreach_mul(turned, rates))


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, rows <= columns) stacks: U V^T of each one's singular value decomposition, nearly, by Newton-Schulz.

    The quintic of Jordan et al. (2024) brings all singular values to between about 0.7 and 1.2, which is near enough
    for an update. In bfloat16 where that is fast, as it was designed for, else in float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def build_optimizers(model: GPTModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon and AdamW; each group keeps its peak rate as `peak_lr`, which the schedule multiplies.

    Weight decay applies to matrices and not to vectors.
    """
    roles = parameter_roles(model)
    by_role: Mapping[str, list[Tensor]] = defaultdict(list)
    for name, p in model.named_parameters():
        by_role[roles[name]].append(p)
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [
        dict(params=by_role["embedding"] + by_role["head"], weight_decay=decay),
        dict(params=by_role["vector"], weight_decay=0.0),
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        optimizers.append(Muon(by_role["hidden"], lr=settings.muon_learning_rate, weight_decay=decay))
    else:
        groups.append(dict(params=by_role["hidden"], weight_decay=decay))
    optimizers.append(torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
