"""From one format to another, with a proof that the result computes what its source computes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from glassgpt.checkpoint import load_model, save_model
from glassgpt.config import GPTConfig
from glassgpt.data.corpus import manual_topics, read_corpus
from glassgpt.data.sources import validation_part
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.formats import WRITABLE
from glassgpt.weights.proof import Proof, prove
from glassgpt.weights.quality import MAY_LOSE, Quality, Sample, measure
from glassgpt.weights.read import read_model

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was written, and how it compares with its source: whether the proof holds is the caller's to ask."""

    path: Path
    """The file or directory that was written."""
    config: GPTConfig
    """The model's shape."""
    proof: Proof
    """How its scores, and where they are rounded its weights, compare with the source's."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What the reader of the file should know, one line each."""
    quality: Quality | None = None
    """Where the format rounds weights: what that cost, measured on text."""


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
    proof_text: str | Path | None = None,
) -> Conversion:
    """Write a model as `to`, one of `WRITABLE`, at the new path `out`; `number_type` and `name` are `write_gguf`'s.

    A number type that rounds is judged on `proof_text`, a text file or folder; None: the validation part of the run,
    where `model` is one, else Python's own manual.

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
    if proof_text is not None and number_type not in MAY_LOSE:
        raise ValueError(f"a text to judge by is for number types that round: {', '.join(MAY_LOSE)}")
    source, tokenizer = load_model(model, dtype=None if target.keeps_dtype else torch.float32)
    if to == "huggingface":
        return _save(source, tokenizer, out)
    sample = _sample(model, tokenizer, proof_text) if number_type in MAY_LOSE else None
    proof, notes, result = target.function("export")(source, tokenizer, out, number_type, name)
    quality = measure(source, result, sample, number_type) if sample and number_type else None
    return Conversion(out, source.config, proof, notes, quality)


def _sample(model: str | Path, tokenizer: Tokenizer, text: str | Path | None) -> Sample:
    """Found before anything is written: a text that is no use must not leave a file behind."""
    if text is not None:
        return Sample.of_documents(str(text), read_corpus([text]), tokenizer)
    try:
        return Sample("the run's validation part", validation_part(model, tokenizer).tokens)
    except FileNotFoundError:
        pass  # not a run
    except ValueError as error:
        _log.warning("%s: the model is judged on Python's manual instead", error)
    return Sample.of_documents("Python's own manual", manual_topics(), tokenizer)


def _save(model: GPTModel, tokenizer: Tokenizer, out: Path) -> Conversion:
    save_model(model, tokenizer, out)
    return Conversion(out, model.config, prove(model.float(), read_model(out)))


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose a new directory")
