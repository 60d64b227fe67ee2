import codecs
import logging
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from glassgpt.data import corpus
from glassgpt.data.corpus import Document, default_corpus, read_corpus, split_documents


def text_of(document: Document) -> str:
    return "".join(document.pieces())


# ---- pieces ------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(8, 40))
@example("a" * 9 + "é", 10)
@example("😀" * 20, 9)
def test_pieces_are_bounded_and_join_to_the_text(text: str, max_bytes: int) -> None:
    document = Document.from_text("t", text)
    pieces = list(document.pieces(max_bytes))
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= max_bytes for piece in pieces)
    assert document.n_bytes == len(text.encode())


@given(st.lists(st.sampled_from(["", " ", "\t", "ab", "a b", "  c", "d ", "e\r"]), min_size=20, max_size=60))
def test_pieces_end_at_line_ends(lines: list[str]) -> None:
    document = Document.from_text("t", "\n".join(lines))
    pieces = list(document.pieces(16))
    assert all(a.endswith("\n") or b.startswith(("\n", "\r")) for a, b in pairwise(pieces))


@given(st.lists(st.sampled_from(["\n", "\n\n", " ", "  ", "\n  ", "x", "it's", ".", " 12"]), max_size=80))
def test_pieces_split_into_the_words_of_the_whole(parts: list[str]) -> None:
    """Where lines end with a word, GPT-2's words are the same in the pieces as in the whole."""
    text = "".join(part + ("ab\n" if i % 4 == 0 else "") for i, part in enumerate(parts))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    pieces = Document.from_text("t", text).pieces(64)
    assert [w for piece in pieces for w, _ in words(piece)] == [w for w, _ in words(text)]


def test_pieces_of_a_file_that_became_shorter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\n" * 100, encoding="utf-8")
    (document,) = read_corpus([tmp_path / "a.txt"])
    (tmp_path / "a.txt").write_text("hello\n", encoding="utf-8")
    with pytest.raises(OSError, match=r"a\.txt: the file changed"):
        list(document.pieces())


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(32):
            file.write(b"one line of sixteen bytes and so on...\n" * 25_000)
    tracemalloc.start()
    (document,) = read_corpus([path])
    total = sum(len(piece) for piece in document.pieces(1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == document.n_bytes == path.stat().st_size > 30_000_000
    assert peak < 10 << 20


# ---- files and folders -------------------------------------------------------------------------------------


def test_files_in_the_order_given_and_folders_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "box/b.txt", "box/a/c.md", "box/.hidden", "box/.git/config", "box/b"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"in {name}", encoding="utf-8")
    again = tmp_path / "box" / "a" / ".." / "b"
    documents = read_corpus([tmp_path / "b.txt", str(tmp_path / "box"), again])
    assert [text_of(d) for d in documents] == ["in b.txt", "in box/a/c.md", "in box/b", "in box/b.txt"]


def test_newlines_stay_and_the_byte_order_mark_goes(tmp_path: Path) -> None:
    data = "a\r\nb\rc\n\n\u2028é\ufeff".encode()
    (tmp_path / "plain.txt").write_bytes(data)
    (tmp_path / "bom.txt").write_bytes(codecs.BOM_UTF8 + data)
    for document in read_corpus([tmp_path / "plain.txt", tmp_path / "bom.txt"]):
        assert text_of(document).encode() == data
        assert document.n_bytes == len(data)


def test_folder_leaves_out_what_is_no_text_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "b.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "c.txt").touch()
    (tmp_path / "d.txt").write_text("text", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        documents = read_corpus([tmp_path])
    assert [text_of(d) for d in documents] == ["text"]
    (message,) = caplog.messages
    assert "left out 3 of 4 files" in message
    assert "a.bin: looks binary" in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.txt: the file is empty"),
        (codecs.BOM_UTF8, "x.txt: the file is empty"),
        (b" \n\t\r\n", "x.txt: only white space"),
        (b"text\0", "x.txt: looks binary.*offset 4.*iconv"),
        ("text".encode("utf-16"), "x.txt: UTF-16 text.*iconv -f UTF-16"),
        (b"caf\xe9 au lait", r"x.txt: not UTF-8 \(byte 0xe9 at offset 3\).*iconv"),
        (codecs.BOM_UTF8 + b"caf\xe9 au lait", "byte 0xe9 at offset 6"),
        (b"cut \xe2\x82", "byte 0xe2 at offset 4"),
        (b"\xed\xa0\x80 surrogate", "byte 0xed at offset 0"),
        # the bad byte, or the character it cuts off, beyond the first part read
        (b"a" * (1 << 20) + b"\xff", f"byte 0xff at offset {1 << 20}"),
        (b"a" * ((1 << 20) - 1) + b"\xe2\x82!", f"byte 0xe2 at offset {(1 << 20) - 1}"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_corpus([tmp_path / "x.txt"])
    assert "\n" not in str(caught.value)


def test_a_character_over_the_edge_of_two_reads_is_no_error(tmp_path: Path) -> None:
    data = b"a" * ((1 << 20) - 1) + "€".encode()
    (tmp_path / "x.txt").write_bytes(data)
    (document,) = read_corpus([tmp_path / "x.txt"])
    assert document.n_bytes == len(data)


def test_missing_paths_and_folders_without_text(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "x.bin").write_bytes(b"\x7fELF\0\0")
    with pytest.raises(ValueError, match=r"gone\.txt: no such file"):
        read_corpus([tmp_path / "gone.txt"])
    with pytest.raises(ValueError, match=r"empty: no UTF-8 text among the 0 files"):
        read_corpus([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"binary: no UTF-8 text among the 1 files.*x\.bin: looks binary"):
        read_corpus([tmp_path / "binary"])


# ---- Python's own manual -----------------------------------------------------------------------------------


def test_default_corpus_of_this_python() -> None:
    documents = default_corpus()
    names = [d.name for d in documents]
    texts = [text_of(d) for d in documents]
    assert names == sorted(names)
    assert len(set(texts)) == len(texts)
    assert sum(d.n_bytes for d in documents) > 1_000_000
    assert any("JSON (JavaScript Object Notation)" in t for n, t in zip(names, texts, strict=True) if n == "json")
    assert not any(name.startswith(("test.", "idlelib.")) for name in names)


LONG = "A docstring that is long enough to be kept"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library, without pydoc's topics."""
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    return tmp_path


def test_default_corpus_reads_docstrings_without_importing(library: Path) -> None:
    (library / "pack" / "test").mkdir(parents=True)
    (library / "pack" / "test" / "t.py").write_text(f'"""{LONG}, in a test."""', encoding="utf-8")
    (library / "pack" / "m.py").write_text(
        f'''"""{LONG}, of a module.

              Indented.
        """
raise SystemExit("imported")
class C:
    """{LONG}, of a class."""
    def short(self): "Too short."
    if True:
        async def twin(self): """{LONG}, of a function."""
def twin(): """{LONG}, of a function."""
PATTERN = "\\d"
''',
        encoding="utf-8",
    )
    (library / "broken.py").write_text(f'"""{LONG}"""\nclass', encoding="utf-8")
    (library / "latin.py").write_bytes(f'# coding: latin-1\n"""{LONG}, na\xefve."""'.encode("latin-1"))
    documents = default_corpus()
    assert [(d.name, text_of(d)) for d in documents] == [
        ("latin", f"{LONG}, naïve.\n"),
        ("pack.m", f"{LONG}, of a module.\n\nIndented.\n"),
        ("pack.m.C", f"{LONG}, of a class.\n"),
        ("pack.m.C.twin", f"{LONG}, of a function.\n"),
    ]
    assert default_corpus() == documents


def test_default_corpus_of_a_python_without_sources(library: Path) -> None:
    with pytest.raises(ValueError, match="no docstrings under .*name a text file"):
        default_corpus()


# ---- training and validation -------------------------------------------------------------------------------


def rejoined(training: list[Document], validation: list[Document]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for document in training + validation:
        texts[document.name] = texts.get(document.name, "") + text_of(document)
    return texts


@given(
    st.lists(st.text(alphabet="ab é😀\n", min_size=1), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
    st.integers(0, 1000),
)
def test_split_loses_and_doubles_nothing(texts: list[str], fraction: float, seed: int) -> None:
    documents = [Document.from_text(str(i), text) for i, text in enumerate(texts)]
    training, validation = split_documents(documents, fraction, seed=seed)
    assert rejoined(training, validation) == {str(i): text for i, text in enumerate(texts)}
    assert all(d.n_bytes for d in training + validation)
    total, n_validation = sum(d.n_bytes for d in documents), sum(d.n_bytes for d in validation)
    assert total * fraction - 1 <= n_validation <= total * fraction * 1.5 + 4
    assert split_documents(documents, fraction, seed=seed) == (training, validation)


def test_split_cuts_one_document_at_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("".join(f"line {i}\n" for i in range(1000)), encoding="utf-8")
    (document,) = read_corpus([path])
    (training,), (validation,) = split_documents([document])
    assert text_of(validation).startswith("line ")
    assert text_of(training) + text_of(validation) == path.read_text(encoding="utf-8")
    assert 0.1 <= validation.n_bytes / document.n_bytes < 0.11


@pytest.mark.parametrize("text", ["x" * 1000, "short\n" + "é" * 500, "x" * 899 + "€" + "y" * 98])
def test_split_cuts_a_single_line_between_characters(text: str) -> None:
    (training,), (validation,) = split_documents([Document.from_text("t", text)])
    assert text_of(training) + text_of(validation) == text
    assert 100 <= validation.n_bytes <= 104


def test_split_shuffles_by_seed() -> None:
    documents = [Document.from_text(str(i), f"text {i:03}") for i in range(100)]
    held_out = {seed: [d.name for d in split_documents(documents, seed=seed)[1]] for seed in (0, 1)}
    assert held_out[0] != held_out[1]
    assert held_out[0] != [str(i) for i in range(90, 100)]
    assert len(held_out[0]) == 10


@pytest.mark.parametrize(
    ("fraction", "seed", "message"),
    [(0, 0, "between 0 and 1"), (1, 0, "between"), (float("nan"), 0, "is nan"), (0.5, -1, "seed is -1")],
)
def test_split_errors(fraction: float, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_documents([Document.from_text("t", "text")], fraction, seed=seed)
