"""One step of training, and the loss over a whole text: nothing here knows of files or runs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from glassgpt.data.loader import evaluation_batches
from glassgpt.data.mixture import Tokens
from glassgpt.language_model import evaluating
from glassgpt.training.guard import UNGUARDED, Guard
from glassgpt.training.loss import IGNORE
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.ranks import ALONE, Ranks
from glassgpt.training.settings import Settings
from glassgpt.training.shards import is_sharded, local, norm_of, reshard


def schedule(step: int, settings: Settings) -> float:
    """Fraction of the peak rate at `step`: a straight rise, then a half cosine or a straight line to `final_rate`."""
    assert settings.steps is not None and settings.warmup_steps is not None, "settings must be resolved first"
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    left = 1 - min(progress, 1)
    if settings.decay == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    return settings.final_rate + (1 - settings.final_rate) * left


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of everything random in one step of one rank, 63 bits; all of them are far apart."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def take_step(
    objective: NextTokenLoss,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: tuple[Tensor, Tensor],
    step: int,
    settings: Settings,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    guard: Guard = UNGUARDED,
) -> tuple[float, float, str | None]:
    """Step number `step`, from 0, on a batch of (B, T) inputs and targets, or on this rank's rows of it.

    Returns the loss in nats per token, the gradient's norm before clipping, and None, or why `guard` kept the step from
    the weights. Seeds PyTorch's global random numbers: the caller restores them (see `language_model.seeded`).
    """
    rate = schedule(step, settings) * guard.rate
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
    torch.manual_seed(step_seed(settings.seed, step, ranks.rank))
    with _explained(objective, ranks):
        loss = accumulate_gradients(objective, *batch, settings.rows_at_once, dtype, ranks)
        norm = clip_gradients(objective, settings.grad_clip or math.inf, ranks)
        refusal = guard.refusal(loss, norm, settings)
        if refusal is None:
            for optimizer in optimizers:
                optimizer.step()
    objective.zero_grad(set_to_none=True)
    return loss, norm, refusal


def accumulate_gradients(
    objective: NextTokenLoss,
    inputs: Tensor,
    targets: Tensor,
    micro_batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
) -> float:
    """Forward and backward over (B, T) ids, `micro_batch_size` rows at a time; the gradients are left on the model.

    Returns the loss in nats per token: the sum over all targets of all `ranks` that are not `IGNORE`, divided by their
    number, so micro-batches of any size, on any number of ranks with (B, T) ids each, give the same gradients. Without
    any target the loss is not finite.
    """
    device = objective.model.device
    size = targets.numel()  # how many of all ranks' targets count is known only at the end, with the gradients
    rows = micro_batch_size or len(inputs)
    losses = []
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            total, _ = objective(x.to(device), y.to(device))
            loss = total / size
        loss.backward()
        losses.append(loss.detach())
    mean = sum(torch.stack(losses).tolist())  # read at the end: each reading makes a GPU wait
    mean, counted = ranks.sum_gradients(objective.parameters(), [mean, int((targets != IGNORE).sum()) / size])
    if counted not in (0, 1):
        torch._foreach_div_([local(p.grad) for p in objective.parameters() if p.grad is not None], counted)
    return mean / counted if counted else math.nan


def clip_gradients(objective: NextTokenLoss, most: float, ranks: Ranks = ALONE) -> float:
    """Scale the gradients down to a norm of `most`, where it is more; returns what it was."""
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    if not is_sharded(gradients[0]):
        return float(nn.utils.clip_grad_norm_(objective.parameters(), most))
    norm = norm_of(gradients, ranks.sum)
    torch._foreach_mul_([local(gradient) for gradient in gradients], min(1.0, most / (norm + 1e-6)))  # as PyTorch
    return norm


@torch.no_grad()
def evaluate_loss(
    objective: NextTokenLoss,
    tokens: Tokens,
    batch_size: int,
    max_blocks: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> float:
    """Mean cross-entropy over a token array, nats per token, in `eval` mode; the same blocks every time.

    `batch_size` blocks are computed at once. With `max_blocks` that many whole blocks are measured, spread evenly.
    `progress` hears after each batch how many tokens have been predicted. The `ranks` take the batches in turns, and
    all compute as many: a sharded model needs all ranks for each.
    """
    model = objective.model
    total, count = 0.0, 0.0
    autocast = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)
    with _explained(objective, ranks), evaluating(model), autocast:
        batches = evaluation_batches(tokens, batch_size, model.context_length, max_blocks)
        while turn := list(itertools.islice(batches, ranks.world_size)):
            x, y = turn[min(ranks.rank, len(turn) - 1)]
            if ranks.rank >= len(turn):
                y = torch.full_like(y, IGNORE)
            loss, n_targets = objective(x.to(model.device), y.to(model.device))
            total += float(loss)
            count += int(n_targets)
            progress(int(count))
    reshard(objective)
    total, count = ranks.sum([total, count])
    return total / count


def _explained(objective: NextTokenLoss, ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    """A sharded model needs the other ranks wherever it computes."""
    return ranks.explained() if is_sharded(objective.model.out_head.weight) else contextlib.nullcontext()
