"""A run that repeats another one: its settings, its tokenizer and its tokens, and of all that what is to be otherwise.

On the same machine, with the same threads, its losses are equal bit for bit as long as nothing is changed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glassgpt.checkpoint import fingerprint
from glassgpt.config import WEIGHTS_LEAVE_OPEN
from glassgpt.data.sources import TrainingSide, ValidationSide, open_run, read_sources, write_sources
from glassgpt.files import link_or_copy
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.request import IN_MEMORY, Like, Request, Start
from glassgpt.training.run_file import open_data, read_run, warn_of_torch
from glassgpt.training.settings import Settings

_log = logging.getLogger(__name__)


def like(request: Request, run: Path, device: torch.device) -> Request:
    """What was asked for besides, on top of what the run in the directory `run` began with.

    `ValueError` and `FileNotFoundError` for what cannot be repeated, and for what a repeated run cannot be given.
    """
    for name in ("texts", "text_fields", "tokenizer", "model"):
        if getattr(request, name):
            raise ValueError(f"{name}: a run like {run} has its text, its tokenizer and its weights; leave it out")
    record = read_run(run)
    if record.source == IN_MEMORY:
        raise ValueError(f"{run} began with a model in memory, which is gone: it cannot be repeated")
    warn_of_torch(run, record)
    if record.device is not None and torch.device(record.device).type != device.type:
        _log.warning("%s was computed on %s, this on %s: equal only within rounding", run, record.device, device)
    settings = record.begun | {name: value for name, value in request.settings.items() if value is not None}
    if request.minutes is not None and request.settings.get("steps") is None:
        settings.pop("steps", None)
    if record.source is None:
        config = {"vocab_size": record.config.vocab_size}
    else:
        config = {name: getattr(record.config, name) for name in WEIGHTS_LEAVE_OPEN}
    return dataclasses.replace(
        request,
        texts=record.texts_from_here,
        text_fields=record.text_fields,
        shape=request.shape or (record.config if record.source is None else None),
        config=config | dict(request.config),
        model=record.source,
        tokenizer=Tokenizer.load(run),
        settings=settings,
        like=Like(run, record),
    )


def request_of(keywords: Mapping[str, Any], device: torch.device) -> Request:
    """What the keywords of `train` ask for; errors as in `like`."""
    settings = {name: value for name, value in keywords.items() if name in Settings.rules()}
    names = ("texts", "shape", "config", "model", "tokenizer", "minutes", "text_fields")
    request = Request(**{name: keywords[name] for name in names if name in keywords}, settings=settings)
    return like(request, Path(keywords["like"]), device) if "like" in keywords else request


def data_of(like: Like, tokenizer: Tokenizer, start: Start | None, run: Path) -> tuple[TrainingSide, ValidationSide]:
    """The data of the run that is repeated, for the new directory `run`: files are linked or copied, datasets stay.

    `ValueError` or `FileNotFoundError` where they, or the weights in `start`, are not those that it began with.
    """
    if start is not None and like.record.source_fingerprint not in (None, fingerprint(start.model)):
        raise ValueError(f"{start.name} has other weights than when {like.run} began with them: it cannot be repeated")
    for part in open_data(like.run, like.record, tokenizer):
        part.close()
    if (sources := read_sources(like.run)) is not None:
        write_sources(run, sources)
    else:
        for name in ("train.npy", "train.npy.json", "validation.npy", "validation.npy.json"):
            link_or_copy(like.run / "data" / name, run / "data" / name)
    return open_run(run, tokenizer)
