"""Where a resumed run goes: how many steps more minutes are, and what is said of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from glassgpt.training.choose import choose_epochs
from glassgpt.training.measure import further_steps, measure_speed
from glassgpt.training.records import Prepared
from glassgpt.training.settings import Settings
from glassgpt.training.step import schedule


def with_more_minutes(
    prepared: Prepared, minutes: float, patience: int | None, taken: int, device: torch.device
) -> tuple[Prepared, str]:
    """With the steps that fit into `minutes` after the `taken` ones, and a line on them.

    `patience` is what was asked for, or None. The speed is measured on a model that is thrown away, so the run's own
    steps are those of any other run to the same number of steps.
    """
    settings = prepared.settings
    speed = measure_speed(prepared, settings, device, min(2.0, 0.05 * minutes * 60))
    more = further_steps(minutes * 60, speed, settings, prepared.config.n_parameters())
    settings = settings.prolonged(taken + more, patience)
    time_text = f"{minutes:g} {'minute' if minutes == 1 else 'minutes'}"
    text = f"steps: {more:,} more fit into {time_text} at the speed just measured"
    epochs, most = prepared.epochs(taken + more), choose_epochs(prepared.parameters_per_token())
    if epochs > most:
        text += f"; they read the text {epochs:.1f} times in all, and more than {most} seldom make a model better"
    return dataclasses.replace(prepared, settings=settings), text


def resume_report(out: Path, prepared: Prepared, before: Settings, step: int) -> list[str]:
    """Lines on a resume at `step`: where the run is, where it goes, and what changed since `before`."""
    settings = prepared.settings
    assert settings.steps is not None
    line = (
        f"resuming {out} at step {step:,} of {settings.steps:,}, epoch {prepared.epochs(step):.1f} of "
        f"{prepared.epochs(settings.steps):.1f}"
    )
    if step == settings.steps:
        line += ": all its steps are taken, ask for more steps or minutes"
    else:
        rate, end = schedule(step, settings), schedule(settings.steps, settings)
        was = schedule(step, before)
        jump = f"from {was:.0%} to {rate:.0%}" if f"{was:.0%}" != f"{rate:.0%}" else f"at {rate:.0%}"
        line += f"; learning rate {jump} of its peak, in the end {end:.0%}"
    old, new = before.to_dict(), settings.to_dict()
    changes = [f"{name} {_text(old[name])} -> {_text(new[name])}" for name in new if new[name] != old[name]]
    return [line, *([f"changed: {', '.join(changes)}"] if changes else [])]


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else repr(value) if isinstance(value, str) else f"{value:g}"
