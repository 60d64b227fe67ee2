"""Who hears of a run besides the view: TensorBoard and Weights & Biases, where the settings ask for them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from glassgpt.json_file import read_json
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared, TrainResult
from glassgpt.training.run_directory import MAX_RUN_BYTES, RUN_FILE
from glassgpt.training.tensorboard import TensorBoard


class Watchers(Progress):
    """Passes everything on to the view and, once the settings are known, to the others."""

    def __init__(self, view: Progress, run: Path) -> None:
        self._run, self._all = run, [view]
        self._past: list[dict[str, Any]] = []

    def message(self, text: str) -> None:
        """See `Progress`."""
        for each in self._all:
            each.message(text)

    def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        """See `Progress`."""
        for each in self._all:
            each.work(name, done, total, unit)

    def history(self, records: list[dict[str, Any]]) -> None:
        """See `Progress`."""
        self._past = records
        for each in self._all:
            each.history(records)

    def start(self, prepared: Prepared, first_step: int) -> None:
        """See `Progress`."""
        others: list[Progress] = []
        if prepared.settings.tensorboard:
            others.append(TensorBoard(self._run))
        if prepared.settings.wandb:
            others.append(WeightsAndBiases(self._run))
        for each in others:
            each.history(self._past)
        self._all += others
        self._past = []
        for each in self._all:
            each.start(prepared, first_step)

    def step(self, record: dict[str, Any]) -> None:
        """See `Progress`."""
        for each in self._all:
            each.step(record)

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """See `Progress`."""
        for each in self._all:
            each.evaluation(record, best)

    def saved(self, step: int) -> None:
        """See `Progress`."""
        for each in self._all:
            each.saved(step)

    def sample(self, text: str) -> None:
        """See `Progress`."""
        for each in self._all:
            each.sample(text)

    def finish(self, result: TrainResult) -> None:
        """See `Progress`."""
        for each in self._all:
            each.finish(result)


class WeightsAndBiases(Progress):
    """Tells Weights & Biases of a run, under its own settings (`WANDB_PROJECT`, `WANDB_MODE` and so on).

    A resumed run goes on as the same one there. Begun with the first step, when the run is in its place.
    """

    def __init__(self, run: Path) -> None:
        self._directory, self._run = run, None
        self._pending: list[tuple[int, dict[str, Any]]] = []

    def start(self, prepared: Prepared, first_step: int) -> None:
        """See `Progress`."""
        self._config = prepared.config.to_dict() | prepared.settings.to_dict()

    def step(self, record: dict[str, Any]) -> None:
        """See `Progress`."""
        names = ("loss", "gradient_norm", "rate", "tokens_per_second")
        self._pending.append((record["step"], {f"train/{name}": record[name] for name in names}))
        self._send()

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """See `Progress`."""
        names = ("val_loss", "bits_per_byte", "epoch")
        self._pending.append((record["step"], {f"validation/{name}": record[name] for name in names}))

    def finish(self, result: TrainResult) -> None:
        """See `Progress`."""
        import wandb

        self._send()
        wandb.finish(exit_code=0 if result.finished else 1)

    def _send(self) -> None:
        import wandb

        if self._run is None:
            if wandb.run is not None:  # of a run that failed, in this process
                wandb.finish(exit_code=1)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "glassgpt"),
                name=self._directory.resolve().name,
                id=self._id(),
                resume="allow",
                config=self._config,
            )
            # its own steps only rise: those that come again after a rollback would be dropped
            wandb.define_metric("*", step_metric="step")
        for step, values in self._pending:
            wandb.log({"step": step, **values})
        self._pending.clear()

    def _id(self) -> str:
        """The same at every resume, another one for a run that takes this one's place."""
        began = read_json(self._directory / RUN_FILE, max_bytes=MAX_RUN_BYTES).get("began")
        return hashlib.sha256(f"{began} {self._directory.resolve()}".encode()).hexdigest()[:16]
