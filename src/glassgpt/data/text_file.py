"""One file, read: whether it holds text, where each of its documents lies, and how that is said."""

from __future__ import annotations

import codecs
import contextlib
import io
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from glassgpt.data.columnar import table_kind, table_rows
from glassgpt.data.kinds import HEAD_BYTES, NotTextError, check_text, wrong_encoding
from glassgpt.data.records import RecordError, json_lines, json_list, rows, text_of
from glassgpt.data.spool import Spool
from glassgpt.data.unpack import Watched, inner_suffix, unpacked

_CHUNK = 1 << 20
_PLAIN, _RAW_JSON = "plain text", "JSON as plain text"
_ENDING = {".jsonl": "JSONL", ".ndjson": "JSONL", ".csv": "CSV", ".tsv": "TSV"}


@dataclass(frozen=True)
class TextFile:
    """Where the text of a file lies: document i is the bytes `bounds[i]` to `bounds[i + 1]` of `source`."""

    source: Path | Spool = field(repr=False)
    bounds: Sequence[int] = field(repr=False)
    kind: str = _PLAIN
    """What the file is, as it is said and counted."""
    places: Counter[str] = field(default_factory=Counter)
    """How many documents come from which field."""
    empty: int = 0
    """Records without text, left out."""

    @property
    def note(self) -> str:
        """What there is to say about it; "" where it is just text."""
        if self.places:
            return documents_from(self.places, self.empty)
        why = ": it is no list of objects or strings" if self.kind.startswith(_RAW_JSON) else ""
        return "" if self.kind == _PLAIN else f"{self.kind}, {self.bounds[-1] - self.bounds[0]:,} bytes{why}"


def documents_from(places: Counter[str], empty: int) -> str:
    """ "1,234 documents from the field 'text', 3 empty ones left out"."""
    parts = [f"{n:,} document{'s' * (n != 1)} from {place}" for place, n in sorted(places.items())]
    return ", ".join(parts + [f"{empty:,} empty left out"] * bool(empty))


def read_file(path: Path, fields: Sequence[str], spool: Spool, watch: Callable[[int], None]) -> TextFile:
    """Read a file through once. Text that is packed or in records goes to `spool`, plain text stays where it is.

    `watch` hears how many bytes of the file have been read. Raises `NotTextError` for a file that is another sort of
    thing, as its first record may show, `ValueError` for one that is damaged; nothing of it is left in `spool`.
    """
    size = spool.size
    try:
        with io.BufferedReader(Watched(path, watch), _CHUNK) as file:
            packing, stream = unpacked(path, file)
            kind = file_kind(path, packing, stream)
            packed = f" in {packing}" * bool(packing)
            if kind in RECORD_KINDS:
                return _read_records(path, kind, packed, stream, fields, spool)
            start, stop = _read_plain(path, stream, spool if packing else None)
            return TextFile(spool if packing else path, (start, stop), kind + packed)
    except BaseException:
        spool.rewind(size)
        raise


RECORD_KINDS = ("JSONL", "JSON", "CSV", "TSV", "Parquet", "Arrow")


def records_of(
    name: str | Path, kind: str, stream: BinaryIO, fields: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[tuple[int, Any]]:
    """(line or row, value) of each record of a file of one of `RECORD_KINDS`; `groups` as in `table_rows`.

    Raises `RecordError` where the file is damaged.
    """
    if kind == "JSONL":
        return json_lines(stream)
    if kind == "JSON":
        return json_list(stream)
    if kind in ("CSV", "TSV"):
        return rows(stream, tabs=kind == "TSV")
    return table_rows(str(name), stream, kind, fields, groups)


def noun_of(kind: str) -> str:
    """What a field of a record is called."""
    return "field" if kind in ("JSONL", "JSON") else "column"


def file_kind(path: str | Path, packing: str, stream: io.BufferedReader) -> str:
    """What to read a file as: one of `RECORD_KINDS`, or as plain text; nothing is taken from `stream`.

    Raises `NotTextError` where it is something else.
    """
    head, suffix = stream.peek(HEAD_BYTES)[:HEAD_BYTES], inner_suffix(path)
    if not packing and (kind := table_kind(suffix, head)):  # what is packed cannot be read from its end, as these are
        return kind
    check_text(path, head)
    return _kind(suffix, stream.peek(_CHUNK))


def _kind(suffix: str, start: bytes) -> str:
    """What to read a file as, by its name and, for JSON, by how it starts."""
    if suffix != ".json":
        return _ENDING.get(suffix, _PLAIN)
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"[") and start[1:].lstrip()[:1] in (b"{", b'"'):
        return "JSON"
    first, _, rest = start.partition(b"\n")
    with contextlib.suppress(RecordError):
        if rest.lstrip().startswith(b"{") and all(
            isinstance(value, dict) for _, value in json_lines(io.BytesIO(first))
        ):
            return "JSONL"
    return _RAW_JSON


def _read_records(
    path: Path, kind: str, packed: str, stream: io.BufferedReader, fields: Sequence[str], spool: Spool
) -> TextFile:
    bounds, places, empty = array("q", [spool.size]), Counter[str](), 0
    noun, line = noun_of(kind), 1
    try:
        with contextlib.closing(records_of(path, kind, stream, fields)) as records:  # type: ignore[type-var]
            for line, record in records:
                try:
                    where, text = text_of(record, fields, noun)
                except ValueError as error:
                    raise RecordError(line, str(error)) from None
                if text.strip():
                    spool.append(text.encode("utf-8"))
                    bounds.append(spool.size)
                    places[where] += 1
                else:
                    empty += 1
    except RecordError as error:
        message = f"{path}:{error.line}: {error.problem}"
        if places or empty:
            raise ValueError(message) from None
        raise NotTextError(message, f"{kind} without text") from None
    if not places:
        raise NotTextError(f"{path}: no text in its {empty:,} records; add text to it", f"{kind} without text")
    return TextFile(spool, bounds, kind + packed, places, empty)


def _read_plain(path: Path, stream: io.BufferedReader, spool: Spool | None) -> tuple[int, int]:
    """Check that it is UTF-8, a MiB at a time; where it lies in the file, or in `spool`, to which it is copied."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = len(codecs.BOM_UTF8) if stream.peek(3).startswith(codecs.BOM_UTF8) else 0
    stream.read(start)
    begin = start if spool is None else spool.size
    offset, blank = 0, True
    while True:
        chunk = stream.read(_CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            bad = start + offset - pending + error.start
            raise wrong_encoding(path, error, bad) from None
        blank = blank and not text.strip()
        offset += len(chunk)
        if spool is not None:
            spool.append(chunk)
        if not chunk:
            break
    if blank:
        problem = "only white space" if offset else "the file is empty"
        raise NotTextError(f"{path}: {problem}; add text to it", "empty")
    return begin, begin + offset
