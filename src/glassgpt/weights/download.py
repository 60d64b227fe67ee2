"""Which files make a model, and where they are: at OpenAI, on Hugging Face, on any web server, or brought by hand.

`resolve_model` turns a name into a directory. `download_openai_gpt2` (OpenAI's TensorFlow files) and `download_url`
(a directory on a web server) stand on `weights.fetch`, whose environment variables count. `download_huggingface` goes
through `huggingface_hub`, whose cache, tokens and settings it keeps, and checks what that library does not.

`GLASSGPT_WEIGHTS` in the environment names a directory of models, looked into first and downloaded to.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from glassgpt.json_file import read_json
from glassgpt.weights.fetch import (
    DownloadError,
    MissingFileError,
    OfflineError,
    Progress,
    download_file,
    has_sha256,
    offline_switch,
    sha256_of,
)
from glassgpt.weights.http import causes, check_url, network_reason, one_line, shown_url

OPENAI_BASE_URLS = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",
)
"""OpenAI's own files, and the book's copy of them."""

OPENAI_SIZES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
"""OpenAI's names of the four GPT-2 models, and Hugging Face's."""

KNOWN_MODELS = {
    name: f"openai-community/{short}"
    for size, short in OPENAI_SIZES.items()
    for name in (short, size, f"openai-community/{short}")
}
"""Every known name of a model, and its repository on Hugging Face."""

# The commits whose files are listed below; a known name means this commit
_COMMITS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
# sha256, bytes, file, in the order of fetching: the small ones first, so that what fails fails early. "-"
# is not published, and the checksums inside OpenAI's checkpoints prove the data when it is read. Sources:
# the book's own test (ch05/01_main-chapter-code/tests.py) for OpenAI's sizes, tiktoken for the vocabulary,
# and for the rest people who pin these files, each digest in two places but for 124M's index; those of
# 124M's two smallest files follow from their text. OpenAI's seventh, model.ckpt.meta, is TensorFlow's
# graph: nothing here reads it.
_PUBLISHED = """
dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb 77 124M/checkpoint
d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318 90 124M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 124M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 124M/vocab.bpe
71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687 5215 124M/model.ckpt.index
2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118 497759232 124M/model.ckpt.data-00000-of-00001
- 77 355M/checkpoint
- 91 355M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 355M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 355M/vocab.bpe
- 10399 355M/model.ckpt.index
- 1419292672 355M/model.ckpt.data-00000-of-00001
- - 774M/checkpoint
- - 774M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 774M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 774M/vocab.bpe
- - 774M/model.ckpt.index
- - 774M/model.ckpt.data-00000-of-00001
- - 1558M/checkpoint
- - 1558M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 1558M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 1558M/vocab.bpe
- - 1558M/model.ckpt.index
- - 1558M/model.ckpt.data-00000-of-00001
0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4 665 gpt2/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2/tokenizer.json
248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707 548105171 gpt2/model.safetensors
ef1a44d889ad1a0acc7731c78134f1b87d2d222f110e97dd10fd4117331caf22 718 gpt2-medium/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2-medium/tokenizer.json
fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd 1519984962 gpt2-medium/model.safetensors
- - gpt2-large/config.json
- - gpt2-large/tokenizer.json
- - gpt2-large/model.safetensors
be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a - gpt2-xl/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2-xl/tokenizer.json
0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a - gpt2-xl/model.safetensors
"""


class FileToFetch(NamedTuple):
    """A file for people who fetch by browser: size in bytes and sha256 where they are published."""

    url: str
    size: int | None
    sha256: str | None
    path: str  # relative to the directory that holds the models


# --- OpenAI's files ----------------------------------------------------------------------------


def download_openai_gpt2(
    model_size: str,
    directory: Path,
    *,
    base_urls: Sequence[str] = OPENAI_BASE_URLS,
    progress: Progress | None = None,
) -> Path:
    """`directory / model_size`, with the six files of OpenAI's GPT-2 that reading it needs.

    `model_size` is "124M", "355M", "774M" or "1558M", or its name on Hugging Face. Each of `base_urls` holds
    `model_size/file`; they are tried in order for each file. `progress` counts over all files. Raises
    `ValueError` and `DownloadError`.
    """
    files = _published(_openai_size(model_size), OPENAI_BASE_URLS[0])
    before = 0
    for i, (_, size, sha256, path) in enumerate(files):
        urls = [f"{base.rstrip('/')}/{path}" for base in base_urls]
        after = [later.size for later in files[i + 1 :]]
        report = partial(_report, progress, before, after) if progress is not None else None
        file = download_file(urls, Path(directory) / path, size=size, sha256=sha256, progress=report)
        before += file.stat().st_size
    return file.parent


def _report(progress: Progress, before: int, after: Sequence[int | None], done: int, total: int | None) -> None:
    rest = [size for size in after if size is not None]
    known = total is not None and len(rest) == len(after)
    progress(before + done, before + (total or 0) + sum(rest) if known else None)


def _openai_size(name: str) -> str:
    for size, short in OPENAI_SIZES.items():
        if KNOWN_MODELS.get(name) == f"openai-community/{short}":
            return size
    raise ValueError(f"OpenAI published no GPT-2 called {name!r}; choose one of {', '.join(OPENAI_SIZES)}")


# --- Hugging Face ------------------------------------------------------------------------------

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def download_huggingface(name: str, *, weights_dir: Path | None = None, revision: str | None = None) -> Path:
    """The directory of a GPT-2 from Hugging Face: a known name (`KNOWN_MODELS`) or any `owner/name`.

    It lies in huggingface_hub's cache, or under its name in `weights_dir` (or `GLASSGPT_WEIGHTS`). A known
    name without `revision` is a fixed commit whose sha256 are known here, and needs no network once it is
    there; others follow `main`. Weights are compared with the repository's sha256 (huggingface_hub compares
    lengths only), thrown away and fetched once more if they differ. `pytorch_model.bin` comes only where
    there is no safetensors.

    huggingface_hub shows its own progress, on stderr, and its environment variables count (`HF_TOKEN`,
    `HF_ENDPOINT`, `HF_HUB_DISABLE_PROGRESS_BARS`, …). Raises `ValueError` for what is no name,
    `OfflineError`, and `DownloadError` for all the rest.
    """
    repo = _Repository(name, revision, _weights_dir(weights_dir))
    switch = offline_switch()
    try:
        if (repo.fixed or switch) and (found := repo.cached(offline=switch is not None)) is not None:
            return found
        if switch:
            text = f"{repo.id} is not in {repo.place} and {switch} switches the network off: switch it on"
            raise OfflineError(f"{text}, {repo.way_out()}")
        for _ in range(2):
            folder = repo.fetch()
            wrong = [(path, sha256_of(path), sha256) for path, sha256 in repo.wrong_files(folder)]
            if not wrong:
                break
            for path, _found, _wanted in wrong:
                if _in_cache(path):
                    path.resolve().unlink(missing_ok=True)  # two names may share it
                path.unlink(missing_ok=True)
        else:
            path, digest, wanted = wrong[0]
            raise DownloadError(f"{path.name} came wrong twice: sha256 {digest}, not {wanted}")
        if not _is_model(folder):
            raise DownloadError("it holds no config.json with model.safetensors or pytorch_model.bin")
        return folder
    except OfflineError:
        raise
    except Exception as error:  # of whichever of three HTTP libraries this huggingface_hub uses
        reason = str(error) if isinstance(error, DownloadError) else _hub_reason(error, repo)
        raise DownloadError(f"could not download {repo.id}: {reason}; {repo.way_out()}") from error


class _Repository:
    """One revision of a repository on Hugging Face, and where its files lie here."""

    def __init__(self, name: str, revision: str | None, root: Path | None) -> None:
        self.id = KNOWN_MODELS.get(name, name)
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.id, re.ASCII) or ".." in self.id:
            raise _unknown(name)
        self.short = self.id.removeprefix("openai-community/") if self.id in KNOWN_MODELS else self.id
        commit = _COMMITS.get(self.short)
        self.revision = revision or commit or "main"
        self.fixed = re.fullmatch("[0-9a-f]{40}", self.revision) is not None  # a commit does not change
        self.published = _published(self.short, "") if self.revision == commit else []
        apart = "" if revision is None else "@" + re.sub(r"[^\w.-]", "-", revision)
        self.folder = None if root is None else root / (self.short + apart)

    @property
    def place(self) -> str:
        from huggingface_hub import constants

        return str(self.folder or constants.HF_HUB_CACHE)

    def way_out(self) -> str:
        from huggingface_hub import constants

        facts = f"{constants.ENDPOINT}/{self.id}/tree/{self.revision}"
        for file in self.published:
            if file.path.endswith(".safetensors") and file.sha256 is not None:
                facts += f", sha256 {file.sha256}"
        folder = self.folder or f"MODELS/{self.short} and set GLASSGPT_WEIGHTS=MODELS"
        return f"or put config.json, tokenizer.json and model.safetensors ({facts}) into {folder}"

    def fetch(self) -> Path:
        """The directory, brought up to date; where nobody answers, what the cache has of this revision."""
        from huggingface_hub import HfApi, constants

        try:
            # Asked once. For a commit, snapshot_download begins with a request that it makes six times over 23 s, with
            # two lines on stderr each time, and has no setting for it.
            HfApi().model_info(self.id, revision=self.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:
            if _status(error) is None:
                with suppress(FileNotFoundError):
                    if self.folder is None:
                        return self._snapshot(self.id, self.revision, local_files_only=True)
                raise
        return self._snapshot(self.id, self.revision)

    def cached(self, *, offline: bool) -> Path | None:
        """The directory if it is here and right; offline, any `main` will do, and so will no tokenizer."""
        ids = dict.fromkeys([self.id, self.short])  # transformers' users have it as plain "gpt2", too
        revisions = dict.fromkeys([self.revision, "main"] if offline and self.published else [self.revision])
        for repo_id, revision in product(ids, revisions):
            try:
                folder = self._snapshot(repo_id, revision, local_files_only=True)
            except FileNotFoundError as error:  # not in the cache, or not all of it
                folder = Path(getattr(error, "snapshot_path", os.devnull))
            whole = _is_model(folder) and (offline or _has_tokenizer(folder))
            if whole and not self.wrong_files(folder, offline=True):
                return folder
        return None

    def _snapshot(self, repo_id: str, revision: str, *, local_files_only: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        if local_files_only and self.folder is not None:
            return self.folder.resolve()  # huggingface_hub would say the same, with a warning on stderr
        for weights in (_SAFETENSORS, _PICKLES):
            folder = snapshot_download(
                repo_id,
                revision=revision,
                local_dir=self.folder,
                allow_patterns=[*_SMALL_FILES, *weights],
                local_files_only=local_files_only,
            )
            if any(Path(folder).glob("*.safetensors")):
                break
        return Path(folder)

    def wrong_files(self, folder: Path, *, offline: bool = False) -> list[tuple[Path, str]]:
        """The files in `folder` that are not what the repository holds, and the sha256 they should have."""
        weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        wanted = {path: path.resolve().name for path in weights if _in_cache(path)}
        for file in self.published:
            path = folder / Path(file.path).name
            # hand-copied small files may be of another commit, weights may not
            if file.sha256 and (folder.name == self.revision or (self.folder is not None and path in weights)):
                wanted[path] = file.sha256
        if not offline and any(path not in wanted for path in weights):
            wanted = self._listed_sha256(folder) | wanted
        here = {path: sha256 for path, sha256 in wanted.items() if path.exists()}
        return [(path, sha256) for path, sha256 in here.items() if not has_sha256(path.resolve(), sha256)]

    def _listed_sha256(self, folder: Path) -> dict[Path, str]:
        from huggingface_hub import HfApi

        listed = HfApi().model_info(self.id, revision=self.revision, files_metadata=True).siblings or []
        return {folder / file.rfilename: file.lfs.sha256 for file in listed if file.lfs is not None}


def _in_cache(path: Path) -> bool:
    """Whether it is a link to a large file of huggingface_hub's cache, which names it after its sha256."""
    blob = path.resolve()
    return blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) is not None


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of huggingface_hub, None if nobody answered."""
    responses = (getattr(cause, "response", None) for cause in causes(error))
    return next((response.status_code for response in responses if response is not None), None)


def _hub_reason(error: Exception, repo: _Repository) -> str:
    """One line for whatever huggingface_hub raised, found by the names of the errors and their causes."""
    from huggingface_hub import constants

    host = constants.ENDPOINT
    errors = list(causes(error))
    names = {cls.__name__ for cause in errors for cls in type(cause).__mro__}
    numbers = {getattr(cause, "errno", None) for cause in errors}
    status = _status(error)
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if "GatedRepoError" in names:
        return f"it is gated: accept its terms at {host}/{repo.id} and {log_in}"
    if "RevisionNotFoundError" in names:
        return f"it has no revision {repo.revision!r}"
    if "RepositoryNotFoundError" in names or status == 401:
        return f"{host} has no such repository, or it is private: check the name, or {log_in}"
    if status == 403:
        return f"{host} answers 403: {log_in}, with a token that may read it"
    if status is not None and status >= 400:
        return f"{host} answers {status}"
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk of {repo.place} is full: make room, or choose another directory"
    if numbers & {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
        return f"{repo.place} cannot be written to: choose another directory"
    if reason := network_reason(error):
        return f"{host}: {reason}"
    if names & {"TimeoutException", "Timeout"}:
        return f"{host}: no answer in time"
    if names & {"TransportError", "ConnectionError"}:
        return f"{host}: no connection ({one_line(errors[-1])})"
    if names & {"JSONDecodeError", "FileMetadataError"}:
        return f"{host} does not answer like a Hugging Face Hub: a proxy or login page, or a wrong HF_ENDPOINT"
    return f"{type(error).__name__}: {one_line(error)}"


# --- By URL, by name, by hand ------------------------------------------------------------------


def download_url(url: str, *, weights_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """The directory of a model from `https://host/path/` or `https://host/path/NAME.safetensors`.

    Beside the weights (one file, or an index and its shards) lies `config.json`; `tokenizer.json`, or
    `vocab.json` with `merges.txt`, come too if they are there. A page of a Hugging Face repository counts
    as its name. Goes to `weights_dir`, `GLASSGPT_WEIGHTS` or the user's cache directory. Raises
    `ValueError` and `DownloadError`.
    """
    check_url(url)
    parts = urlsplit(url)
    page = re.match(r"/([^/]+/[^/]+)(?:/(?:tree|resolve|blob)/([^/]+))?(?:/|$)", parts.path)
    if parts.netloc in ("huggingface.co", urlsplit(_hub()).netloc) and page is not None:
        revision = None if page[2] == "main" else page[2]
        return download_huggingface(page[1], weights_dir=weights_dir, revision=revision)
    one_file = parts.path.endswith(".safetensors")
    path = parts.path.rpartition("/")[0] if one_file else parts.path.rstrip("/")
    base = parts._replace(path=path + "/", query="", fragment="").geturl()
    root = _weights_dir(weights_dir)
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glassgpt"
    model = shown_url(url if one_file else base)
    short = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{parts.hostname}{path}")[:80]
    folder = root / f"{short}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"

    def fetch(name: str, source: str | None = None) -> Path:
        report = progress if name.endswith(".safetensors") else None
        return download_file(source or base + name, folder / name, progress=report)

    fetch("config.json")
    try:
        fetch("model.safetensors", url if one_file else None)
    except MissingFileError:
        if one_file:
            raise
        for shard in _shards(fetch("model.safetensors.index.json")):
            fetch(shard)
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer_config.json",)):
        with suppress(MissingFileError):
            for name in names:
                fetch(name)
    return folder


def resolve_model(
    name: str | Path,
    *,
    weights_dir: Path | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The directory (or file) of a model, downloaded if need be.

    `name` is a path, a known name (`KNOWN_MODELS`), an `owner/name` on Hugging Face or a URL. A model
    `name` in `weights_dir` (or `GLASSGPT_WEIGHTS`) comes before any network; its files are taken as they
    are. `progress` is told of URLs; huggingface_hub shows its own. Raises `ValueError` for what is none of
    these, and what the downloads raise.
    """
    path, name = Path(name), str(name)
    # the book's gpt2/ is no model, it only holds them
    if name and path.exists() and (name not in KNOWN_MODELS or _is_model(path)):
        return path
    if re.match(r"https?://", name):
        return download_url(name, weights_dir=weights_dir, progress=progress)
    root = _weights_dir(weights_dir)
    if root is not None and revision is None:
        same = [other for other, repo_id in KNOWN_MODELS.items() if repo_id == KNOWN_MODELS.get(name)]
        for candidate in (name, *same):
            if _is_model(root / candidate):
                return root / candidate
    try:
        return download_huggingface(name, weights_dir=weights_dir, revision=revision)
    except DownloadError as error:
        if name in KNOWN_MODELS:
            raise
        raise type(error)(f"no directory {name} here, and as a name of Hugging Face: {error}") from error


def files_to_fetch(name: str, source: str = "huggingface") -> list[FileToFetch]:
    """What to bring by hand for a known name or an `owner/name`: URLs, sizes, sha256, paths.

    `source` is "huggingface" or "openai" (the four GPT-2 only). Put under their paths into the directory of
    models (`weights_dir`), the files are found by `resolve_model`. Raises `ValueError`.
    """
    if source == "openai":
        return _published(_openai_size(name), OPENAI_BASE_URLS[0])
    if source != "huggingface":
        raise ValueError(f"source is {source!r}; choose 'huggingface' or 'openai'")
    repo = _Repository(name, None, None)
    base = f"{_hub()}/{repo.id}/resolve/{repo.revision}"
    files = repo.published or [
        FileToFetch("", None, None, f"{repo.id}/{file}")
        for file in ("config.json", "tokenizer.json", "model.safetensors")
    ]
    return [file._replace(url=f"{base}/{file.path.rpartition('/')[2]}") for file in files]


def _published(folder: str, base: str) -> list[FileToFetch]:
    """The files of `folder` in `_PUBLISHED`, their URLs below `base`."""
    rows = [line.split() for line in _PUBLISHED.split("\n") if line]
    return [
        FileToFetch(f"{base}/{path}", None if size == "-" else int(size), None if sha256 == "-" else sha256, path)
        for sha256, size, path in rows
        if path.startswith(folder + "/")
    ]


def _hub() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _unknown(name: str) -> ValueError:
    near = difflib.get_close_matches(name, KNOWN_MODELS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    ways = f"a directory, one of {', '.join([*_COMMITS, *OPENAI_SIZES])}, an owner/name of Hugging Face or a URL"
    return ValueError(f"no model {one_line(name)!r}: give {ways}{hint}")


def _weights_dir(weights_dir: Path | None) -> Path | None:
    given = weights_dir if weights_dir is not None else os.environ.get("GLASSGPT_WEIGHTS")
    return Path(given) if given else None


def _is_model(folder: Path) -> bool:
    """Whether a directory holds all of a model's weights, in Hugging Face's or OpenAI's form."""
    if (folder / "hparams.json").is_file() and (folder / "model.ckpt.index").is_file():
        return any(folder.glob("model.ckpt.data-*"))
    if not (folder / "config.json").is_file():
        return False
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return True
        with suppress(OSError, ValueError):
            return all((folder / shard).is_file() for shard in _shards(folder / f"{name}.index.json"))
    return False


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all((folder / n).is_file() for n in ("vocab.json", "merges.txt"))


def _shards(index: Path) -> list[str]:
    """The files an index names; `ValueError` for a name that could lead out of its directory."""
    weight_map = read_json(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names or not all(re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name) for name in names):
        raise ValueError(f"{index} is no index of weights: its weight_map names {one_line(names[:3])}")
    return names
