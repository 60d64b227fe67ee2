"""Read JSON that somebody else wrote: bounded in size and depth, with errors a user can act on."""

import json
from pathlib import Path
from typing import Any

from glassgpt.files import read_bounded

MAX_JSON_BYTES = 8 * 2**20
"""Default size limit: three times GPT-2's `tokenizer.json`."""

MAX_JSON_DEPTH = 64
"""How deeply lists and objects may nest; model files use four levels."""


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in the UTF-8 file `path`.

    Raises `ValueError` (one line, naming the file) when the file is larger than `max_bytes`, is not JSON,
    nests deeper than `MAX_JSON_DEPTH`, or holds something other than an object; `OSError` when it cannot be
    read.
    """
    text = read_bounded(Path(path), max_bytes, "this JSON file")
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_json(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`, which is UTF-8 and whose size the caller has bounded.

    Raises `ValueError` (one line) when it is not JSON, nests deeper than `MAX_JSON_DEPTH`, or is no object.
    """
    too_deep = f"JSON nested deeper than {MAX_JSON_DEPTH} levels"
    try:
        value = json.loads(text.decode())
    except RecursionError:
        raise ValueError(too_deep) from None
    except ValueError as error:  # a syntax error, bytes that are not UTF-8, or an integer of thousands of digits
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object {{...}}, found {type(value).__name__}")
    # json stops at Python's recursion limit only, and whoever copies or prints the value may meet it sooner.
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if any(isinstance(item, dict | list) for item in level):
        raise ValueError(too_deep)
    return value
