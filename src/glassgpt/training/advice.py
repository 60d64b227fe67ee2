"""What could be better about a run, from what is known before it begins: a line each, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from glassgpt.data.mixture import first_tokens
from glassgpt.data.vocabulary import vocabulary_size
from glassgpt.training.choose import choose_epochs
from glassgpt.training.memory import Memory
from glassgpt.training.number_type import choose_dtype
from glassgpt.training.plan import ENOUGH_STEPS
from glassgpt.training.records import Prepared
from glassgpt.training.request import Request

_LOOKED_AT = 5_000_000  # tokens, from the beginning: enough for how long documents are and how common tokens
_SELDOM = 10  # times: what a token's vector learns from fewer is little
_FEW_DOCUMENTS = 10


def advise(prepared: Prepared, request: Request, device: torch.device, memory: Memory, room: int | None) -> list[str]:
    """Advice on a run that may not be `planned` yet, where its `memory` is more than the `room` there is."""
    lines = [_on_memory(prepared, memory, room)]
    if prepared.settings.steps is not None:
        lines += [*_on_repeats(prepared, prepared.settings.steps), _on_batch(prepared, prepared.settings.steps)]
    tokens = first_tokens(prepared.train.tokens, _LOOKED_AT)
    lines += [_on_documents(prepared, tokens), _on_vocabulary(prepared, tokens), _on_dtype(prepared, request, device)]
    return [line for line in lines if line]


def _on_memory(prepared: Prepared, memory: Memory, room: int | None) -> str:
    if room is None or memory.total <= room:
        return ""
    what = "a smaller shape"
    if prepared.settings.rows_at_once > 1:
        what += ", a smaller micro_batch_size or activation_checkpointing"
    return f"it does not fit: {memory.total / 1e9:.3g} GB are needed, {room / 1e9:.3g} GB can be had here: take {what}"


def _on_repeats(prepared: Prepared, steps: int) -> Iterator[str]:
    epochs, ratio = prepared.epochs(steps), prepared.parameters_per_token()
    most = choose_epochs(ratio, from_weights=prepared.source is not None)
    if round(epochs) > most:
        yield (
            f"the text is read {epochs:.1f} times, and more than {most} seldom make a model better: take fewer steps, "
            "or more text"
        )
    if ratio > 1 and epochs > 1:
        yield (
            f"the model has {ratio:.3g} parameters for each token of the text, so it can learn it by heart: add text, "
            "or take a smaller shape"
        )


def _on_batch(prepared: Prepared, steps: int) -> str:
    if steps >= ENOUGH_STEPS or prepared.settings.batch_size == 1:
        return ""
    return (
        f"{steps:,} steps are few: a smaller batch_size than {prepared.settings.batch_size} gives more of them for the "
        "same text"
    )


def _on_documents(prepared: Prepared, tokens: np.typing.NDArray[np.integer]) -> str:
    """Of documents that are told by the end-of-text tokens between them."""
    if prepared.tokenizer.eot_id is None:
        return ""
    ends = np.flatnonzero(tokens == prepared.tokenizer.eot_id)
    if len(ends) < _FEW_DOCUMENTS:
        return ""
    typical, length = int(np.median(np.diff(ends, prepend=-1))), prepared.config.context_length
    if typical >= length:
        return ""
    return (
        f"half of the documents have at most {typical:,} tokens, the context is {length:,}: most of it would be other "
        "documents; a shorter context_length is faster and loses little"
    )


def _on_vocabulary(prepared: Prepared, tokens: np.typing.NDArray[np.integer]) -> str:
    n_vocab, fit = prepared.config.vocab_size, vocabulary_size(prepared.train.n_bytes + prepared.validation.n_bytes)
    seldom = int((np.bincount(tokens, minlength=n_vocab) < _SELDOM).sum())
    if prepared.source is not None or 2 * seldom <= n_vocab or n_vocab <= fit:
        return ""
    return (
        f"{seldom:,} of the {n_vocab:,} tokens of the vocabulary come fewer than {_SELDOM} times in the text: a BPE of "
        f"its own, of {fit:,} tokens, would suit it"
    )


def _on_dtype(prepared: Prepared, request: Request, device: torch.device) -> str:
    asked = request.settings.get("dtype")
    if asked in (None, "auto"):
        return ""
    best, reason = choose_dtype("auto", device, prepared.config, prepared.settings.rows_at_once)
    return "" if best == asked else f"dtype {asked}: {best} would be picked here, as {reason}"
