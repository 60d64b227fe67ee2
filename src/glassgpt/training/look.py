"""A run looked at from outside, finished, running or damaged: its settings, its curve and how far it is."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any

from glassgpt.training.log import read_log_and_damage
from glassgpt.training.run_directory import LOG
from glassgpt.training.run_file import RunRecord, read_run

RUNNING_SECONDS = 120.0
"""A run whose log is younger than that is taken to be running: its steps are closer to each other."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What a run's `run.json` and `log.jsonl` say at this moment. Losses are in nats per token."""

    run: str
    record: RunRecord
    log: list[dict[str, Any]]
    damage: str | None
    """What of the log cannot be read, in words."""
    age: float
    """Seconds since the log was written to."""

    @functools.cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The log's records of steps."""
        return [record for record in self.log if record["kind"] == "step"]

    @functools.cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The log's records of evaluations whose loss is a number."""
        return [r for r in self.log if r["kind"] == "evaluation" and r["val_loss"] is not None]

    @property
    def taken(self) -> int:
        """Steps that were taken."""
        return self.steps[-1]["step"] + 1 if self.steps else 0

    @property
    def planned(self) -> int:
        """Steps that the run has in all."""
        return self.record.settings.steps or 0

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest loss, of those that count (see `RunState.after_evaluation`)."""
        return self._best(regular=False)

    def _best(self, regular: bool) -> dict[str, Any] | None:
        """Of all evaluations that count, or of the `regular` ones."""
        counted = [r for r in self.evaluations if not r.get("skipping") and (r.get("regular", True) or not regular)]
        return min(counted, key=lambda record: record["val_loss"], default=None)

    @property
    def last(self) -> dict[str, Any] | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or as many as patience allowed, and the last model was measured."""
        if self.last is None or self.last["step"] < self.taken:
            return False
        best = self._best(regular=True)
        return self.taken >= self.planned or (
            best is not None and self.record.settings.tired(self.taken - best["step"])
        )

    @property
    def status(self) -> str:
        """How far it is, in a word or a few."""
        if self.finished:
            return "finished" if self.taken >= self.planned else "stopped early"
        return f"{'running' if self.age < RUNNING_SECONDS else 'unfinished'}, {self.taken:,} of {self.planned:,}"

    @property
    def tokens_per_second(self) -> float | None:
        """The median over the steps."""
        return statistics.median(r.get("tokens_per_second", 0.0) for r in self.steps) if self.steps else None

    @property
    def seconds(self) -> float | None:
        """At work until the last record, without pauses."""
        return self.log[-1].get("seconds") if self.log else None

    def settings(self) -> dict[str, Any]:
        """All that may tell it from another run, by the names of the options."""
        record = self.record
        return {
            "text": ", ".join(record.texts) or "Python's own manual",
            "text_field": ", ".join(record.text_fields) or None,
            "from": record.source,
            "tokenizer": record.tokenizer,
            **record.config.to_dict(),
            **record.settings.to_dict(),
            "threads": record.threads,
            "device": record.device,
            "torch": record.torch,
        }

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        best, last = self.best, self.last
        return {
            "run": self.run,
            "status": self.status,
            "finished": self.finished,
            "steps": self.taken,
            "planned": self.planned,
            "parameters": self.record.config.n_parameters(),
            "best_val_loss": best and best["val_loss"],
            "best_step": best and best["step"],
            "best_bits_per_byte": best and best["bits_per_byte"],
            "val_loss": last and last["val_loss"],
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "damage": self.damage,
        }


def look(run: str | Path) -> Look:
    """The run in a directory. `ValueError` or `OSError`, in one line, where there is none or `run.json` is damaged."""
    path = Path(run)
    record = read_run(path)
    log, n_damaged = read_log_and_damage(path)
    log = [r for r in log if _is_whole(r)]
    damage = None
    if not (path / LOG).exists():
        damage = f"{LOG} is missing"
    elif n_damaged:  # the last line, cut off by a kill or half written at this moment, does not count
        damage = f"{LOG} is damaged: lines that are left out: {n_damaged:,}"
    elif not any(record["kind"] == "evaluation" for record in log):
        damage = f"{LOG} has no evaluation yet"
    age = time.time() - (path / LOG).stat().st_mtime if (path / LOG).exists() else math.inf
    return Look(str(run), record, log, damage, age)


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a record has the numbers that a look needs; a log is a file that people may edit."""
    keys = ("step", "loss") if record["kind"] == "step" else ("step", "val_loss", "bits_per_byte")
    step, *numbers = (record.get(key) for key in keys)
    fit = all(number is None or isinstance(number, int | float) for number in numbers)
    return isinstance(step, int) and not isinstance(step, bool) and fit
