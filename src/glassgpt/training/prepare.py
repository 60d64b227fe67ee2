"""What a run needs before its first step: text, tokenizer, token files, baselines, shape, number of steps."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from glassgpt.checkpoint import fingerprint
from glassgpt.config import GPTConfig
from glassgpt.data.baselines import corpus_baselines
from glassgpt.data.corpus import Document, default_corpus, files_at, read_corpus, split_documents
from glassgpt.data.loader import BatchLoader
from glassgpt.data.sources import Source, TrainingSide, ValidationSide, open_sources, sources_of, write_sources
from glassgpt.data.tokens import write_tokens
from glassgpt.data.vocabulary import named_tokenizer
from glassgpt.device import device_name
from glassgpt.files import write_text
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.choose import choose_tokenizer
from glassgpt.training.number_type import choose_dtype
from glassgpt.training.plan import fitting, planned, that_fit
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared
from glassgpt.training.repeat import data_of
from glassgpt.training.request import Like, Request, Start
from glassgpt.training.run_directory import RUN_FILE, TRAIN_FILE
from glassgpt.training.settings import Settings
from glassgpt.training.train_file import begun_with, train_toml


def prepare(
    request: Request, start: Start | None, out: Path, run: Path, device: torch.device, progress: Progress
) -> Prepared:
    """Read and encode the text into the new directory `run`, pick what was not given, and write `run.json`.

    `start` are the weights to begin with. `out` is where the run will be: no text may lie there. Raises `ValueError`,
    `FileNotFoundError`, and `MemoryError` where no shape fits.
    """
    check_texts(request, out)
    gathered, shapes = gather(request, start, run, device, progress)
    prepared = planned(gathered, shapes, request, device)
    prepared.tokenizer.save(run)
    write_run_file(run, prepared, request, start, device)
    write_text(run / TRAIN_FILE, train_toml(request, prepared, out, str(device), torch.get_num_threads()))
    return prepared


@contextlib.contextmanager
def gathered_apart(
    request: Request, device: torch.device, progress: Progress
) -> Iterator[tuple[Prepared, list[tuple[str, GPTConfig]], Start | None]]:
    """What `gather` gives, in a temporary place, and the weights to begin with."""
    with tempfile.TemporaryDirectory() as folder:
        start = request.start()
        gathered, shapes = gather(request, start, Path(folder) / "run", device, progress)
        try:
            yield gathered, shapes, start
        finally:
            for part in (gathered.train, gathered.validation):
                part.close()  # Windows deletes no file that is mapped


def check_texts(request: Request, out: Path) -> None:
    """`ValueError` for a text that lies where the run will be."""
    for text in request.texts if request.like is None else ():
        if Path(text).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"the text {text} lies in {out}: choose a directory of its own for the run")


def gather(
    request: Request, start: Start | None, run: Path, device: torch.device, progress: Progress
) -> tuple[Prepared, list[tuple[str, GPTConfig]]]:
    """All that comes before the number of steps, and the shapes to choose from, the best first, which `planned` does.

    Tokens are written into the new directory `run`. Errors as in `prepare`.
    """
    settings = request.checked(device).with_rates(start.model.n_parameters() if start else None)
    choices: list[str] = []
    tokenizer, train, validation = _data(request, start, run, settings, choices, progress)
    n_bytes = train.n_bytes + validation.n_bytes
    shapes = fitting(request, request.shapes(n_bytes, start), tokenizer, train.n_tokens)
    shapes = that_fit(shapes, settings, device, choices)
    config = shapes[0][1]
    BatchLoader(  # raises for a text shorter than one block, and a batch that the ranks cannot share
        train.tokens,
        batch_size=settings.batch_size,
        context_length=config.context_length,
        seed=settings.seed,
        world_size=request.world_size,
    )
    baselines = corpus_baselines(train.tokens, validation.tokens, tokenizer.n_vocab)
    dtype, reason = choose_dtype(settings.dtype, device, config, settings.rows_at_once)
    settings = dataclasses.replace(settings, dtype=dtype)  # so a resume elsewhere computes the same
    choices.append(f"numbers: {dtype} ({reason})")
    source = start.name if start else None
    return Prepared(config, settings, tokenizer, train, validation, baselines, choices, source), shapes


def _data(
    request: Request,
    start: Start | None,
    run: Path,
    settings: Settings,
    choices: list[str],
    progress: Progress,
) -> tuple[Tokenizer, TrainingSide, ValidationSide]:
    """(tokenizer, training, validation): text is encoded into `run`, datasets are checked and stay where they are."""
    if request.like is not None:
        return _repeated_data(request, request.like, start, run, settings, choices)
    if (sources := sources_of(request.texts)) is not None:
        return _prepared_data(sources, request, start, run, settings, choices, progress)
    for text in request.texts:
        files_at(Path(text))  # one that is missing is told first
    progress.message("reading the text" if request.texts else "reading Python's own manual")
    documents = _read(request, run.parent, progress)
    n_bytes = sum(document.n_bytes for document in documents)
    train_part, validation_part = split_documents(documents)
    if not (train_part and validation_part):
        raise ValueError(f"your text is {n_bytes} bytes, too short to keep a tenth of it for validation: add text")
    noun = "document" if len(documents) == 1 else "documents"
    choices.append(f"text: {n_bytes:,} bytes in {len(documents):,} {noun}, every tenth byte for validation")
    tokenizer = start.tokenizer if start else request.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        vocab_size = request.config.get("vocab_size")
        tokenizer = choose_tokenizer(tokenizer, train_part, validation_part, choices, progress, vocab_size)
    check_sample(tokenizer, settings)

    (run / "data").mkdir(parents=True)
    train, validation = (
        write_tokens(part, tokenizer, run / "data" / f"{name}.npy", progress=partial(progress.work, "encoding"))
        for name, part in (("train", train_part), ("validation", validation_part))
    )
    return tokenizer, train, validation


def _repeated_data(
    request: Request, like: Like, start: Start | None, run: Path, settings: Settings, choices: list[str]
) -> tuple[Tokenizer, TrainingSide, ValidationSide]:
    tokenizer = request.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    check_sample(tokenizer, settings)
    parts = data_of(like, tokenizer, start, run)
    changed = (
        f"; what was changed later is not repeated: {', '.join(like.record.changed)}" if like.record.changed else ""
    )
    choices.append(f"repeats {like.run}: its tokenizer and tokens, and what is not said, as it began{changed}")
    return tokenizer, *parts


def _prepared_data(
    sources: Sequence[Source],
    request: Request,
    start: Start | None,
    run: Path,
    settings: Settings,
    choices: list[str],
    progress: Progress,
) -> tuple[Tokenizer, TrainingSide, ValidationSide]:
    if request.fields():
        raise ValueError(f"text fields {', '.join(request.fields())}: a dataset has none, its text is encoded already")
    if request.tokenizer in ("bpe", "char"):
        raise ValueError(
            f"tokenizer {request.tokenizer!r}: a dataset has the tokenizer it was prepared with; leave it out"
        )
    wanted = start.tokenizer if start else named_tokenizer(request.tokenizer)
    tokenizer, train, validation = open_sources(sources, wanted)
    check_sample(tokenizer, settings)
    progress.message("checking the tokens")
    for part in (train, validation):
        part.verify()
    write_sources(run, sources)
    names = ", ".join(f"{source.path}{f' by {source.weight:g}' if source.weight else ''}" for source in sources)
    choices.append(f"tokens: {train.n_tokens:,} for training, {validation.n_tokens:,} for validation, of {names}")
    return tokenizer, train, validation


def check_sample(tokenizer: Tokenizer, settings: Settings) -> None:
    """`ValueError` for a sample prompt that cannot be encoded, now and not at the first sample."""
    ids = tokenizer.encode(settings.sample_prompt)
    if settings.sample_prompt and not ids:
        raise ValueError(f"sample_prompt {settings.sample_prompt!r} has no tokens in this vocabulary")


def _read(request: Request, scratch: Path, progress: Progress) -> list[Document]:
    if not request.texts:
        if request.fields():
            raise ValueError(
                f"text fields {', '.join(request.fields())}: Python's own manual has no fields; name a text"
            )
        return default_corpus()
    return read_corpus(
        request.texts,
        text_fields=request.fields(),
        scratch=scratch,  # the disk that has room for the tokens; a system's temporary folder may be in memory
        message=progress.message,
        progress=partial(progress.work, "reading"),
    )


def write_run_file(run: Path, prepared: Prepared, request: Request, start: Start | None, device: torch.device) -> None:
    """Write `run.json`: all that a resume or a repetition needs besides the data and a checkpoint."""
    source = prepared.source
    record = {
        "config": prepared.config.to_dict(),
        "settings": prepared.settings.to_dict(),
        "baselines": dataclasses.asdict(prepared.baselines),
        "choices": prepared.choices,
        "begun": begun_with(request, prepared.settings),
        "source": str(Path(source).resolve()) if source and Path(source).exists() else source,
        "source_fingerprint": fingerprint(start.model) if start else None,
        "early_evaluations": prepared.early,
        "tokenizer": request.tokenizer_name,
        "texts": [str(text) for text in request.texts],
        "text_paths": [str(Path(text).resolve()) if Path(text).exists() else str(text) for text in request.texts],
        "text_fields": request.fields(),
        "data": {"train": prepared.train.fingerprint, "validation": prepared.validation.fingerprint},
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "threads": torch.get_num_threads(),
        "ranks": request.world_size,
        "agents": list(request.agents),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": device_name(device),
    }
    write_text(run / RUN_FILE, json.dumps(record, indent=2) + "\n")
