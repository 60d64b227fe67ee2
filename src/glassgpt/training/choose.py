"""What a run picks for itself where it was given nothing: tokenizer and shape. Each choice is a line to be shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glassgpt.config import GPTConfig
from glassgpt.data.corpus import Document
from glassgpt.data.vocabulary import MAX_BPE_BYTES, named_tokenizer, trained_bpe, vocabulary_size
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.progress import Progress


def choose_tokenizer(
    name: str | Path | None,
    train: Sequence[Document],
    validation: Sequence[Document],
    choices: list[str],
    progress: Progress,
    vocab_size: int | None = None,
) -> Tokenizer:
    """The tokenizer called `name`, or the one in a directory; None is a BPE of `vocab_size` tokens or of a size picked.

    The BPE is trained on the training part, or on `MAX_BPE_BYTES` spread over it.
    """
    if (tokenizer := named_tokenizer(name)) is not None:
        return tokenizer
    if name == "char":  # an alphabet is no knowledge of the text, and one letter missing could not be measured at all
        return Tokenizer.characters(_texts([*train, *validation], "collecting characters", progress))
    n_bytes = sum(document.n_bytes for document in (*train, *validation))
    share = min(1.0, MAX_BPE_BYTES / sum(document.n_bytes for document in train))
    part = "the training part" if share == 1 else f"{share:.0%} of the training part, spread evenly"
    progress.message(f"training a tokenizer on {part}")
    # the n-th text is taken where n shares reach the next whole number
    texts = enumerate(_texts(train, "counting words", progress))
    sample = (text for n, text in texts if int((n + 1) * share) > int(n * share))
    tokenizer = trained_bpe(sample, vocab_size or vocabulary_size(n_bytes), progress.work)
    choices.append(f"tokenizer: BPE of {tokenizer.n_vocab:,} tokens, trained on {part}")
    return tokenizer


def _texts(documents: Sequence[Document], work: str, progress: Progress) -> Iterator[str]:
    """The text in pieces; `progress` hears how much of it was asked for."""
    done, total = 0, sum(document.n_bytes for document in documents)
    for document in documents:
        for text in document.pieces():
            yield text
            done += len(text.encode("utf-8"))
            progress.work(work, done, total)


def shapes_for(n_bytes: int) -> list[str]:
    """The presets that suit an amount of text, the best first: a model much larger than its text learns it by heart."""
    sizes = (("nano", 300_000), ("micro", 20_000_000), ("mini", 100_000_000), ("small", math.inf))
    names = [name for name, _ in sizes]
    fitting = next(i for i, (_, limit) in enumerate(sizes) if n_bytes < limit)
    return names[: fitting + 1][::-1]


def changed(config: GPTConfig, changes: Mapping[str, Any]) -> GPTConfig:
    """A shape with some fields changed; where only the width is, with the nearest number of heads that divides it."""
    width = changes.get("emb_dim")
    if width and "n_heads" not in changes:
        wanted = width / config.head_dim
        heads = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - wanted))
        changes = {**changes, "n_heads": heads}
    return config.replace(**changes)


def choose_epochs(parameters_per_token: float, *, from_weights: bool = False) -> int:
    """Passes over the training part after which more of them make a model worse; measured in docs/small_texts.md."""
    if from_weights:
        return 8
    return 36 if parameters_per_token >= 40 else 24


def early_evaluations(eval_every: int, steps_per_epoch: float) -> tuple[int, ...]:
    """The ends of epochs 1, 2, 4, 8 ... before the first regular evaluation: a small text may be known by then."""
    ends = (round(2**n * steps_per_epoch) for n in range(10))
    return tuple(sorted({step for step in ends if 0 < step < eval_every}))


def choose_dropout(parameters_per_token: float, epochs: float) -> float:
    """Dropout for a shape that was not given, measured in docs/small_texts.md; a text read few times needs none."""
    if epochs < 6 or parameters_per_token < 1:
        return 0.0
    return 0.1 if parameters_per_token < 6 else 0.2 if parameters_per_token < 40 else 0.4
