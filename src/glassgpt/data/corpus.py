"""Where text comes from: files, folders, or Python's own manual.

A corpus is a list of `Document`s. A document knows where its text lies and how long it is, and reads it in
bounded pieces, so a text larger than the memory is no special case.
"""

import ast
import contextlib
import io
import logging
import os
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from glassgpt.data.kinds import NotTextError
from glassgpt.data.spool import Spool
from glassgpt.data.text_file import TextFile, documents_from, read_file
from glassgpt.terminal_text import one_line

_log = logging.getLogger(__name__)

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """The bytes `start` to `stop` of a file, of what was unpacked, or of a UTF-8 text in memory.

    Nothing is read before `pieces` is called.
    """

    name: str
    source: Path | Spool | bytes = field(repr=False)
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
        longer than `max_bytes` is cut, between words if it has some. Where it can, it ends after a word and
        before the newline: there GPT-2's splitting of text into words has an edge anyway, so the pieces encode
        to the same tokens as the whole.

        Raises OSError if the file has become shorter since it was opened as a document, UnicodeDecodeError
        (a ValueError) if it is no longer UTF-8.
        """
        assert max_bytes >= 8, "a piece must hold a character and the start of the next"
        with self._reading() as read:
            left, rest = self.n_bytes, b""
            while left:
                chunk = read(min(left, max_bytes - len(rest)))
                if not chunk:
                    raise OSError(f"{self.name}: the file changed while it was read; start again")
                left -= len(chunk)
                block = rest + chunk
                end = best_cut(block, PIECE_ENDS) if left else len(block)
                rest = block[end:]
                yield block[:end].decode("utf-8")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Callable[[int], bytes]]:
        """Gives a function that reads so many bytes on from `start`, and may read past `stop`."""
        if isinstance(self.source, Spool):
            yield self.source.reader(self.start)
        else:
            with io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb") as file:
                file.seek(self.start)
                yield file.read


# Places to cut UTF-8. The greedy start makes each pattern find the last one in a block.
_BEFORE_NEWLINE = re.compile(rb".*\S(?=[\r\n])", re.DOTALL)
_AFTER_NEWLINE = re.compile(rb".*\n(?=.)", re.DOTALL)
_BEFORE_SPACE = re.compile(rb".*\S(?= )", re.DOTALL)
_BEFORE_CHARACTER = re.compile(rb".+(?=[^\x80-\xbf])", re.DOTALL)
PIECE_ENDS = (_BEFORE_NEWLINE, _AFTER_NEWLINE, _BEFORE_SPACE, _BEFORE_CHARACTER)
"""Where text is best cut: at the first three, GPT-2's splitting into words has an edge, or nearly always has."""
_LINE_ENDS = (_AFTER_NEWLINE, _BEFORE_SPACE, _BEFORE_CHARACTER)


def best_cut(block: bytes, patterns: Sequence[re.Pattern[bytes]]) -> int:
    """How much of `block` comes before the first of the patterns; never all of it, 0 for none."""
    return next((match.end() for pattern in patterns if (match := pattern.match(block))), 0)


def read_corpus(
    paths: Sequence[str | Path],
    *,
    text_fields: str | Sequence[str] = (),
    scratch: Path | None = None,
    message: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> list[Document]:
    """The documents in the files named by `paths`, and in the folders named by it, in the order given.

    A text file is one document. JSON lines, a list in JSON, and CSV hold one in each record: in its `text_fields`,
    joined by a blank line, or else in the field `text` or `messages` (see `records.text_of`). Any of them may be packed
    by gzip or zstd. What has to be unpacked lies in a temporary file in the folder `scratch` (None: the system's) for
    as long as there is a document of it. docs/text.md has the whole table.

    A folder is read recursively, sorted by path, without hidden files and without the directories of models and
    runs; files in it that are not UTF-8 text, or empty, are left out. One logged warning counts what is left out. A
    file met twice counts once. A UTF-8 byte order mark is dropped. Every file is read through once, a part at a
    time, to check its encoding. `message` hears what was found where that is not plain to see, `progress` the bytes of
    the files that were read, and of all.

    Raises ValueError for a path that does not exist, a folder without text, a file named directly that is empty, binary
    or not UTF-8 (naming the offset of the first bad byte), a record that is damaged or lacks the text (naming its line;
    in a folder, where it is the file's first record the file is left out), and text fields where there are no records;
    ImportError where nothing here unpacks zstd.
    """
    places = [(path, *files_at(path)) for path in map(Path, paths)]
    fields = (text_fields,) if isinstance(text_fields, str) else tuple(text_fields)
    total = max(1, sum(file.stat().st_size for _, files, _ in places for file in files))
    spool, done = Spool(scratch), 0

    def watch(n: int) -> None:
        progress(done + n, total)

    found: dict[Path, TextFile] = {}
    documents: list[Document] = []
    for path, files, models in places:
        new, skipped = [], []
        for file in files:
            if (real := file.resolve()) in found:
                continue
            try:
                found[real] = text = read_file(file, fields, spool, watch)
            except NotTextError as error:
                if not path.is_dir():
                    raise
                skipped.append(error)
            else:
                new.append(text)
                documents += _documents(str(file), text)
            done += file.stat().st_size
        if path.is_dir():
            _tell_of_folder(path, files, models, new, skipped, message)
        elif new and new[0].note:
            message(f"{path}: {new[0].note}")
    progress(total, total)
    if fields and not any(text.places for text in found.values()):
        raise ValueError(f"text fields {', '.join(fields)}: none of the files has records, so there are no fields")
    return documents


def files_at(path: Path) -> tuple[list[Path], list[Path]]:
    """The files to read for a path, and the directories of models left out."""
    if path.is_dir():
        return files_in(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'neither a file nor a folder' if path.exists() else 'no such file'}")
    return [path], []


def _documents(name: str, text: TextFile) -> Iterator[Document]:
    for start, stop in pairwise(text.bounds):
        yield Document(name, text.source, start, stop)


def _tell_of_folder(
    folder: Path,
    files: Sequence[Path],
    models: Sequence[Path],
    texts: Sequence[TextFile],
    skipped: Sequence[NotTextError],
    message: Callable[[str], None],
) -> None:
    """Say what was found in a folder, and warn of what was left out; `ValueError` where nothing was found."""
    tell_of_models(folder, models)
    tell_of_skipped(folder, len(files), skipped)
    if any(text.note for text in texts):
        kinds = counted(Counter(text.kind for text in texts))
        places = sum((text.places for text in texts), Counter[str]())
        records = f"; {documents_from(places, sum(text.empty for text in texts))}" if places else ""
        message(f"{folder}: {len(texts):,} file{'s' * (len(texts) != 1)}: {kinds}{records}")


def tell_of_models(folder: object, models: Sequence[Path]) -> None:
    """Warn of the directories in a folder that hold models, and so no texts."""
    if models:
        _log.warning("%s", one_line(f"{folder}: left out {len(models)} directories of models; the first: {models[0]}"))


def tell_of_skipped(folder: object, n_files: int, skipped: Sequence[NotTextError]) -> None:
    """Warn of what a folder has that is no text; `ValueError` where that is all of it."""
    if len(skipped) == n_files:
        first = f" (the first: {skipped[0]})" if skipped else ""
        raise ValueError(f"{folder}: no UTF-8 text among the {n_files} files of this folder{first}")
    if skipped:
        counts = f"left out {len(skipped)} of {n_files} files that are not UTF-8 text"
        kinds = counted(Counter(error.kind for error in skipped))
        _log.warning("%s", one_line(f"{folder}: {counts} ({kinds}); the first: {skipped[0]}"))


def counted(kinds: Counter[str]) -> str:
    """ "1,234 JSONL, 2 plain text"."""
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))


def files_in(folder: Path) -> tuple[list[Path], list[Path]]:
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
    documents = _manual(texts)
    if not documents:
        raise ValueError(f"no docstrings under {library} and no pydoc topics: name a text file of your own")
    return documents


def manual_topics() -> list[Document]:
    """The part of `default_corpus` that is there at once, half a MB; all of it where this Python lacks that part."""
    return _manual(_topics()) or default_corpus()


def _topics() -> list[tuple[str, str]]:
    with contextlib.suppress(ImportError):  # some distributions leave it out
        from pydoc_data.topics import topics

        return [(f"topic {name}", text) for name, text in topics.items()]
    return []


def _manual(texts: list[tuple[str, str]]) -> list[Document]:
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
        if cut > document.start:
            training.append(document if cut == document.stop else replace(document, stop=cut))
        if cut < document.stop:
            validation.append(document if cut == document.start else replace(document, start=cut))
    return training, validation


def _cut_near(document: Document, offset: int, window: int) -> int:
    """A good offset to cut a document at, at most `window` bytes (and a character) before `offset`."""
    first = max(document.start, offset - max(window, 4))
    with replace(document, start=first)._reading() as read:
        return first + best_cut(read(offset + 1 - first), _LINE_ENDS)
