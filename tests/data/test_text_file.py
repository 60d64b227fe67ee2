"""Text as people have it: records and packed files come out as they went in, and what is wrong is one line."""

from __future__ import annotations

import bz2
import codecs
import csv
import gc
import gzip
import io
import json
import logging
import lzma
import pickle
import sqlite3
import sys
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.data import records, unpack
from glassgpt.data.corpus import Document, read_corpus, split_documents

ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
TEXTS = st.lists(ANY_TEXT, min_size=1, max_size=6).filter(lambda texts: any(text.strip() for text in texts))


def texts_of(documents: list[Document]) -> list[str]:
    return ["".join(document.pieces(16)) for document in documents]


def texts_in(path: Path, *fields: str) -> list[str]:
    return texts_of(read_corpus([path], text_fields=fields))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def table(rows: list[list[str]], delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


# ---- round trips -------------------------------------------------------------------------------------------


@given(TEXTS, st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_texts_come_out_of_json_as_they_went_in(folder: Path, texts: list[str], ascii_only: bool, end: str) -> None:
    expected = [text for text in texts if text.strip()]
    dumps = lambda value: json.dumps(value, ensure_ascii=ascii_only)  # noqa: E731
    objects: list[Any] = [{"id": n, "text": text, "more": {"x": [1.5, None]}} for n, text in enumerate(texts)]
    for values in (objects, texts):
        assert texts_in(write(folder / "a.jsonl", end.join(map(dumps, values)))) == expected
        assert texts_in(write(folder / "a.json", codecs.BOM_UTF8 + dumps(values).encode())) == expected
        assert texts_in(write(folder / "a.json", json.dumps(values, indent=1))) == expected
    if len(texts) > 1:
        assert texts_in(write(folder / "a.json", end.join(map(dumps, objects)))) == expected


@given(TEXTS, st.sampled_from(",;\t"))
def test_texts_come_out_of_csv_as_they_went_in(folder: Path, texts: list[str], delimiter: str) -> None:
    data = table([["n", "text"], *([str(n), text] for n, text in enumerate(texts))], delimiter)
    suffix = "tsv" if delimiter == "\t" else "csv"
    limit = csv.field_size_limit()
    for start in (b"", codecs.BOM_UTF8):
        path = write(folder / f"a.{suffix}", start + data.encode())
        assert texts_in(path) == [text for text in texts if text.strip()]
    assert csv.field_size_limit() == limit


@given(ANY_TEXT.filter(str.strip))
def test_a_packed_text_is_the_text(folder: Path, text: str) -> None:
    text = text.removeprefix("\ufeff")
    if text.strip():
        packed = gzip.compress(codecs.BOM_UTF8 + text[:9].encode()) + gzip.compress(text[9:].encode())
        assert texts_in(write(folder / "a.txt.gz", packed)) == [text]


def test_zstd(tmp_path: Path) -> None:
    zstd = pytest.importorskip(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", reason="the extra zstd is missing"
    )
    packed = zstd.compress(lines({"text": "one"}).encode()) + zstd.compress(lines({"text": "two"}).encode())
    assert texts_in(write(tmp_path / "a.jsonl.zst", packed)) == ["one", "two"]
    for data in (packed[:-1], packed + b"garbage", packed[:8] + b"\xff" * 9):
        with pytest.raises(ValueError, match=r"a\.jsonl\.zst: damaged zstd file: .*; fetch or pack it again"):
            texts_in(write(tmp_path / "a.jsonl.zst", data))


def test_zstd_that_is_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(unpack, "importlib", type("", (), {"import_module": staticmethod(missing)}))
    write(tmp_path / "a.zst", b"\x28\xb5\x2f\xfd\x04\x00")
    with pytest.raises(ImportError, match=r"a\.zst: zstd needs Python 3\.14 or .*pip install 'glassgpt\[zstd\]'"):
        read_corpus([tmp_path / "a.zst"])


def test_what_a_file_is_goes_by_its_content_where_that_is_packed(tmp_path: Path) -> None:
    data = lines({"text": "one"})
    assert texts_in(write(tmp_path / "a.jsonl", gzip.compress(data.encode()))) == ["one"]
    assert texts_in(write(tmp_path / "a.JSONL.gz", data)) == ["one"]
    assert texts_in(write(tmp_path / "a.txt", data)) == [data]


# ---- fields ------------------------------------------------------------------------------------------------


def test_fields(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(
        tmp_path / "a.jsonl", lines({"text": "t", "messages": talk, "title": "T"}, {"text": None, "title": ""})
    )
    assert texts_in(path) == ["t"]
    assert texts_in(path, "title", "text") == ["T\n\nt"]
    assert texts_in(write(tmp_path / "b.jsonl", lines({"messages": talk}))) == ["You: Hi\nGPT: Hello"]
    assert texts_in(write(tmp_path / "b.jsonl", lines({"talk": talk})), "talk") == ["You: Hi\nGPT: Hello"]
    path = write(tmp_path / "c.csv", table([["a", "b"], ["1", 'x "y", z'], ["2", "two\nlines"]]))
    assert texts_in(path, "b", "a") == ['x "y", z\n\n1', "two\nlines\n\n2"]
    assert texts_of(read_corpus([path], text_fields="b")) == ['x "y", z', "two\nlines"]


def test_fields_need_records(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    with pytest.raises(ValueError, match="text fields body: none of the files has records"):
        read_corpus([tmp_path], text_fields=["body"])


def test_what_was_found_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    box = tmp_path / "box"
    box.mkdir()
    write(box / "a.txt", "text")
    one = write(box / "b.jsonl", lines({"text": "one"}, {"text": " "}))
    two = write(box / "c.csv.gz", gzip.compress(b"text\r\ntwo\r\nthree\r\n"))
    raw = write(box / "d.json", '{"a": 1}')
    read_corpus([one, two, raw, box / "a.txt"], message=said.append)
    assert said == [
        f"{one}: 1 document from the field 'text', 1 empty left out",
        f"{two}: 2 documents from the column 'text'",
        f"{raw}: JSON as plain text, 8 bytes: it is no list of objects or strings",
    ]
    said.clear()
    assert len(read_corpus([box], message=said.append)) == 5
    assert said == [
        f"{box}: 4 files: 1 CSV in gzip, 1 JSON as plain text, 1 JSONL, 1 plain text; "
        "2 documents from the column 'text', 1 document from the field 'text', 1 empty left out"
    ]


@pytest.mark.parametrize("data", ["[1, 2]", "[]", "[[1]]", '{"a": "b"}', '{\n "text": "a"\n}\n', "[not JSON", "null"])
def test_json_that_is_no_list_of_records_stays_text(tmp_path: Path, data: str) -> None:
    assert texts_in(write(tmp_path / "a.json", data)) == [data]


# ---- what is wrong with a record ---------------------------------------------------------------------------

HUGE = records.MAX_RECORD_BYTES
BAD_RECORDS: list[tuple[str, bytes | str, str]] = [
    ("jsonl", '{"body": "a", "id": 3}', ":1: no field 'text' or 'messages'; the fields are 'body', 'id': choose one"),
    ("jsonl", lines({"text": "a"}) + "\n{}", ":3: no field 'text' or 'messages'; it has no fields"),
    ("jsonl", '{"text": 1}', ":1: the field 'text' is a number, not text"),
    ("jsonl", '{"text": {"a": "b"}}', ":1: the field 'text' is an object, not text"),
    ("jsonl", '{"text": true}', ":1: the field 'text' is true or false, not text"),
    ("jsonl", '{"messages": [{"role": "robot", "content": ""}]}', ":1: message 1 has the role 'robot'"),
    ("jsonl", "[1]", ":1: a list, where a record with fields is expected"),
    ("jsonl", "12", ":1: a number, where a record"),
    ("jsonl", "null", ":1: null, where a record"),
    ("jsonl", "just words", ":1: no JSON: Expecting value at character 1"),
    ("jsonl", lines({"text": "a"}) + '{"text": "b"', ":2: no JSON: "),
    ("jsonl", '{"text": "a"} {"text": "b"}', ":1: no JSON: more than one value on the line, from character 14 on"),
    ("jsonl", '{"text": "a", "x": NaN}', ":1: no JSON: it holds NaN"),
    ("jsonl", '{"text": "a", "x": -Infinity}', ":1: no JSON: it holds -Infinity"),
    ("jsonl", '{"text": "\\ud800"}', ":1: half a surrogate pair"),
    ("jsonl", "[" * 100_000, ":1: JSON nested too deep"),
    ("jsonl", lines({"text": "a"}) + '{"text": "' + "a" * HUGE, ":2: larger than the 16 MiB"),
    ("jsonl", lines({"text": "a"}).encode() + b'{"text": "caf\xe9"}', r":2: not UTF-8 \(byte 0xe9\)"),
    ("jsonl", lines({"text": "a" * 9000}).encode() + b'\0{"text": "b"}', ":2: no JSON"),
    ("jsonl", lines({"text": " "}, {"text": ""}), ": no text in its 2 records; add text to it"),
    ("jsonl", "\n\n", ": no text in its 0 records"),
    ("json", '[{"text": "a"},\n {"body": "b"}]', ":2: no field 'text' or 'messages'; the fields are 'body'"),
    ("json", '[{"text": "a"},\n {"text": NaN}]', ":2: no JSON: it holds NaN"),
    ("json", '[{"text": "a"}\n {"text": "b"}]', ":2: no JSON: a comma or the end of the list is expected here"),
    ("json", '[{"text": "a"},', ":1: no JSON: Expecting value"),
    ("json", '[{"text": "a"}', ":1: no JSON: a comma or the end"),
    ("json", '[{"text": "a"}]\n]', ":2: no JSON: something follows the end"),
    ("json", '[{"text": "a"}, 12]', ":1: a number, where a record"),
    ("json", '[{"text": "a"}, ' + "[" * 100_000, ":1: JSON nested too deep"),
    ("json", '["a",\n"' + "a" * (2 * HUGE), ":2: larger than the 16 MiB"),
    ("json", b'["' + b"a" * 9000 + b'",\n"caf\xe9"]', r":1: not UTF-8 \(byte 0xe9\)"),
    ("csv", "a,b\n1,2\n", ":2: no column 'text' or 'messages'; the columns are 'a', 'b': choose one as text field"),
    ("csv", "text,b\n1,2\n1,2,3\n", ":3: 3 cells, where the header has 2 columns"),
    ("csv", "text\n" + "x\n" * 2 + '"a\nb\n', ":4: no CSV: unexpected end of data"),
    ("csv", 'text\n"a"b"\n', ":2: no CSV: "),
    ("csv", 'text\n"a' + "\nb" * HUGE, ":2: larger than the 16 MiB .*a quote may be missing"),
    ("csv", "text\n" + "a" * (HUGE + 1), ":2: larger than the 16 MiB"),
    ("csv", "text,text\n1,2\n", ":1: the header has the column 'text' twice"),
    ("csv", b"text\n" + b"a\n" * 9000 + b"caf\xe9\n", r": ?\d*: not UTF-8 \(byte 0xe9\)"),
    ("csv", "text\n", ": no text in its 0 records"),
    ("tsv", "text,b\n1,2\n", ":2: no column 'text'"),
]


@pytest.mark.parametrize(("suffix", "data", "problem"), BAD_RECORDS, ids=[problem[:40] for *_, problem in BAD_RECORDS])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["as it is", "gzip"])
def test_a_record_that_cannot_be_read_is_one_line(
    tmp_path: Path, suffix: str, data: bytes | str, problem: str, pack: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / f"x.{suffix}", pack(data if isinstance(data, bytes) else data.encode()))
    limit = csv.field_size_limit()
    with pytest.raises(ValueError, match=rf"x\.{suffix}{problem}") as caught:
        read_corpus([path])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200
    assert csv.field_size_limit() == limit


def test_numbers_of_a_million_digits_are_no_matter(tmp_path: Path) -> None:
    data = '{"text": "a", "n": ' + "9" * 1_000_000 + "}"
    assert texts_in(write(tmp_path / "a.jsonl", data)) == ["a"]
    assert texts_in(write(tmp_path / "a.json", f"[{data}]")) == ["a"]


@given(st.sampled_from(["jsonl", "json", "csv", "tsv"]), st.text('[]{}",:\\\n\r\t ;atextnul1-\ud800\xe9', max_size=30))
def test_nonsense_is_read_or_refused_in_one_line(folder: Path, suffix: str, text: str) -> None:
    path = write(folder / f"n.{suffix}", text.encode("utf-8", "surrogatepass"))
    try:
        assert all(text.strip() for text in texts_in(path))
    except ValueError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)


@given(st.binary(max_size=60), st.integers(0, 59), st.sampled_from(["a.jsonl.gz", "a.txt", "a.csv.gz"]))
def test_damaged_gzip_is_read_or_refused_in_one_line(folder: Path, noise: bytes, at: int, name: str) -> None:
    data = bytearray(gzip.compress(lines({"text": "one"}, {"text": "two"}).encode()))
    data[at : at + len(noise)] = noise
    try:
        read_corpus([write(folder / name, bytes(data))])
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_gzip_that_is_cut_off(tmp_path: Path, name: str) -> None:
    packed = gzip.compress(lines({"text": "one"}).encode() * 9)
    for data in (packed[:-3], packed[:30], packed[:2]):
        with pytest.raises(ValueError, match=rf"{name}: damaged gzip file: it ends too soon; fetch or pack it again"):
            read_corpus([write(tmp_path / name, data)])


# ---- what is no text ---------------------------------------------------------------------------------------


def zipped(name: str, content: str = "x" * 99) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (text)")
    data = connection.serialize()
    connection.close()
    return data


NAMED: dict[str, tuple[bytes, str]] = {
    "PDF": (b"%PDF-1.7\n1 0 obj\n", "a PDF, not text; take its text out: pdftotext '.*x' text.txt"),
    "binary PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n\0", "a PDF, not text"),
    "ZIP": (zipped("a.txt"), "a ZIP archive, not text; unpack it first: unzip '.*x' -d texts"),
    "empty ZIP": (b"PK\x05\x06" + bytes(18), "a ZIP archive"),
    "docx": (zipped("[Content_Types].xml"), "an Office document, not text; .*pandoc"),
    "odt": (zipped("mimetype", "application/vnd.oasis.opendocument.text"), "an OpenDocument file, not text; .*pandoc"),
    "epub": (zipped("mimetype", "application/epub+zip"), "an EPUB, not text; .*pandoc"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(9), "an old Office document, not text"),
    "tar": (tarred(), "a tar archive, not text; unpack it first: tar -xf"),
    "tar.gz": (gzip.compress(tarred()), "a tar archive, not text"),
    "gzip twice": (gzip.compress(gzip.compress(b"a")), "a gzip file in another, not text"),
    "bzip2": (bz2.compress(b"text"), "a bzip2 file, not text; unpack it first: bunzip2 -k"),
    "xz": (lzma.compress(b"text"), "an xz file, not text; unpack it first: unxz -k"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive, not text"),
    "rar": (b"Rar!\x1a\x07\x01\0", "a RAR archive, not text"),
    "packed parquet": (gzip.compress(b"PAR1\x15\x04\x15\0"), "a Parquet file, not text; unpack it first"),
    "packed arrow": (gzip.compress(b"ARROW1\0\0"), "an Arrow file, not text; unpack it first"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file, not text"),
    "SQLite": (database(), "an SQLite database, not text; sqlite3 -csv"),
    "NumPy": (b"\x93NUMPY\x01\0", "a NumPy array, not text"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0", "a picture, not text; .*tesseract"),
    "JPEG": (b"\xff\xd8\xff\xe0\0", "a picture, not text"),
    "GIF": (b"GIF89a\x01\0", "a picture, not text"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8 ", "a picture, not text"),
    **{f"pickle {n}": (pickle.dumps(["a"], n), "a pickle, not text; a pickle is a program") for n in (2, 3, 4, 5)},
    "UTF-16 LE": (codecs.BOM_UTF16_LE + "text".encode("utf-16-le"), "UTF-16 text, not UTF-8; .*iconv -f UTF-16 "),
    "UTF-16 BE": (codecs.BOM_UTF16_BE + "text".encode("utf-16-be"), "UTF-16 text, not UTF-8; .*iconv -f UTF-16 "),
    "UTF-16 without NUL": (
        codecs.BOM_UTF16_LE + "漢字".encode("utf-16-le"),
        "UTF-16 text, not UTF-8; .*iconv -f UTF-16 ",
    ),
    "JPEG without NUL": (b"\xff\xd8\xff\xe1Exif", "a picture, not text"),
    "UTF-32": ("text".encode("utf-32"), "UTF-32 text, not UTF-8; .*iconv -f UTF-32 "),
    "unknown": (b"\x7fELF\x02\0", "looks binary, not text"),
}


@pytest.mark.parametrize(("data", "message"), NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("name", ["x", "x.jsonl"])
def test_what_is_no_text_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"/{name}: {message.replace('*x', '*' + name)}") as caught:
        read_corpus([write(tmp_path / name, data)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["GIF89a is a format", "PAR1", "BZh", "Rar!", "PK", "II*", "ARROW1 …"])
def test_a_text_may_begin_as_something_else_does(tmp_path: Path, text: str) -> None:
    assert texts_in(write(tmp_path / "a.txt", text)) == [text]


def test_a_folder_leaves_out_what_is_no_text_by_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("PDF", "ZIP", "tar", "UTF-16 LE"):
        write(tmp_path / name, NAMED[name][0])
    write(tmp_path / "more.pdf", NAMED["PDF"][0])
    write(tmp_path / "a.csv", "a,b\n1,2\n")
    write(tmp_path / "b.jsonl", lines({"text": "one"}))
    with caplog.at_level(logging.WARNING):
        assert texts_in(tmp_path) == ["one"]
    (message,) = caplog.messages
    kinds = "1 CSV without text, 2 PDF, 1 UTF-16 text, 1 ZIP archive, 1 tar archive"
    assert f"left out 6 of 7 files that are not UTF-8 text ({kinds}); the first: " in message


def test_a_folder_with_a_damaged_file_is_not_read_in_part(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    write(tmp_path / "b.jsonl", lines({"text": "one"}) + "{")
    with pytest.raises(ValueError, match=r"b\.jsonl:2: no JSON"):
        read_corpus([tmp_path])
    write(tmp_path / "b.jsonl", gzip.compress(b"text" * 99)[:-9])
    with pytest.raises(ValueError, match=r"b\.jsonl: damaged gzip"):
        read_corpus([tmp_path])


# ---- where the text lies -----------------------------------------------------------------------------------


def test_documents_of_one_file_can_be_read_at_once_and_split(tmp_path: Path) -> None:
    texts = [f"text {n} " * (n % 7 + 1) for n in range(200)]
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(lines(*({"text": text} for text in texts)).encode()))
    documents = read_corpus([path])
    side_by_side = list(zip(*(document.pieces(8) for document in documents[4:7]), strict=False))
    assert len(side_by_side) > 2
    assert all(
        text.startswith("".join(part)) for text, part in zip(texts[4:7], zip(*side_by_side, strict=True), strict=True)
    )
    training, validation = split_documents(documents)
    assert sorted("".join(texts_of(training) + texts_of(validation))) == sorted("".join(texts))
    assert read_corpus([path, tmp_path]).__len__() == len(texts), "a file met twice counts once"


def test_the_temporary_file_has_no_name_and_goes_with_its_documents(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = write(tmp_path / "a.jsonl", lines({"text": "one" * (1 << 20)}))
    documents = read_corpus([path], scratch=scratch)
    assert texts_of(documents) == ["one" * (1 << 20)]
    spool = documents[0].source
    file = spool._file
    assert not file.closed
    if sys.platform != "win32":
        assert list(scratch.iterdir()) == []
    del documents, spool
    gc.collect()
    assert file.closed
    with pytest.raises(ValueError, match="no JSON"):
        read_corpus([write(tmp_path / "b.jsonl", lines({"text": "one" * (1 << 20)}) + "{")], scratch=scratch)
    assert list(scratch.iterdir()) == []


def test_a_file_that_is_left_out_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.txt.gz", gzip.compress(b"text" * 500_000 + b"\xff"))
    write(tmp_path / "b.txt.gz", gzip.compress(b"good"))
    (document,) = read_corpus([tmp_path])
    assert (document.start, document.stop) == (0, 4)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match=r"no room for the text that was unpacked \(No space left on device\)"):
        texts_in(write(tmp_path / "a.jsonl", lines({"text": "one"})))


@pytest.mark.parametrize("name", ["bomb.txt.gz", "long.jsonl", "long.json", "long.csv.gz"])
def test_memory_does_not_grow_with_what_is_unpacked(tmp_path: Path, name: str) -> None:
    value = "a line of some words\n" * 1000
    records_ = {"jsonl": lines({"text": value}), "json": json.dumps(value) + ",\n", "csv": table([[value]])}
    kind = name.split(".")[1]
    start = {"json": "[", "csv": "text\n"}.get(kind, "")
    end = '""]' if kind == "json" else ""
    opened = gzip.open if name.endswith(".gz") else Path.open
    with opened(tmp_path / name, "wb") as file:
        file.write(start.encode())
        for _ in range(1500):
            file.write(records_.get(kind, value).encode())
        file.write(end.encode())
    tracemalloc.start()
    documents = read_corpus([tmp_path / name], scratch=tmp_path)
    total = sum(len(piece) for document in documents for piece in document.pieces(1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 1500 * len(value) > 30_000_000
    assert peak < 12 << 20


def test_progress_goes_by_the_bytes_of_the_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a" * 3_000_000)
    write(tmp_path / "b.jsonl.gz", gzip.compress(lines(*({"text": str(n)} for n in range(9000))).encode()))
    write(tmp_path / "c.bin", bytes(500_000))
    heard: list[tuple[int, int]] = []
    read_corpus([tmp_path, tmp_path / "a.txt"], progress=lambda done, total: heard.append((done, total)))
    total = sum(path.stat().st_size for path in tmp_path.iterdir()) + 3_000_000
    assert {total for _, total in heard} == {total}
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1] == (total, total)
    assert len(heard) > 5
