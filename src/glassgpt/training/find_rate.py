"""A learning rate from a short ramp (Smith 2015, "Cyclical learning rates"): the loss while the rate rises."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from glassgpt.data.loader import BatchLoader
from glassgpt.device import DTYPES
from glassgpt.language_model import seeded
from glassgpt.training.build import build
from glassgpt.training.optimizer import Muon
from glassgpt.training.plan import planned
from glassgpt.training.prepare import gathered_apart
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared, TrainingFailedError
from glassgpt.training.request import Request, Start
from glassgpt.training.settings import LEARNING_RATE, MUON_LEARNING_RATE
from glassgpt.training.step import take_step

RATES = {"learning_rate": LEARNING_RATE, "muon_learning_rate": MUON_LEARNING_RATE}
"""What can be searched for, and the middle of the ramp, in the logarithm."""

STEPS = 200
_SPAN = 1000.0  # from the middle of the ramp to each end
_KEPT = 0.9  # part of the smoothed loss that the next step keeps
_RISEN = 1.2  # times the lowest smoothed loss: beyond, the model has fallen apart
_LEAST = 10  # steps without which there is nothing to read


@dataclasses.dataclass(frozen=True)
class FoundRate:
    """The ramp, step by step, and how it is read."""

    setting: str
    rates: list[float]
    losses: list[float]
    """In nats per token, before each step's update."""
    smoothed: list[float]
    steepest: float
    """The rate at which the smoothed loss falls fastest over the logarithm of the rate: a good peak rate."""
    lowest: float
    """The rate at the lowest smoothed loss: above what training bears for long, of which people take a tenth."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return dataclasses.asdict(self)


def find_rate(
    request: Request, setting: str, device: torch.device, progress: Progress, steps: int = STEPS
) -> FoundRate:
    """Prepare what was asked for in a temporary place, and train a model on a rising rate that is thrown away.

    The other rate, where there is one, stays at its peak. Raises what `prepare` raises, and `TrainingFailedError` where
    the loss is not finite before there is anything to read.
    """
    if setting not in RATES:
        raise ValueError(f"setting {setting!r} must be one of {', '.join(RATES)}")
    if setting == "muon_learning_rate" and request.settings.get("optimizer") == "adamw":
        raise ValueError("muon_learning_rate: the optimizer adamw has no such rate; search for learning_rate")
    settings = {k: v for k, v in request.settings.items() if k not in RATES or k != setting}
    request = dataclasses.replace(request, minutes=None, settings=settings | {"steps": steps})
    with gathered_apart(request, device, progress) as (gathered, shapes, start):
        prepared = planned(gathered, shapes, request, device)
        progress.start(prepared, 0)
        rates, losses = _ramp(prepared, start, setting, steps, device, progress)
    return read_ramp(setting, rates, losses)


def _ramp(
    prepared: Prepared, start: Start | None, setting: str, steps: int, device: torch.device, progress: Progress
) -> tuple[list[float], list[float]]:
    # a constant schedule, so that the peak rate is the rate
    settings = dataclasses.replace(prepared.settings, warmup_steps=0, final_rate=1.0)
    loader = BatchLoader(
        prepared.train.tokens,
        batch_size=settings.batch_size,
        context_length=prepared.config.context_length,
        seed=settings.seed,
    )
    rates: list[float] = []
    losses: list[float] = []
    smoothed, lowest = 0.0, math.inf
    with seeded():
        trainee = build(prepared.config, settings, device, start.model if start else None)
        for step in range(steps):
            rate = RATES[setting] / _SPAN * _SPAN ** (2 * step / max(1, steps - 1))
            for optimizer in trainee.optimizers:
                if isinstance(optimizer, Muon) == (setting == "muon_learning_rate"):
                    for group in optimizer.param_groups:
                        group["peak_lr"] = rate
            loss, _, refusal = take_step(
                trainee.objective, trainee.optimizers, loader.batch(step), step, settings, DTYPES[settings.dtype]
            )
            if refusal is not None:
                break
            rates.append(rate)
            losses.append(loss)
            progress.work("raising the rate", step + 1, steps, "steps")
            smoothed = _KEPT * smoothed + (1 - _KEPT) * loss
            now = smoothed / (1 - _KEPT ** (step + 1))
            lowest = min(lowest, now)
            if now > _RISEN * lowest:
                break
    progress.work("raising the rate", steps, steps, "steps")
    return rates, losses


def read_ramp(setting: str, rates: list[float], losses: list[float]) -> FoundRate:
    """Smooth the losses, find the lowest and the steepest fall before it; `TrainingFailedError` with too few."""
    if len(losses) < _LEAST:
        raise TrainingFailedError(
            f"the loss was not finite after {len(losses)} steps: nothing can be read from that, check text and shape"
        )
    smoothed, mean = [], 0.0
    for n, loss in enumerate(losses, 1):
        mean = _KEPT * mean + (1 - _KEPT) * loss
        smoothed.append(mean / (1 - _KEPT**n))
    low = min(range(len(smoothed)), key=smoothed.__getitem__)
    # rates are evenly spaced in their logarithm, so a difference of losses is a slope
    width = max(1, len(losses) // 20)
    falls = {n: smoothed[n + width] - smoothed[n - width] for n in range(width, low - width + 1)}
    steep = min(falls, key=falls.__getitem__) if falls else low
    return FoundRate(setting, rates, losses, smoothed, rates[steep], rates[low])
