"""One step of training and what it is made of, and the measure of a model: nothing here knows of files or runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glassgpt.config import GPTConfig
from glassgpt.data.loader import evaluation_batches
from glassgpt.model import GPTModel
from glassgpt.modes import evaluating
from glassgpt.training.loss import linear_cross_entropy
from glassgpt.training.settings import Settings


def initial_model(config: GPTConfig, seed: int) -> GPTModel:
    """A new model with GPT-2's initialisation, in `train` mode.

    Normal with standard deviation 0.02, and 0.02 / sqrt(2 layers) for the two matrices that write into the shortcut,
    so that the first loss is ln(vocab_size) (Radford et al. 2019). The book's, PyTorch's default, starts far above.
    """
    torch.manual_seed(seed)
    model = GPTModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out_proj.weight", "ff.layers.2.weight")):
                parameter.normal_(0, 0.02 / (2 * config.n_layers) ** 0.5)
            elif parameter.ndim == 2:
                parameter.normal_(0, 0.02)
            elif not name.endswith("scale"):
                parameter.zero_()
    return model.train()


def schedule(step: int, settings: Settings) -> float:
    """Fraction of the peak rate at `step`: a straight rise, then a half cosine down to `final_rate`."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    way = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * min(way, 1)))


def step_seed(seed: int, step: int) -> int:
    """The seed of everything random in one step, 64 bits; steps of all seeds are far apart."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def take_step(
    model: GPTModel,
    optimizers: list[torch.optim.Optimizer],
    batch: tuple[Tensor, Tensor],
    step: int,
    settings: Settings,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, float, bool]:
    """Step number `step`, from 0, on a batch of (B, T) inputs and targets.

    Returns the loss in nats per token, the gradient's norm before clipping, and whether the weights were changed: a
    step whose numbers broke must not reach them.
    """
    rate = schedule(step, settings)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
    torch.manual_seed(step_seed(settings.seed, step))
    loss = accumulate_gradients(model, *batch, settings.micro_batch_size, dtype)
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf, foreach=True))
    good = math.isfinite(loss) and math.isfinite(norm)
    if good:
        for optimizer in optimizers:
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return loss, norm, good


def accumulate_gradients(
    model: GPTModel,
    inputs: Tensor,
    targets: Tensor,
    micro_batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Forward and backward over (B, T) ids, `micro_batch_size` rows at a time; the gradients are left on the model.

    Returns the loss in nats per token. It is the sum over all tokens divided by their number, so micro-batches of any
    size give the same gradients.
    """
    device = model.tok_emb.weight.device
    total = 0.0
    rows = micro_batch_size or len(inputs)
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        loss = batch_loss(model, x.to(device), y.to(device), dtype) / targets.numel()
        loss.backward()
        total += float(loss.detach())
    return total


def batch_loss(model: GPTModel, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over the tokens of their cross-entropy, in nats."""
    with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
        hidden = model.hidden(inputs).flatten(0, 1)
        return linear_cross_entropy(hidden, model.out_head.weight, targets.flatten())


@torch.no_grad()
def evaluate_loss(
    model: GPTModel,
    tokens: np.ndarray[Any, Any],
    batch_size: int,
    max_batches: int | None,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Mean cross-entropy over a token array, nats per token, in `eval` mode; the same batches every time."""
    device = model.tok_emb.weight.device
    total, count = 0.0, 0
    with evaluating(model):
        for x, y in evaluation_batches(tokens, batch_size, model.config.context_length, max_batches):
            total += float(batch_loss(model, x.to(device), y.to(device), dtype))
            count += y.numel()
    return total / count
