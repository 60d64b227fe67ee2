"""What a run needs before its first step: text, tokenizer, token files, baselines, shape, number of steps."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import GPTConfig, preset
from glassgpt.data.baselines import Baselines, corpus_baselines
from glassgpt.data.corpus import default_corpus, read_corpus, split_documents
from glassgpt.data.loader import BatchLoader
from glassgpt.data.tokens import TokenFile, write_tokens
from glassgpt.device import check_dtype, pick_dtype
from glassgpt.files import write_text
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.choose import check_tokenizer, choose_dropout, choose_epochs, choose_tokenizer, shapes_for
from glassgpt.training.measure import measure_speed, settings_for
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared
from glassgpt.training.run_directory import MAX_RUN_BYTES, RUN_FILE
from glassgpt.training.settings import Settings
from glassgpt.training.state import checkpoints

_log = logging.getLogger(__name__)

DEFAULT_MINUTES = 5.0
_ENOUGH_STEPS = 400  # fewer teach a larger model less than a smaller one learns in the same time

# Settings that a resumed run may change: none of them touches a step that has been taken, or what losses mean
_CHANGEABLE = {"steps", "eval_every", "save_minutes", "patience", "sample_prompt", "sample_tokens"}
# How choices begin that tell what the run was to be when it began; a resume says itself how far it goes
_PLANS = ("time: ", "steps: ", "the text is read ")


@dataclasses.dataclass(frozen=True)
class Request:
    """What `train` was asked for, as it was given; None is for what it picks itself."""

    texts: Sequence[str | Path]
    shape: GPTConfig | str | None
    tokenizer: Tokenizer | str | None
    minutes: float | None
    settings: Mapping[str, Any]

    def checked(self, device: torch.device) -> Settings:
        """The settings, once everything that needs no text has been checked (`ValueError`)."""
        settings = Settings.from_dict(self.settings)
        check_dtype(settings.dtype, device)
        check_tokenizer(self.tokenizer)
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes {self.minutes} must be above 0")
        if self.minutes is not None and settings.steps is not None:
            raise ValueError("minutes and steps exclude each other: give one of them")
        return settings

    def config(self) -> GPTConfig | None:
        """The shape that was asked for."""
        return preset(self.shape) if isinstance(self.shape, str) else self.shape


def prepare(request: Request, out: Path, run: Path, device: torch.device, progress: Progress) -> Prepared:
    """Read and encode the text into the new directory `run`, pick what was not given, and write `run.json`.

    `out` is where the run will be: no text may lie there. Raises `ValueError` and `FileNotFoundError`.
    """
    settings, config = request.checked(device), request.config()
    choices: list[str] = []
    for text in request.texts:
        if Path(text).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"the text {text} lies in {out}: choose a directory of its own for the run")
    progress.message("reading the text" if request.texts else "reading Python's own manual")
    documents = read_corpus(request.texts) if request.texts else default_corpus()
    n_bytes = sum(document.n_bytes for document in documents)
    train_part, validation_part = split_documents(documents)
    if not (train_part and validation_part):
        raise ValueError(f"your text is {n_bytes} bytes, too short to keep a tenth of it for validation: add text")
    choices.append(f"text: {n_bytes:,} bytes in {len(documents):,} documents, every tenth byte for validation")
    tokenizer = request.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = choose_tokenizer(tokenizer, train_part, validation_part, choices, progress)
    check_sample(tokenizer, settings)
    names = [] if config else shapes_for(n_bytes)
    config = (config or preset(names[0])).replace(vocab_size=tokenizer.n_vocab)

    (run / "data").mkdir(parents=True)
    train, validation = (
        write_tokens(part, tokenizer, run / "data" / f"{name}.npy", progress=progress.encoding)
        for name, part in (("train", train_part), ("validation", validation_part))
    )
    BatchLoader(  # raises for a text shorter than one block
        train.tokens, batch_size=settings.batch_size, context_length=config.context_length, seed=settings.seed
    )
    baselines = corpus_baselines(train.tokens, validation.tokens, config.vocab_size)
    dtype, reason = pick_dtype(settings.dtype, device, config.emb_dim)
    settings = dataclasses.replace(settings, dtype=dtype)  # so a resume elsewhere computes the same
    choices.append(f"numbers: {dtype} ({reason})")
    prepared = _with_steps(
        Prepared(config, settings, tokenizer, train, validation, baselines, choices), names, request.minutes, device
    )
    config = prepared.config
    choices.append(
        f"model: {config.n_parameters():,} parameters, {config.n_layers} layers x {config.emb_dim} wide, "
        f"{config.n_heads} heads, context {config.context_length} tokens"
    )
    tokenizer.save(run)
    write_run_file(run, prepared, request.texts)
    return prepared


def _with_steps(prepared: Prepared, names: list[str], minutes: float | None, device: torch.device) -> Prepared:
    """With a number of steps; where the shape was not given, with the largest of `names` that learns in the time."""
    choices, n_bytes = prepared.choices, prepared.train.n_bytes + prepared.validation.n_bytes
    if prepared.settings.steps is None and minutes is None:
        minutes = DEFAULT_MINUTES
        choices.append(f"time: {minutes:g} minutes, the default")
    choice = ""
    for name in names or [""]:
        config = preset(name).replace(vocab_size=prepared.config.vocab_size) if name else prepared.config
        candidate = dataclasses.replace(prepared, config=config)
        settings = candidate.settings
        if minutes is None:
            assert settings.steps is not None
            settings = settings.resolved(settings.steps)
            break
        most = math.ceil(choose_epochs(candidate.parameters_per_token()) / candidate.epochs(1))
        speed = measure_speed(candidate, settings, device, min(2.0, 0.05 * minutes * 60))
        settings, choice = settings_for(minutes * 60, speed, settings, config.n_parameters(), most)
        if settings.steps is not None and settings.steps >= min(most, _ENOUGH_STEPS):
            break
    assert settings.steps is not None
    epochs = candidate.epochs(settings.steps)
    if name:
        choices.append(
            f"shape: {name}, for {n_bytes:,} bytes of text" + (f" and {minutes:g} minutes" if minutes else "")
        )
        dropout = choose_dropout(candidate.parameters_per_token(), epochs)
        candidate = dataclasses.replace(candidate, config=candidate.config.replace(drop_rate=dropout))
        choices.append(f"dropout: {dropout:g}, for {candidate.parameters_per_token():.2g} parameters per token")
    if choice:
        choices.append(choice)
    choices.append(f"the text is read {epochs:.1f} times (epochs)")
    return dataclasses.replace(candidate, settings=settings)


def check_sample(tokenizer: Tokenizer, settings: Settings) -> None:
    """`ValueError` for a sample prompt that cannot be encoded, now and not at the first sample."""
    ids = tokenizer.encode(settings.sample_prompt)
    if settings.sample_prompt and not ids:
        raise ValueError(f"sample_prompt {settings.sample_prompt!r} has no tokens in this vocabulary")


def write_run_file(run: Path, prepared: Prepared, texts: Sequence[str | Path]) -> None:
    """Write `run.json`: all that a resume needs besides the data and a checkpoint."""
    record = {
        "config": prepared.config.to_dict(),
        "settings": prepared.settings.to_dict(),
        "baselines": dataclasses.asdict(prepared.baselines),
        "choices": prepared.choices,
        "texts": [str(text) for text in texts],
        "data": {"train": prepared.train.fingerprint, "validation": prepared.validation.fingerprint},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_text(run / RUN_FILE, json.dumps(record, indent=2) + "\n")


def reopen(out: Path, request: Request) -> tuple[Prepared, Settings, int | None]:
    """A run that was prepared before, to be resumed.

    Besides it, its settings as they were before this resume changed any, and the number of threads it computes with, if
    that is known. What contradicts the run is a `ValueError` that says how. The data's digests are checked.
    """
    if not (out / RUN_FILE).exists():
        raise FileNotFoundError(f"{out} holds no run to resume: {RUN_FILE} is missing")
    record = read_json(out / RUN_FILE, max_bytes=MAX_RUN_BYTES)
    try:
        config, before = GPTConfig.from_dict(record["config"]), Settings.from_dict(record["settings"])
        baselines = Baselines(**record["baselines"])
        texts, fingerprints, choices = record["texts"], record["data"], record["choices"]
        threads, torch_version = record.get("threads"), record.get("torch")  # version 0.1 did not write these
        digests = [fingerprints["train"], fingerprints["validation"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / RUN_FILE} is damaged: {error!r}") from None
    tokenizer = Tokenizer.load(out)
    if differences := _differences(request, config, before, texts, tokenizer):
        raise ValueError(
            f"{out} was begun differently: {'; '.join(differences)}. Leave these out, or begin a new run elsewhere"
        )
    changed = {name: value for name, value in request.settings.items() if name in _CHANGEABLE}
    steps = changed.get("steps")
    settings = dataclasses.replace(before if steps is None else before.prolonged(steps), **changed)
    taken = max((int(path.name.removeprefix("step-")) for path in checkpoints(out)), default=0)
    if settings.steps is None or settings.steps < taken:
        raise ValueError(f"steps {settings.steps} is below the {taken} that {out} has taken already: ask for more")
    check_sample(tokenizer, settings)
    paths = [out / "data" / f"{name}.npy" for name in ("train", "validation")]
    train, validation = (TokenFile.open(path, tokenizer=tokenizer) for path in paths)
    if [train.fingerprint, validation.fingerprint] != digests:
        raise ValueError(f"{out / 'data'} is not the data this run began with: it cannot be resumed")
    for part in (train, validation):
        part.verify()
    if torch_version not in (None, torch.__version__):
        _log.warning(
            "%s was begun with PyTorch %s: with %s the last bits may differ", out, torch_version, torch.__version__
        )
    choices = [choice for choice in choices if not choice.startswith(_PLANS)]
    return Prepared(config, settings, tokenizer, train, validation, baselines, choices), before, threads


def record_changes(out: Path, prepared: Prepared) -> None:
    """Write the settings of a resumed run into its `run.json`: the next resume needs no reminder."""
    record = read_json(out / RUN_FILE, max_bytes=MAX_RUN_BYTES)
    record |= {"settings": prepared.settings.to_dict(), "choices": prepared.choices}
    write_text(out / RUN_FILE, json.dumps(record, indent=2) + "\n")


def _differences(
    request: Request, config: GPTConfig, settings: Settings, texts: list[str], tokenizer: Tokenizer
) -> list[str]:
    """What was asked for now that contradicts what the run began with, in words."""
    asked = Settings.from_dict(request.settings).to_dict()
    recorded = settings.to_dict()
    differences = [
        f"{name} was {recorded[name]!r}, now {asked[name]!r}"
        for name in request.settings
        if asked[name] != recorded[name] and name not in _CHANGEABLE and (name, asked[name]) != ("dtype", "auto")
    ]
    asked_texts = [str(text) for text in request.texts]
    if asked_texts and asked_texts != texts:
        differences.append(f"the text was {_listed(texts)}, now {_listed(asked_texts)}")
    shape = request.config()
    if shape is not None:
        shape = shape.replace(vocab_size=config.vocab_size)
        differences += [
            f"{name} was {value!r}, now {shape.to_dict()[name]!r}"
            for name, value in config.to_dict().items()
            if shape.to_dict()[name] != value
        ]
    if request.tokenizer is not None and not _is_same(request.tokenizer, tokenizer):
        now = repr(request.tokenizer) if isinstance(request.tokenizer, str) else f"{request.tokenizer.n_vocab:,} tokens"
        differences.append(
            f"the tokenizer, chosen when a run begins, was one of {tokenizer.n_vocab:,} tokens, now {now}"
        )
    return differences


def _is_same(asked: Tokenizer | str, tokenizer: Tokenizer) -> bool:
    """Whether a run's tokenizer is the one asked for; one that a text decides is not made again to see that."""
    ready = {"gpt2": Tokenizer.gpt2, "byte": Tokenizer.bytes_}
    if isinstance(asked, str):
        if asked not in ready:
            return False
        asked = ready[asked]()
    return tokenizer.has_fingerprint(asked.fingerprint)


def _listed(texts: list[str]) -> str:
    """The first texts of a run, and how many more there are."""
    if not texts:
        return "Python's own manual"
    return " ".join(texts[:3]) + (f" and {len(texts) - 3:,} more" if len(texts) > 3 else "")
