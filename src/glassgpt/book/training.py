"""Chapter 5: the book's training loop, to be read; `glassgpt.training` has one that resumes and scales."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from glassgpt.book.data import Batch, BookTokenizer, text_to_token_ids, token_ids_to_text
from glassgpt.language_model import evaluating
from glassgpt.model import GPTModel, generate_text_simple
from glassgpt.packages import require


def calc_loss_batch(
    input_batch: Tensor, target_batch: Tensor, model: torch.nn.Module, device: torch.device | str
) -> Tensor:
    """Mean cross-entropy of (B, T) inputs and their targets, in nats per token: a scalar with a gradient."""
    logits = model(input_batch.to(device))
    return F.cross_entropy(logits.flatten(0, 1), target_batch.to(device).flatten())


def calc_loss_loader(
    data_loader: DataLoader[Batch],
    model: torch.nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> float:
    """Mean loss of the first `num_batches` batches, or of all; NaN where there is none."""
    losses = [
        calc_loss_batch(inputs, targets, model, device).item()
        for inputs, targets in itertools.islice(data_loader, num_batches)
    ]
    return sum(losses) / len(losses) if losses else float("nan")


def evaluate_model(
    model: torch.nn.Module,
    train_loader: DataLoader[Batch],
    val_loader: DataLoader[Batch],
    device: torch.device | str,
    eval_iter: int,
) -> tuple[float, float]:
    """Training and validation loss over `eval_iter` batches of each loader, without dropout."""
    with evaluating(model), torch.no_grad():
        return (
            calc_loss_loader(train_loader, model, device, eval_iter),
            calc_loss_loader(val_loader, model, device, eval_iter),
        )


def generate_and_print_sample(
    model: GPTModel,
    tokenizer: BookTokenizer,
    device: torch.device | str,
    start_context: str,
    *,
    report: Callable[[str], None] = print,
) -> None:
    """Report `start_context` and the 50 tokens that the model likes best after it, on one line."""
    context_size = model.pos_emb.weight.shape[0]
    idx = text_to_token_ids(start_context, tokenizer).to(device)
    with evaluating(model):
        out = generate_text_simple(model, idx, max_new_tokens=50, context_size=context_size)
    report(token_ids_to_text(out, tokenizer).replace("\n", " "))


def train_model_simple(
    model: GPTModel,
    train_loader: DataLoader[Batch],
    val_loader: DataLoader[Batch],
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: BookTokenizer,
    *,
    report: Callable[[str], None] = print,
) -> tuple[list[float], list[float], list[int]]:
    """Train; returns training losses, validation losses and tokens seen at each evaluation.

    Evaluates after the first step and every `eval_freq` steps, over `eval_iter` batches, and writes a sample
    after each epoch. Raises `ValueError` where the training loader has no batch.
    """
    check_has_batches(train_loader)
    train_losses: list[float] = []
    val_losses: list[float] = []
    track_tokens_seen: list[int] = []
    tokens_seen, step = 0, 0
    model.train()
    for epoch in range(num_epochs):
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            calc_loss_batch(inputs, targets, model, device).backward()
            optimizer.step()
            tokens_seen += inputs.numel()
            if step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                report(f"Ep {epoch + 1} (Step {step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}")
            step += 1
        generate_and_print_sample(model, tokenizer, device, start_context, report=report)
    return train_losses, val_losses, track_tokens_seen


def check_has_batches(train_loader: DataLoader[Batch]) -> None:
    """`ValueError` where there is nothing to train on."""
    if not len(train_loader):
        raise ValueError("the training loader has no batch: use a smaller batch_size or max_length, or more text")


def plot_losses(
    epochs_seen: Sequence[float] | Tensor,
    tokens_seen: Sequence[int],
    train_losses: Sequence[float],
    val_losses: Sequence[float],
) -> Any:
    """Draw both losses over epochs, the tokens seen along the top: pyplot's current figure, also returned."""
    require("matplotlib")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3))
    axes.plot(epochs_seen, train_losses, label="Training loss")
    axes.plot(epochs_seen, val_losses, "-.", label="Validation loss")
    axes.set(xlabel="Epochs", ylabel="Loss")
    axes.legend(loc="upper right")
    top = axes.twiny()
    top.plot(tokens_seen, train_losses, alpha=0)  # invisible: it only lays out the second scale
    top.set_xlabel("Tokens seen")
    figure.tight_layout()
    return figure
