"""What a run would need and take, before it begins: parameters, memory, speed, time, and what could be better."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import GPTConfig
from glassgpt.device import device_name
from glassgpt.model import GPTModel
from glassgpt.training.advice import advise
from glassgpt.training.heap import heap_kept
from glassgpt.training.measure import Speed, measure_speed, run_seconds
from glassgpt.training.memory import Memory, available_on, count_memory, extrapolated, least_memory, least_parts
from glassgpt.training.number_type import product_rate
from glassgpt.training.peak import operations, remember_rate
from glassgpt.training.plan import planned
from glassgpt.training.plot import figure_of
from glassgpt.training.prepare import check_texts, gathered_apart
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared
from glassgpt.training.request import Request
from glassgpt.training.settings import AUTO

TOKENS_PER_PARAMETER = 20
"""For the lowest loss that so much computing can buy, about: Hoffmann et al. 2022, "Training Compute-Optimal Large
Language Models", table 3."""

_PROBE_SECONDS = 3.0
_PARTS = {
    "tok_emb": "token embedding",
    "pos_emb": "positions",
    ".att.": "attention",
    ".ff.": "feed-forward",
    "norm": "norms",
    "out_head": "output head",
}


@dataclasses.dataclass(frozen=True)
class Goal:
    """An amount of training, and what it takes; seconds and cost are None where no speed was measured."""

    name: str
    steps: int
    tokens: int
    epochs: float
    seconds: float | None
    cost: float | None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What is known of a run before it begins. Times are in seconds, sizes in bytes."""

    choices: list[str]
    """What `train` would pick, as it says it itself."""
    parameters: dict[str, int]
    """By part."""
    memory: Memory
    available: int | None
    """What a run may take here; None where the system does not say."""
    step_seconds: float | None
    """None where the run would not fit into memory: then nothing is tried."""
    tokens_per_second: float | None
    product_rate: float | None
    """Floating-point operations per second that large matrix products reach here, in the run's number type."""
    share: float | None
    """Part of it that training reaches, by the operations that the model itself needs (see `operations`)."""
    goals: list[Goal]
    """First the run itself, last the compute-optimal one by `TOKENS_PER_PARAMETER`."""
    advice: list[str]

    @property
    def n_parameters(self) -> int:
        """In all."""
        return sum(self.parameters.values())

    @property
    def without_embeddings(self) -> int:
        """Those of the blocks, as papers on scaling count them: neither tokens nor positions nor the output head."""
        return sum(self.parameters[part] for part in ("attention", "feed-forward", "norms"))

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        result = dataclasses.asdict(self)
        result["memory"]["total"] = self.memory.total
        result["parameters"] = {
            "all": self.n_parameters,
            "without_embeddings": self.without_embeddings,
            "parts": self.parameters,
        }
        return result


def parameters_by_part(config: GPTConfig) -> dict[str, int]:
    """Parameters of each part of the model; a head that is tied to the token embedding has none of its own."""
    with torch.device("meta"):
        model = GPTModel(config)
    counts = dict.fromkeys(_PARTS.values(), 0)
    for name, parameter in model.named_parameters():
        counts[next(part for key, part in _PARTS.items() if key in name)] += parameter.numel()
    return counts


def forecast(
    request: Request,
    out: Path,
    device: torch.device,
    progress: Progress,
    *,
    tokens: int | None = None,
    epochs: float | None = None,
    price: float | None = None,
) -> Forecast:
    """What a run of `request` in `out` would be, by the code that would begin it, and a few of its steps.

    `tokens` and `epochs` are amounts to look ahead to besides, `price` is for an hour of this machine. Nothing is
    written but in a temporary place. Where the run would not fit into memory nothing of it is tried. Raises what
    `prepare` raises.
    """
    check_texts(request, out)
    figure_of(1, 1)  # a run draws: what that loads is part of its memory
    with heap_kept(), gathered_apart(request, device, progress) as (gathered, shapes, _):
        room = available_on(device)
        config = shapes[0][1]
        possible = room is None or least_memory(config, gathered.settings) <= room
        prepared = dataclasses.replace(gathered, config=config)
        memory = _memory(prepared, device, progress) if possible else least_parts(config, gathered.settings)
        speed = rate = None
        if possible and (room is None or memory.total <= room):
            prepared = planned(gathered, shapes, request, device)
            progress.message("measuring: a few steps on a model that is thrown away")
            speed = measure_speed(prepared, prepared.settings, device, _PROBE_SECONDS)
            rate = product_rate(prepared.settings.dtype, device)
            remember_rate(rate, prepared.settings.dtype, device_name(device), torch.get_num_threads())
            if (prepared.config, prepared.settings.rows_at_once) != (config, gathered.settings.rows_at_once):
                memory = _memory(prepared, device, progress)
        amounts = {"this run": prepared.settings.steps} | _amounts(prepared, tokens, epochs)
        per_second = None if speed is None else prepared.tokens_per_step / speed.step
        return Forecast(
            choices=prepared.choices,
            parameters=parameters_by_part(prepared.config),
            memory=memory,
            available=room,
            step_seconds=None if speed is None else speed.step,
            tokens_per_second=per_second,
            product_rate=rate,
            share=None if per_second is None or rate is None else per_second * operations(prepared.config) / rate,
            goals=[_goal(name, steps, prepared, request, speed, price) for name, steps in amounts.items() if steps],
            advice=advise(prepared, request, device, memory, room),
        )


def _memory(prepared: Prepared, device: torch.device, progress: Progress) -> Memory:
    """What a step takes, counted, or on the line through what was counted; of rows to be picked, with one."""
    settings = prepared.settings
    progress.message("counting the memory of a step")
    rows = 1 if settings.micro_batch_size == AUTO else settings.rows_at_once
    return extrapolated(count_memory(prepared.config, settings, device, rows), rows)


def _amounts(prepared: Prepared, tokens: int | None, epochs: float | None) -> dict[str, int]:
    """The steps of other amounts of training, by name."""
    optimal = TOKENS_PER_PARAMETER * prepared.config.n_parameters()
    amounts = {} if tokens is None else {f"{tokens:,} tokens": tokens / prepared.tokens_per_step}
    if epochs is not None:
        amounts[f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'}"] = epochs / prepared.epochs(1)
    amounts[f"compute-optimal, {TOKENS_PER_PARAMETER} tokens per parameter (Hoffmann et al. 2022)"] = (
        optimal / prepared.tokens_per_step
    )
    return {name: math.ceil(steps) for name, steps in amounts.items()}


def _goal(
    name: str, steps: int, prepared: Prepared, request: Request, speed: Speed | None, price: float | None
) -> Goal:
    """An amount of training, evaluated as often as such a run would be."""
    warmup, every = (request.settings.get(field) for field in ("warmup_steps", "eval_every"))
    settings = dataclasses.replace(prepared.settings, warmup_steps=warmup, eval_every=every).resolved(steps)
    prepared = dataclasses.replace(prepared, settings=settings)
    seconds = None if speed is None else run_seconds(prepared, speed)
    cost = None if seconds is None or price is None else price * seconds / 3600
    return Goal(name, steps, steps * prepared.tokens_per_step, prepared.epochs(steps), seconds, cost)
