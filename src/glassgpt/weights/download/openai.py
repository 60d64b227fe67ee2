"""OpenAI's original GPT-2 files, from OpenAI or the book's copy of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from glassgpt.weights.download.errors import DownloadError
from glassgpt.weights.download.file import Progress, download_file
from glassgpt.weights.download.published import OPENAI_BASE_URLS, openai_size, published_files


def download_openai_gpt2(
    model_size: str,
    directory: Path,
    *,
    base_urls: Sequence[str] = OPENAI_BASE_URLS,
    progress: Progress | None = None,
) -> Path:
    """`directory / model_size`, with the six files of OpenAI's GPT-2 that reading it needs.

    `model_size` is "124M", "355M", "774M" or "1558M", or its name on Hugging Face. Each of `base_urls` holds
    `model_size/file`; they are tried in order for each file. `progress` counts over all files. Raises `ValueError` and
    `DownloadError`.
    """
    files = published_files(openai_size(model_size), OPENAI_BASE_URLS[0])
    before = 0
    for i, (_, size, sha256, path) in enumerate(files):
        urls = [f"{base.rstrip('/')}/{path}" for base in base_urls]
        after = [later.size for later in files[i + 1 :]]
        report = partial(_report, progress, before, after) if progress is not None else None
        try:
            file = download_file(urls, Path(directory) / path, size=size, sha256=sha256, progress=report)
        except DownloadError as error:
            if not error.way_out:  # something here is in the way, not the network
                raise
            raise type(error)(error.reason, error.way_out, (model_size, "openai")) from error
        before += file.stat().st_size
    return file.parent


def _report(progress: Progress, before: int, after: Sequence[int | None], done: int, total: int | None) -> None:
    rest = [size for size in after if size is not None]
    known = total is not None and len(rest) == len(after)
    progress(before + done, before + (total or 0) + sum(rest) if known else None)
