"""Shards: files of token ids. Ours have a checked header, which llm.c reads too; llm.c's and nanoGPT's are read.

A header is 1024 bytes, little-endian. It begins as llm.c's does (`dev/data/data_common.py`), so llm.c trains from our
shards as they are; the rest, which llm.c leaves empty, is ours:

    bytes      type     content
    0          int32    20240520 for tokens of 16 bits, 20240801 for tokens of 32 bits
    4          int32    llm.c's version of that layout: 1, or 7
    8          int32    number of tokens
    16         8 bytes  "glassgpt"
    24         uint32   version of our part: 1
    28         uint32   bytes per token: 2 or 4
    32         uint32   size of the vocabulary
    40         32 bytes SHA-256 of the tokenizer, `Tokenizer.fingerprint`
    72         32 bytes SHA-256 of the tokens
    992        32 bytes SHA-256 of the 992 bytes before it

What lies between is zero. The tokens follow, uint16 or uint32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.data.kinds import HEAD_BYTES, NotTextError, check_text
from glassgpt.files import replacing

HEADER_BYTES = 1024

_FIELDS = struct.Struct("<4i8sIIII32s32s")
_MARK, _VERSION = b"glassgpt", 1
_DIGEST_AT = HEADER_BYTES - 32
_LAYOUTS = {20240520: (1, 2), 20240801: (7, 4)}  # magic: llm.c's version, bytes per token
_NOT_TOKENS = {20240522: "an evaluation file of llm.c's", 20240326: "a model of llm.c's"}
_CHUNK = 1 << 20
MOST_MAPS = 64
"""Of one sequence at a time: some systems let a process have no more than 256 files."""


@dataclass(frozen=True)
class Shard:
    """A token file that is there whole, by its header and size; what its form does not say is None."""

    path: Path
    form: str
    """Whose layout: "glassgpt", "llm.c" or "nanoGPT"."""
    dtype: np.dtype[Any]
    n_tokens: int
    offset: int
    """Bytes before the tokens."""
    n_vocab: int | None = None
    tokenizer: str | None = None
    """Fingerprint of the tokenizer."""
    sha256: str | None = None
    """Of the tokens' bytes, in hex."""

    def map(self) -> npt.NDArray[Any]:
        """The tokens as a read-only memory map: nothing is read before it is used."""
        return np.memmap(self.path, self.dtype, "r", offset=self.offset, shape=(self.n_tokens,))

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """The tokens in order, some at a time, read and not mapped."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while data := file.read(_CHUNK):
                yield np.frombuffer(data, self.dtype)

    def digest(self) -> str:
        """SHA-256 of the tokens as they are now, in hex."""
        digest = hashlib.sha256()
        for tokens in self.chunks():
            digest.update(tokens.data)
        return digest.hexdigest()

    def verify(self) -> None:
        """`ValueError` unless the tokens have the digest they were written with, about a second per GB."""
        if self.sha256 is not None and self.digest() != self.sha256:
            raise ValueError(f"{self.path}: its tokens were changed after they were written; prepare the text again")


def open_shard(path: str | Path) -> Shard:
    """The token file at `path`, whose layout is found by its content.

    Raises `FileNotFoundError` if there is none, and `ValueError` for a file that is damaged, cut off, or holds no
    tokens. Tokens without a header, nanoGPT's, cannot be told from other numbers: whoever uses them checks that they
    lie within the vocabulary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such token file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(max(HEADER_BYTES, HEAD_BYTES))
    magic, version, count = struct.unpack("<3i", head[:12].ljust(12, b"\0"))
    if magic in _NOT_TOKENS and len(head) >= 12:
        raise ValueError(f"{path} is {_NOT_TOKENS[magic]}, not tokens of a text")
    if magic not in _LAYOUTS:
        return _without_header(path, size, head)
    ours = head[16:24] == _MARK
    form, again = ("glassgpt", "prepare the text again") if ours else ("llm.c", "write or fetch it again")
    expected, itemsize = _LAYOUTS[magic]
    if version != expected or len(head) < HEADER_BYTES:
        raise ValueError(f"{path}: a token file of version {version}, where {expected} is read; {again}")
    if size != HEADER_BYTES + count * itemsize or count < 0:
        raise ValueError(
            f"{path}: cut off or damaged: {size:,} bytes, where the header tells of {count:,} tokens of {itemsize} "
            f"bytes; {again}"
        )
    dtype = np.dtype(f"<u{itemsize}")
    if not ours:
        return Shard(path, form, dtype, count, HEADER_BYTES)
    if hashlib.sha256(head[:_DIGEST_AT]).digest() != head[_DIGEST_AT:HEADER_BYTES]:
        raise ValueError(f"{path}: its header is damaged; {again}")
    *_, our_version, our_itemsize, n_vocab, _, tokenizer, digest = _FIELDS.unpack_from(head)
    if (our_version, our_itemsize) != (_VERSION, itemsize):
        raise ValueError(f"{path}: a shard of version {our_version}, where {_VERSION} is read; {again}")
    return Shard(path, form, dtype, count, HEADER_BYTES, n_vocab, tokenizer.hex(), digest.hex())


def _without_header(path: Path, size: int, head: bytes) -> Shard:
    """nanoGPT's file, uint16 and nothing else; `ValueError` where it is plainly something else."""
    try:
        check_text(path, head[:HEAD_BYTES])
    except NotTextError as error:
        if error.kind != "binary":
            raise ValueError(f"{path}: {error.kind}, not tokens") from None
    else:
        # a text of a few thousand tokens has some below 256, whose second byte is 0
        if size > 64 or not size:
            problem = "looks like text: prepare it first" if size else "the file is empty"
            raise ValueError(f"{path}: no tokens: {problem}")
    if size % 2:
        raise ValueError(f"{path}: cut off, or no tokens: {size:,} bytes are no whole number of uint16")
    return Shard(path, "nanoGPT", np.dtype("<u2"), size // 2, 0)


def dtype_for(n_vocab: int) -> np.dtype[Any]:
    """The type that holds the ids of a vocabulary."""
    return np.dtype("<u2" if n_vocab <= 1 << 16 else "<u4")


def write_shard(path: Path, tokens: Iterable[npt.NDArray[Any]], n_vocab: int, tokenizer: str) -> Shard:
    """Write the arrays of `tokens`, one after another, to a shard that has its name when it is whole.

    `tokenizer` is the fingerprint of the tokenizer they come from.
    """
    dtype, digest, count = dtype_for(n_vocab), hashlib.sha256(), 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(HEADER_BYTES))
        for part in tokens:
            data = np.ascontiguousarray(part, dtype).data
            file.write(data)
            digest.update(data)
            count += len(part)
        file.seek(0)
        file.write(_header(dtype.itemsize, count, n_vocab, tokenizer, digest.digest()))
    return open_shard(path)


def _header(itemsize: int, count: int, n_vocab: int, tokenizer: str, digest: bytes) -> bytes:
    magic, version = next((magic, version) for magic, (version, size) in _LAYOUTS.items() if size == itemsize)
    fields = _FIELDS.pack(
        magic, version, count, 0, _MARK, _VERSION, itemsize, n_vocab, 0, bytes.fromhex(tokenizer), digest
    )
    start = fields.ljust(_DIGEST_AT, b"\0")
    return start + hashlib.sha256(start).digest()


Part = npt.NDArray[Any] | Shard
"""Tokens in memory, or those of a file."""


class TokenSequence:
    """The tokens of several arrays or shards, one after another, as one sequence; slices of it are arrays.

    Only slices with a step of 1. Shards are mapped when they are read, the last `MOST_MAPS` of them at a time, because
    each map holds a file open; they are read by page, and `forget_pages` gives those back.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = [part for part in parts if _length(part)]
        ends = np.cumsum([_length(part) for part in self._parts], dtype=np.int64).tolist()
        self._starts, self._length = [0, *ends][: len(ends)], ends[-1] if ends else 0
        self._maps: dict[int, npt.NDArray[Any]] = {}  # the one that was read last is the last
        self._read: set[int] = set()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> npt.NDArray[Any]:
        start, stop, step = where.indices(self._length)
        assert step == 1
        parts = []
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            first = self._starts[number]
            part = self._array(number)[start - first : stop - first]
            parts.append(part)
            self._read.add(number)
            start, number = start + len(part), number + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.uint16)

    def _array(self, number: int) -> npt.NDArray[Any]:
        part = self._parts[number]
        if not isinstance(part, Shard):
            return part
        array = self._maps.pop(number, None)
        if array is None:
            array = part.map()
            if len(self._maps) == MOST_MAPS:  # slices of it may still be in use: it is closed with the last of them
                del self._maps[next(iter(self._maps))]
        self._maps[number] = array
        return array

    def forget_pages(self) -> None:
        """Give back the memory of the pages that memory maps have read."""
        for number in self._read & self._maps.keys():
            forget_pages(self._maps[number])
        self._read.clear()

    @property
    def parts(self) -> Sequence[Part]:
        """Those that are not empty, in order."""
        return self._parts

    def head(self, n: int) -> TokenSequence:
        """Its first `n` tokens, nothing of which is read yet."""
        pairs = zip(self._parts, self._starts, strict=True)
        return TokenSequence([_first(part, max(0, n - start)) for part, start in pairs])

    def close(self) -> None:
        """Release the memory maps; the sequence must not be used afterwards."""
        for array in self._maps.values():
            if mapping := _mapping(array):
                mapping.close()
        self._maps, self._parts = {}, []


def _length(part: Part) -> int:
    return part.n_tokens if isinstance(part, Shard) else len(part)


def _first(part: Part, n: int) -> Part:
    """The first `n` tokens of a part, or as many as there are."""
    if not isinstance(part, Shard):
        return part[:n]
    return dataclasses.replace(part, n_tokens=min(n, part.n_tokens))


def forget_pages(tokens: npt.NDArray[Any]) -> None:
    """Give back the memory of the pages that a read-only memory map has read, or it grows to the file's size.

    They stay in the system's page cache, which costs nobody memory. Where the system knows no `madvise`
    (Windows), it trims mapped pages by itself.
    """
    mapping = _mapping(tokens)
    if mapping is not None and not tokens.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(tokens: Any) -> mmap.mmap | None:
    while isinstance(tokens, np.ndarray):
        tokens = tokens.base
    return tokens if isinstance(tokens, mmap.mmap) else None
