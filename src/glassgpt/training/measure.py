"""How fast this machine trains this model, and how many steps fit into a time."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch

from glassgpt.data.loader import BatchLoader
from glassgpt.device import DTYPES
from glassgpt.language_model import seeded
from glassgpt.training.build import build
from glassgpt.training.records import Prepared
from glassgpt.training.settings import DEFAULT_EVAL_BATCHES, Settings
from glassgpt.training.step import evaluate_loss, take_step

EVALUATIONS = 9
"""Of a run whose intervals are derived: at the start, and after each eighth."""

_PATIENCE = 4
_EVALUATION_SHARE = 0.15  # of the time, at most, for measuring the model
_SAVING_SECONDS = 0.2  # of one evaluation, for its checkpoint, plot and sample
_SAVING_RATE = 400e6
"""Bytes per second of a checkpoint, written, flushed and hashed: a little less than the slowest of the disks on which
`benchmarks/saving.py` was run, 500 to 1000 million."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds of one step, and of one batch of an evaluation."""

    step: float
    eval_batch: float


def measure_speed(
    prepared: Prepared, settings: Settings, device: torch.device, seconds: float, world_size: int = 1
) -> Speed:
    """Time a few steps on a model that is thrown away, for about `seconds`; of `world_size` ranks the share of one."""
    config, dtype = prepared.config, DTYPES[settings.dtype]
    loader = BatchLoader(
        prepared.train.tokens,
        batch_size=settings.batch_size,
        context_length=config.context_length,
        seed=settings.seed,
        world_size=world_size,
    )
    with seeded():
        trainee = build(config, settings, device)
        times: list[float] = []
        while len(times) < 2 or (sum(times) < seconds and len(times) < 1000):
            step, start = len(times), time.perf_counter()
            take_step(trainee.objective, trainee.optimizers, loader.batch(step), step, settings.resolved(1000), dtype)
            times.append(time.perf_counter() - start)
        for _ in range(2):  # the first one is slower, too
            start = time.perf_counter()
            evaluate_loss(
                trainee.objective, prepared.validation.tokens, settings.rows_at_once, settings.batch_size, dtype
            )
            evaluation = (time.perf_counter() - start) / world_size
        later = times[len(times) // 2 :]  # the first steps are slower than those that follow
        return Speed(statistics.median(later), evaluation)


def settings_for(
    seconds: float,
    spent: float,
    speed: Speed,
    settings: Settings,
    n_parameters: int,
    most_steps: int | None = None,
) -> tuple[Settings, str]:
    """`settings` with the steps that fit into `seconds`, evaluations and checkpoints included, and a line on them.

    `spent` of the seconds are gone already. `most_steps` are those that the text can bear.
    """
    batches = settings.eval_batches
    if batches is None:
        affordable = int(_EVALUATION_SHARE * seconds / EVALUATIONS / speed.eval_batch)
        batches = max(1, min(DEFAULT_EVAL_BATCHES, affordable))
    left = seconds - spent - EVALUATIONS * _evaluation_seconds(batches, speed, n_parameters)
    steps = max(1, int(left / speed.step))
    asked = time_text(seconds / 60)
    if left < 10 * speed.step:
        text = f"steps: {steps}; {asked} are too short for this model: one step takes {speed.step:.2g} s"
    else:
        text = f"steps: {steps:,} fit into {asked} at the speed just measured"
    if most_steps is not None and most_steps < steps:
        text = f"steps: {most_steps:,}, after which more make it worse; {steps:,} would fit into {asked}"
        steps = most_steps
    settings = dataclasses.replace(
        settings, eval_batches=batches, patience=_PATIENCE if settings.patience is None else settings.patience
    )
    return settings.resolved(steps), text


def further_steps(seconds: float, speed: Speed, settings: Settings, n_parameters: int) -> int:
    """Steps of a resumed run that fit into `seconds`, evaluations and checkpoints included; at least one."""
    assert settings.eval_batches is not None and settings.eval_every is not None, "settings must be resolved first"
    evaluation = _evaluation_seconds(settings.eval_batches, speed, n_parameters)
    return max(1, int((seconds - evaluation) / (speed.step + evaluation / settings.eval_every)))


def run_seconds(prepared: Prepared, speed: Speed) -> float:
    """What a run takes, evaluations and checkpoints included, but not the reading of its text."""
    settings, length, steps = prepared.settings, prepared.config.context_length, prepared.settings.steps
    assert steps is not None
    assert settings.eval_batches is not None and settings.eval_every is not None, "settings must be resolved first"
    n_blocks = -(-(prepared.validation.n_tokens - 1) // length)
    batches = min(settings.eval_batches, n_blocks / settings.batch_size)
    early = sum(step < steps for step in prepared.early)
    evaluations = 1 + early + -(-steps // settings.eval_every)
    return steps * speed.step + evaluations * _evaluation_seconds(batches, speed, prepared.config.n_parameters())


def time_text(minutes: float) -> str:
    """A time as people say it."""
    return f"{minutes:g} {'minute' if minutes == 1 else 'minutes'}"


def _evaluation_seconds(batches: float, speed: Speed, n_parameters: int) -> float:
    """With its checkpoint: the weights, and two or three numbers for each of them."""
    return batches * speed.eval_batch + _SAVING_SECONDS + 16 * n_parameters / _SAVING_RATE
