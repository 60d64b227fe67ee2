"""A GPT-2 from Hugging Face, through `huggingface_hub`: its cache, tokens and settings, and checks that it lacks."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from contextlib import suppress
from itertools import product
from pathlib import Path

from glassgpt.json_file import read_json
from glassgpt.packages import require
from glassgpt.terminal_text import one_line
from glassgpt.weights.download.errors import DownloadError, OfflineError, causes, network_reason
from glassgpt.weights.download.file import has_sha256, offline_switch, sha256_of
from glassgpt.weights.download.published import (
    COMMITS,
    HUGGINGFACE_FILES,
    KNOWN_MODELS,
    FileToFetch,
    published_files,
)

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
    `HF_ENDPOINT`, `HF_HUB_DISABLE_PROGRESS_BARS`, …). Raises `ValueError` for what is not a name,
    `OfflineError`, and `DownloadError` for all the rest.
    """
    require("huggingface_hub")
    repo = Repository(name, revision, models_directory(weights_dir))
    switch = offline_switch()
    try:
        if (repo.fixed or switch) and (found := repo.cached(offline=switch is not None)) is not None:
            return found
        if switch:
            reason = f"{repo.id} is not in {repo.location} and {switch} switches the network off"
            raise OfflineError(reason, f"switch it on, {repo.way_out()}", repo.by_hand)
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
        if not is_model(folder):
            raise DownloadError("it holds no config.json with model.safetensors or pytorch_model.bin")
        return folder
    except OfflineError:
        raise
    except Exception as error:  # of whichever of three HTTP libraries this huggingface_hub uses
        reason = str(error) if isinstance(error, DownloadError) else _hub_reason(error, repo)
        raise DownloadError(f"could not download {repo.id}: {reason}", repo.way_out(), repo.by_hand) from error


class Repository:
    """One revision of a repository on Hugging Face, and where its files lie here."""

    def __init__(self, name: str, revision: str | None, root: Path | None) -> None:
        self.id = KNOWN_MODELS.get(name, name)
        self.by_hand = (name, "huggingface") if name in KNOWN_MODELS else None
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.id, re.ASCII) or ".." in self.id:
            raise ValueError(f"{one_line(name)!r} is not an owner/name on Hugging Face")
        self.short = self.id.removeprefix("openai-community/") if self.id in KNOWN_MODELS else self.id
        commit = COMMITS.get(self.short)
        self.revision = revision or commit or "main"
        self.fixed = re.fullmatch("[0-9a-f]{40}", self.revision) is not None  # a commit does not change
        self.published = published_files(self.short, "") if self.revision == commit else []
        apart = "" if revision is None else "@" + re.sub(r"[^\w.-]", "-", revision)
        self.folder = None if root is None else root / (self.short + apart)

    @property
    def location(self) -> str:
        """The directory that its files lie in."""
        from huggingface_hub import constants

        return str(self.folder or constants.HF_HUB_CACHE)

    def files_to_fetch(self) -> list[FileToFetch]:
        """What to bring by hand: of a repository that is not known, the files of any GPT-2."""
        files = self.published or [FileToFetch("", None, None, f"{self.id}/{name}") for name in HUGGINGFACE_FILES]
        host = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        base = f"{host}/{self.id}/resolve/{self.revision}"
        return [file._replace(url=f"{base}/{Path(file.path).name}") for file in files]

    def way_out(self) -> str:
        """What a user can do whom no download helps."""
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
        if self.folder is not None:
            self._check_own_files(self.folder)
        return self._snapshot(self.id, self.revision)

    def _check_own_files(self, folder: Path) -> None:
        """`DownloadError` where huggingface_hub would overwrite a file that it did not bring, or that changed since."""
        digests = {Path(file.path).name: file.sha256 for file in self.published}
        for path in folder.iterdir() if folder.is_dir() else ():
            if not any(fnmatch.fnmatch(path.name, pattern) for pattern in (*_SMALL_FILES, *_SAFETENSORS, *_PICKLES)):
                continue
            note = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
            brought = note.is_file() and path.stat().st_mtime <= note.stat().st_mtime + 1
            if not brought and not ((sha256 := digests.get(path.name)) and has_sha256(path, sha256)):
                raise DownloadError(f"{path} was there before, and a download would overwrite it: move it away")

    def cached(self, *, offline: bool) -> Path | None:
        """The directory if it is here and right; offline, any `main` will do, and so will no tokenizer."""
        ids = dict.fromkeys([self.id, self.short])  # transformers' users have it as plain "gpt2", too
        revisions = dict.fromkeys([self.revision, "main"] if offline and self.published else [self.revision])
        for repo_id, revision in product(ids, revisions):
            try:
                folder = self._snapshot(repo_id, revision, local_files_only=True)
            except FileNotFoundError as error:  # not in the cache, or not all of it
                folder = Path(getattr(error, "snapshot_path", os.devnull))
            whole = is_model(folder) and (offline or _has_tokenizer(folder))
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


def _hub_reason(error: Exception, repo: Repository) -> str:
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
        return f"the disk of {repo.location} is full: make room, or choose another directory"
    if numbers & {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
        return f"{repo.location} cannot be written to: choose another directory"
    if reason := network_reason(error):
        return f"{host}: {reason}"
    if names & {"TimeoutException", "Timeout"}:
        return f"{host}: no answer in time"
    if names & {"TransportError", "ConnectionError"}:
        return f"{host}: no connection ({one_line(errors[-1], 80)})"
    if names & {"JSONDecodeError", "FileMetadataError"}:
        return f"{host} does not answer like a Hugging Face Hub: a proxy or login page, or a wrong HF_ENDPOINT"
    return f"{type(error).__name__}: {one_line(error)}"


def models_directory(weights_dir: Path | None) -> Path | None:
    """Where models lie: `weights_dir`, else the environment's `GLASSGPT_WEIGHTS`, else None."""
    given = weights_dir if weights_dir is not None else os.environ.get("GLASSGPT_WEIGHTS")
    return Path(given) if given else None


def is_model(folder: Path) -> bool:
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
        raise ValueError(f"{index} is not an index of weights: its weight_map names {one_line(names[:3])}")
    return names
