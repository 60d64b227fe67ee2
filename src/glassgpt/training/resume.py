"""A run that is taken up again: what it began with, what may change, where it goes, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import GPTConfig
from glassgpt.data.baselines import Baselines
from glassgpt.data.sources import TrainingSide, ValidationSide, open_run, read_sources, sources_of, write_sources
from glassgpt.files import write_text
from glassgpt.json_file import read_json
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.choose import choose_epochs
from glassgpt.training.measure import further_steps, measure_speed, time_text
from glassgpt.training.prepare import check_sample
from glassgpt.training.records import Prepared
from glassgpt.training.request import Request
from glassgpt.training.run_directory import MAX_RUN_BYTES, RUN_FILE
from glassgpt.training.settings import Settings
from glassgpt.training.state import checkpoints
from glassgpt.training.step import schedule

_log = logging.getLogger(__name__)

# Settings that a resumed run may change: none of them touches a step that has been taken, or what losses mean
_CHANGEABLE = {"steps", "eval_every", "save_minutes", "patience", "sample_prompt", "sample_tokens"}
# How choices begin that tell what the run was to be when it began; a resume says itself how far it goes
_PLANS = ("time: ", "steps: ", "the text is read ")


def reopen(out: Path, request: Request, *, verify: bool = True) -> tuple[Prepared, Settings, int | None]:
    """A run that was prepared before, to be resumed.

    Besides it, its settings as they were before this resume changed any, and the number of threads it computes with, if
    that is known. What contradicts the run is a `ValueError` that says how. To `verify` the data hashes it.
    """
    if not (out / RUN_FILE).exists():
        raise FileNotFoundError(f"{out} holds no run to resume: {RUN_FILE} is missing")
    record = read_json(out / RUN_FILE, max_bytes=MAX_RUN_BYTES)
    try:
        config, before = GPTConfig.from_dict(record["config"]), Settings.from_dict(record["settings"])
        baselines = Baselines(**record["baselines"])
        choices, fingerprints, _ = record["choices"], record["data"], record["texts"]
        threads, torch_version = record.get("threads"), record.get("torch")  # version 0.1 did not write these
        digests = [fingerprints["train"], fingerprints["validation"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / RUN_FILE} is damaged: {error!r}") from None
    tokenizer = Tokenizer.load(out)
    if differences := _differences(request, config, before, record, tokenizer, read_sources(out) is not None):
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
    train, validation = _data(out, request, tokenizer, digests, verify)
    if torch_version not in (None, torch.__version__):
        _log.warning(
            "%s was begun with PyTorch %s: with %s the last bits may differ", out, torch_version, torch.__version__
        )
    choices = [choice for choice in choices if not choice.startswith(_PLANS)]
    source, early = record.get("source"), tuple(record.get("early_evaluations", ()))
    if "eval_every" in changed:
        early = ()
    prepared = Prepared(config, settings, tokenizer, train, validation, baselines, choices, source, early)
    return prepared, before, threads


def _data(
    out: Path, request: Request, tokenizer: Tokenizer, digests: list[str], verify: bool
) -> tuple[TrainingSide, ValidationSide]:
    """The data that a run began with, checked; its datasets may have moved to where the request says."""
    now = sources_of(request.texts) if read_sources(out) is not None else None
    train, validation = open_run(out, tokenizer, now)
    if [train.fingerprint, validation.fingerprint] != digests:
        place = out / "data" if now is None else _listed([str(text) for text in request.texts])
        raise ValueError(f"{place} is not the data this run began with: it cannot be resumed")
    for part in (train, validation) if verify else ():
        part.verify()
    if now is not None:
        write_sources(out, now)
    return train, validation


def record_changes(out: Path, prepared: Prepared, agents: Sequence[str] = ()) -> None:
    """Write the settings of a resumed run into its `run.json`, and who resumed it: the next one needs no reminder."""
    record = read_json(out / RUN_FILE, max_bytes=MAX_RUN_BYTES)
    record |= {"settings": prepared.settings.to_dict(), "choices": prepared.choices, "agents": list(agents)}
    write_text(out / RUN_FILE, json.dumps(record, indent=2) + "\n")


def _differences(
    request: Request,
    config: GPTConfig,
    settings: Settings,
    record: dict[str, Any],
    tokenizer: Tokenizer,
    datasets: bool,
) -> list[str]:
    """What was asked for now that contradicts what the run began with, in words.

    Where it trains on `datasets`, others are told by their tokens, not by their names.
    """
    asked, recorded = dataclasses.asdict(Settings.from_dict(request.settings)), dataclasses.asdict(settings)
    differences = [
        f"{name} was {recorded[name]!r}, now {asked[name]!r}"
        for name in request.settings
        if asked[name] != recorded[name] and name not in _CHANGEABLE and (name, asked[name]) != ("dtype", "auto")
    ]
    texts, fields = [str(text) for text in request.texts], request.fields()
    if texts and texts != record["texts"] and not (datasets and sources_of(request.texts)):
        differences.append(f"the text was {_listed(record['texts'])}, now {_listed(texts)}")
    before = record.get("text_fields", [])  # runs before there were records have none
    if fields and fields != before:
        differences.append(f"the text fields were {', '.join(before) or 'not chosen'}, now {', '.join(fields)}")
    shape = dict(request.config)
    if request.shape is not None:
        shape = request.shapes(0)[0][1].to_dict() | {"vocab_size": config.vocab_size} | shape
        if isinstance(request.shape, str):  # a preset leaves these two to be picked
            shape |= {key: getattr(config, key) for key in ("drop_rate", "context_length") if key not in request.config}
    differences += [
        f"{name} was {value!r}, now {shape[name]!r}"
        for name, value in config.to_dict().items()
        if name in shape and shape[name] != value
    ]
    if request.model is not None:
        differences.append("the weights to begin with are chosen when a run begins")
    elif not _is_same(request.tokenizer, tokenizer, record.get("tokenizer")):
        now = f"{request.tokenizer.n_vocab:,} tokens" if isinstance(request.tokenizer, Tokenizer) else request.tokenizer
        differences.append(
            f"the tokenizer, chosen when a run begins, was one of {tokenizer.n_vocab:,} tokens, now {now}"
        )
    return differences


def _is_same(asked: Tokenizer | str | Path | None, tokenizer: Tokenizer, name: str | None) -> bool:
    """Whether a run's tokenizer is the one asked for; one that a text decides is told by the `name` it was asked by."""
    if asked is None or asked == name:
        return True
    if asked in ("bpe", "char"):
        return False
    if asked in ("gpt2", "byte"):
        asked = Tokenizer.gpt2() if asked == "gpt2" else Tokenizer.bytes_()
    elif not isinstance(asked, Tokenizer):
        asked = Tokenizer.load(asked)
    return tokenizer.has_fingerprint(asked.fingerprint)


def _listed(texts: list[str]) -> str:
    """The first texts of a run, and how many more there are."""
    if not texts:
        return "Python's own manual"
    return " ".join(texts[:3]) + (f" and {len(texts) - 3:,} more" if len(texts) > 3 else "")


def with_more_minutes(
    prepared: Prepared, minutes: float, patience: int | None, taken: int, device: torch.device, world_size: int = 1
) -> tuple[Prepared, str]:
    """With the steps that fit into `minutes` after the `taken` ones, and a line on them.

    `patience` is what was asked for, or None. The speed is measured on a model that is thrown away, so the run's own
    steps are those of any other run to the same number of steps.
    """
    settings = prepared.settings
    speed = measure_speed(prepared, settings, device, min(2.0, 0.05 * minutes * 60), world_size)
    more = further_steps(minutes * 60, speed, settings, prepared.config.n_parameters())
    settings = settings.prolonged(taken + more, patience)
    text = f"steps: {more:,} more fit into {time_text(minutes)} at the speed just measured"
    epochs, most = (
        prepared.epochs(taken + more),
        choose_epochs(prepared.parameters_per_token(), from_weights=prepared.source is not None),
    )
    if epochs > most:
        text += f"; they read the text {epochs:.1f} times in all, and more than {most} seldom make a model better"
    return dataclasses.replace(prepared, settings=settings), text


def resume_report(out: Path, prepared: Prepared, before: Settings, step: int) -> list[str]:
    """Lines on a resume at `step`: where the run is, where it goes, and what changed since `before`."""
    settings = prepared.settings
    assert settings.steps is not None
    line = (
        f"resuming {out} at step {step:,} of {settings.steps:,}, epoch {prepared.epochs(step):.1f} of "
        f"{prepared.epochs(settings.steps):.1f}"
    )
    if step == settings.steps:
        line += ": all its steps are taken, ask for more steps or minutes"
    else:
        rate, end = schedule(step, settings), schedule(settings.steps, settings)
        was = schedule(step, before)
        jump = f"from {was:.0%} to {rate:.0%}" if f"{was:.0%}" != f"{rate:.0%}" else f"at {rate:.0%}"
        line += f"; learning rate {jump} of its peak, in the end {end:.0%}"
    old, new = before.to_dict(), settings.to_dict()
    changes = [f"{name} {_text(old[name])} -> {_text(new[name])}" for name in new if new[name] != old[name]]
    return [line, *([f"changed: {', '.join(changes)}"] if changes else [])]


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else repr(value)
