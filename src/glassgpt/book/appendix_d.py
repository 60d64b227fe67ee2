"""Appendix D: the book's training loop with a warmup, cosine decay and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from glassgpt.book.data import Batch, BookTokenizer
from glassgpt.book.training import calc_loss_batch, check_has_batches, evaluate_model, generate_and_print_sample
from glassgpt.model import GPTModel


def find_highest_gradient(model: torch.nn.Module) -> Tensor | None:
    """The largest entry of all gradients, with its sign, a scalar; None where no parameter has one."""
    largest = [parameter.grad.max() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(largest).max() if largest else None


def learning_rate(
    step: int, n_steps: int, *, peak_lr: float, warmup_steps: int, initial_lr: float, min_lr: float
) -> float:
    """The rate of `step`, counted from 0: a line from `initial_lr` to `peak_lr`, then half a cosine to `min_lr`."""
    if step < warmup_steps:
        return initial_lr + step * ((peak_lr - initial_lr) / warmup_steps)
    done = (step - warmup_steps) / (n_steps - warmup_steps)
    return min_lr + (peak_lr - min_lr) * (1 + math.cos(math.pi * done)) / 2


def train_model(
    model: GPTModel,
    train_loader: DataLoader[Batch],
    val_loader: DataLoader[Batch],
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: BookTokenizer,
    warmup_steps: int,
    initial_lr: float = 3e-05,
    min_lr: float = 1e-6,
    *,
    report: Callable[[str], None] = print,
) -> tuple[list[float], list[float], list[int], list[float]]:
    """Train; training losses, validation losses and tokens seen at each evaluation, and the rate of each step.

    As `train_model_simple`, with the rate of `learning_rate`, whose peak is the optimizer's own, and, once it is
    warm, with gradients scaled down to a norm of 1. Raises `ValueError` where the training loader has no batch, and
    for a negative `warmup_steps`.
    """
    check_has_batches(train_loader)
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps {warmup_steps} must be at least 0")
    train_losses: list[float] = []
    val_losses: list[float] = []
    track_tokens_seen: list[int] = []
    track_lrs: list[float] = []
    peak_lr = optimizer.param_groups[0]["lr"]
    n_steps = n_epochs * len(train_loader)
    tokens_seen = 0
    model.train()
    for epoch in range(n_epochs):
        for inputs, targets in train_loader:
            step = len(track_lrs)
            lr = learning_rate(
                step, n_steps, peak_lr=peak_lr, warmup_steps=warmup_steps, initial_lr=initial_lr, min_lr=min_lr
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            track_lrs.append(lr)
            optimizer.zero_grad()
            calc_loss_batch(inputs, targets, model, device).backward()
            if step >= warmup_steps:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            tokens_seen += inputs.numel()
            if step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                report(f"Ep {epoch + 1} (Iter {step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}")
        generate_and_print_sample(model, tokenizer, device, start_context, report=report)
    return train_losses, val_losses, track_tokens_seen, track_lrs
