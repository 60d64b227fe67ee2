"""How many rows of a batch are computed at once: what is fastest on this machine, of what fits into its memory.

Their gradients are accumulated, so the batch, and what a run computes, is the same on every machine within rounding.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from glassgpt.config import GPTConfig
from glassgpt.device import DTYPES, device_name
from glassgpt.language_model import seeded
from glassgpt.measured import recall, remember, this_machine
from glassgpt.training.build import Trainee
from glassgpt.training.memory import CountedSteps, Memory, available_on, extrapolated
from glassgpt.training.settings import Settings
from glassgpt.training.step import accumulate_gradients

_SAME = 1.03  # times the best: no slower than can be measured
_WORSE = 1.15  # times the best: more rows will not be faster again
_SECONDS = 10.0  # for all of it
_ENOUGH_SECONDS = 0.5  # of one number of rows
_PART = 0.9  # of the memory that is there: what kernels take for themselves is not counted


@dataclasses.dataclass(frozen=True)
class _Tried:
    """A number of rows at once."""

    seconds: float
    """For each row."""
    n_bytes: int
    """In use at the worst moment, by what was counted."""


def choose_rows(settings: Settings, device: torch.device, config: GPTConfig, world_size: int = 1) -> tuple[int, str]:
    """The rows that each of `world_size` processes computes at once, a divisor of its share of the batch, and why.

    Of those that are as fast per row as the fastest, within what can be measured, the most. Measured in about ten
    seconds, and remembered as long as it is not the memory that decides.
    """
    rows, room = settings.batch_size // world_size, available_on(device)
    about = {
        "what": "rows at once",
        "config": config.to_dict(),
        "rows": rows,
        "optimizer": settings.optimizer,
        "freeze": sorted(settings.freeze),
        "dtype": settings.dtype,
        "checkpointing": settings.activation_checkpointing,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **this_machine("torch"),
    }
    found, measured, end = recall(about) or {}, "just now", ""
    tried = _tried(found.get("tried"))
    if tried and all(_fits(each.n_bytes, room) for each in tried.values()):
        measured = f"on {found['when']}"
    else:
        tried, end = _measure(config, settings, device, rows, room)
        if not end:
            remember(about, {"tried": {str(n): dataclasses.astuple(each) for n, each in tried.items()}})
    best = min(each.seconds for each in tried.values())
    chosen = max(n for n, each in tried.items() if each.seconds <= _SAME * best)
    times = ", ".join(f"{n}: {1000 * each.seconds:.3g} ms" for n, each in tried.items())
    return chosen, f"of {rows} in a batch, the fastest for each: {times}, measured {measured}{end}"


def _tried(found: Any) -> dict[int, _Tried]:
    """What was remembered; nothing where that is not what we write."""
    try:
        return {int(n): _Tried(float(seconds), int(n_bytes)) for n, (seconds, n_bytes) in found.items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def _fits(n_bytes: int, room: int | None) -> bool:
    return room is None or n_bytes <= _PART * room


def _measure(
    config: GPTConfig, settings: Settings, device: torch.device, rows: int, room: int | None
) -> tuple[dict[int, _Tried], str]:
    """What was tried, by rows at once; and where memory ended it, how."""
    began = time.perf_counter()
    tried: dict[int, _Tried] = {}
    memory: dict[int, Memory] = {}
    with seeded():
        counted = CountedSteps(config, settings, device)
        for n in (n for n in range(1, rows + 1) if rows % n == 0):
            if len(memory) > 1 and not _fits(need := extrapolated(memory, n).total, room):
                return tried, f"; {n} would take {need / 1e9:.2g} GB, of which {(room or 0) / 1e9:.2g} are there"
            best = min((each.seconds for each in tried.values()), default=0.0)
            if n > 2 and time.perf_counter() - began + 3 * n * best > _SECONDS:
                break
            try:
                memory[n] = counted.step(n)  # the first one is slower, too
                tried[n] = _Tried(_seconds(counted.trainee, config, settings, n) / n, memory[n].total)
            except torch.OutOfMemoryError:
                if not tried:
                    raise
                return tried, f"; {n} do not fit into the memory of {device}"
            if tried[n].seconds > _WORSE * best > 0:
                break
    return tried, ""


def _seconds(trainee: Trainee, config: GPTConfig, settings: Settings, rows: int) -> float:
    """Of a pass there and back; the best of a few."""
    ids = torch.zeros(rows, config.context_length, dtype=torch.int64)
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) < _ENOUGH_SECONDS):
        start = time.perf_counter()
        accumulate_gradients(trainee.objective, ids, ids, rows, DTYPES[settings.dtype])
        times.append(time.perf_counter() - start)
        trainee.objective.zero_grad(set_to_none=True)
    return min(times)
