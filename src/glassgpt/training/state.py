"""Checkpoints of a run: what a resume needs, whole or not there, each file's SHA-256 beside it.

A checkpoint is a model directory with `training_state/` in it. Random numbers need no place there: those of step s
are seeded from (seed, s), see `train.step_seed`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from glassgpt.checkpoint import load_model, save_model, write_tensors
from glassgpt.files import replacing
from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer

KEEP = 2
"""Newest checkpoints that are kept: should the last one be damaged, the one before it still resumes."""

_STATE = "training_state"


def save_checkpoint(
    run: Path,
    model: GPTModel,
    tokenizer: Tokenizer,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
) -> Path:
    """Write `run/checkpoints/step-N` for `state["step"]` = N, then delete all but the newest `KEEP`.

    The directory is written under another name, flushed and renamed: a kill at any moment, or a full disk (`OSError`),
    leaves the older ones untouched.
    """
    folder = run / "checkpoints"
    target = folder / f"step-{state['step']:08d}"
    with replacing(target) as temporary:
        save_model(model, tokenizer, temporary)
        (temporary / _STATE).mkdir()
        write_tensors(_optimizer_tensors(model, optimizers), temporary / _STATE / "optimizer.safetensors")
        digests = {str(p.relative_to(temporary).as_posix()): _sha256(p) for p in _files(temporary)}
        text = json.dumps({**state, "sha256": digests}, indent=2)
        (temporary / _STATE / "state.json").write_text(text + "\n", encoding="utf-8")
        if target.exists():  # a resumed run comes by the same step again
            shutil.rmtree(target)
    for old in checkpoints(run)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted((run / "checkpoints").glob("step-????????"), reverse=True)


def newest_checkpoint(run: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint whose files all have the digests they were written with, and its state.

    Warns of each damaged one that it passes over. Raises `FileNotFoundError` where none is left.
    """
    damaged = []
    for path in checkpoints(run):
        try:
            state = read_json(path / _STATE / "state.json")
            wrong = [name for name, digest in state["sha256"].items() if _sha256(path / name) != digest]
            if not wrong:
                return path, state
            damaged.append(f"{path.name} ({wrong[0]})")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            damaged.append(f"{path.name} ({error})")
        warnings.warn(f"checkpoint {damaged[-1]} is damaged: going back to an older one", stacklevel=2)
    found = f"all are damaged: {'; '.join(damaged)}" if damaged else "it has no checkpoint yet"
    raise FileNotFoundError(f"{run} cannot be resumed: {found}")


def restore(path: Path, device: torch.device) -> tuple[GPTModel, Tokenizer, dict[str, Tensor]]:
    """Model, tokenizer and the tensors for `restore_optimizers` of a checkpoint."""
    model, tokenizer = load_model(path, device=device)
    return model, tokenizer, load_file(path / _STATE / "optimizer.safetensors")


def _optimizer_tensors(model: GPTModel, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of every optimizer's state as "parameter/key"."""
    return {
        f"{name}/{key}": value.detach().contiguous()
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(model: GPTModel, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Give freshly built optimizers the state that was saved."""
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for place, tensor in tensors.items():
        name, key = place.rsplit("/", 1)
        parameter = parameters[name]
        owner[parameter].state[parameter][key] = tensor.to(parameter.device)


def _files(directory: Path) -> Iterator[Path]:
    return (p for p in sorted(directory.rglob("*")) if p.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
