"""Which files there are: folders, what is no text, URLs."""

import gzip
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glassgpt.data.dataset import open_dataset
from glassgpt.data.prepare.inputs import list_inputs
from glassgpt.data.prepare.run import prepare

TEXT = "".join(f"This is line number {n} of a text.\n" for n in range(400))


def test_folders_and_files_once_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}'))
    (tmp_path / ".hidden.txt").write_text("h", encoding="utf-8")
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    (tmp_path / "run").mkdir()
    for name in ("run.json", "log.jsonl"):
        (tmp_path / "run" / name).write_text("{}", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        files = list_inputs([tmp_path / "b.txt", tmp_path])
    assert [(Path(file.name).name, file.kind, file.packing) for file in files] == [
        ("b.txt", "text", ""),
        ("c.jsonl.gz", "JSONL", "gzip"),
    ]
    assert "left out 1 of 3 files that are not UTF-8 text (1 picture)" in caplog.text
    assert "left out 1 directories of models" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "the file is empty; add text to it"),
        ("a.pdf", b"%PDF-1.7", "a PDF, not text"),
        ("a.txt", "text".encode("utf-16"), "UTF-16 text, not UTF-8"),
        ("a.gz", gzip.compress(b"text", mtime=0)[:9], "damaged gzip file"),
    ],
)
def test_what_is_no_text_is_refused_at_once(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list_inputs([tmp_path / name])
    with pytest.raises(ValueError):
        list_inputs([tmp_path])


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra `parquet`")
    import pyarrow.parquet as pq

    texts = TEXT.splitlines(keepends=True)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=30)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    sides = []
    for name in ("a.parquet", "b.jsonl"):
        out = tmp_path / f"{name}-out"
        prepare([tmp_path / name], out, tokenizer="byte", processes=1, part_bytes=1024, validation=0.2)
        dataset = open_dataset(out)
        sides.append([side.tokens[:].tolist() for side in (dataset.train, dataset.validation)])
    assert sides[0] == sides[1]
    with pytest.raises(ValueError, match=r"a.parquet:1: no column 'body'; the columns are 'text'"):
        prepare([tmp_path / "a.parquet"], tmp_path / "c", text_fields="body", processes=1)


# ---- URLs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in the memory of this process."""
    fsspec = pytest.importorskip("fsspec", reason="the extra `remote`")
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def test_a_bucket_is_read_as_a_folder_is(tmp_path: Path, memory: Any) -> None:
    local = tmp_path / "in"
    local.mkdir()
    records = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    for name, data in (
        ("a.txt", TEXT.encode()),
        ("deep/b.jsonl", records.encode()),
        ("c.txt.gz", gzip.compress(TEXT[::-1].encode(), mtime=0)),
        (".hidden/d.txt", b"hidden"),
        ("picture", b"\x89PNG\r\n\x1a\n\0"),
    ):
        (local / name).parent.mkdir(exist_ok=True)
        (local / name).write_bytes(data)
        memory.pipe_file(f"/bucket/{name}", data)
    options: dict[str, Any] = dict(tokenizer="byte", processes=1, part_bytes=4096, section_bytes=512, validation=0.2)
    here = prepare([local], tmp_path / "here", **options)
    there = prepare(["memory://bucket"], tmp_path / "there", **options)
    assert there.sha256 == here.sha256
    assert prepare(["memory://bucket"], tmp_path / "there", **options) == there
    memory.pipe_file("/bucket/a.txt", TEXT[1:].encode())
    with pytest.raises(ValueError, match=r"was begun differently: memory://.*a.txt was 13,890 bytes, now 13,889"):
        prepare(["memory://bucket"], tmp_path / "there", **options)


def test_patterns_single_files_and_what_is_not_there(memory: Any) -> None:
    for name in ("a.txt", "b.txt", "c.md"):
        memory.pipe_file(f"/bucket/{name}", name.encode())
    assert [file.name for file in list_inputs(["memory://bucket/*.txt"])] == [
        "memory:///bucket/a.txt",
        "memory:///bucket/b.txt",
    ]
    assert [file.size for file in list_inputs(["memory://bucket/c.md"])] == [4]
    with pytest.raises(ValueError, match="memory://bucket/none: no such file"):
        list_inputs(["memory://bucket/none"])
    with pytest.raises(ValueError, match="no UTF-8 text among the 0 files"):
        list_inputs(["memory://bucket/*.csv"])


def test_unknown_protocols_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec", reason="the extra `remote`")
    with pytest.raises(ValueError, match="runes://a: Protocol not known: runes"):
        list_inputs(["runes://a"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"s3://bucket/a: .*s3fs"):
        list_inputs(["s3://bucket/a"])
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"need the extra: pip install 'glassgpt\[remote\]'"):
        list_inputs(["s3://bucket/a"])


def test_a_url_whose_size_nobody_tells_is_refused(monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    memory.pipe("/bucket/a.txt", b"text")
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: {"name": path, "size": None, "type": "file"})
    with pytest.raises(ValueError, match="memory://bucket/a.txt: its server does not tell its size: download it first"):
        list_inputs(["memory://bucket/a.txt"])
