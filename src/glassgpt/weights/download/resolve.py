"""A model by its name: a path, a known name, or `owner/name` on Hugging Face.

`GLASSGPT_WEIGHTS` in the environment names a directory of models, looked into first and downloaded to.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from glassgpt.terminal_text import one_line
from glassgpt.weights.download.errors import DownloadError
from glassgpt.weights.download.huggingface import Repository, download_huggingface, is_model, models_directory
from glassgpt.weights.download.published import (
    COMMITS,
    KNOWN_MODELS,
    OPENAI_BASE_URLS,
    OPENAI_SIZES,
    FileToFetch,
    openai_size,
    published_files,
)


def resolve_model(name: str | Path, *, weights_dir: Path | None = None, revision: str | None = None) -> Path:
    """The directory (or file) of a model, downloaded if need be.

    `name` is a path, a known name (`KNOWN_MODELS`) or an `owner/name` on Hugging Face. A model `name` in `weights_dir`
    (or `GLASSGPT_WEIGHTS`) comes before any network; its files are taken as they are. Raises `ValueError` for what is
    none of these, `DownloadError` where it cannot be had.
    """
    path, name = Path(name), str(name)
    # the book's gpt2/ is not a model, it only holds them
    if name and path.exists() and (name not in KNOWN_MODELS or is_model(path)):
        return path
    root = models_directory(weights_dir)
    if root is not None and revision is None:
        same = [other for other, repo_id in KNOWN_MODELS.items() if repo_id == KNOWN_MODELS.get(name)]
        for candidate in (name, *same):
            if is_model(root / candidate):
                return root / candidate
    _check_name(name)
    try:
        return download_huggingface(name, weights_dir=weights_dir, revision=revision)
    except DownloadError as error:
        if name in KNOWN_MODELS:
            raise
        raise type(error)(f"no directory {name} here, and as a name on Hugging Face: {error.reason}") from error


def _check_name(name: str) -> None:
    """`ValueError` for a mistyped path or name: it must not be asked for on the network."""
    if name in KNOWN_MODELS:
        return
    folder, _, last = name.replace(os.sep, "/").rpartition("/")
    if folder and Path(folder).is_dir():
        here = [path.name for path in Path(folder).iterdir()]
        near = [f"{folder}/{found}" for found in difflib.get_close_matches(last, here, n=1)]
        what = f"no model at {one_line(name)!r}, though {one_line(folder)!r} is a directory here"
    elif name.count("/") == 1 and folder not in ("", ".", "..", "~"):
        return
    else:
        near = difflib.get_close_matches(name, KNOWN_MODELS, n=1)
        ways = f"a directory or file, one of {', '.join([*COMMITS, *OPENAI_SIZES])}, or an owner/name on Hugging Face"
        what = f"no model {one_line(name)!r}: give {ways}"
    raise ValueError(f"{what}{f'; did you mean {near[0]!r}?' if near else ''}")


def files_to_fetch(name: str, source: str = "huggingface") -> list[FileToFetch]:
    """What to bring by hand for a known name or an `owner/name`: URLs, sizes, sha256, paths.

    `source` is "huggingface" or "openai" (the four GPT-2 only). Put under their paths into the directory of models
    (`weights_dir`), the files are found by `resolve_model`. Raises `ValueError`.
    """
    if source == "openai":
        return published_files(openai_size(name), OPENAI_BASE_URLS[0])
    if source != "huggingface":
        raise ValueError(f"source is {source!r}; choose 'huggingface' or 'openai'")
    _check_name(name)
    return Repository(name, None, None).files_to_fetch()
