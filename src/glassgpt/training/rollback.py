"""A run that rolls back to where its steps were still good; when it does is `guard`'s."""

from __future__ import annotations

from pathlib import Path

import torch

from glassgpt.json_file import read_json
from glassgpt.training.build import Trainee
from glassgpt.training.guard import MAX_SKIPPED
from glassgpt.training.ranks import Ranks
from glassgpt.training.records import Prepared, RunState, TrainingFailedError
from glassgpt.training.state import STATE_FILE, checkpoint_at, discard_after, newest_checkpoint, restore
from glassgpt.training.writer import RunWriter, publish


def roll_back(
    prepared: Prepared, state: RunState, out: Path, device: torch.device, writer: RunWriter, ranks: Ranks
) -> tuple[Trainee, RunState]:
    """The run as it was at its last regular evaluation before steps were skipped, with a lower learning rate.

    Nothing of this is saved until the next checkpoint: a run that is killed before goes the same way again. All ranks
    decide the same, from the same losses; rank 0 finds the checkpoint. `TrainingFailedError` where the settings
    allow no further rollback.
    """
    settings, done = prepared.settings, state.guard.rollbacks
    failed = f"{MAX_SKIPPED} steps in a row up to step {state.step - 1} were skipped, each with its reason"
    if done >= settings.rollbacks:  # a resume may have lowered it
        raise TrainingFailedError(
            f"{failed}, after {done} rollbacks: begin again with a lower learning rate, or resume with more rollbacks; "
            f"the last checkpoint in {out} is untouched"
        )
    step = 0
    if ranks.first:
        path, before = newest_checkpoint(out, None if state.guard.back_to < 0 else state.guard.back_to)
        discard_after(out, before.step)
        if settings.keep == "last":
            publish(path, out)
        writer.rewind(before)
        step = before.step
    path = checkpoint_at(out, int(ranks.sum([step])[0]))  # the other ranks wait for rank 0, and add 0
    state = state.rolled_back(RunState.from_dict(read_json(path / STATE_FILE)))
    writer.message(
        f"{failed}: back to step {state.step}, with {state.guard.rate:g} of the learning rate (rollback "
        f"{state.guard.rollbacks} of {settings.rollbacks})"
    )
    return restore(path, settings, device, ranks), state
