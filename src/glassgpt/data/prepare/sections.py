"""The text of a span of a file, one section at a time: a document, or a piece of one that is long."""

from __future__ import annotations

import codecs
import dataclasses
import io
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from glassgpt.data.corpus import PIECE_ENDS, best_cut
from glassgpt.data.kinds import wrong_encoding
from glassgpt.data.prepare.inputs import PLAIN, InputFile, Span, damaged, open_input
from glassgpt.data.records import MAX_RECORD_BYTES, RecordError, json_lines, text_of
from glassgpt.data.text_file import noun_of, records_of
from glassgpt.data.unpack import unpacked


class Section(NamedTuple):
    """Text that is encoded, compared and put on one side of the split as a whole."""

    text: str
    n_bytes: int
    ends_document: bool
    at: int
    """Offset in a text, else line or row, from the start of the span."""
    span: int = 0
    """Number of the span in its task."""


@dataclass
class Skipped:
    """What could not be read and was left out."""

    count: int = 0
    first: str = ""
    empty: int = 0
    """Records without text."""

    def copy(self) -> Skipped:
        """As it is now."""
        return dataclasses.replace(self)

    def add(self, message: str) -> None:
        """One more."""
        self.count += 1
        self.first = self.first or message


@dataclass(frozen=True)
class Reader:
    """Reads sections of `files`; texts of records are in `fields`, or where `text_of` looks."""

    files: Sequence[InputFile]
    fields: Sequence[str]
    section_bytes: int
    skip: bool = False
    """Whether to leave out what cannot be read."""
    skipped: Skipped = field(default_factory=Skipped)

    def sections(self, span: Span, watch: Callable[[int], None] = lambda _: None) -> Iterator[Section]:
        """The sections of a span in order; `watch` hears how far its file has been read.

        Of text, those that begin in it; of JSON lines, those of the lines that begin in it. Raises `ValueError`, naming
        file and place, for what cannot be read, unless that is to be skipped.
        """
        file = self.files[span.file]
        with open_input(file.name, watch) as stream:
            _, stream = unpacked(file.name, stream)
            found = self._plain(file, stream, span) if file.kind == PLAIN else self._records(file, stream, span)
            with closing(found):
                yield from found

    def _plain(self, file: InputFile, stream: BinaryIO, span: Span) -> Generator[Section, None, None]:
        base, stop = max(0, span.start - self.section_bytes), None if file.packing else span.stop
        if base:
            stream.seek(base)
        before = None  # the section before: it ends its document where the next one is left out
        for at, data, last in cut_sections(stream.read, base, span.start, stop, self.section_bytes):
            if not at and data.startswith(codecs.BOM_UTF8):
                data = data.removeprefix(codecs.BOM_UTF8)
            try:
                section = Section(data.decode("utf-8"), len(data), last, at)
            except UnicodeDecodeError as error:
                self._refuse(wrong_encoding(file.name, error, at + error.start))
                section = before._replace(ends_document=True) if before else Section("", 0, True, at)
                before = None
                yield section
                continue
            if before:
                yield before
            before = section
        if before:
            yield before

    def _records(self, file: InputFile, stream: Any, span: Span) -> Generator[Section, None, None]:
        noun, at = noun_of(file.kind), 1
        try:
            for at, record in self._values(file, stream, span):
                try:
                    _, text = text_of(record, self.fields, noun)
                except ValueError as error:
                    self._refuse_record(file, RecordError(at, str(error)), span)
                    continue
                if not text.strip():
                    self.skipped.empty += 1
                    continue
                data = text.encode("utf-8")
                if len(data) <= self.section_bytes:
                    yield Section(text, len(data), True, at)
                    continue
                for _, piece, last in cut_sections(io.BytesIO(data).read, 0, 0, None, self.section_bytes):
                    yield Section(piece.decode("utf-8"), len(piece), last, at)
        except RecordError as error:
            raise damaged(file, error) from None

    def _values(self, file: InputFile, stream: Any, span: Span) -> Iterator[tuple[int, Any]]:
        if file.kind != "JSONL":
            groups = list(range(span.start, span.stop)) if file.kind == "Parquet" else None
            yield from records_of(file.name, file.kind, stream, self.fields, groups)
            return
        lines = _Lines(stream, span.start, None if file.packing else span.stop)
        while True:
            try:
                for _, value in json_lines(lines):  # type: ignore[arg-type]
                    yield lines.number, value
                return
            except RecordError as error:
                self._refuse_record(file, RecordError(lines.number, error.problem), span)
                lines.end_line()

    def _refuse_record(self, file: InputFile, error: RecordError, span: Span) -> None:
        self._refuse(damaged(file, error, span.start if file.kind == "JSONL" else 0))

    def _refuse(self, error: ValueError) -> None:
        if not self.skip:
            raise error
        self.skipped.add(str(error))


class _Lines:
    """The lines of a stream that begin in `start` .. `stop`, as `json_lines` asks for them."""

    def __init__(self, stream: Any, start: int, stop: int | None) -> None:
        self._stream, self._stop, self._whole = stream, stop, True
        self.number = 0
        """How many lines have been read."""
        if start:
            stream.seek(start - 1)
            self._whole = False
            self.end_line()

    def readline(self, limit: int) -> bytes:
        if self._stop is not None and self._stream.tell() >= self._stop:
            return b""
        line: bytes = self._stream.readline(limit)
        self.number += 1
        self._whole = line.endswith(b"\n")
        return line

    def end_line(self) -> None:
        """Read what is left of a line that was too long."""
        while not self._whole and (rest := self._stream.readline(MAX_RECORD_BYTES)):
            self._whole = rest.endswith(b"\n")


def cut_sections(
    read: Callable[[int], bytes], base: int, start: int, stop: int | None, section: int
) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, bytes, whether the text ends with it) of the sections that begin in `start` .. `stop` (None: all).

    `read` goes on at the offset `base`, which is 0 or a section before `start`. A text is cut near each multiple of
    `section`, and where exactly depends on the bytes before it alone: who reads the text in parts, with a `start` and
    `stop` that are multiples, gets the same sections as who reads it whole.
    """
    buffer, at, ended = b"", base, False
    window = max(8, section // 4)

    def edge(n: int) -> int:
        nonlocal buffer, ended
        while not ended and (missing := n + 1 - at - len(buffer)) > 0:
            chunk = read(missing)
            buffer, ended = buffer + chunk, not chunk
        if at + len(buffer) <= n:
            return at + len(buffer)
        first = max(n - window, at) - at
        return at + first + best_cut(buffer[first : n + 1 - at], PIECE_ENDS)

    begin = edge(start) if start else 0
    while stop is None or start < stop:
        start += section
        end = edge(start)
        last = ended and end == at + len(buffer)
        if end > begin:
            yield begin, buffer[begin - at : end - at], last
        if last:
            return
        buffer, at, begin = buffer[end - at :], end, end
