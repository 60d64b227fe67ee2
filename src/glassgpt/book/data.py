"""Chapter 2: text to batches of token windows."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glassgpt.data.corpus import default_corpus, read_corpus
from glassgpt.files import write_text
from glassgpt.tokenizer import END_OF_TEXT, gpt2_tiktoken
from glassgpt.weights.download.errors import DownloadError
from glassgpt.weights.download.file import download_file

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64, each (batch, max_length)."""

VERDICT = "the-verdict.txt"
_VERDICT_URL = f"https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/{VERDICT}"
_VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
_VERDICT_CHARACTERS = 20_479


class BookTokenizer(Protocol):
    """What the book asks of a tokenizer; ours and tiktoken's both have it."""

    def encode(self, text: str, *, allowed_special: set[str]) -> list[int]:
        """Ids of `text`, in which the special tokens named may stand."""
        ...

    def decode(self, tokens: list[int], /) -> str:
        """The text of `tokens`."""
        ...


@functools.cache
def gpt2_tokenizer() -> BookTokenizer:
    """GPT-2's tokenizer, made once: the book's `tiktoken.get_encoding("gpt2")`, without the network.

    `FileNotFoundError` with the command that installs the vocabulary where it is neither here nor to be fetched.
    """
    encoding: BookTokenizer = gpt2_tiktoken()
    return encoding


class GPTDatasetV1(Dataset[Batch]):
    """Windows of `max_length` tokens of a text, each `stride` tokens after the one before, and their targets.

    `input_ids` and `target_ids`, int64, are (windows, max_length), the targets one token further; both are
    views of one copy of the text's tokens, however much the windows overlap. Raises `ValueError` for a size
    below 1.
    """

    def __init__(self, txt: str, tokenizer: BookTokenizer, max_length: int, stride: int) -> None:
        for name, size in (("max_length", max_length), ("stride", stride)):
            if size < 1:
                raise ValueError(f"{name} {size} is below 1")
        ids = torch.tensor(tokenizer.encode(txt, allowed_special={END_OF_TEXT}), dtype=torch.int64)
        self.n_tokens = len(ids)
        if self.n_tokens > max_length:
            self.input_ids = ids[:-1].unfold(0, max_length, stride)
            self.target_ids = ids[1:].unfold(0, max_length, stride)
        else:
            self.input_ids = self.target_ids = ids.new_empty(0, max_length)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, idx: int) -> Batch:
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader[Batch]:
    """Batches of windows of `txt`, (batch_size, max_length), with GPT-2's tokenizer.

    A text that is too short for one window gives an empty loader, or, with `shuffle`, a `ValueError`.
    """
    dataset = GPTDatasetV1(txt, gpt2_tokenizer(), max_length, stride)
    if shuffle and not len(dataset):
        raise ValueError(
            f"the text has {dataset.n_tokens} tokens, but a window of {max_length} needs {max_length + 1}: "
            "use a smaller max_length or add text"
        )
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


def text_to_token_ids(text: str, tokenizer: BookTokenizer) -> Tensor:
    """Ids of `text` as a batch of one, int64, (1, T)."""
    return torch.tensor([tokenizer.encode(text, allowed_special={END_OF_TEXT})], dtype=torch.int64)


def token_ids_to_text(token_ids: Tensor, tokenizer: BookTokenizer) -> str:
    """The text of (1, T) or (T,) ids; `ValueError` for a batch of several."""
    if token_ids.dim() > 1 and len(token_ids) != 1:
        raise ValueError(f"{len(token_ids)} rows of ids are {len(token_ids)} texts: decode them one at a time")
    return tokenizer.decode(token_ids.flatten().tolist())


def training_text(folders: Sequence[Path], report: Callable[[str], None] = print) -> str:
    """The book's text, Edith Wharton's *The Verdict*: the first `the-verdict.txt` in `folders`.

    Where there is none it is fetched, checked and kept in the first folder. Where it cannot be fetched,
    `report` says so, and as much of Python's own manual takes its place.
    """
    for folder in folders:
        if (folder / VERDICT).is_file():
            return "".join(piece for document in read_corpus([folder / VERDICT]) for piece in document.pieces())
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = download_file(
                _VERDICT_URL, Path(temporary) / VERDICT, sha256=_VERDICT_SHA256, connect_timeout=5, retries=0
            )
        except (DownloadError, ModuleNotFoundError):  # the second: what fetches is not installed
            report(f"No {VERDICT} here, and none from {_VERDICT_URL}: training on Python's manual instead")
            chapter = max(default_corpus(), key=lambda document: document.n_bytes)
            return "".join(chapter.pieces())[:_VERDICT_CHARACTERS]
        text = path.read_text(encoding="utf-8")
    write_text(folders[0] / VERDICT, text)
    return text
