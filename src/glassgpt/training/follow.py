"""How the other ranks take up the run that rank 0 has prepared, and how a restart knows that a run is its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glassgpt.device import set_threads
from glassgpt.json_file import read_json
from glassgpt.training.build import Trainee
from glassgpt.training.ranks import Ranks, code_digest
from glassgpt.training.records import Prepared, RunState
from glassgpt.training.request import Request
from glassgpt.training.resume import reopen
from glassgpt.training.run_directory import MAX_RUN_BYTES, RUN_FILE, is_run
from glassgpt.training.state import STATE_FILE, checkpoint_at, restore


def record_of(request: Request, device: torch.device, **more: object) -> dict[str, object]:
    """What every rank must have begun with: command, code and PyTorch. `more` is of the command, too."""
    asked: dict[str, Any] = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    for name in ("began", "agents"):
        del asked[name]
    for name in ("model", "tokenizer"):
        if not isinstance(asked[name], str | Path | None):
            asked[name] = type(asked[name]).__name__  # in memory
    settings = dict(asked.pop("settings"))
    config = dict(asked.pop("config"))
    return (
        settings | config | asked | more | {"device": device.type, "PyTorch": torch.__version__, "code": code_digest()}
    )


def word_of(out: Path, step: int) -> str:
    """What rank 0 tells the others of its run: the step to begin with, its threads, and what both are known by."""
    return json.dumps({"step": step, "threads": torch.get_num_threads(), **_digests(out, step)})


def follow(out: Path, ranks: Ranks, device: torch.device) -> tuple[Prepared, Trainee, RunState]:
    """The run in `out`, once rank 0 has it ready, from the checkpoint that it begins with. Computes with its threads.

    `ValueError` where this rank finds another run there, or none: the directory must be the same for all.
    """
    word = json.loads(ranks.told())
    step = word.pop("step")
    set_threads(word.pop("threads"))
    checkpoint = checkpoint_at(out, step)
    try:
        found = _digests(out, step)
    except OSError:
        found = {}
    if found != word:
        raise ValueError(
            f"{out} is not what rank 0 has there: it must be one directory for all ranks, on a disk that they share"
        )
    prepared, _, _ = reopen(out, Request(), verify=False)
    state = RunState.from_dict(read_json(checkpoint / STATE_FILE))
    return prepared, restore(checkpoint, prepared.settings, device, ranks), state


def is_own(out: Path, agents: Sequence[str]) -> bool:
    """Whether the run in `out` was begun or resumed by this `torchrun`, so that now it has been restarted."""
    if not (agents and agents[0] and is_run(out)):
        return False
    return agents[0] in read_json(out / RUN_FILE, max_bytes=MAX_RUN_BYTES).get("agents", ())


def _digests(out: Path, step: int) -> dict[str, str]:
    """Of what tells all the rest: `run.json` has the fingerprints of the data, `state.json` those of the weights."""
    files = (out / RUN_FILE, checkpoint_at(out, step) / STATE_FILE)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
