"""From one format to another, with a proof that the result computes what its source computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from glassgpt.checkpoint import load_model, save_model
from glassgpt.config import GPTConfig
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.formats import WRITABLE
from glassgpt.weights.proof import Proof, prove
from glassgpt.weights.read import read_model


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was written, and how it compares with its source: whether the proof holds is the caller's to ask."""

    path: Path
    config: GPTConfig
    proof: Proof
    notes: list[str] = dataclasses.field(default_factory=list)
    """What the reader of the file should know, one line each."""


def import_model(
    model: str | Path,
    out: str | Path,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    n_heads: int | None = None,
) -> Conversion:
    """Write the model, in any format that `load_model` reads, as the new model directory `out`, in its own dtype.

    The other arguments are `load_model`'s, and so are the errors; `ValueError` where `out` is not empty.
    """
    out = Path(out)
    _check_empty(out)
    source, its_tokenizer = load_model(model, dtype=None, tokenizer=tokenizer, n_heads=n_heads)
    return _save(source, its_tokenizer, out)


def export_model(
    model: str | Path,
    out: str | Path,
    to: str,
    *,
    number_type: str | None = None,
    name: str | None = None,
) -> Conversion:
    """Write a model as `to`, one of `WRITABLE`, at the new path `out`; `number_type` and `name` are `write_gguf`'s.

    Raises what `load_model` raises, `ValueError` for what the format cannot express and where `out` exists already,
    `ImportError` where the format's extra is not installed.
    """
    out = Path(out)
    if (target := WRITABLE.get(to)) is None:
        raise ValueError(f"format {to!r} must be one of {', '.join(WRITABLE)}")
    if to != "gguf" and (number_type or name):
        raise ValueError(f"a number type and a name are for gguf, not for {to}: leave them out")
    if to == "huggingface":
        _check_empty(out)
    elif out.exists():
        raise FileExistsError(f"{out} exists: choose a new name")
    source, tokenizer = load_model(model, dtype=None if target.keeps_dtype else torch.float32)
    if to == "huggingface":
        return _save(source, tokenizer, out)
    proof, notes = target.function("export")(source, tokenizer, out, number_type, name)
    return Conversion(out, source.config, proof, notes)


def _save(model: GPTModel, tokenizer: Tokenizer, out: Path) -> Conversion:
    save_model(model, tokenizer, out)
    return Conversion(out, model.config, prove(model.float(), read_model(out)))


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose a new directory")
