"""How well a model predicts a text: loss, perplexity, bits per byte."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from glassgpt.data.corpus import read_corpus
from glassgpt.data.loader import evaluation_batches
from glassgpt.data.mixture import Tokens
from glassgpt.data.sources import ValidationSide, validation_part
from glassgpt.data.tokens import write_tokens
from glassgpt.language_model import LanguageModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.progress import Progress
from glassgpt.training.step import evaluate_loss

if TYPE_CHECKING:
    from glassgpt.generation.cpu.decoder import CPUDecoder


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The measure of one model on one text."""

    loss: float
    """Nats per token."""
    perplexity: float
    """e to the power of `loss`: comparable between models with one tokenizer."""
    bits_per_byte: float
    """Comparable between models with different tokenizers."""
    n_tokens: int
    """Of the text, ends of text included."""
    n_bytes: int
    """Of the text, in UTF-8."""


def evaluate(
    model: LanguageModel | CPUDecoder,
    tokenizer: Tokenizer,
    texts: Sequence[str | Path],
    batch_size: int = 8,
    *,
    text_fields: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Measure `model` on text files or folders, read in windows of the context length side by side.

    The first token of each window is predicted from little, so the figures are those of a reader who forgets at every
    window's edge. A decoder of `load_decoder` shows what its number types cost. `text_fields` are those of records, as
    in `read_corpus`, whose errors this raises, too.
    """
    progress = progress or Progress()
    documents = read_corpus(
        texts, text_fields=text_fields, message=progress.message, progress=partial(progress.work, "reading")
    )
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokens(
            documents, tokenizer, Path(folder) / "text.npy", progress=partial(progress.work, "encoding")
        )
        return _measured(model, tokens, batch_size, progress)


def evaluate_run(
    model: LanguageModel | CPUDecoder,
    tokenizer: Tokenizer,
    run: str | Path,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Evaluation:
    """As `evaluate`, on the whole validation part of the run in the directory `run`.

    Raises `ValueError` where there is none, or where it was written with another tokenizer.
    """
    try:
        tokens = validation_part(run, tokenizer)
    except FileNotFoundError:
        raise ValueError(f"{run} is not a run with a validation part of its own: name a text to measure on") from None
    return _measured(model, tokens, batch_size, progress or Progress())


def _measured(
    model: LanguageModel | CPUDecoder, tokens: ValidationSide, batch_size: int, progress: Progress
) -> Evaluation:
    n_targets = max(1, tokens.n_tokens - 1)

    def told(done: int) -> None:
        progress.work("evaluating", done, n_targets, "tokens")

    if isinstance(model, LanguageModel):
        loss = evaluate_loss(NextTokenLoss(model), tokens.tokens, batch_size, progress=told)
    else:
        loss = _loss_of_scores(model, tokens.tokens, told)
    tokens.close()  # Windows deletes no file that is mapped
    bits = loss / math.log(2) * tokens.n_tokens / tokens.n_bytes
    return Evaluation(loss, math.exp(min(loss, 700)), bits, tokens.n_tokens, tokens.n_bytes)


def _loss_of_scores(decoder: CPUDecoder, tokens: Tokens, told: Callable[[int], None]) -> float:
    """The same mean over the same windows, from the scores of a compiled decoder."""
    total, count = 0.0, 0
    for inputs, targets in evaluation_batches(tokens, 1, decoder.context_length):
        for start, scores in decoder.scores_of(inputs[0].tolist()):
            wide = torch.from_numpy(np.ascontiguousarray(scores)).double()
            piece = targets[0, start : start + len(wide)]
            total += float(torch.nn.functional.cross_entropy(wide, piece, reduction="sum"))
        count += targets.numel()
        told(count)
    return total / count
