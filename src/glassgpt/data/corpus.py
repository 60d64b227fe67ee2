"""Where text comes from: files, folders, or Python's own manual.

A corpus is a list of `Document`s. A document knows where its text lies and how long it is, and reads it in
bounded pieces, so a text larger than the memory is no special case.
"""

import ast
import codecs
import contextlib
import io
import logging
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from glassgpt.terminal_text import one_line

_log = logging.getLogger(__name__)

_MIB = 1 << 20


@dataclass(frozen=True)
class Document:
    """The bytes `start` to `stop` of a file, or of a UTF-8 text in memory.

    Nothing is read before `pieces` is called.
    """

    name: str
    source: Path | bytes = field(repr=False)
    start: int
    stop: int

    @classmethod
    def from_text(cls, name: str, text: str) -> "Document":
        """A document kept in memory."""
        data = text.encode("utf-8")
        return cls(name, data, 0, len(data))

    @property
    def n_bytes(self) -> int:
        """Length of the text in bytes of UTF-8."""
        return self.stop - self.start

    def pieces(self, max_bytes: int = 4 * _MIB) -> Iterator[str]:
        """The text in order, in pieces of at most `max_bytes` bytes; joined they are the whole text.

        Newlines are as in the file. A piece ends where a line ends and never inside a character; only a line
        longer than `max_bytes` is cut. Where it can, it ends after a word and before the newline: there
        GPT-2's splitting of text into words has an edge anyway, so the pieces encode to the same tokens as
        the whole.

        Raises OSError if the file has become shorter since it was opened as a document, UnicodeDecodeError
        (a ValueError) if it is no longer UTF-8.
        """
        assert max_bytes >= 8, "a piece must hold a character and the start of the next"
        with self._open() as file:
            left, rest = self.n_bytes, b""
            while left:
                chunk = file.read(min(left, max_bytes - len(rest)))
                if not chunk:
                    raise OSError(f"{self.name}: the file changed while it was read; start again")
                left -= len(chunk)
                block = rest + chunk
                end = _cut(block, _PIECE_ENDS) if left else len(block)
                rest = block[end:]
                yield block[:end].decode("utf-8")

    def _open(self) -> BinaryIO:
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")
        file.seek(self.start)
        return file


# Places to cut UTF-8. The greedy start makes each pattern find the last one in a block.
_BEFORE_NEWLINE = re.compile(rb".*\S(?=[\r\n])", re.DOTALL)
_AFTER_NEWLINE = re.compile(rb".*\n(?=.)", re.DOTALL)
_BEFORE_CHARACTER = re.compile(rb".+(?=[^\x80-\xbf])", re.DOTALL)
_PIECE_ENDS = (_BEFORE_NEWLINE, _AFTER_NEWLINE, _BEFORE_CHARACTER)
_LINE_ENDS = (_AFTER_NEWLINE, _BEFORE_CHARACTER)


def _cut(block: bytes, patterns: Sequence[re.Pattern[bytes]]) -> int:
    """How much of `block` comes before the first of the patterns; never all of it, 0 for none."""
    return next((match.end() for pattern in patterns if (match := pattern.match(block))), 0)


def read_corpus(paths: Sequence[str | Path]) -> list[Document]:
    """The text files named by `paths`, and those in the folders named by it, in the order given.

    A folder is read recursively, sorted by path, without hidden files and without the directories of models and
    runs; files in it that are not UTF-8 text, or empty, are left out. One logged warning counts what is left out. A
    file met twice counts once. A UTF-8 byte order mark is dropped. Every file is read through once, a part at a
    time, to check its encoding.

    Raises ValueError for a path that does not exist, a folder without text, and a file named directly that is
    empty, binary or not UTF-8 (naming the offset of the first bad byte).
    """
    documents: dict[Path, Document] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = _read_folder(path)
        elif path.is_file():
            found = [_read_file(path)]
        else:
            raise ValueError(f"{path}: {'neither a file nor a folder' if path.exists() else 'no such file'}")
        for document in found:
            documents.setdefault(Path(document.name).resolve(), document)
    return list(documents.values())


def _read_folder(folder: Path) -> list[Document]:
    files, models = _files_in(folder)
    if models:
        _log.warning("%s", one_line(f"{folder}: left out {len(models)} directories of models; the first: {models[0]}"))
    documents, skipped = [], []
    for path in files:
        try:
            documents.append(_read_file(path))
        except ValueError as error:
            skipped.append(str(error))
    if not documents:
        first = f" (the first: {skipped[0]})" if skipped else ""
        raise ValueError(f"{folder}: no UTF-8 text among the {len(files)} files of this folder{first}")
    if skipped:
        counts = f"left out {len(skipped)} of {len(files)} files that are not UTF-8 text"
        _log.warning("%s", one_line(f"{folder}: {counts}; the first: {skipped[0]}"))
    return documents


def _files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder, sorted by path, without hidden ones; and the directories of models and runs left out."""
    files: list[Path] = []
    models: list[Path] = []
    for name, folders, names in os.walk(folder):
        here = Path(name)
        if _is_model(set(names)):
            models.append(here)
            folders.clear()
            continue
        folders[:] = [child for child in folders if not child.startswith(".")]
        files += [here / child for child in names if not child.startswith(".") and (here / child).is_file()]
    return sorted(files), sorted(models)


def _is_model(names: set[str]) -> bool:
    """Whether a directory with these files is what `train` or another tool saved, not text."""
    weights = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    return {"run.json", "log.jsonl"} <= names or ("config.json" in names and weights)


def _read_file(path: Path) -> Document:
    """Check that a file is text, a MiB at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, blank, start = 0, True, 0
    with path.open("rb") as file:
        head = file.read(8192)
        if (nul := head.find(b"\0")) >= 0:
            raise ValueError(
                f"{path}: looks binary, not text (a NUL byte at offset {nul}); if it is UTF-16, convert it: "
                f"iconv -f UTF-16 -t UTF-8 '{path}' > text.txt"
            )
        if head.startswith(codecs.BOM_UTF8):
            start = len(codecs.BOM_UTF8)
        file.seek(start)
        while True:
            chunk = file.read(_MIB)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                bad = start + offset - pending + error.start
                raise ValueError(
                    f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {bad}); convert it "
                    f"from the encoding it has, e.g. iconv -f WINDOWS-1252 -t UTF-8 '{path}' > text.txt"
                ) from None
            blank = blank and not text.strip()
            offset += len(chunk)
            if not chunk:
                break
    if blank:
        raise ValueError(f"{path}: {'only white space' if offset else 'the file is empty'}; add text to it")
    return Document(str(path), path, start, start + offset)


# Folders of the standard library whose docstrings are not a manual: tests, generated tables, other projects.
_NOT_MANUAL = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "ensurepip"),
    *("site-packages", "dist-packages", "__pycache__"),
}
_SHORTEST_DOCSTRING = 40  # characters


def default_corpus() -> list[Document]:
    """Python's own manual, about 2 MB of English on every machine that has Python.

    The help topics of `pydoc` and the docstrings of the standard library, read from its sources without
    importing them; each topic or docstring is one document, sorted by name, equal texts once.

    Raises ValueError if this Python carries neither.
    """
    texts = _topics()
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if not _NOT_MANUAL.intersection(parts):
            texts += _module_docstrings(path, ".".join(parts).removesuffix(".__init__"))
    documents = _documents(texts)
    if not documents:
        raise ValueError(f"no docstrings under {library} and no pydoc topics: name a text file of your own")
    return documents


def manual_topics() -> list[Document]:
    """The part of `default_corpus` that is there at once, half a MB; all of it where this Python lacks that part."""
    return _documents(_topics()) or default_corpus()


def _topics() -> list[tuple[str, str]]:
    with contextlib.suppress(ImportError):  # some distributions leave it out
        from pydoc_data.topics import topics

        return [(f"topic {name}", text) for name, text in topics.items()]
    return []


def _documents(texts: list[tuple[str, str]]) -> list[Document]:
    documents: dict[str, Document] = {}
    for name, text in sorted(texts):
        text = text.strip() + "\n"
        if len(text) > _SHORTEST_DOCSTRING:
            documents.setdefault(text, Document.from_text(name, text))
    return list(documents.values())


def _module_docstrings(path: Path, module: str) -> list[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old sources may hold "\d" and the like
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a template or a broken file
            return []
    return list(_docstrings(tree, module))


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a module, class or function and of all that is defined inside it."""
    if isinstance(node, ast.Module | _Definition) and (text := ast.get_docstring(node)):
        yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):  # definitions may stand below an if or a try
            yield from _docstrings(child, name)


def split_documents(
    documents: Sequence[Document], validation_fraction: float = 0.1, *, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """Shuffle the documents and split off the tail as validation text: (training, validation).

    The tail is `validation_fraction` of the bytes, or up to half as much again, because the document in which
    the split falls is itself cut, at a line end if there is one near, else between two characters. No byte
    is lost or doubled. Depends on the documents, the fraction and the seed only.

    Raises ValueError for a fraction outside 0..1 (both excluded) or a negative seed.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; it must lie between 0 and 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    # Sorting raw random words, because numpy promises their stream, but not that of its own permutation.
    order = np.argsort(np.random.Philox(seed).random_raw(len(documents)), kind="stable")
    total = sum(document.n_bytes for document in documents)
    window = min(int(total * validation_fraction / 2), _MIB)
    left = total - int(total * validation_fraction)
    training, validation = [], []
    for document in (documents[i] for i in order):
        taken = min(left, document.n_bytes)
        left -= taken
        cut = document.start + taken
        if document.start < cut < document.stop:
            cut = _cut_near(document, cut, window)
        training.append(replace(document, stop=cut))
        validation.append(replace(document, start=cut))
    return [d for d in training if d.n_bytes], [d for d in validation if d.n_bytes]


def _cut_near(document: Document, offset: int, window: int) -> int:
    """A good offset to cut a document at, at most `window` bytes (and a character) before `offset`."""
    first = max(document.start, offset - max(window, 4))
    with replace(document, start=first)._open() as file:
        return first + _cut(file.read(offset + 1 - first), _LINE_ENDS)
