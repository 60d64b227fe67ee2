"""Runs side by side: the settings that differ, how well each did, and their curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.terminal_text import table
from glassgpt.training.look import Look, look


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs that could be read, and what is wrong with the others."""

    looks: list[Look]
    damaged: dict[str, str]

    def differences(self) -> dict[str, list[Any]]:
        """The settings that are not the same everywhere, each with its value in every run."""
        every = [each.settings() for each in self.looks]
        columns = {name: [settings[name] for settings in every] for name in (every[0] if every else ())}
        return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}

    def notes(self) -> list[str]:
        """What is wrong with which run, and what to read with care; one line each."""
        notes = [f"{run}: {reason}" for run, reason in self.damaged.items()]
        notes += [f"{each.run}: {each.damage}" for each in self.looks if each.damage]
        if len({each.record.digests[1] for each in self.looks}) > 1:
            notes.append(
                "the validation parts are not the same tokens: across tokenizers compare bits per byte, across texts "
                "nothing"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "runs": [each.summary() | {"settings": each.settings()} for each in self.looks],
            "differences": self.differences(),
            "damaged": self.damaged,
            "notes": self.notes(),
        }


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Look at `runs`; a damaged one does not keep the others from being compared.

    `ValueError` where one is named twice or none of them can be read.
    """
    names = [str(run) for run in runs]
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: name each run once")
    looks, damaged = [], {}
    for name in names:
        try:
            looks.append(look(name))
        except (ValueError, OSError) as error:
            damaged[name] = " ".join(str(error).removeprefix(f"{name} ").split())
    if not looks:
        raise ValueError(f"no run to compare: {'; '.join(f'{run}: {reason}' for run, reason in damaged.items())}")
    return Comparison(looks, damaged)


def report(comparison: Comparison) -> str:
    """The comparison as tables in Markdown, which a terminal shows as well, and its notes."""
    looks, differences = comparison.looks, comparison.differences()
    parts = [results_table(looks)]
    if differences:
        rows = [[name, *map(shown, values)] for name, values in differences.items()]
        parts.append(table(["setting", *(each.run for each in looks)], rows))
    elif len(looks) > 1:
        parts.append("no setting differs")
    notes = "\n".join(f"- {note}" for note in comparison.notes())
    return "\n\n".join(part for part in (*parts, notes) if part) + "\n"


def results_table(looks: Sequence[Look]) -> str:
    """How well each did, one run a row."""
    return table(["run", *RESULTS], [[each.run, *results_row(each)] for each in looks])


RESULTS = ("status", "steps", "best loss", "at step", "bits per byte", "last loss", "tokens/s", "time")


def results_row(each: Look) -> list[str]:
    """The cells under `RESULTS`."""
    figures = each.summary()
    return [
        each.status,
        f"{each.taken:,}",
        _number(figures["best_val_loss"], ".4f"),
        _number(figures["best_step"], ","),
        _number(figures["best_bits_per_byte"], ".4f"),
        _number(figures["val_loss"], ".4f"),
        _number(figures["tokens_per_second"], ",.0f"),
        clock(figures["seconds"]),
    ]


def shown(value: Any) -> str:
    """A setting's value in a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value) or '""'


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
