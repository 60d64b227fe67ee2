"""A dataset: a directory of shards, split into training and validation, with the tokenizer that made them.

Ours has an index, which `glassgpt prepare` writes. Directories of nanoGPT's and llm.c's token files are read as they
are: the names of their files say which are for training (`train`) and which for validation (`val`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.data.shards import Shard, TokenSequence, open_shard
from glassgpt.data.vocabulary import other_tokenizer
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer

INDEX, MAGIC, VERSION = "index.json", "glassgpt-dataset", 1
SPLITS = ("train", "validation")
MAX_INDEX_BYTES = 2**30
"""It names every file of the text."""


@dataclass(frozen=True)
class TokenShards:
    """One side of the split: what `TokenFile` is for one file, for many."""

    path: Path
    """The directory."""
    shards: Sequence[Shard] = field(repr=False)
    tokens: TokenSequence = field(repr=False, compare=False)
    n_bytes: int
    """Of the text, in UTF-8."""
    n_vocab: int
    fingerprint: str
    """SHA-256 of the digests of the shards, in hex."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens, end-of-text tokens included."""
        return len(self.tokens)

    def verify(self) -> None:
        """`ValueError` unless the tokens have the digests they were opened with: about a second per GB."""
        for shard in self.shards:
            shard.verify()

    def close(self) -> None:
        """Release the memory maps, after which `tokens` must not be used."""
        self.tokens.close()


@dataclass(frozen=True)
class Dataset:
    """An open dataset. Nothing of its tokens is read before it is used."""

    path: Path
    tokenizer: Tokenizer = field(repr=False)
    train: TokenShards
    validation: TokenShards


def is_dataset(path: str | Path) -> bool:
    """Whether `path` is a directory that holds one."""
    path = Path(path)
    return path.is_dir() and (_is_ours(path) or all(_foreign_files(path)))


def open_dataset(path: str | Path, tokenizer: Tokenizer | None = None) -> Dataset:
    """The dataset in a directory; with `tokenizer`, only if it was made with that one.

    Headers and sizes are checked; `TokenShards.verify` checks each token. Without an index, which tokenizer made the
    tokens is not written anywhere: it is `tokenizer`, or the one that lies there, or GPT-2's, and every token is read
    to see that it has them. Raises `FileNotFoundError` and `ValueError`.
    """
    path = Path(path)
    if _is_ours(path):
        return _open_ours(path, tokenizer)
    files = _foreign_files(path)
    if not all(files):
        raise FileNotFoundError(f"{path} holds no dataset: expected {INDEX}, or token files named train and val")
    shards = [[open_shard(file) for file in each] for each in files]
    tokenizer = tokenizer or _foreign_tokenizer(path, shards[0][0])
    return Dataset(path, tokenizer, *(_counted(path, each, tokenizer) for each in shards))


def index_digest(index: Mapping[str, Any]) -> str:
    """SHA-256 of what an index says of the tokens, in hex."""
    decisive = [index["tokenizer"]["sha256"], [_shard_digests(index["splits"][split]) for split in SPLITS]]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _shard_digests(split: Mapping[str, Any]) -> list[str]:
    return [shard["sha256"] for shard in split["shards"]]


def read_index(path: Path) -> dict[str, Any]:
    """The index of the dataset in `path`; `ValueError` where it is damaged, of another version or something else."""
    index = read_json(path / INDEX, max_bytes=MAX_INDEX_BYTES)
    if index.get("magic") != MAGIC:
        raise ValueError(f"{path / INDEX} was not prepared here, so {path} is no dataset: choose another directory")
    try:
        if index["version"] != VERSION:
            raise ValueError(f"{path / INDEX} is of version {index['version']}, where {VERSION} is read")
        if index_digest(index) != index["sha256"]:
            raise ValueError(f"{path / INDEX} is damaged: prepare the text again")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / INDEX} is damaged ({error!r}): prepare the text again") from None
    return index


def _is_ours(path: Path) -> bool:
    try:
        return read_json(path / INDEX, max_bytes=MAX_INDEX_BYTES).get("magic") == MAGIC
    except (OSError, ValueError):
        return False


def _open_ours(path: Path, tokenizer: Tokenizer | None) -> Dataset:
    index = read_index(path)
    made_with = Tokenizer.load(path)
    written = index["tokenizer"]["sha256"]
    if not made_with.has_fingerprint(written):
        raise ValueError(f"{path}: its tokenizer is not the one that its tokens were made with: prepare the text again")
    if tokenizer is not None and not tokenizer.has_fingerprint(written):
        raise ValueError(
            f"{path}: {other_tokenizer(made_with.n_vocab, written, tokenizer)}; leave the tokenizer out, or prepare "
            "the text again with it"
        )
    parts = []
    for split in SPLITS:
        listed = index["splits"][split]
        shards = [open_shard(path / shard["file"]) for shard in listed["shards"]]
        for shard, entry in zip(shards, listed["shards"], strict=True):
            if (shard.sha256, shard.n_tokens, shard.tokenizer) != (entry["sha256"], entry["n_tokens"], written):
                raise ValueError(f"{shard.path} is not the shard that {INDEX} tells of: prepare the text again")
        parts.append(_side(path, shards, int(listed["n_bytes"]), made_with))
    return Dataset(path, made_with, *parts)


def _side(path: Path, shards: Sequence[Shard], n_bytes: int, tokenizer: Tokenizer) -> TokenShards:
    digest = hashlib.sha256("".join(str(shard.sha256) for shard in shards).encode()).hexdigest()
    return TokenShards(path, shards, TokenSequence(shards), n_bytes, tokenizer.n_vocab, digest)


# ---- nanoGPT's and llm.c's ---------------------------------------------------------------------------------------


def _foreign_files(path: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(path.glob("*.bin")) if path.is_dir() else []
    train = [file for file in files if "train" in file.name]
    return train, [file for file in files if "val" in file.name and file not in train]


def _foreign_tokenizer(path: Path, shard: Shard) -> Tokenizer:
    if (path / "tokenizer.json").exists():
        return Tokenizer.load(path)
    if (path / "meta.pkl").exists():
        from glassgpt.weights.families.nanogpt import read_meta

        return read_meta(path / "meta.pkl")
    if shard.dtype.itemsize > 2:
        raise ValueError(f"{shard.path}: tokens of 32 bits, but no tokenizer in {path}: put its tokenizer.json there")
    return Tokenizer.gpt2()


def _counted(path: Path, shards: Sequence[Shard], tokenizer: Tokenizer) -> TokenShards:
    """With the digests and the bytes of the text, which the files do not tell; every token is looked at."""
    lengths = np.array(tokenizer.token_lengths(), np.int64)
    n_bytes, known = 0, []
    for shard in shards:
        digest = hashlib.sha256()
        for tokens in shard.chunks():
            if tokens.max() >= tokenizer.n_vocab:
                raise ValueError(
                    f"{shard.path}: it has the id {tokens.max()}, outside the {tokenizer.n_vocab} of the tokenizer: "
                    "name the one it was made with, or it is no file of tokens"
                )
            digest.update(tokens.data)
            n_bytes += int(lengths[tokens].sum())
        known.append(
            Shard(
                shard.path, shard.form, shard.dtype, shard.n_tokens, shard.offset, tokenizer.n_vocab,
                tokenizer.fingerprint, digest.hexdigest(),
            )
        )  # fmt: skip
    return _side(path, known, n_bytes, tokenizer)
