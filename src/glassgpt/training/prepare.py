"""What a run needs before its first step: text, tokenizer, token files, baselines, shape, number of steps."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from functools import partial
from pathlib import Path

import torch

from glassgpt.config import GPTConfig
from glassgpt.data.baselines import corpus_baselines
from glassgpt.data.corpus import Document, default_corpus, read_corpus, split_documents
from glassgpt.data.loader import BatchLoader
from glassgpt.data.tokens import write_tokens
from glassgpt.device import pick_dtype
from glassgpt.files import write_text
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.choose import TOKENIZERS, choose_dropout, choose_epochs, choose_tokenizer
from glassgpt.training.measure import measure_speed, settings_for
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared
from glassgpt.training.request import Request, Start
from glassgpt.training.run_directory import RUN_FILE
from glassgpt.training.settings import Settings

_log = logging.getLogger(__name__)

DEFAULT_MINUTES = 5.0
_ENOUGH_STEPS = 400  # fewer teach a larger model less than a smaller one learns in the same time


def prepare(
    request: Request, start: Start | None, out: Path, run: Path, device: torch.device, progress: Progress
) -> Prepared:
    """Read and encode the text into the new directory `run`, pick what was not given, and write `run.json`.

    `start` are the weights to begin with. `out` is where the run will be: no text may lie there. Raises `ValueError`
    and `FileNotFoundError`.
    """
    settings = request.checked(device)
    choices: list[str] = []
    for text in request.texts:
        if Path(text).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"the text {text} lies in {out}: choose a directory of its own for the run")
    progress.message("reading the text" if request.texts else "reading Python's own manual")
    documents = _read(request, out, progress)
    n_bytes = sum(document.n_bytes for document in documents)
    train_part, validation_part = split_documents(documents)
    if not (train_part and validation_part):
        raise ValueError(f"your text is {n_bytes} bytes, too short to keep a tenth of it for validation: add text")
    choices.append(f"text: {n_bytes:,} bytes in {len(documents):,} documents, every tenth byte for validation")
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
    shapes = _fitting(request, request.shapes(n_bytes, start), tokenizer, train.n_tokens)
    config = shapes[0][1]
    BatchLoader(  # raises for a text shorter than one block
        train.tokens, batch_size=settings.batch_size, context_length=config.context_length, seed=settings.seed
    )
    baselines = corpus_baselines(train.tokens, validation.tokens, tokenizer.n_vocab)
    dtype, reason = pick_dtype(settings.dtype, device, config.emb_dim)
    settings = dataclasses.replace(settings, dtype=dtype)  # so a resume elsewhere computes the same
    choices.append(f"numbers: {dtype} ({reason})")
    prepared = Prepared(
        config, settings, tokenizer, train, validation, baselines, choices, source=start.name if start else None
    )
    prepared = _with_steps(prepared, shapes, request, device)
    config = prepared.config
    choices.append(
        f"model: {f'begins with the weights of {start.name}' if start else 'from scratch'}, "
        f"{config.n_parameters():,} parameters, {config.n_layers} layers x {config.emb_dim} wide, "
        f"{config.n_heads} heads, context {config.context_length} tokens"
    )
    tokenizer.save(run)
    write_run_file(run, prepared, request)
    return prepared


def _fitting(
    request: Request, shapes: list[tuple[str, GPTConfig]], tokenizer: Tokenizer, n_tokens: int
) -> list[tuple[str, GPTConfig]]:
    """The shapes with the size of the vocabulary; of those that were picked, none longer than a tiny text."""
    size = request.config.get("vocab_size", tokenizer.n_vocab)
    if request.model is not None:
        size = shapes[0][1].vocab_size
    elif request.tokenizer in (None, "bpe"):
        size = tokenizer.n_vocab  # a BPE is as large as its text allows, and not larger than was asked for
    if size < tokenizer.n_vocab:
        raise ValueError(f"vocab_size {size} is less than the {tokenizer.n_vocab} tokens of the tokenizer")
    fitting = []
    for name, config in shapes:
        if name and "context_length" not in request.config and 1 < n_tokens <= config.context_length:
            config = config.replace(context_length=2 ** ((n_tokens - 1).bit_length() - 1))
        fitting.append((name, config.replace(vocab_size=size)))
    return fitting


def _with_steps(
    prepared: Prepared, shapes: list[tuple[str, GPTConfig]], request: Request, device: torch.device
) -> Prepared:
    """With a number of steps, and with the first of `shapes` that gets enough of them in the time."""
    choices, minutes = prepared.choices, request.minutes
    n_bytes = prepared.train.n_bytes + prepared.validation.n_bytes
    if prepared.settings.steps is None and minutes is None:
        minutes = DEFAULT_MINUTES
        choices.append(f"time: {minutes:g} minutes, the default")
    choice = ""
    for shape in shapes:
        candidate = dataclasses.replace(prepared, config=shape[1])
        settings = candidate.settings
        if minutes is None:
            assert settings.steps is not None
            settings = settings.resolved(settings.steps)
            break
        epochs = choose_epochs(candidate.parameters_per_token(), from_weights=prepared.source is not None)
        most = math.ceil(epochs / candidate.epochs(1))
        speed = measure_speed(candidate, settings, device, min(2.0, 0.05 * minutes * 60))
        settings, choice = settings_for(minutes * 60, speed, settings, candidate.config.n_parameters(), most)
        if settings.steps is not None and settings.steps >= min(most, _ENOUGH_STEPS):
            break
    assert settings.steps is not None
    name = shape[0]
    epochs_read = candidate.epochs(settings.steps)
    if name and request.shape is None:
        choices.append(
            f"shape: {name}, for {n_bytes:,} bytes of text" + (f" and {minutes:g} minutes" if minutes else "")
        )
    if name and "drop_rate" not in request.config:
        dropout = choose_dropout(candidate.parameters_per_token(), epochs_read)
        candidate = dataclasses.replace(candidate, config=candidate.config.replace(drop_rate=dropout))
        choices.append(f"dropout: {dropout:g}, for {candidate.parameters_per_token():.2g} parameters per token")
    if choice:
        choices.append(choice)
    choices.append(f"the text is read {epochs_read:.1f} times (epochs)")
    return dataclasses.replace(candidate, settings=settings)


def check_sample(tokenizer: Tokenizer, settings: Settings) -> None:
    """`ValueError` for a sample prompt that cannot be encoded, now and not at the first sample."""
    ids = tokenizer.encode(settings.sample_prompt)
    if settings.sample_prompt and not ids:
        raise ValueError(f"sample_prompt {settings.sample_prompt!r} has no tokens in this vocabulary")


def _read(request: Request, out: Path, progress: Progress) -> list[Document]:
    if not request.texts:
        if request.fields():
            raise ValueError(
                f"text fields {', '.join(request.fields())}: Python's own manual has no fields; name a text"
            )
        return default_corpus()
    return read_corpus(
        request.texts,
        text_fields=request.fields(),
        scratch=out,  # the disk that has room for the tokens; a system's temporary folder may be in memory
        message=progress.message,
        progress=partial(progress.work, "reading"),
    )


def write_run_file(run: Path, prepared: Prepared, request: Request) -> None:
    """Write `run.json`: all that a resume needs besides the data and a checkpoint."""
    record = {
        "config": prepared.config.to_dict(),
        "settings": prepared.settings.to_dict(),
        "baselines": dataclasses.asdict(prepared.baselines),
        "choices": prepared.choices,
        "source": prepared.source,
        "tokenizer": request.tokenizer if request.tokenizer in TOKENIZERS else None,
        "texts": [str(text) for text in request.texts],
        "text_fields": request.fields(),
        "data": {"train": prepared.train.fingerprint, "validation": prepared.validation.fingerprint},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_text(run / RUN_FILE, json.dumps(record, indent=2) + "\n")
