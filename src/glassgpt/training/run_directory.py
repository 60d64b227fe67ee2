"""The directory of a run: which files are a run's own, who may write there, and how a new run takes an old one's place.

Nothing is deleted or overwritten that a run did not write, and nothing of an old run before its successor is whole. A
new run is written into `.glassgpt-next` inside its directory until its first checkpoint is there. Then that folder is
renamed to `.glassgpt-whole`, the old run's files are deleted one by one, the folder is renamed to `.glassgpt-move`, and
its contents move up. A kill at any moment leaves a name that says what is left to do, and `recover` does it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import filelock

from glassgpt.checkpoint import MODEL_FILES
from glassgpt.files import is_leftover, remove_leftovers, sync
from glassgpt.json_file import read_json

RUN_FILE = "run.json"
TRAIN_FILE = "train.toml"
LOG = "log.jsonl"
SAMPLES = "samples.jsonl"
PLOT = "loss.png"
REPORT = "report.html"
CSV = "log.csv"
TENSORBOARD = "tensorboard"
NEXT = ".glassgpt-next"
_WHOLE, _MOVE, _LOCK = ".glassgpt-whole", ".glassgpt-move", ".glassgpt-lock"

_KEYS = {"config", "settings", "baselines", "texts", "data"}
_model = "|".join(map(re.escape, MODEL_FILES))
_OURS = re.compile(
    rf"{'|'.join(map(re.escape, (RUN_FILE, TRAIN_FILE, LOG, CSV, SAMPLES, PLOT, REPORT)))}|{_model}"
    rf"|{TENSORBOARD}(/events\.out\.tfevents\.\d+\.glassgpt)?"
    r"|data(/((train|validation)\.npy(\.json)?|sources\.json))?"
    rf"|checkpoints(/step-\d{{8}}(/({_model}|training_state(/(optimizer\.safetensors|shard-[\w-]+\.safetensors|state\.json))?))?)?"
)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """`out`, made if it is not there, for this process alone; a second one is refused with `OSError`.

    If the body fails and there is no run, what was made goes again: the lock, and directories that are empty.
    `ValueError` where `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: a run needs a directory")
    new = [path for path in (out / _LOCK, out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / _LOCK)
    try:
        with lock.acquire(timeout=0):
            yield
    except filelock.Timeout:
        raise OSError(f"{out} is in use by another training run: wait for it, or choose another directory") from None
    except BaseException:
        if not is_run(out):
            for path in new:
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
        raise


def recover(out: Path) -> None:
    """Under the lock: finish or undo what a killed process left half done."""
    if (out / _WHOLE).is_dir():
        _delete_run(out)
        (out / _WHOLE).rename(out / _MOVE)
    if (out / _MOVE).is_dir():
        for path in sorted((out / _MOVE).iterdir()):
            path.rename(out / path.name)
        (out / _MOVE).rmdir()
        sync(out)
    discard_next(out)
    if is_run(out):  # of a directory that is somebody else's nothing is ours
        for directory in (out, out / "data", out / "checkpoints"):
            remove_leftovers(directory)


def promote(out: Path) -> None:
    """Under the lock: the run in `.glassgpt-next`, now whole, takes the place of the one in `out`, if there is one."""
    (out / NEXT).rename(out / _WHOLE)
    sync(out)
    recover(out)


def discard_next(out: Path) -> None:
    """Under the lock: delete a run that never became whole."""
    if (out / NEXT).is_dir():
        for directory in (out / NEXT, out / NEXT / "data", out / NEXT / "checkpoints"):
            remove_leftovers(directory)
        _delete_run(out / NEXT)
        (out / NEXT).rmdir()


def check_new(out: Path, overwrite: bool) -> None:
    """`ValueError` where a new run in `out` would not be alone there, or would end an older one that it may not."""
    written_here = is_run(out)
    foreign = next((path for path, ours in _contents(out) if not (ours and written_here)), None)
    if foreign is not None:
        name = foreign.relative_to(out).as_posix()
        raise ValueError(f"{out} holds {name!r} that no run here wrote: choose an empty or new directory")
    if written_here and not overwrite:
        raise ValueError(f"{out} already holds a run: resume it, choose another directory, or overwrite it")


def holds_run(out: Path) -> bool:
    """As `is_run`, and where a kill has left a whole run that is still to move up: a resume finishes that."""
    return is_run(out) or (out / _WHOLE).is_dir() or (out / _MOVE).is_dir()


def is_run(directory: Path) -> bool:
    """Whether `train` wrote what is in `directory`."""
    try:
        return read_json(directory / RUN_FILE, max_bytes=MAX_RUN_BYTES).keys() >= _KEYS
    except (OSError, ValueError):
        return False


MAX_RUN_BYTES = 2**30
"""Of `run.json`, which is ours and names every text: 150,000 paths are more than other JSON files may hold."""


def _contents(out: Path) -> Iterator[tuple[Path, bool]]:
    """Every path in `out` but for hidden ones at its top, deepest first, and whether a run writes one like it."""
    for folder, folders, files in os.walk(out, topdown=False, followlinks=False):
        for name in sorted([*files, *folders]):
            path = Path(folder, name)
            relative = path.relative_to(out)
            if not relative.parts[0].startswith("."):
                ours = _OURS.fullmatch(relative.as_posix()) is not None or is_leftover(name)
                yield path, ours and not path.is_symlink()


def _delete_run(out: Path) -> None:
    """Delete the files that a run writes, by their names, and the folders that are empty then."""
    for path, ours in list(_contents(out)):
        if ours and path.is_dir():
            with contextlib.suppress(OSError):  # something of somebody else's is in it
                path.rmdir()
        elif ours:
            path.unlink(missing_ok=True)
