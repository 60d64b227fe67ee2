"""What a run trains on: token files of its own, or prepared datasets, which stay where they are, by weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from glassgpt.data.dataset import Dataset, TokenShards, is_dataset, open_dataset
from glassgpt.data.mixture import Mixture, Tokens, normalised
from glassgpt.data.shards import TokenSequence
from glassgpt.data.tokens import TokenFile
from glassgpt.files import write_text
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer

SOURCES = "sources.json"
"""In the `data` folder of a run that trains on datasets: which, by what weight."""


class Side(Protocol):
    """The tokens for training, or those for validation."""

    @property
    def n_tokens(self) -> int:
        """Of a mixture: the tokens of a run in which the source that is read most often is read once."""

    @property
    def n_bytes(self) -> int:
        """Of the text of these tokens, in UTF-8."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokens, and for a mixture equal weights."""

    def verify(self) -> None:
        """`ValueError` unless the tokens are as they were written."""

    def close(self) -> None:
        """Release the memory maps."""


class TrainingSide(Side, Protocol):
    """What `BatchLoader` makes batches of."""

    @property
    def tokens(self) -> Tokens | Mixture:
        """Their ids."""


class ValidationSide(Side, Protocol):
    """What `evaluation_batches` reads in order."""

    @property
    def tokens(self) -> Tokens:
        """Their ids."""


@dataclass(frozen=True)
class Source:
    """A dataset, and how much of what is read comes from it; None: as its part of all the tokens."""

    path: Path
    weight: float | None = None


@dataclass(frozen=True)
class MixedSide:
    """One side of several datasets, mixed."""

    sides: Sequence[TokenShards]
    weights: Sequence[float]
    tokens: Any = field(repr=False)
    """A `Mixture` for training, a `TokenSequence` for validation."""
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        """See `Side`."""
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """See `Side`."""
        decisive = [[side.fingerprint, weight] for side, weight in zip(self.sides, self.weights, strict=True)]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def verify(self) -> None:
        """See `Side`."""
        for side in self.sides:
            side.verify()

    def close(self) -> None:
        """See `Side`."""
        for side in self.sides:
            side.close()


def sources_of(texts: Sequence[str | Path]) -> list[Source] | None:
    """The datasets that `texts` name, a weight after `=`; None where they name none, but texts.

    Raises `ValueError` for datasets and texts together, and for weights of which some are missing or not above 0.
    """
    found = [_source(str(text)) for text in texts]
    sources = [source for source in found if source is not None]
    if not sources:
        return None
    if len(sources) < len(found):
        text = next(text for text, source in zip(texts, found, strict=True) if source is None)
        raise ValueError(
            f"{text} is no dataset, but {sources[0].path} is: prepare the text first, or train on one kind"
        )
    weights = [source.weight for source in sources if source.weight is not None]
    if 0 < len(weights) < len(sources):
        bare = next(source.path for source in sources if source.weight is None)
        raise ValueError(f"{bare} has no weight, but others have: write {bare}=0.5, or leave all weights out")
    normalised(weights)
    return sources


def _source(text: str) -> Source | None:
    if is_dataset(text):
        return Source(Path(text))
    path, mark, weight = text.rpartition("=")
    if not mark or Path(text).exists() or not is_dataset(path):
        return None
    try:
        return Source(Path(path), float(weight))
    except ValueError:
        raise ValueError(f"{text}: the weight {weight!r} must be a number") from None


def open_sources(
    sources: Sequence[Source], tokenizer: Tokenizer | None = None
) -> tuple[Tokenizer, TrainingSide, ValidationSide]:
    """(tokenizer, training, validation) of datasets, mixed where there are several.

    The tokens for validation are those of all of them, one after another, in the shares of the weights: as many as the
    smallest allows. Raises `ValueError` where their tokenizers differ from each other or from `tokenizer`, and what
    `open_dataset` raises.
    """
    datasets: list[Dataset] = []
    for source in sources:
        datasets.append(open_dataset(source.path, tokenizer))
        tokenizer = datasets[0].tokenizer
    if len(datasets) == 1:
        return datasets[0].tokenizer, datasets[0].train, datasets[0].validation
    for source, dataset in zip(sources, datasets, strict=True):
        if not dataset.validation.n_tokens:
            raise ValueError(f"{source.path} has no tokens for validation: it cannot be part of a mixture")
    weights = normalised([source.weight or d.train.n_tokens for source, d in zip(sources, datasets, strict=True)])
    train, validation = [d.train for d in datasets], [d.validation for d in datasets]
    mixture = Mixture([side.tokens for side in train], weights)
    shares = Mixture([side.tokens for side in validation], weights).shares()
    heads = TokenSequence(
        [part for side, n in zip(validation, shares, strict=True) for part in side.tokens.head(n).parts]
    )
    n_bytes = sum(side.n_bytes * n // side.n_tokens for side, n in zip(validation, shares, strict=True))
    return (
        datasets[0].tokenizer,
        MixedSide(train, weights, mixture, sum(side.n_bytes for side in train)),
        MixedSide(validation, weights, heads, n_bytes),
    )


def write_sources(run: Path, sources: Sequence[Source]) -> None:
    """Note in the directory of a run what it trains on."""
    record = [{"path": str(source.path.resolve()), "weight": source.weight} for source in sources]
    write_text(run / "data" / SOURCES, json.dumps({"sources": record}, indent=1) + "\n")


def read_sources(run: Path) -> list[Source] | None:
    """What `write_sources` noted; None where the run has token files of its own."""
    path = run / "data" / SOURCES
    if not path.exists():
        return None
    try:
        return [Source(Path(each["path"]), each["weight"]) for each in read_json(path)["sources"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def open_run(
    run: Path, tokenizer: Tokenizer, sources: Sequence[Source] | None = None
) -> tuple[TrainingSide, ValidationSide]:
    """(training, validation) of a run; `sources` are where its datasets are now, None: where they were.

    Raises `FileNotFoundError` and `ValueError` where they are missing, damaged, or of another tokenizer.
    """
    if (noted := read_sources(run)) is None:
        train, validation = (
            TokenFile.open(run / "data" / f"{name}.npy", tokenizer=tokenizer) for name in ("train", "validation")
        )
        return train, validation
    for source in sources or noted:
        if not is_dataset(source.path):
            raise ValueError(f"{source.path}: the dataset of {run} is not there: put it back, or say where it is now")
    return open_sources(sources or noted, tokenizer)[1:]


def validation_part(run: str | Path, tokenizer: Tokenizer) -> ValidationSide:
    """The part of its text that the run in the directory `run` was measured on; errors as in `open_run`."""
    run = Path(run)
    if read_sources(run) is None:
        return TokenFile.open(run / "data" / "validation.npy", tokenizer=tokenizer)
    return open_run(run, tokenizer)[1]
