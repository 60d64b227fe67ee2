"""Tables in columns, Parquet and Arrow: their rows as records, a few at a time. They need the extra `parquet`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from glassgpt.data.records import DEFAULT_FIELDS, RecordError, text_of

_ROWS = 256  # at once: texts of a web page each are a MiB then
_STREAM = b"\xff\xff\xff\xff"  # how Arrow's stream format begins, which `datasets` saves


def table_kind(suffix: str, head: bytes) -> str:
    """ "Parquet" or "Arrow" for a file that begins with `head`, else ""."""
    if head.startswith(b"PAR1") and b"\0" in head:  # a text may begin so, too
        return "Parquet"
    return "Arrow" if head.startswith(b"ARROW1\0\0") or (suffix == ".arrow" and head.startswith(_STREAM)) else ""


def table_rows(
    name: str, file: BinaryIO, kind: str, fields: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[tuple[int, Any]]:
    """(row, from 1 in what is read, {column: value}) of a table, of the columns that hold the text alone.

    `groups` are the row groups of a Parquet file to read; None: all. Raises `RecordError` where the table is damaged or
    has not got the columns, `ImportError` without pyarrow.
    """
    arrow = _pyarrow(name, "pyarrow")
    row = 1
    try:
        if kind == "Parquet":
            table = _pyarrow(name, "pyarrow.parquet").ParquetFile(file)
            columns = _columns(table.schema_arrow.names, fields)
            batches = table.iter_batches(_ROWS, row_groups=groups, columns=columns, use_threads=False)
        else:
            batches, columns = _arrow_batches(_pyarrow(name, "pyarrow.ipc"), file, fields)
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                for record in batch.slice(start, _ROWS).select(columns).to_pylist():
                    yield row, record
                    row += 1
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(kind, row, error) from None


def row_groups(name: str, file: BinaryIO) -> list[int]:
    """Bytes of each row group of a Parquet file; `RecordError` where it is damaged."""
    arrow = _pyarrow(name, "pyarrow")
    try:
        metadata = _pyarrow(name, "pyarrow.parquet").ParquetFile(file).metadata
    except (arrow.ArrowException, OSError) as error:
        raise _damaged("Parquet", 1, error) from None
    return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]


def _damaged(kind: str, row: int, error: Exception) -> Exception:
    """pyarrow reports a file that is cut off as an `OSError`, but without the number that the system's own have."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    lines = str(error).splitlines() or [type(error).__name__]
    return RecordError(row, f"damaged {kind} file: {lines[0][:200]}")


def _arrow_batches(ipc: Any, file: BinaryIO, fields: Sequence[str]) -> tuple[Iterator[Any], list[str]]:
    head = file.read(len(_STREAM))
    file.seek(0)
    if head == _STREAM:
        table = ipc.open_stream(file)
        return iter(table), _columns(table.schema.names, fields)
    table = ipc.open_file(file)
    batches = (table.get_batch(i) for i in range(table.num_record_batches))
    return batches, _columns(table.schema.names, fields)


def _columns(names: Sequence[str], fields: Sequence[str]) -> list[str]:
    """The columns that hold the text; `RecordError` where they are missing."""
    columns = list(fields) or [name for name in DEFAULT_FIELDS if name in names][:1]
    if not columns or not set(columns) <= set(names):
        try:
            text_of(dict.fromkeys(names), fields, "column")  # whose message names the columns that are there
        except ValueError as error:
            raise RecordError(1, str(error)) from None
    return columns


def _pyarrow(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{name}: Parquet and Arrow need the extra: pip install 'glassgpt[parquet]'") from None
