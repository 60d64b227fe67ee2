"""What a file is that holds no text: named by its first bytes, with a way to its text."""

from __future__ import annotations

import codecs
from pathlib import Path

from glassgpt.terminal_text import not_utf8

HEAD_BYTES = 8192


class NotTextError(ValueError):
    """A file that is not ours to read. A folder's files of this sort are counted by `kind` and left out."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def wrong_encoding(path: str | Path, error: UnicodeDecodeError, at: int) -> NotTextError:
    """A file of text in another encoding, whose first wrong byte is `at` that offset."""
    return NotTextError(
        f"{path}: {not_utf8(error, at)}; convert it from the encoding it has, e.g. iconv -f WINDOWS-1252 -t UTF-8 "
        f"'{path}' > text.txt",
        "not UTF-8",
    )


_TO_LINES = 'write its texts to a .jsonl file, one {{"text": ...}} on each line'
_UNPACK = "unpack it first: "
_TABLE = "unpack it first: a table is not read from its beginning to its end, as packed files are"
# (first bytes, where they stand, what it is, what to do); the first that fits counts
_MAGICS: tuple[tuple[bytes, int, str, str], ...] = (
    (b"%PDF-", 0, "PDF", "take its text out: pdftotext '{path}' text.txt"),
    (b"mimetypeapplication/epub+zip", 30, "EPUB", "take its text out: pandoc '{path}' -t plain -o text.txt"),
    (
        b"mimetypeapplication/vnd.oasis.opendocument",
        30,
        "OpenDocument file",
        "take its text out: pandoc '{path}' -t plain -o text.txt",
    ),
    (b"[Content_Types].xml", 30, "Office document", "take its text out: pandoc '{path}' -t plain -o text.txt"),
    (b"PK\x03\x04", 0, "ZIP archive", f"{_UNPACK}unzip '{{path}}' -d texts"),
    (b"PK\x05\x06", 0, "ZIP archive", "it is empty"),
    (b"ustar", 257, "tar archive", f"{_UNPACK}tar -xf '{{path}}'"),
    (b"7z\xbc\xaf\x27\x1c", 0, "7z archive", f"{_UNPACK}7z x '{{path}}'"),
    (b"Rar!\x1a\x07", 0, "RAR archive", f"{_UNPACK}unrar x '{{path}}'"),
    (b"BZh", 0, "bzip2 file", f"{_UNPACK}bunzip2 -k '{{path}}'"),
    (b"\xfd7zXZ\0", 0, "xz file", f"{_UNPACK}unxz -k '{{path}}'"),
    (b"\x1f\x8b", 0, "gzip file in another", f"{_UNPACK}gunzip -k '{{path}}'"),
    (b"\x28\xb5\x2f\xfd", 0, "zstd file in another", f"{_UNPACK}unzstd '{{path}}'"),
    (b"PAR1", 0, "Parquet file", _TABLE),
    (b"ARROW1", 0, "Arrow file", _TABLE),
    (b"SQLite format 3\0", 0, "SQLite database", "sqlite3 -csv -header '{path}' 'select text from ...' > texts.csv"),
    (b"\x89HDF\r\n\x1a\n", 0, "HDF5 file", _TO_LINES),
    (b"\x93NUMPY", 0, "NumPy array", _TO_LINES),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0, "old Office document", "save it as plain text in UTF-8"),
    (b"\x89PNG\r\n", 0, "picture", "if it shows text: tesseract '{path}' text"),
    (b"\xff\xd8\xff", 0, "picture", "if it shows text: tesseract '{path}' text"),
    (b"GIF8", 0, "picture", "if it shows text: tesseract '{path}' text"),
    (b"II*\0", 0, "picture", "if it shows text: tesseract '{path}' text"),
    (b"MM\0*", 0, "picture", "if it shows text: tesseract '{path}' text"),
    (b"WEBP", 8, "picture", "if it shows text: tesseract '{path}' text"),
    (codecs.BOM_UTF32_LE, 0, "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 '{path}' > text.txt"),
    (codecs.BOM_UTF32_BE, 0, "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 '{path}' > text.txt"),
    (codecs.BOM_UTF16_LE, 0, "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 '{path}' > text.txt"),
    (codecs.BOM_UTF16_BE, 0, "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 '{path}' > text.txt"),
    *((bytes((0x80, n)), 0, "pickle", f"a pickle is a program and is not run; {_TO_LINES}") for n in range(2, 6)),
)


def check_text(path: str | Path, head: bytes) -> None:
    """`NotTextError` for a file whose first `HEAD_BYTES`, unpacked, are those of something else than UTF-8 text.

    Letters alone make no picture or archive: a text may begin with "GIF89a". A PDF may be all letters.
    """
    nul = head.find(b"\0")
    if nul < 0 and _is_utf8(head) and not head.startswith(b"%PDF-"):
        return
    for magic, offset, kind, advice in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            article = "an" if kind[0] in "AEHOSox" else "a"
            named = f"{kind}, not UTF-8" if kind.endswith(" text") else f"{article} {kind}, not text"
            raise NotTextError(f"{path}: {named}; {advice.format(path=path)}", kind)
    if nul >= 0:
        raise NotTextError(
            f"{path}: looks binary, not text (a NUL byte at offset {nul}); if it is UTF-16, convert it: "
            f"iconv -f UTF-16 -t UTF-8 '{path}' > text.txt",
            "binary",
        )


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
