"""What a run needs before its first step: text, tokenizer, token files, baselines, model shape, number of steps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import GPTConfig, preset
from glassgpt.data.baselines import Baselines, corpus_baselines
from glassgpt.data.corpus import Document, default_corpus, read_corpus, split_documents
from glassgpt.data.loader import BatchLoader
from glassgpt.data.tokens import TokenFile, write_tokens
from glassgpt.device import DTYPES, pick_dtype
from glassgpt.files import replacing, write_text
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.optimizer import build_optimizers
from glassgpt.training.progress import Progress
from glassgpt.training.settings import Settings
from glassgpt.training.state import checkpoints
from glassgpt.training.step import initial_model, take_step

TOKENIZERS = ("bpe", "gpt2", "char", "byte")

RUN_FILE = "run.json"
_OURS = {RUN_FILE, "data", "checkpoints", "log.jsonl", "loss.png"}
_MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Settings that a resumed run may change: none of them touches a step that has been taken
_CHANGEABLE = {"steps", "eval_every", "eval_batches", "sample_prompt", "sample_tokens"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything the loop reads."""

    config: GPTConfig
    settings: Settings
    tokenizer: Tokenizer
    train: TokenFile
    validation: TokenFile
    baselines: Baselines
    choices: list[str]
    """What was picked and why, one line each, to be shown."""

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss on the validation part, comparable between tokenizers."""
        return nats_per_token / math.log(2) * self.validation.n_tokens / self.validation.n_bytes


def prepare(
    texts: Sequence[str | Path],
    out: Path,
    model: GPTConfig | str | None,
    tokenizer: Tokenizer | str | None,
    minutes: float | None,
    given: Mapping[str, Any],
    device: torch.device,
    progress: Progress,
    overwrite: bool = False,
) -> Prepared:
    """Read and encode the text into `out/data`, pick what was not given, and write `out/run.json`.

    Every input is checked before anything in `out` changes. Raises `ValueError` and `FileNotFoundError`.
    """
    pick_dtype(Settings.of(given).dtype, device, 0)
    if minutes is not None and (not 0 < minutes < math.inf or "steps" in given):
        wrong = "and steps exclude each other" if "steps" in given else f"{minutes} must be above 0"
        raise ValueError(f"minutes {wrong}")
    config = preset(model) if isinstance(model, str) else model
    if isinstance(tokenizer, str) and tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer {tokenizer!r} is unknown: use one of {', '.join(TOKENIZERS)}")
    _check_out(out, overwrite)
    progress.message("reading the text" if texts else "reading Python's own manual")
    documents = read_corpus(texts) if texts else default_corpus()
    n_bytes = sum(document.n_bytes for document in documents)
    train_part, validation_part = split_documents(documents)
    if not (train_part and validation_part):
        raise ValueError(f"your text is {n_bytes} bytes, too short to keep a tenth of it for validation: add text")
    choices = [f"text: {n_bytes:,} bytes in {len(documents):,} documents, every tenth byte for validation"]

    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _make_tokenizer(tokenizer, train_part, validation_part, choices)
    if config is None:
        config = _pick_config(n_bytes, choices)
    config = config.replace(vocab_size=tokenizer.n_vocab)
    settings = Settings.of({**_intervals(given.get("steps", Settings.steps)), **given})
    tokenizer.encode(settings.sample_prompt)  # complains now, and not at the first sample

    with _leaving_no_trace_of_failure(out), replacing(out / "data") as data:
        data.mkdir()
        for name, part in (("train", train_part), ("validation", validation_part)):
            write_tokens(part, tokenizer, data / f"{name}.npy", progress=progress.encoding)
        baselines = _check_sizes(data, config, settings)
        for name in _OURS | _MODEL_FILES:
            _remove(out / name)
    train, validation = (TokenFile.open(out / "data" / f"{name}.npy") for name in ("train", "validation"))

    dtype, reason = pick_dtype(settings.dtype, device, config.emb_dim)
    settings = dataclasses.replace(settings, dtype=dtype)  # so a resume elsewhere computes the same
    choices.append(f"numbers: {dtype} ({reason})")
    if minutes is None and "steps" not in given:
        minutes = 5.0
        choices.append("time: 5 minutes, the default; --minutes or --steps change it")
    if minutes is not None:
        settings = _steps_for(minutes * 60, config, settings, train, device, given)
        choices.append(f"steps: {settings.steps:,} fit into {minutes:g} minutes at the speed just measured")
    n_parameters = config.n_parameters()
    choices.append(
        f"model: {n_parameters:,} parameters, {config.n_layers} layers x {config.emb_dim} wide, "
        f"{config.n_heads} heads, context {config.context_length} tokens"
    )
    run = {
        "config": config.to_dict(),
        "settings": settings.to_dict(),
        "baselines": dataclasses.asdict(baselines),
        "choices": choices,
        "texts": [str(text) for text in texts],
        "data": {"train": train.fingerprint, "validation": validation.fingerprint},
    }
    tokenizer.save(out)
    write_text(out / RUN_FILE, json.dumps(run, indent=2) + "\n")
    return Prepared(config, settings, tokenizer, train, validation, baselines, choices)


def reopen(
    out: Path,
    texts: Sequence[str | Path],
    model: GPTConfig | str | None,
    tokenizer: Tokenizer | str | None,
    minutes: float | None,
    given: Mapping[str, Any],
) -> Prepared:
    """A run that was prepared before, to be resumed. A setting that contradicts it is a `ValueError` that says how."""
    if not (out / RUN_FILE).exists():
        raise FileNotFoundError(f"{out} holds no run to resume: {RUN_FILE} is missing")
    run = read_json(out / RUN_FILE)
    try:
        config, settings = GPTConfig.of(run["config"]), Settings.of(run["settings"])
        baselines = Baselines(**run["baselines"])
        recorded, fingerprints, choices = run["texts"], run["data"], run["choices"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / RUN_FILE} is damaged: {error!r}") from None
    differences = [
        f"{name} was {settings.to_dict()[name]!r}, now {value!r}"
        for name, value in given.items()
        if value != settings.to_dict().get(name) and name not in _CHANGEABLE
    ]
    if texts and [str(text) for text in texts] != recorded:
        differences.append(f"the text was {' '.join(recorded) or 'the default corpus'}")
    asked = preset(model) if isinstance(model, str) else model
    if asked is not None and asked.replace(vocab_size=config.vocab_size) != config:
        differences.append("the model's shape was another")
    if tokenizer is not None or minutes is not None:
        differences.append("tokenizer and minutes are decided when a run begins")
    if differences:
        raise ValueError(
            f"{out} was begun otherwise: {'; '.join(differences)}. Leave these out, or begin anew elsewhere"
        )
    settings = dataclasses.replace(settings, **given)
    taken = max((int(path.name.removeprefix("step-")) for path in checkpoints(out)), default=0)
    if settings.steps < taken:
        raise ValueError(f"steps {settings.steps} is below the {taken} that {out} has taken already: ask for more")
    made = Tokenizer.load(out)
    made.encode(settings.sample_prompt)
    parts = [TokenFile.open(out / "data" / f"{name}.npy", encoder=made) for name in ("train", "validation")]
    if [part.fingerprint for part in parts] != [fingerprints["train"], fingerprints["validation"]]:
        raise ValueError(f"{out / 'data'} is not the data this run began with: it cannot go on")
    if given:  # the next resume needs no reminder
        write_text(out / RUN_FILE, json.dumps(run | {"settings": settings.to_dict()}, indent=2) + "\n")
    return Prepared(config, settings, made, parts[0], parts[1], baselines, choices)


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse a directory with a run in it, or with anything that a run does not write."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: the run needs a directory")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if strange := sorted(name for name in found - _OURS - _MODEL_FILES if not name.startswith(".")):
        raise ValueError(f"{out} holds {strange[0]!r}, which no run wrote: choose an empty or new directory")
    if "model.safetensors" in found and RUN_FILE not in found:
        raise ValueError(f"{out} holds a model that no run here wrote: choose another directory")
    if RUN_FILE in found and not overwrite:
        raise ValueError(f"{out} already holds a run: resume it, choose another directory, or overwrite it")


@contextlib.contextmanager
def _leaving_no_trace_of_failure(out: Path) -> Iterator[None]:
    """If the body fails, the directories that it made on the way to `out` go again, if they are empty."""
    new = [path for path in (out, *out.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _check_sizes(data: Path, config: GPTConfig, settings: Settings) -> Baselines:
    """The text's baselines; `ValueError` for a text that is too short for them, or for one block to train on."""
    train, validation = (TokenFile.open(data / f"{name}.npy").tokens for name in ("train", "validation"))
    BatchLoader(train, batch_size=settings.batch_size, context_length=config.context_length, seed=settings.seed)
    return corpus_baselines(train, validation, config.vocab_size)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _make_tokenizer(
    kind: str | None, train: list[Document], validation: list[Document], choices: list[str]
) -> Tokenizer:
    if kind == "gpt2":
        return Tokenizer.gpt2()
    if kind == "byte":
        return Tokenizer.bytes_()

    def texts(documents: list[Document]) -> Iterator[str]:
        for document in documents:
            yield from document.pieces()

    if kind == "char":  # an alphabet is no knowledge of the text, and one letter missing could not be measured at all
        return Tokenizer.characters(texts(train + validation))
    n_bytes = sum(document.n_bytes for document in train + validation)
    # about one token of vocabulary for each 2 kB of text, in powers of two
    size = min(16384, max(512, 2 ** round(math.log2(max(n_bytes, 1) / 2000))))
    tokenizer = Tokenizer.train_bpe(texts(train), size)
    choices.append(f"tokenizer: BPE of {tokenizer.n_vocab:,} tokens, trained on the training part")
    return tokenizer


def _pick_config(n_bytes: int, choices: list[str]) -> GPTConfig:
    """A shape by the amount of text: a model much larger than its text learns it by heart."""
    sizes = (("nano", 300_000), ("micro", 20_000_000), ("mini", 100_000_000))
    name = next((name for name, limit in sizes if n_bytes < limit), "small")
    choices.append(f"shape: {name}, for {n_bytes:,} bytes of text; --model takes another")
    return preset(name)


def _intervals(steps: int) -> dict[str, int]:
    """Eight evaluations, and a twentieth of the run to warm up in, at most 100 steps."""
    return {"eval_every": max(1, -(-steps // 8)), "warmup_steps": min(100, max(1, steps // 20))}


def _steps_for(
    seconds: float,
    config: GPTConfig,
    settings: Settings,
    train: TokenFile,
    device: torch.device,
    given: Mapping[str, Any],
) -> Settings:
    """The number of steps that take `seconds`, evaluations included, from timing a few on a model thrown away."""
    model = initial_model(config, settings.seed).to(device)
    optimizers = build_optimizers(model, settings)
    loader = BatchLoader(
        train.tokens, batch_size=settings.batch_size, context_length=config.context_length, seed=settings.seed
    )
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - began < min(2.0, 0.05 * seconds):
        step, start = len(times), time.perf_counter()
        take_step(model, optimizers, loader.batch(step), step, settings, DTYPES[settings.dtype])
        times.append(time.perf_counter() - start)
    typical = sorted(times[1:])[len(times[1:]) // 2]
    steps = max(10, int(0.88 * seconds / typical))  # the rest goes to evaluations, checkpoints and samples
    return dataclasses.replace(settings, **{**_intervals(steps), **given, "steps": steps})
