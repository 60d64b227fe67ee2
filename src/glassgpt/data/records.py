"""Texts out of records: JSON lines, a list in JSON, rows of CSV. One record is one document."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

from glassgpt.data.transcript import transcript
from glassgpt.terminal_text import not_utf8

DEFAULT_FIELDS = ("text", "messages")
"""Where the text of a record is looked for, in this order."""

MAX_RECORD_BYTES = 2**24
"""A record is read as a whole, and JSON in memory is up to thirty times as large: a book has a sixth of this."""

_SHOWN = 10  # names of fields in a message
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]+")
_TOO_LARGE = (
    f"larger than the {MAX_RECORD_BYTES >> 20} MiB that a record may have: split it, or write it as a text file"
)


class RecordError(Exception):
    """A record that cannot be read: its line, from 1, and what is wrong."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(line, problem)
        self.line, self.problem = line, problem


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


# A number is never text, so none is worth computing: some have a million digits.
_JSON = json.JSONDecoder(parse_int=lambda _: 0, parse_float=lambda _: 0.0, parse_constant=_no_number)


def text_of(record: Any, fields: Sequence[str], noun: str = "field") -> tuple[str, str]:
    """(where it was, the text) of a record: of `fields`, joined by a blank line, or else of `DEFAULT_FIELDS`.

    A record is a text by itself, or an object whose field is a text, a list of messages (see `transcript`), or null
    for no text. Raises `ValueError`, which calls a field `noun`, for any other.
    """
    if isinstance(record, str) and not fields:
        text, where = record, "its strings"
    elif not isinstance(record, dict):
        raise ValueError(f"{_kind(record)}, where a record with fields is expected")
    else:
        wanted = fields or [name for name in DEFAULT_FIELDS if name in record][:1]
        if not wanted or any(name not in record for name in wanted):
            missing = next((name for name in wanted if name not in record), "' or '".join(DEFAULT_FIELDS))
            raise ValueError(f"no {noun} '{missing}'; {_names(noun, list(record))}")
        text = "\n\n".join(filter(None, (_value(record[name], name) for name in wanted)))
        where = f"the {noun}{'s' * (len(wanted) > 1)} {', '.join(map(repr, wanted))}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair, which is no character") from None
    return where, text


def _value(value: Any, name: str) -> str:
    if isinstance(value, list):
        return transcript(value)
    if not isinstance(value, str | None):
        raise ValueError(f"the field '{name}' is {_kind(value)}, not text")
    return value or ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _names(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name[:40]}'" for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"the {noun}s are {shown}: choose one as text field" if names else f"it has no {noun}s"


def _parsed(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value at `at` and where it ends; `ValueError` in one line."""
    try:
        return _JSON.raw_decode(text, at)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at character {error.pos - at + 1}") from None
    except ValueError as error:  # NaN
        raise ValueError(f"no JSON: {error}") from None


def json_lines(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line that is not blank."""
    line = 0
    while data := file.readline(MAX_RECORD_BYTES + 1):
        line += 1
        if len(data) > MAX_RECORD_BYTES:
            raise RecordError(line, _TOO_LARGE)
        try:
            text = data.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            if not text:
                continue
            value, end = _parsed(text)
            if end < len(text):
                raise ValueError(f"no JSON: more than one value on the line, from character {end + 1} on")
        except UnicodeDecodeError as error:
            raise RecordError(line, f"{not_utf8(error)}; convert the file") from None
        except ValueError as error:
            raise RecordError(line, str(error)) from None
        yield line, value


def json_list(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of a list, however long it is, one at a time."""
    with _text(file) as characters:
        text = _Window(characters)
        text.expect("[", "a list")
        while text.next() != "]":
            yield text.line, text.value()
            if text.next() != "]":
                text.expect(",", "a comma or the end of the list")
        text.expect("]", "the end of the list")
        if text.next():
            raise RecordError(text.line, "no JSON: something follows the end of the list")


@contextlib.contextmanager
def _text(file: BinaryIO) -> Iterator[io.TextIOWrapper]:
    """The characters of `file`, which stays open."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        yield text
    finally:
        text.detach()


class _Window:
    """A moving part of a JSON text."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file
        self._text, self._at, self.line = "", 0, 1

    def next(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._take(space.end() if space else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def expect(self, character: str, what: str) -> None:
        """Go past `character`."""
        if self.next() != character:
            raise RecordError(self.line, f"no JSON: {what} is expected here")
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = _parsed(self._text, self._at)
            except ValueError as error:
                waiting = len(self._text) - self._at
                if waiting > MAX_RECORD_BYTES:
                    raise RecordError(self.line, f"{_TOO_LARGE} ({error})") from None
                if not self._more(max(_CHUNK, waiting)):  # twice as much each time
                    raise RecordError(self.line, str(error)) from None
            else:
                if end < len(self._text) or not self._more(_CHUNK):  # a number may go on
                    self._take(end)
                    return value

    def _take(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self, size: int) -> bool:
        try:
            chunk = self._file.read(size)
        except UnicodeDecodeError as error:
            raise RecordError(self.line, f"{not_utf8(error)} in or after this record") from None
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)


def rows(file: BinaryIO, tabs: bool = False) -> Iterator[tuple[int, Any]]:
    """(line, {column: cell}) of each row of CSV after its header; `tabs` separate cells, or else what the header shows.

    That is a comma, or where it has none a semicolon or a tab.
    """
    limit = csv.field_size_limit(MAX_RECORD_BYTES)  # of the whole process
    table = _Lines()
    try:
        with _text(file) as text:
            lines = table.of(text)
            first = next(lines, "")
            delimiter = "\t" if tabs else next((mark for mark in ",;\t" if mark in first), ",")
            reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
            header: list[str] = []
            for cells in filter(None, table.rows(reader)):
                if not header:
                    header = _header(cells, table.row)
                elif len(cells) != len(header):
                    raise RecordError(table.row, f"{len(cells)} cells, where the header has {len(header)} columns")
                else:
                    yield table.row, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise RecordError(table.row, f"no CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(table.row, f"{not_utf8(error)} in or after this row") from None
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """The lines of a table, none of whose rows may be endless; `row` is where the current one begins."""

    def __init__(self) -> None:
        self.row, self._line, self._size = 1, 0, 0

    def of(self, text: io.TextIOWrapper) -> Iterator[str]:
        while part := text.readline(MAX_RECORD_BYTES + 1):
            self._line += 1
            self._size += len(part)
            if self._size > MAX_RECORD_BYTES:
                raise RecordError(self.row, f"{_TOO_LARGE} (a quote may be missing)")
            yield part

    def rows(self, reader: Iterator[list[str]]) -> Iterator[list[str]]:
        for cells in reader:
            yield cells
            self.row, self._size = self._line + 1, 0


def _header(cells: list[str], line: int) -> list[str]:
    names = [name.strip() for name in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecordError(line, f"the header has the column '{twice[:40]}' twice")
    return names
