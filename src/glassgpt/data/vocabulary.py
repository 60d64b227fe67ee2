"""Which tokenizer a text gets: the names that there are for one, and the making of a BPE, which can be followed."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from glassgpt.tokenizer import Tokenizer

TOKENIZERS = ("bpe", "gpt2", "char", "byte")

MAX_BPE_BYTES = 2**26
"""Text that a BPE is trained on: more changes next to nothing in its merges, and takes minutes and much memory."""


def check_tokenizer(tokenizer: Tokenizer | str | Path | None) -> None:
    """`ValueError` for a name that is neither one of `TOKENIZERS` nor something on the disk."""
    if isinstance(tokenizer, (str, Path)) and tokenizer not in TOKENIZERS and not Path(tokenizer).exists():
        raise ValueError(
            f"tokenizer {str(tokenizer)!r} must be one of {', '.join(TOKENIZERS)}, or a directory that holds one"
        )


def named_tokenizer(tokenizer: Tokenizer | str | Path | None) -> Tokenizer | None:
    """The tokenizer that does not depend on the text: given, loaded, GPT-2's, bytes; None for "bpe" and "char"."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer is None or tokenizer in ("bpe", "char"):
        return None
    if tokenizer == "gpt2":
        return Tokenizer.gpt2()
    return Tokenizer.bytes_() if tokenizer == "byte" else Tokenizer.load(tokenizer)


def other_tokenizer(n_vocab: int, fingerprint: str, tokenizer: Tokenizer) -> str:
    """What is wrong with tokens that a tokenizer of that fingerprint made, and not `tokenizer`."""
    return (
        f"written with another tokenizer ({n_vocab} ids, {fingerprint[:12]}) than this one ({tokenizer.n_vocab} ids, "
        f"{tokenizer.fingerprint[:12]})"
    )


def check_ids(ids: npt.NDArray[Any], tokenizer: Tokenizer) -> None:
    """`ValueError` where a tokenizer gave ids that it says it does not have."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.n_vocab:
        raise ValueError(
            f"the tokenizer gave ids from {ids.min()} to {ids.max()}, but says it has {tokenizer.n_vocab} ids: train "
            "or download it again"
        )


def vocabulary_size(n_bytes: int) -> int:
    """Tokens of a BPE for a text: about one for each 2 kB, in powers of two."""
    return min(16384, max(512, 2 ** round(math.log2(max(n_bytes, 1) / 2000))))


def trained_bpe(texts: Iterable[str], size: int, work: Callable[[str, int, int], None]) -> Tokenizer:
    """A BPE of at most `size` tokens; `work` hears of the merging, whose end is unknown, every second.

    The tokenizers library does it in one call, and tells nobody how far it is.
    """
    ended = threading.Event()

    def tell() -> None:
        work("merging pairs", 0, 0)
        while not ended.wait(1):
            work("merging pairs", 0, 0)

    thread = threading.Thread(target=tell, daemon=True)

    def told() -> Iterator[str]:
        yield from texts
        thread.start()

    try:
        return Tokenizer.train_bpe(told(), size)
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
            work("merging pairs", 1, 1)
