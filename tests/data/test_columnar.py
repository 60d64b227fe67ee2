"""Parquet and Arrow as `read_corpus` and `prepare` read them."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="the extra `parquet`")
import pyarrow.parquet as pq  # noqa: E402 - after the skip

from glassgpt.data.columnar import row_groups, table_kind, table_rows  # noqa: E402
from glassgpt.data.corpus import read_corpus  # noqa: E402
from glassgpt.data.records import RecordError  # noqa: E402

TABLE = pa.table({"id": [1, 2, 3], "text": ["one", None, "drei ü"]})


def stream(table: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def file(table: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet(table: Any, rows: int = 2) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows)
    return sink.getvalue()


FORMS = {"a.parquet": parquet, "stream.arrow": stream, "file.arrow": file}


@pytest.mark.parametrize("name", FORMS)
def test_a_row_is_a_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMS[name](TABLE))
    said: list[str] = []
    documents = read_corpus([tmp_path / name], message=said.append)
    assert ["".join(document.pieces()) for document in documents] == ["one", "drei ü"]
    assert said == [f"{tmp_path / name}: 2 documents from the column 'text', 1 empty left out"]


@pytest.mark.parametrize("name", FORMS)
def test_messages_and_chosen_columns(tmp_path: Path, name: str) -> None:
    talk = [[{"role": "user", "content": "Hello?"}]]
    (tmp_path / name).write_bytes(FORMS[name](pa.table({"messages": talk, "title": ["T"]})))
    (document,) = read_corpus([tmp_path / name])
    assert "".join(document.pieces()) == "You: Hello?"
    (document,) = read_corpus([tmp_path / name], text_fields=["title", "messages"])
    assert "".join(document.pieces()) == "T\n\nYou: Hello?"


@pytest.mark.parametrize("name", FORMS)
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMS[name](pa.table({"id": [1], "body": ["a"]})))
    with pytest.raises(ValueError, match=f"{name}:1: no column 'text' or 'messages'; the columns are 'id', 'body'"):
        read_corpus([tmp_path / name])
    assert read_corpus([tmp_path / name], text_fields="body")[0].n_bytes == 1


@pytest.mark.parametrize("name", FORMS)
def test_damage_is_one_line(tmp_path: Path, name: str) -> None:
    data = FORMS[name](pa.table({"text": ["a text that is long enough"] * 500}))
    for cut in (len(data) // 3, len(data) // 2, len(data) - 9):
        (tmp_path / name).write_bytes(data[:cut])
        with pytest.raises(ValueError, match=f"{name}:1: damaged (Parquet|Arrow) file: ") as caught:
            read_corpus([tmp_path / name])
        assert "\n" not in str(caught.value)


def test_row_groups_are_read_alone() -> None:
    data = parquet(pa.table({"text": list("abcde")}), rows=2)
    assert len(row_groups("x", io.BytesIO(data))) == 3
    found = table_rows("x", io.BytesIO(data), "Parquet", (), groups=[1])
    assert list(found) == [(1, {"text": "c"}), (2, {"text": "d"})]
    with pytest.raises(RecordError, match="damaged Parquet file"):
        row_groups("x", io.BytesIO(data[:-5]))


def test_a_text_is_no_table() -> None:
    assert table_kind(".txt", b"PAR1 begins here") == table_kind(".txt", b"ARROW1 begins") == ""
    assert table_kind(".bin", b"\xff\xff\xff\xff") == ""


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(TABLE))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"a.parquet: Parquet and Arrow need the extra: pip install 'glassgpt\[parqu"):
        read_corpus([tmp_path / "a.parquet"])
