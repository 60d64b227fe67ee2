"""Checkpoints of a run: what a resume needs, whole or not there, with the SHA-256 of each file.

A checkpoint is a model directory with `training_state/` in it. No state of a random number generator is saved: the
random numbers of step s are seeded from (seed, s), see `step.step_seed`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from glassgpt.checkpoint import load_model, save_model, write_tensors
from glassgpt.files import replacing, sync
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.build import Trainee, ready
from glassgpt.training.heap import give_back
from glassgpt.training.ranks import ALONE, Ranks
from glassgpt.training.records import RunState
from glassgpt.training.settings import Settings
from glassgpt.training.shards import gather_weights, load_tensors, model_of, save_tensors, shard, whole

KEEP = 2
"""Newest checkpoints that are kept: should the last one be damaged, the one before it still resumes."""

_STATE = "training_state"
OPTIMIZER = "optimizer.safetensors"
STATE_FILE = Path(_STATE) / "state.json"
"""Within a checkpoint: how far the run was, and the digest of each file."""
_log = logging.getLogger(__name__)


def save_checkpoint(run: Path, trainee: Trainee, tokenizer: Tokenizer, state: RunState, ranks: Ranks = ALONE) -> Path:
    """Write `run/checkpoints/step-N` for `state.step` = N, then delete older ones, but for the newest that are whole.

    `KEEP` whole ones stay, and the one that the run would roll back to (see `guard`). The directory is written under
    another name, flushed and renamed: a kill at any moment, or a full disk (`OSError`), leaves the older ones
    untouched. Later ones than N, which a resumed run found damaged, stay until the run has passed them.

    Of a sharded model all ranks write their part of the optimizer's state; the first does all else, with the weights
    that the others give it.
    """
    target = checkpoint_at(run, state.step)
    if not ranks.first:
        temporary = target.with_name(ranks.told())
        with ranks.explained():
            gather_weights(trainee.model)
            save_tensors(_optimizer_tensors(trainee), temporary / _STATE)
        return target
    with replacing(target) as temporary:
        if trainee.sharded:
            (temporary / _STATE).mkdir(parents=True)
            ranks.tell(temporary.name)
            with ranks.explained():
                save_model(trainee.model, tokenizer, temporary, whole)
                save_tensors(_optimizer_tensors(trainee), temporary / _STATE)
        else:
            save_model(trainee.model, tokenizer, temporary)
            (temporary / _STATE).mkdir()
            write_tensors(_optimizer_tensors(trainee), temporary / _STATE / OPTIMIZER)
        digests = {path.relative_to(temporary).as_posix(): _sha256(path) for path in _files(temporary)}
        text = json.dumps({**dataclasses.asdict(state), "sha256": digests}, indent=2)
        (temporary / _STATE / "state.json").write_text(text + "\n", encoding="utf-8")
        if target.exists():  # a resumed run comes to the same step again
            shutil.rmtree(target)
    n_whole = 1
    for old in [path for path in checkpoints(run) if path.name < target.name]:
        if n_whole < KEEP and _read(old)[0] is not None:
            n_whole += 1
        elif step_of(old) != state.guard.back_to:
            shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoint_at(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is, or would be."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The steps that were taken when a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def discard_after(run: Path, step: int) -> None:
    """Delete the checkpoints after `step`, newest first: a run that rolls back to it leaves no other course behind.

    After a kill in between, those that are left are still of one course.
    """
    for path in checkpoints(run):
        if step_of(path) > step:
            shutil.rmtree(path)
    sync(run / "checkpoints")


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted((run / "checkpoints").glob("step-????????"), reverse=True)


def newest_checkpoint(run: Path, up_to: int | None = None) -> tuple[Path, RunState]:
    """The newest checkpoint, of those `up_to` a step, whose files all have the digests they were written with.

    And its state.

    Warns of each damaged one that it passes over. Raises `FileNotFoundError` where none is left.
    """
    damaged = []
    for path in [path for path in checkpoints(run) if up_to is None or step_of(path) <= up_to]:
        state, wrong = _read(path)
        if state is not None:
            return path, state
        damaged.append(f"{path.name} ({wrong})")
        _log.warning("checkpoint %s is damaged: resuming from an older one", damaged[-1])
    reason = f"all are damaged: {'; '.join(damaged)}" if damaged else "it has no checkpoint yet"
    raise FileNotFoundError(f"{run} cannot be resumed: {reason}")


def _read(path: Path) -> tuple[RunState | None, str | None]:
    """The state of a checkpoint whose files all have their digests; of a damaged one, what is wrong with it."""
    try:
        record = read_json(path / STATE_FILE)
        wrong = next((name for name, digest in record["sha256"].items() if _sha256(path / name) != digest), None)
        return (RunState.from_dict(record), None) if wrong is None else (None, wrong)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, str(error)


def restore(path: Path, settings: Settings, device: torch.device, ranks: Ranks = ALONE) -> Trainee:
    """Model and optimizers as they were when the checkpoint was saved, by whatever number of ranks."""
    if settings.fsdp and ranks.world_size > 1:
        give_back()
        with ranks.explained():
            place_parts = functools.partial(shard, checkpoint=path, device=device)
            trainee = ready(model_of(path), settings, device=device, transform=place_parts)
            _restore_optimizers(trainee, path / _STATE)
    else:
        trainee = ready(load_model(path, device=device)[0], settings)
        _restore_optimizers(trainee, path / _STATE)
    return trainee


def _restore_optimizers(trainee: Trainee, directory: Path) -> None:
    parameters = dict(trainee.model.named_parameters())

    def place(key: str, shape: torch.Size) -> Tensor:
        parameter = parameters[key.rpartition("/")[0]].detach()
        return torch.empty_like(parameter) if shape == parameter.shape else torch.empty(shape, device=parameter.device)

    if (directory / OPTIMIZER).exists() and not trainee.sharded:
        with safe_open(directory / OPTIMIZER, framework="pt") as file:
            # a copy: the library's tensor is a view of the mapped file, which a later step deletes
            tensors = {
                key: place(key, torch.Size(file.get_slice(key).get_shape())).copy_(file.get_tensor(key))
                for key in file.keys()  # noqa: SIM118 - not a dict
            }
    else:
        tensors = load_tensors(directory, place)
    owner = {p: o for o in trainee.optimizers for group in o.param_groups for p in group["params"]}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        owner[parameters[name]].state[parameters[name]][entry] = tensor


def _optimizer_tensors(trainee: Trainee) -> dict[str, Tensor]:
    """Every tensor of every optimizer's state as "parameter/entry"."""
    return {
        f"{name}/{entry}": value.detach().contiguous()
        for optimizer in trainee.optimizers
        for name, parameter in trainee.model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
