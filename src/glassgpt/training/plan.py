"""The shape, the dropout and the number of steps of a run, where they were not given: by text, machine and minutes."""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from glassgpt.config import GPTConfig
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.choose import choose_dropout, choose_epochs, early_evaluations
from glassgpt.training.measure import measure_speed, settings_for, time_text
from glassgpt.training.memory import available_on, least_memory
from glassgpt.training.micro_batch import choose_rows
from glassgpt.training.records import Prepared
from glassgpt.training.request import Request
from glassgpt.training.settings import AUTO, Settings

DEFAULT_MINUTES = 5.0
ENOUGH_STEPS = 1000
"""Fewer teach a larger model less than a smaller one learns in the same time: see docs/small_texts.md."""


def fitting(
    request: Request, shapes: list[tuple[str, GPTConfig]], tokenizer: Tokenizer, n_tokens: int
) -> list[tuple[str, GPTConfig]]:
    """The shapes with the size of the vocabulary; of those that were picked, none longer than a tiny text.

    `ValueError` where the vocabulary that was asked for is smaller than the tokenizer's.
    """
    size = request.config.get("vocab_size", tokenizer.n_vocab)
    if request.model is not None:
        size = shapes[0][1].vocab_size
    elif request.tokenizer in (None, "bpe"):
        size = tokenizer.n_vocab  # a BPE is as large as its text allows, and not larger than was asked for
    if size < tokenizer.n_vocab:
        raise ValueError(f"vocab_size {size} is less than the {tokenizer.n_vocab} tokens of the tokenizer")
    result = []
    for name, config in shapes:
        if name and "context_length" not in request.config and 1 < n_tokens <= config.context_length:
            config = config.replace(context_length=2 ** ((n_tokens - 1).bit_length() - 1))
        result.append((name, config.replace(vocab_size=size)))
    return result


def that_fit(
    shapes: list[tuple[str, GPTConfig]], settings: Settings, device: torch.device, choices: list[str]
) -> list[tuple[str, GPTConfig]]:
    """The shapes of which a step may fit into memory, or else the smallest of them; and a choice on the others."""
    large = {name: problem for name, config in shapes if (problem := _too_large(config, settings, device))}
    fit = [shape for shape in shapes if shape[0] not in large]
    if fit and large:
        name, problem = list(large.items())[-1]
        choices.append(f"memory: {name} does not fit, its {problem}")
    return fit or shapes[-1:]


def _too_large(config: GPTConfig, settings: Settings, device: torch.device) -> str:
    """Why no step of a shape can fit into memory; "" where one may."""
    need, room = least_memory(config, settings), available_on(device)
    if room is None or need <= room:
        return ""
    return (
        f"{config.n_parameters():,} parameters take {need / 1e9:.2g} GB or more to train, where {room / 1e9:.2g} GB of "
        "memory can be had"
    )


def planned(
    prepared: Prepared, shapes: list[tuple[str, GPTConfig]], request: Request, device: torch.device
) -> Prepared:
    """With a number of steps, and with the first of `shapes` that gets enough of them in the time."""
    choices, minutes = prepared.choices, request.minutes
    if prepared.settings.steps is None and minutes is None:
        minutes = DEFAULT_MINUTES
        choices.append(f"time: {time_text(minutes)}, the default")
    if too_large := _too_large(shapes[0][1], prepared.settings, device):
        raise MemoryError(f"{too_large}: take a smaller shape")
    for name, config in shapes:
        rows_picked = dataclasses.replace(prepared, config=config)
        rows_picked, rows_line = _with_rows(rows_picked, device, request.world_size)
        result, line = _with_steps(rows_picked, name, request, minutes, device)
        steps = result.settings.steps or 0
        if minutes is None or steps >= min(_most_steps(result), ENOUGH_STEPS):
            break
    if name and request.shape is None:
        n_bytes = prepared.train.n_bytes + prepared.validation.n_bytes
        within = f" and {time_text(minutes)}" if minutes else ""
        choices.append(f"shape: {name}, for {n_bytes:,} bytes of text{within}")
    if result.config.drop_rate != config.drop_rate:
        choices.append(_dropout_line(result, steps))
    choices += filter(None, (rows_line, line, f"the text is read {result.epochs(steps):.1f} times (epochs)"))
    config, source = result.config, result.source
    choices.append(
        f"model: {f'begins with the weights of {source}' if source else 'from scratch'}, "
        f"{config.n_parameters():,} parameters, {config.n_layers} layers x {config.emb_dim} wide, "
        f"{config.n_heads} heads, context {config.context_length} tokens"
    )
    return result


def _with_rows(prepared: Prepared, device: torch.device, world_size: int) -> tuple[Prepared, str]:
    """With the rows that are computed at once, where they are to be picked; and a line on them."""
    if prepared.settings.micro_batch_size != AUTO:
        return prepared, ""
    rows, reason = choose_rows(prepared.settings, device, prepared.config, world_size)
    settings = dataclasses.replace(prepared.settings, micro_batch_size=rows)  # so a resume elsewhere does the same
    return dataclasses.replace(prepared, settings=settings), f"rows at once: {rows} ({reason})"


def _dropout_line(result: Prepared, steps: int) -> str:
    """What the dropout is, and which of the two numbers that `choose_dropout` asks for decided it."""
    ratio = result.parameters_per_token()
    if result.config.drop_rate == 0 and ratio >= 1:
        return f"dropout: 0, for a text that is read {result.epochs(steps):.1f} times"
    return f"dropout: {result.config.drop_rate:g}, for {ratio:{',.0f' if ratio >= 10 else '.2g'}} parameters per token"


def _with_steps(
    prepared: Prepared, name: str, request: Request, minutes: float | None, device: torch.device
) -> tuple[Prepared, str]:
    """With a number of steps, when to measure, the dropout where that is to be picked; and a line on the steps."""
    regular, line = prepared.settings.eval_every is not None, ""
    picks_dropout = bool(name) and "drop_rate" not in request.config
    if minutes is None:
        assert prepared.settings.steps is not None
        prepared = dataclasses.replace(prepared, settings=prepared.settings.resolved(prepared.settings.steps))
        if picks_dropout:
            prepared = _with_dropout(prepared, _steps(prepared))
    else:
        untimed, most = prepared.settings, _most_steps(prepared)
        if picks_dropout:
            prepared = _with_dropout(prepared, most)
        dropout = prepared.config.drop_rate
        prepared, line = _timed(prepared, untimed, request, minutes, device)
        if picks_dropout and (prepared := _with_dropout(prepared, _steps(prepared))).config.drop_rate < dropout:
            # dropout takes a quarter of a step's time: without it there is room for more steps
            prepared, line = _timed(prepared, untimed, request, minutes, device)
    assert prepared.settings.eval_every is not None
    early = () if regular else early_evaluations(prepared.settings.eval_every, 1 / prepared.epochs(1))
    return dataclasses.replace(prepared, early=early), line


def _timed(
    prepared: Prepared, untimed: Settings, request: Request, minutes: float, device: torch.device
) -> tuple[Prepared, str]:
    """With the steps that fit into what is left of the minutes, by a measurement; and a line on them."""
    speed = measure_speed(
        dataclasses.replace(prepared, settings=untimed),
        untimed,
        device,
        min(2.0, 0.05 * minutes * 60),
        request.world_size,
    )
    passed = time.monotonic() - request.began
    spent = min(passed, 30 * minutes)  # half of the time at least is for training
    settings, line = settings_for(
        minutes * 60, spent, speed, untimed, prepared.config.n_parameters(), _most_steps(prepared)
    )
    if passed > spent:
        line += f"; reading the text took {passed:.0f} seconds, of which only half of the time is counted"
    return dataclasses.replace(prepared, settings=settings), line


def _with_dropout(prepared: Prepared, steps: int) -> Prepared:
    """With the dropout that suits a run of so many steps."""
    dropout = choose_dropout(prepared.parameters_per_token(), prepared.epochs(steps))
    return dataclasses.replace(prepared, config=prepared.config.replace(drop_rate=dropout))


def _steps(prepared: Prepared) -> int:
    assert prepared.settings.steps is not None
    return prepared.settings.steps


def _most_steps(prepared: Prepared) -> int:
    """Steps that the text can bear."""
    epochs = choose_epochs(prepared.parameters_per_token(), from_weights=prepared.source is not None)
    return math.ceil(epochs / prepared.epochs(1))
