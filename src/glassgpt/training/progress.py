"""The one place progress goes through: what a run reports, and to whom. `training.terminal` shows it to people."""

from __future__ import annotations

from typing import Any

from glassgpt.training.records import Prepared, TrainResult


class Progress:
    """Called with what happens, in the order of the methods; does nothing with it. Override what you want to see."""

    def message(self, text: str) -> None:
        """One line worth knowing."""

    def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        """Of the work called `name`, which takes longer than a step, `done` of `total` units are done.

        A `total` of 0 is not known. Calls come one at a time, but not all from one thread.
        """

    def history(self, records: list[dict[str, Any]]) -> None:
        """These are the lines of `log.jsonl` so far: a run is resumed, and `start` follows, or it has rolled back."""

    def start(self, prepared: Prepared, first_step: int) -> None:
        """The first step is about to be taken; `first_step` is above 0 in a resumed run."""

    def step(self, record: dict[str, Any]) -> None:
        """A step was taken: a line of `log.jsonl`."""

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """The model was measured and saved: a line of `log.jsonl`, and whether no earlier one was better."""

    def saved(self, step: int) -> None:
        """A checkpoint was saved after `step` steps, between two evaluations."""

    def sample(self, text: str) -> None:
        """What the model writes now."""

    def finish(self, result: TrainResult) -> None:
        """The run ended, finished or stopped."""
