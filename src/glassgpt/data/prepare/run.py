"""`prepare`: from any amount of text to a dataset, by several processes, to be continued after any kill."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import filelock

from glassgpt.cores import available_cores
from glassgpt.data.dataset import INDEX, SPLITS, open_dataset, read_index
from glassgpt.data.prepare.duplicates import find_duplicates
from glassgpt.data.prepare.inputs import PLAIN, is_url, list_inputs, tasks_of
from glassgpt.data.prepare.join import EmptySplitError, join
from glassgpt.data.prepare.parts import NAME, Part, delete_part
from glassgpt.data.prepare.plan import Asked, Plan
from glassgpt.data.prepare.sample import Report, make_tokenizer
from glassgpt.data.prepare.settings import PrepareKeywords, PrepareSettings
from glassgpt.data.prepare.team import encode, encode_here
from glassgpt.data.prepare.worker import PARTS, PLAN, TOKENIZER, Work
from glassgpt.data.vocabulary import check_tokenizer, named_tokenizer
from glassgpt.files import remove_leftovers
from glassgpt.options import check_int
from glassgpt.tokenizer import Tokenizer

WORK = ".glassgpt-parts"
_LOCK = ".glassgpt-lock"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """What was prepared. Bytes are of text, in UTF-8."""

    directory: Path
    finished: bool
    """False where only a share of the work was asked for."""
    train_tokens: int = 0
    validation_tokens: int = 0
    train_bytes: int = 0
    validation_bytes: int = 0
    n_vocab: int = 0
    sha256: str = ""
    """Of the dataset: equal for equal tokens."""
    duplicates: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sections that are alike, with `examples`; see docs/data.md."""
    skipped: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What could not be read, and records without text."""


class _Quiet:
    def message(self, text: str) -> None:
        """Nothing is said."""

    def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        """Nothing is said."""


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    text_fields: str | Sequence[str] = (),
    processes: int | None = None,
    share: tuple[int, int] | None = None,
    progress: Report | None = None,
    **settings: Unpack[PrepareKeywords],
) -> PrepareResult:
    """Encode text files, folders and URLs of any size into a dataset in the directory `out`, which `train` reads.

    `tokenizer` and `text_fields` are as in `train`; `settings` are the fields of `PrepareSettings`. The result is the
    same, byte for byte, for any number of `processes` (None: one for each core). Memory does not grow with the text,
    but for some bytes for each document.

    After a kill the same call continues: finished parts are checked and kept. With `share` (i, n), from 1 on, only
    each n-th piece of the work is done, on as many machines as there are shares; a call without it joins them.

    Raises `ValueError` where `out` holds something else, or what was begun there had other settings or inputs (the
    message says which); `FileNotFoundError`; `OSError` where another process prepares in `out`; `ImportError` where
    a format needs a package that is not there.
    """
    out, report = Path(out), progress or _Quiet()
    for each in map(str, inputs):
        if not is_url(each) and Path(each).is_dir() and out.resolve().is_relative_to(Path(each).resolve()):
            raise ValueError(f"{out} lies in the input {each}: choose a directory outside of it")
    asked = _asked(inputs, tokenizer, text_fields, settings)
    if processes is not None:
        check_int("processes", processes, at_least=1)
    if share is not None and not 1 <= share[0] <= share[1]:
        raise ValueError(f"share {share[0]}/{share[1]} must be one of 1/{share[1]} to {share[1]}/{share[1]}")
    with _locked(out, share):
        if (out / INDEX).exists():
            return _finished_before(out, asked, report)
        work = _begin(out, asked, tokenizer, report)
        missing, there = _left_to_do(work, share, report)
        _encode(work, missing, there, processes or available_cores(), report)
        if share is not None:
            report.message(f"share {share[0]} of {share[1]} is encoded")
            return PrepareResult(out, finished=False)
        parts = [part for task in range(len(work.plan.tasks)) for part in work.parts(task)]
        assert work.plan.settings.validation is not None
        found = find_duplicates(
            parts, work.plan.settings.validation, lambda a, b: report.work("comparing", a, b, "passes")
        )
        try:
            index = join(work, parts, found, out, lambda a, b: report.work("writing shards", a, b))
        except EmptySplitError:  # the same directory may begin again, with more text
            _clear(out)
            raise
        _clear(out)
        return _result(out, index)


def _asked(
    inputs: Sequence[str | Path],
    tokenizer: Tokenizer | str | Path | None,
    text_fields: str | Sequence[str],
    settings: PrepareKeywords,
) -> Asked:
    checked = PrepareSettings.from_dict(settings)
    check_tokenizer(tokenizer)
    if not inputs:
        raise ValueError("no inputs: name text files, folders or URLs to prepare")
    known = named_tokenizer(tokenizer)
    if known is not None and checked.vocab_size is not None:
        raise ValueError(f"vocab_size {checked.vocab_size}: only a BPE that is trained has a size to choose")
    fields = [text_fields] if isinstance(text_fields, str) else list(text_fields)
    name = known.fingerprint if known is not None else str(tokenizer or "bpe")
    files = list_inputs(inputs)
    if fields and all(file.kind == PLAIN for file in files):
        raise ValueError(f"text fields {', '.join(fields)}: none of the files has records, so there are no fields")
    return Asked(files, checked, fields, name)


@contextlib.contextmanager
def _locked(out: Path, share: tuple[int, int] | None) -> Iterator[None]:
    """`out`, made if it is not there, for this process, or this share, alone; `OSError` where it is in use."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: a dataset needs a directory")
    if out.is_dir() and not (out / INDEX).exists() and not (out / WORK).is_dir():
        foreign = sorted(path.name for path in out.iterdir() if not path.name.startswith(_LOCK))
        if foreign:
            raise ValueError(f"{out} holds {foreign[0]!r} that was not prepared here: choose an empty or new directory")
    out.mkdir(parents=True, exist_ok=True)
    name = _LOCK + (f"-{share[0]}-of-{share[1]}" if share else "")
    others = [] if share else sorted(path for path in out.glob(f"{_LOCK}-*") if path.name != name)
    with contextlib.ExitStack() as stack:
        for path in [out / name, *others]:
            try:
                stack.enter_context(filelock.FileLock(path).acquire(timeout=0))
            except filelock.Timeout:
                raise OSError(f"{out} is in use by another process that prepares: wait for it") from None
        yield


def _finished_before(out: Path, asked: Asked, report: Report) -> PrepareResult:
    index = read_index(out)
    before = Asked.from_dict(index["asked"])
    _refuse_differences(out, before, asked)
    open_dataset(out)  # headers and sizes
    _clear(out)
    report.message(f"{out} is prepared already")
    return _result(out, index)


def _refuse_differences(out: Path, before: Asked, now: Asked) -> None:
    if differences := before.differences(now):
        raise ValueError(
            f"{out} was begun differently: {'; '.join(differences)}. Ask for the same as before, or choose another "
            "directory"
        )


def _begin(out: Path, asked: Asked, tokenizer: Tokenizer | str | Path | None, report: Report) -> Work:
    """The work that was begun here, or else a new one; of several processes that share it, one begins it."""
    folder = out / WORK
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if (folder / PLAN).exists():
            work = Work(folder, asked.settings.on_error)
            _refuse_differences(out, work.plan.asked, asked)
            return work
        settings = asked.settings.resolved(sum(file.size for file in asked.files))
        tasks = tasks_of(asked.files, max(settings.section, settings.part_bytes // settings.section * settings.section))
        made = named_tokenizer(tokenizer)
        if made is None:
            made = make_tokenizer(asked.tokenizer, asked.files, asked.text_fields, tasks, settings, report)
        made.save(folder / TOKENIZER)
        (folder / PARTS).mkdir(exist_ok=True)
        Plan(asked, settings, tasks, made.fingerprint).save(folder / PLAN)
    return Work(folder, asked.settings.on_error)


def _left_to_do(work: Work, share: tuple[int, int] | None, report: Report) -> tuple[list[int], dict[int, int]]:
    """The tasks that are not finished, and how far each task is in bytes of its files. Damaged parts are deleted."""
    first, step = (share[0] - 1, share[1]) if share else (0, 1)
    if share is None:
        remove_leftovers(work.folder / PARTS)
    done: dict[int, int] = {}
    missing = []
    n_parts = 0
    for task in range(first, len(work.plan.tasks), step):
        ended = False
        for part in _checked(work, task):
            n_parts += 1
            if part.skipped.count and work.on_error == "stop":
                raise ValueError(f"{part.skipped.first} (it was skipped before)")
            done[task], ended = part.input_bytes, part.last
        if ended:
            done[task] = work.plan.task_bytes(task)
        else:
            missing.append(task)
    if n_parts:
        report.message(f"continuing: {n_parts:,} finished parts are checked and kept")
    return missing, done


def _checked(work: Work, task: int) -> Iterator[Part]:
    """The good parts of a task; at the first damaged one it and those after it are deleted."""
    number = 0
    try:
        for part in work.parts(task, verify=True):
            yield part
            number += 1
    except ValueError as error:
        _log.warning("%s: it is encoded again", error)
        for path in sorted((work.folder / PARTS).glob(f"{task:06d}-*")):
            match = NAME.fullmatch(path.name)
            if match and int(match[2]) >= number:
                delete_part(path)


def _encode(work: Work, tasks: Sequence[int], done: dict[int, int], processes: int, report: Report) -> None:
    total = sum(work.plan.task_bytes(task) for task in {*tasks, *done})

    def told(task: int, n_bytes: int) -> None:
        done[task] = n_bytes
        report.work("encoding", sum(done.values()), total)

    report.work("encoding", sum(done.values()), total)
    if min(processes, len(tasks)) > 1:
        encode(work, tasks, processes, told)
    else:
        encode_here(work, tasks, told)


def _clear(out: Path) -> None:
    """Delete the parts, and what else the work has written, by their names."""
    folder = out / WORK
    if not folder.is_dir():
        return
    for path in (folder / PARTS).glob("*"):
        if NAME.fullmatch(path.name):
            delete_part(path)
    for directory in (folder / PARTS, folder / TOKENIZER, folder, out):
        remove_leftovers(directory)
    for path in (folder / TOKENIZER / "tokenizer.json", folder / TOKENIZER / "tokenizer_config.json"):
        path.unlink(missing_ok=True)
    for name in (PLAN, "lock"):
        (folder / name).unlink(missing_ok=True)
    for directory in (folder / PARTS, folder / TOKENIZER, folder):
        with contextlib.suppress(OSError):  # something of somebody else's is in it
            directory.rmdir()


def _result(out: Path, index: dict[str, Any]) -> PrepareResult:
    train, validation = (index["splits"][split] for split in SPLITS)
    return PrepareResult(
        out,
        finished=True,
        train_tokens=train["n_tokens"],
        validation_tokens=validation["n_tokens"],
        train_bytes=train["n_bytes"],
        validation_bytes=validation["n_bytes"],
        n_vocab=index["tokenizer"]["n_vocab"],
        sha256=index["sha256"],
        duplicates=index["duplicates"],
        skipped=index["skipped"],
    )
