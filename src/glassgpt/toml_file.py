"""TOML, in and out: read with bounds and errors that name the line, written value by value, so that comments fit in."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.files import read_bounded
from glassgpt.terminal_text import not_utf8

MAX_TOML_BYTES = 2**20


def read_toml(path: str | Path) -> tuple[dict[str, Any], str]:
    """The values in the TOML file `path`, and its text, in which `place_of` looks.

    Raises `ValueError` (one line, naming the file) for one that is larger than `MAX_TOML_BYTES`, not UTF-8 or not TOML;
    `OSError` where it cannot be read.
    """
    data = read_bounded(Path(path), MAX_TOML_BYTES, "a TOML file")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        return tomllib.loads(text), text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {not_utf8(error, error.start)}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid TOML: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None


def place_of(text: str, table: str, key: str) -> str:
    """Where `key` of `table` ("" for the top) stands in a TOML text: "line 3, [table]", or less where it is not seen.

    Keys that are written in parts or quotes are not looked for: tomllib tells no lines.
    """
    inside, found = "", ""
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            inside = header[1]
            if inside == key and not table:
                found = f"line {number}"
        elif inside == table and re.match(rf"\s*{re.escape(key)}\s*[.=]", line):
            found = f"line {number}"
    return ", ".join(part for part in (found, f"[{table}]" if table else "") if part)


def toml_value(value: Any) -> str:
    """A bool, number, text or list of them in TOML. `ValueError` for anything else, such as a number not finite."""
    if isinstance(value, str):
        # JSON's strings are TOML's, but for the DEL that TOML wants escaped, and surrogates, which no UTF-8 file holds
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return text.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(value, bool | int | float):
        try:
            return json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(f"{value!r} cannot be written as TOML") from None
    if isinstance(value, Sequence):
        return f"[{', '.join(map(toml_value, value))}]"
    raise ValueError(f"{value!r} cannot be written as TOML")
