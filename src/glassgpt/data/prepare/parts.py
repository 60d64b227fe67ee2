"""A part: the encoded sections of a piece of a task, on the disk as a directory that is whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from glassgpt.data.corpus import Document
from glassgpt.data.prepare.fingerprints import BANDS, Joined, bands_of, digests, signatures
from glassgpt.data.prepare.sections import Section, Skipped
from glassgpt.data.shards import dtype_for
from glassgpt.data.vocabulary import check_ids
from glassgpt.files import sync, sync_tree, temporary
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer

ENDS_DOCUMENT, COMPARABLE = 1, 2
"""Flags of a section: it is the last of its document; it has enough words for a signature."""

SECTION = np.dtype(
    [
        ("digest", "<u8"),  # its first half finds equal sections ...
        ("rest", "<u8"),  # ... and its second half decides the split
        ("n_tokens", "<u4"),
        ("n_bytes", "<u4"),
        ("at", "<u8"),
        ("span", "<u4"),  # of the task
        ("flags", "<u4"),
    ]
)

MOST_SECTIONS = 100_000
"""Of a part, whose table is in memory."""
_BATCH_BYTES = 1 << 18  # encoded, hashed and written together
_PIECE_BYTES = 1 << 16
NAME = re.compile(r"(\d{6,})-(\d{4,})")
"""Task and number in it."""
_TOKENS, _SECTIONS, _SIGNATURES, _ABOUT = "tokens", "sections", "signatures", "part.json"


@dataclass(frozen=True)
class Part:
    """A part that is on the disk."""

    path: Path
    dtype: np.dtype[Any]
    last: bool
    """Whether the task ends with it."""
    n_sections: int
    n_bytes: int
    """Of text, in UTF-8."""
    input_bytes: int
    """How far the task was when it was written, in bytes of its files."""
    skipped: Skipped

    @classmethod
    def load(cls, path: Path, plan: str, dtype: np.dtype[Any], *, verify: bool = False) -> Self:
        """The part at `path` of the plan with that digest; `ValueError` where it is damaged or another plan's.

        With `verify` each of its bytes is checked.
        """
        try:
            about = read_json(path / _ABOUT)
            if about["plan"] != plan:
                raise ValueError(f"{path} belongs to another plan")
            for name, (size, digest) in about["files"].items():
                if (path / name).stat().st_size != size or (verify and _digest(path / name) != digest):
                    raise ValueError(f"{path / name} is damaged")
            return cls(
                path,
                dtype,
                last=bool(about["last"]),
                n_sections=int(about["n_sections"]),
                n_bytes=int(about["n_bytes"]),
                input_bytes=int(about["input_bytes"]),
                skipped=Skipped(*about["skipped"]),
            )
        except (KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"{path} is damaged ({error!r})") from None

    def sections(self) -> npt.NDArray[Any]:
        """The table of its sections, of the type `SECTION`."""
        return np.fromfile(self.path / _SECTIONS, SECTION)

    def open_tokens(self) -> BinaryIO:
        """Its tokens, of type `dtype`, to be read in order."""
        return (self.path / _TOKENS).open("rb")

    def band(self, number: int) -> npt.NDArray[np.uint64]:
        """(n_sections,): one band of each section's signature."""
        return np.fromfile(self.path / _SIGNATURES, "<u8", self.n_sections, offset=8 * number * self.n_sections)

    def bands(self) -> npt.NDArray[np.uint64]:
        """(BANDS, n_sections), mapped: all bands."""
        return np.memmap(self.path / _SIGNATURES, "<u8", "r", shape=(BANDS, self.n_sections))


def write_part(
    path: Path,
    sections: Callable[[], Iterator[Section]],
    tokenizer: Tokenizer,
    plan: str,
    about: Callable[[], dict[str, Any]],
) -> None:
    """Encode sections into the part at `path`; `about` gives, in the end, what there is to say of it.

    Where the part is there already, because another process was as quick, that one stays: it is the same.
    """
    with temporary(path) as new:
        new.mkdir()
        table = _write(new, sections(), tokenizer)
        names = (_TOKENS, _SECTIONS, _SIGNATURES)
        record = about() | {
            "plan": plan,
            "n_sections": len(table),
            "n_bytes": int(table["n_bytes"].sum(dtype=np.int64)),
            "files": {name: [(new / name).stat().st_size, _digest(new / name)] for name in names},
        }
        (new / _ABOUT).write_text(json.dumps(record), encoding="utf-8")
        sync_tree(new)
        try:
            new.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        sync(path.parent)


def _write(folder: Path, sections: Iterator[Section], tokenizer: Tokenizer) -> npt.NDArray[Any]:
    """The files of a part; returns the table of sections."""
    dtype = dtype_for(tokenizer.n_vocab)
    tables, bands = [np.zeros(0, SECTION)], [np.zeros((0, BANDS), np.uint64)]
    with (folder / _TOKENS).open("wb") as file:
        for batch in batches(sections):
            encoded, table, found = _encoded(batch, tokenizer)
            check_ids(encoded, tokenizer)
            file.write(encoded.astype(dtype).data)
            tables.append(table)
            bands.append(found)
    table = np.concatenate(tables)
    table.tofile(folder / _SECTIONS)
    np.ascontiguousarray(np.concatenate(bands).T).tofile(folder / _SIGNATURES)
    return table


def batches(sections: Iterator[Section]) -> Iterator[list[Section]]:
    """Some at a time, of about `_BATCH_BYTES` together."""
    batch: list[Section] = []
    size = 0
    for section in sections:
        batch.append(section)
        size += section.n_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batch: list[Section], tokenizer: Tokenizer
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.uint64]]:
    """(tokens of all, table, (n, BANDS)) of some sections."""
    pieces = [list(_pieces(section)) for section in batch]
    arrays = iter(tokenizer.encode_arrays([text for texts in pieces for text in texts]))
    per_section = [[next(arrays) for _ in texts] for texts in pieces]
    joined = Joined([section.text.encode("utf-8") for section in batch])
    found, comparable = signatures(joined)
    digest = digests(joined)
    table = np.zeros(len(batch), SECTION)
    table["digest"], table["rest"] = digest[:, 0], digest[:, 1]
    table["n_tokens"] = [sum(map(len, parts)) for parts in per_section]
    table["n_bytes"] = [section.n_bytes for section in batch]
    table["at"] = [section.at for section in batch]
    table["span"] = [section.span for section in batch]
    table["flags"] = np.array([section.ends_document for section in batch]) * ENDS_DOCUMENT + comparable * COMPARABLE
    return np.concatenate([part for parts in per_section for part in parts]), table, bands_of(found)


def _pieces(section: Section) -> Iterator[str]:
    if section.n_bytes <= _PIECE_BYTES:
        return iter((section.text,))
    return Document.from_text("", section.text).pieces(_PIECE_BYTES)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def delete_part(path: Path) -> None:
    """Remove what `write_part` wrote at `path`; anything else there stays."""
    for name in (_ABOUT, _TOKENS, _SECTIONS, _SIGNATURES):
        (path / name).unlink(missing_ok=True)
    if path.is_dir():
        path.rmdir()
