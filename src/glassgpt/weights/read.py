"""Reading a model from a path, in whichever of the known formats it is: found by looking into it, not by its name."""

from __future__ import annotations

from pathlib import Path

import torch

from glassgpt.model import GPTModel
from glassgpt.weights.containers.pickled import load_pickled
from glassgpt.weights.containers.safetensors_file import SafetensorsWeights
from glassgpt.weights.formats import KNOWN, READABLE, Format, Found


def read_model(path: str | Path, *, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """The model at `path`, a directory or a file.

    `dtype` None keeps the file's. `n_heads` is for the book's files, which do not say it (see `families.book.read`).
    Raises `FileNotFoundError` where there is nothing, `ValueError` for what is not a model or a damaged one.
    """
    form, found = recognise(Path(path))
    model: GPTModel = form.function("read")(found, dtype, n_heads)
    return model


def recognise(path: Path) -> tuple[Format, Found]:
    """The format of what lies at `path`, and that itself; errors as in `read_model`."""
    found = _look(path)
    for each in READABLE:
        if each.function("matches")(found):
            return each, found
    if found.value is None:
        raise FileNotFoundError(f"{path} holds no model: neither config.json nor hparams.json is there ({KNOWN})")
    raise ValueError(f"{path} holds none of {KNOWN}; a Hugging Face file needs its config.json beside it")


def _look(path: Path) -> Found:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such model")
    if path.is_dir():
        return Found(path)
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return Found(path, load_pickled(path))
    if head[8:9] == b"{":
        return Found(path, SafetensorsWeights(path))
    raise ValueError(f"{path} is in no known format: {KNOWN}")
