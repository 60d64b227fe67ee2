"""From one format to another, with a proof that the result computes what its source computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from glassgpt.checkpoint import load_model, save_model
from glassgpt.config import GPTConfig
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.formats import read_model
from glassgpt.weights.proof import Proof, prove

EXPORTS = ("huggingface", "gguf", "book", "onnx")
"""Formats that a model can be written in."""


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
    save_model(source, its_tokenizer, out)
    return Conversion(out, source.config, prove(source.float(), read_model(out)))


def export_model(
    model: str | Path,
    out: str | Path,
    to: str,
    *,
    number_type: str | None = None,
    name: str | None = None,
) -> Conversion:
    """Write a model as `to`, one of `EXPORTS`, at the new path `out`; `number_type` and `name` are `write_gguf`'s.

    Raises what `load_model` raises, `ValueError` for what the format cannot express and where `out` exists already,
    `ImportError` where the format's extra is not installed.
    """
    out = Path(out)
    if to not in EXPORTS:
        raise ValueError(f"format {to!r} must be one of {', '.join(EXPORTS)}")
    if to != "gguf" and (number_type or name):
        raise ValueError(f"a number type and a name are for gguf, not for {to}: leave them out")
    if to == "huggingface":
        _check_empty(out)
    elif out.exists():
        raise FileExistsError(f"{out} exists: choose a new name")
    # a model directory keeps the file's own dtype; the others are made from float32
    source, tokenizer = load_model(model, dtype=None if to == "huggingface" else torch.float32)
    if to == "huggingface":
        save_model(source, tokenizer, out)
        return Conversion(out, source.config, prove(source.float(), read_model(out)))
    if to == "gguf":
        return _to_gguf(source, tokenizer, out, number_type or "f32", name or out.stem)
    if to == "book":
        from glassgpt.weights.families.book import book_dict, write_book

        write_book(source, out)
        result = read_model(out, n_heads=source.config.n_heads)
        return Conversion(out, source.config, prove(source, result), [f"cfg = {book_dict(source.config)}"])
    from glassgpt.weights.families.onnx import write_onnx

    return Conversion(out, source.config, write_onnx(source, out))


def _to_gguf(source: GPTModel, tokenizer: Tokenizer, out: Path, number_type: str, name: str) -> Conversion:
    from glassgpt.weights.families.gguf import read_gguf, rounding, write_gguf

    write_gguf(source, tokenizer, out, number_type, name)
    notes = []
    if source.config.gelu == "erf":
        notes.append("note: this model computes the erf form of GELU, llama.cpp the tanh form")
    # the file does not say which form of GELU: the weights are compared under the source's
    result = read_gguf(out, gelu=source.config.gelu)
    proof = prove(source, result, rounding=None if number_type == "f32" else rounding(number_type))
    return Conversion(out, source.config, proof, notes)


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose a new directory")
