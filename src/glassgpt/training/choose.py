"""What a run picks for itself where it was given nothing: tokenizer and shape. Each choice is a line to be shown."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glassgpt.config import GPTConfig
from glassgpt.data.corpus import Document
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.progress import Progress
from glassgpt.training.settings import TOKENIZERS

MAX_BPE_BYTES = 2**26
"""Text that a BPE is trained on: more changes next to nothing in its merges, and takes minutes and much memory."""


def check_tokenizer(tokenizer: Tokenizer | str | Path | None) -> None:
    """`ValueError` for a name that is neither one of `TOKENIZERS` nor something on the disk."""
    if isinstance(tokenizer, (str, Path)) and tokenizer not in TOKENIZERS and not Path(tokenizer).exists():
        raise ValueError(
            f"tokenizer {str(tokenizer)!r} must be one of {', '.join(TOKENIZERS)}, or a directory that holds one"
        )


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
    if name is not None and name not in TOKENIZERS:
        return Tokenizer.load(name)
    if name == "gpt2":
        return Tokenizer.gpt2()
    if name == "byte":
        return Tokenizer.bytes_()

    if name == "char":  # an alphabet is no knowledge of the text, and one letter missing could not be measured at all
        return Tokenizer.characters(_texts([*train, *validation], "collecting characters", progress))
    n_bytes = sum(document.n_bytes for document in (*train, *validation))
    # about one token of vocabulary for each 2 kB of text, in powers of two
    size = vocab_size or min(16384, max(512, 2 ** round(math.log2(max(n_bytes, 1) / 2000))))
    share = min(1.0, MAX_BPE_BYTES / sum(document.n_bytes for document in train))
    part = "the training part" if share == 1 else f"{share:.0%} of the training part, spread evenly"
    progress.message(f"training a tokenizer on {part}")
    # the n-th text is taken where n shares reach the next whole number
    texts = enumerate(_texts(train, "counting words", progress))
    sample = (text for n, text in texts if int((n + 1) * share) > int(n * share))
    with _afterwards("merging pairs", sample, progress) as told:
        tokenizer = Tokenizer.train_bpe(told, size)
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


@contextlib.contextmanager
def _afterwards(work: str, texts: Iterable[str], progress: Progress) -> Iterator[Iterator[str]]:
    """Gives `texts`; what the body does once it has taken them all is work whose end is unknown, told every second.

    The tokenizers library does it in one call, and tells nobody how far it is.
    """
    ended = threading.Event()

    def tell() -> None:
        progress.work(work, 0, 0)
        while not ended.wait(1):
            progress.work(work, 0, 0)

    thread = threading.Thread(target=tell, daemon=True)

    def told() -> Iterator[str]:
        yield from texts
        thread.start()

    try:
        yield told()
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
            progress.work(work, 1, 1)


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
