"""Any span of a text gives the sections that begin in it, and together they are the text."""

import gzip
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glassgpt.data.prepare import sections as sections_module
from glassgpt.data.prepare.inputs import Span, list_inputs, tasks_of
from glassgpt.data.prepare.sections import Reader, Section, cut_sections

TEXTS = st.text(alphabet="ab \n\r\té漢😀", max_size=300)


@given(TEXTS, st.integers(16, 64), st.integers(1, 5))
def test_parts_of_a_text_have_the_sections_of_the_whole(text: str, section: int, n_parts: int) -> None:
    data = text.encode("utf-8")
    whole = list(cut_sections(io.BytesIO(data).read, 0, 0, None, section))
    assert b"".join(piece for _, piece, _ in whole) == data
    for at, piece, last in whole:
        piece.decode("utf-8")
        assert data[at : at + len(piece)] == piece
        assert len(piece) <= 2 * section
        assert last == (at + len(piece) == len(data))
    step = section * -(-len(data) // section // n_parts or -1)
    found = []
    for start in range(0, len(data), step):
        base = max(0, start - section)
        found += cut_sections(io.BytesIO(data[base:]).read, base, start, min(start + step, len(data)), section)
    assert found == whole


def read(paths: Sequence[Path], size: int, section: int = 64, **options: object) -> list[list[Section]]:
    files = list_inputs(paths)
    reader = Reader(files, (), section, **options)  # type: ignore[arg-type]
    return [[s for span in task for s in reader.sections(span)] for task in tasks_of(files, size)]


def texts(found: list[list[Section]]) -> list[str]:
    return [section.text for task in found for section in task]


@given(st.lists(st.text(alphabet='ab "\\é\n漢', min_size=1, max_size=40), min_size=1, max_size=12), st.integers(1, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_read_once_wherever_the_file_is_cut(tmp_path: Path, documents: list[str], size: int) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8", newline="")
    found = read([tmp_path / "a.jsonl"], size, section=1000)
    assert texts(found) == [text for text in documents if text.strip()]
    assert all(section.ends_document for task in found for section in task)


def test_what_is_packed_has_the_same_sections(tmp_path: Path) -> None:
    text = "".join(f"Line number {n}, of a text.\n" for n in range(500))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    a, b = (read([tmp_path / name], 1024, section=128) for name in ("a.txt", "b.txt.gz"))
    assert texts(a) == texts(b)
    assert len(a) > 10 and len(b) == 1
    assert [s.ends_document for task in a for s in task] == [s.ends_document for task in b for s in task]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert read([tmp_path / "a.txt"], 100) == [[Section("abc", 3, True, 0)]]


def test_a_long_document_of_a_record_is_cut_too(tmp_path: Path) -> None:
    text = "word " * 100
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
    (found,) = read([tmp_path / "a.jsonl"], 10_000)
    assert "".join(section.text for section in found) == text
    assert [section.ends_document for section in found] == [False] * (len(found) - 1) + [True]
    assert len(found) == 8


def test_a_line_without_end_stays_in_bounds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100_000, encoding="utf-8")
    found = read([tmp_path / "a.txt"], 10_000, section=1000)
    assert "".join(texts(found)) == "x" * 100_000
    assert max(map(len, texts(found))) <= 1250


BAD = b"good line\n" * 20 + b"bad \xff line\n" + b"good line\n" * 20


def test_malformed_utf8_is_named_by_its_offset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 9000 + b"\n" + BAD)
    with pytest.raises(ValueError, match=r"a.txt: not UTF-8 \(byte 0xff at offset 9205\); convert it"):
        read([tmp_path / "a.txt"], 1024)


def test_malformed_utf8_can_be_skipped_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 9000 + b"\n" + BAD)
    files = list_inputs([tmp_path / "a.txt"])
    reader = Reader(files, (), 64, skip=True)
    found = "".join(section.text for section in reader.sections(Span(0, 0, files[0].size, files[0].size)))
    assert found.count("good line") >= 32
    assert "bad" not in found
    assert reader.skipped.count == 1
    assert "offset 9205" in reader.skipped.first


@pytest.mark.parametrize("size", [30, 10_000])
def test_a_damaged_line_is_named_or_skipped(tmp_path: Path, size: int) -> None:
    lines = ['{"text": "one"}', '{"text": "two"}', "{no", '{"body": 1}', "", '{"text": "three"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.jsonl:3: no JSON: "):
        read([tmp_path / "a.jsonl"], size)
    files = list_inputs([tmp_path / "a.jsonl"])
    reader = Reader(files, (), 64, skip=True)
    found = [s.text for task in tasks_of(files, size) for span in task for s in reader.sections(span)]
    assert found == ["one", "two", "three"]
    assert reader.skipped.count == 2


def test_a_line_that_is_too_long_is_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassgpt.data.records.MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(sections_module, "MAX_RECORD_BYTES", 100)
    lines = ['{"text": "one"}', json.dumps({"text": "x" * 5000}), '{"text": "two"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.jsonl:2: larger than the "):
        read([tmp_path / "a.jsonl"], 10_000)
    for size in (40, 1000, 10_000):
        assert texts(read([tmp_path / "a.jsonl"], size, skip=True)) == ["one", "two"]


def test_a_csv_that_is_damaged_ends_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,b\n1,2\n3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a.csv:3: 1 cells, where the header has 2 columns"):
        read([tmp_path / "a.csv"], 1000, skip=True)


def test_small_files_share_a_task_and_large_ones_are_cut(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n:02}.txt").write_text("x" * 100, encoding="utf-8")
    (tmp_path / "large.txt").write_text("y" * 2500, encoding="utf-8")
    files = list_inputs([tmp_path])
    tasks = tasks_of(files, 1000)
    assert [len(task) for task in tasks] == [10, 10, 10, 1, 1, 1]
    assert [(span.start, span.stop) for task in tasks[3:] for span in task] == [(0, 1000), (1000, 2000), (2000, 2500)]


@pytest.mark.parametrize("size", [20, 40, 60, 1])
def test_a_line_that_begins_where_a_span_does_is_its_own(tmp_path: Path, size: int) -> None:
    lines = [f'{{"text": "line {n:02}"}}' for n in range(12)]
    assert {len(line) + 1 for line in lines} == {20}
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    assert texts(read([tmp_path / "a.jsonl"], size)) == [f"line {n:02}" for n in range(12)]


def test_what_is_before_a_hole_ends_its_document(tmp_path: Path) -> None:
    """What comes next is another text, be it of the next file."""
    (tmp_path / "a.txt").write_bytes(b"good line\n" * 20 + BAD + b"good line\n" * 20 + b"\xff" * 100)
    (tmp_path / "b.txt").write_bytes(b"\xff" * 100 + b"\n" + b"good line\n" * 20)
    files = list_inputs([tmp_path / "a.txt", tmp_path / "b.txt"])
    reader = Reader(files, (), 64, skip=True)
    for number, file in enumerate(files):
        found = list(reader.sections(Span(number, 0, file.size, file.size)))
        holes = [k for k, section in enumerate(found) if section.ends_document]
        assert len(holes) > 1 and found[-1].ends_document
        for one, other in itertools.pairwise(found):
            assert one.ends_document == (one.at + one.n_bytes != other.at)
