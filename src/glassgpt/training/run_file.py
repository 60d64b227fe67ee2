"""`run.json`, read back: what a run is made of, for whoever resumes it, repeats it or looks at it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.config import GPTConfig
from glassgpt.data.baselines import Baselines
from glassgpt.data.sources import Source, TrainingSide, ValidationSide, open_run
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.run_directory import MAX_RUN_BYTES, RUN_FILE
from glassgpt.training.settings import Settings

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What `write_run_file` wrote; older versions did not write all of it."""

    config: GPTConfig
    settings: Settings
    """All of them, resolved, as the last resume left them."""
    begun: dict[str, Any]
    """Those that decided the run when it began: all, but for what followed from others."""
    baselines: Baselines
    choices: list[str]
    texts: list[str]
    text_paths: list[str]
    """The same from anywhere: absolute paths of what was a file or folder."""
    text_fields: list[str]
    digests: tuple[str, str]
    """Fingerprints of the training and the validation part."""
    tokenizer: str | None
    """Its name, where it was one of `TOKENIZERS`."""
    source: str | None
    source_fingerprint: str | None
    """Of the weights that the run began with; None: from scratch, or written by an older version."""
    early: tuple[int, ...]
    threads: int | None
    ranks: int | None
    torch: str | None
    device: str | None
    device_name: str | None

    @property
    def texts_from_here(self) -> list[str]:
        """`texts`, as they were written where that is the same place from this process's directory."""
        both = zip(self.texts, self.text_paths, strict=True)
        return [text if str(Path(text).resolve()) == path else path for text, path in both]

    @property
    def changed(self) -> list[str]:
        """What a resume has changed since the run began, in words."""
        now = self.settings.to_dict()
        return [f"{name} {was!r} -> {now[name]!r}" for name, was in self.begun.items() if _json(now[name]) != was]


def _json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def read_run(run: Path) -> RunRecord:
    """The record of the run in the directory `run`: `FileNotFoundError` without one, `ValueError` for a damaged one."""
    if not (run / RUN_FILE).exists():
        raise FileNotFoundError(f"{run} holds no run: {RUN_FILE} is missing")
    record = read_json(run / RUN_FILE, max_bytes=MAX_RUN_BYTES)
    try:
        return RunRecord(
            config=GPTConfig.from_dict(record["config"]),
            settings=Settings.from_dict(record["settings"]),
            begun=dict(record.get("begun", record["settings"])),
            baselines=Baselines(**record["baselines"]),
            choices=list(record["choices"]),
            texts=list(record["texts"]),
            text_paths=list(record.get("text_paths", record["texts"])),
            text_fields=list(record.get("text_fields", ())),
            digests=(record["data"]["train"], record["data"]["validation"]),
            tokenizer=record.get("tokenizer"),
            source=record.get("source"),
            source_fingerprint=record.get("source_fingerprint"),
            early=tuple(record.get("early_evaluations", ())),
            threads=record.get("threads"),
            ranks=record.get("ranks"),
            torch=record.get("torch"),
            device=record.get("device"),
            device_name=record.get("device_name"),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run / RUN_FILE} is damaged: {error!r}") from None


def open_data(
    run: Path, record: RunRecord, tokenizer: Tokenizer, now: Sequence[Source] | None = None, *, verify: bool = True
) -> tuple[TrainingSide, ValidationSide]:
    """The training and the validation part of a run, whole and unchanged: `ValueError` or `FileNotFoundError` if not.

    `now` is where its datasets are by now. To `verify` reads all once: about a second per GB.
    """
    train, validation = open_run(run, tokenizer, now)
    if (train.fingerprint, validation.fingerprint) != record.digests:
        place = ", ".join(str(source.path) for source in now or ()) or run / "data"
        raise ValueError(f"{place} is not the data this run began with: it can be neither resumed nor repeated")
    for part in (train, validation) if verify else ():
        part.verify()
    return train, validation


def warn_of_torch(run: Path, record: RunRecord) -> None:
    """Another version of PyTorch may round otherwise."""
    import torch  # slow to load, and who only looks at a run needs none

    from glassgpt.training.ranks import is_first

    if record.torch not in (None, torch.__version__) and is_first():  # of several ranks one says it
        _log.warning(
            "%s was begun with PyTorch %s: with %s the last bits may differ", run, record.torch, torch.__version__
        )
