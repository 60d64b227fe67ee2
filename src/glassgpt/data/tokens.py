"""A token array on disk: text encoded once, then read by page, however long it is.

A token file is a plain NumPy `.npy` array (`numpy.load(path, mmap_mode="r")` opens it) with a `.json` beside
it that says what the numbers mean: how many, of which tokenizer, from how much text.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.data.corpus import Document
from glassgpt.data.shards import dtype_for
from glassgpt.data.vocabulary import check_ids, other_tokenizer
from glassgpt.files import replacing, write_text
from glassgpt.tokenizer import Tokenizer

_MAGIC = "glassgpt-tokens"
_VERSION = 1
_DIGEST_TOKENS = 1 << 22
_PIECE_BYTES = 1 << 16  # texts of one call of the encoder, which may encode them in parallel ...
_BATCH_BYTES = 1 << 20  # ... and all of them together: an encoder may need several hundred bytes for each token


@dataclass(frozen=True)
class TokenFile:
    """An open token file. `tokens` is a read-only memory map: nothing is read before it is used."""

    path: Path
    tokens: npt.NDArray[Any] = field(repr=False, compare=False)  # (n_tokens,), a np.memmap of uint16 or uint32
    n_bytes: int  # of the text, in UTF-8
    n_vocab: int
    fingerprint: str  # SHA-256 of the tokens' bytes, in hex

    @property
    def n_tokens(self) -> int:
        """Number of tokens, end-of-text tokens included."""
        return len(self.tokens)

    def verify(self) -> None:
        """`ValueError` unless the tokens have the digest they were written with: about a second per GB."""
        digest = hashlib.sha256()
        for start in range(0, self.n_tokens, _DIGEST_TOKENS):
            digest.update(self.tokens[start : start + _DIGEST_TOKENS].tobytes())
        if digest.hexdigest() != self.fingerprint:
            raise ValueError(f"{self.path}: its tokens were changed after they were written; encode the text again")

    def close(self) -> None:
        """Release the memory map, after which `tokens` must not be used: Windows deletes no file that is mapped."""
        mapping: Any = self.tokens
        while isinstance(mapping, np.ndarray):
            mapping = mapping.base
        mapping.close()

    @classmethod
    def open(cls, path: str | Path, *, tokenizer: Tokenizer | None = None) -> "TokenFile":
        """Open a file that `write_tokens` wrote; with `tokenizer`, only if it was written with that one.

        Checks header, sizes and tokenizer; `verify` checks every token. Raises `FileNotFoundError` if there is none,
        and `ValueError` if it is incomplete, damaged, of another version or of another tokenizer.
        """
        path = Path(path)
        sidecar = _sidecar(path)
        again = "encode the text again"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such token file; {again}")
        try:
            meta = json.loads(sidecar.read_text(encoding="utf-8"))
            written_as = meta["magic"], meta["version"]
            count, n_bytes, n_vocab = int(meta["count"]), int(meta["n_bytes"]), int(meta["n_vocab"])
            dtype, fingerprint, written_with = str(meta["dtype"]), str(meta["sha256"]), str(meta["tokenizer"])
        except FileNotFoundError:
            raise ValueError(f"{path}: {sidecar.name} is missing beside it; {again}") from None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{sidecar}: damaged ({error!r}); {again}") from None
        if written_as != (_MAGIC, _VERSION):
            raise ValueError(f"{sidecar}: of format {written_as}, but this reads {(_MAGIC, _VERSION)}; {again}")
        if tokenizer is not None and not (tokenizer.n_vocab == n_vocab and tokenizer.has_fingerprint(written_with)):
            raise ValueError(
                f"{path}: {other_tokenizer(n_vocab, written_with, tokenizer)}; use that one, or {again} with this"
            )
        expected = dtype_for(n_vocab)
        header = _npy_header(expected, count)
        with path.open("rb") as file:
            head = file.read(len(header))
        size = path.stat().st_size
        fits = size == len(header) + count * expected.itemsize and head == header
        if not fits or dtype != expected.name:
            raise ValueError(
                f"{path}: its {size} bytes are not the {count} tokens of {dtype}, for {n_vocab} ids, "
                f"that {sidecar.name} tells of; {again}"
            )
        tokens = np.memmap(path, expected, "r", offset=len(header), shape=(count,))
        return cls(path, tokens, n_bytes, n_vocab, fingerprint)


def write_tokens(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TokenFile:
    """Encode `documents` into a token file at `path`, each followed by the end-of-text id if there is one.

    Memory does not grow with the text. Tokens are uint16 for up to 65536 ids, else uint32. The file gets its name when
    it is complete; until then an older one at `path` stays as it is. `progress` is called with the bytes of text done
    and in all.

    Raises `ValueError` if there are no tokens, or the tokenizer gives an id outside its vocabulary; `OSError` where the
    disk does.
    """
    path = Path(path)
    dtype = dtype_for(tokenizer.n_vocab)
    n_bytes = sum(document.n_bytes for document in documents)
    count, done, digest = 0, 0, hashlib.sha256()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(_npy_header(dtype, 0))
            for batch in _batches(documents):
                data = _encode(batch, tokenizer).astype(dtype).tobytes()
                file.write(data)
                digest.update(data)
                count += len(data) // dtype.itemsize
                done += sum(len(text.encode("utf-8")) for text, _ in batch)
                if progress is not None:
                    progress(done, n_bytes)
            if not count:
                raise ValueError(f"{path}: no text, so no tokens to write; name a text with words in it")
            file.seek(0)
            file.write(_npy_header(dtype, count))
        _sidecar(path).unlink(missing_ok=True)  # the two can't be renamed at once, and without it a file is refused
    meta = {
        "magic": _MAGIC,
        "version": _VERSION,
        "count": count,
        "dtype": dtype.name,
        "n_vocab": tokenizer.n_vocab,
        "tokenizer": tokenizer.fingerprint,
        "n_bytes": n_bytes,
        "sha256": digest.hexdigest(),
    }
    write_text(_sidecar(path), json.dumps(meta, indent=1) + "\n")
    return TokenFile.open(path, tokenizer=tokenizer)


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[str, bool]]]:
    """(text, whether its document ends with it), in lists of about `_BATCH_BYTES`."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        left = document.n_bytes
        for text in document.pieces(_PIECE_BYTES):
            n_bytes = len(text.encode("utf-8"))
            left -= n_bytes
            size += n_bytes
            batch.append((text, left == 0))
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[tuple[str, bool]], tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    ids: list[int] = []
    end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    encoded = tokenizer.encode_batch([text for text, _ in batch])
    for part, (_, ends_document) in zip(encoded, batch, strict=True):
        ids += part + end if ends_document else part
    tokens = np.array(ids, dtype=np.int64)
    check_ids(tokens, tokenizer)
    return tokens


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _npy_header(dtype: np.dtype[Any], count: int) -> bytes:
    """Header of a 1-D `.npy` file, version 1.0 (see `numpy.lib.format`); 128 bytes whatever the count."""
    text = str({"descr": dtype.str, "fortran_order": False, "shape": (count,)})
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode("ascii") + b"\n"
