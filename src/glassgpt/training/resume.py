"""A run that is taken up again: what it began with, what may change, where it goes, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glassgpt.data.sources import read_sources, sources_of, write_sources
from glassgpt.files import write_text
from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.choose import choose_epochs
from glassgpt.training.measure import further_steps, measure_speed, time_text
from glassgpt.training.prepare import check_sample
from glassgpt.training.records import Prepared
from glassgpt.training.request import IN_MEMORY, Request
from glassgpt.training.run_directory import MAX_RUN_BYTES, RUN_FILE
from glassgpt.training.run_file import RunRecord, open_data, read_run, warn_of_torch
from glassgpt.training.settings import Settings
from glassgpt.training.state import checkpoints
from glassgpt.training.step import schedule

# Settings that a resumed run may change: none of them touches a step that has been taken, or what losses mean
_CHANGEABLE = frozenset(
    {
        *("steps", "eval_every", "save_minutes", "patience", "sample_prompt", "sample_tokens"),
        *("spike_loss", "spike_norm", "rollbacks", "fsdp", "tensorboard", "wandb"),
    }
)
# Settings whose change makes another run of it from here on; the others are fixed by what a checkpoint has in it, or
# make losses before and after incomparable
_ON_DEMAND = frozenset(
    {
        *("micro_batch_size", "learning_rate", "muon_learning_rate", "muon_momentum", "weight_decay"),
        *("warmup_steps", "decay", "final_rate", "grad_clip", "dtype", "seed", "keep", "activation_checkpointing"),
        "compile",
    }
)
# How choices begin that tell what the run was to be when it began; a resume says itself how far it goes
_PLANS = ("time: ", "steps: ", "the text is read ")


def reopen(
    out: Path, request: Request, change: bool = False, *, verify: bool = True
) -> tuple[Prepared, Settings, RunRecord]:
    """A run that was prepared before, to be resumed.

    Besides it, its settings as they were before this resume changed any, and its record. What contradicts the run is a
    `ValueError` that says how, unless it may `change`. To `verify` the data hashes it.
    """
    if not (out / RUN_FILE).exists():
        raise FileNotFoundError(f"{out} holds no run to resume: {RUN_FILE} is missing")
    record, tokenizer = read_run(out), Tokenizer.load(out)
    before = record.settings
    now = sources_of(request.texts) if read_sources(out) is not None else None  # datasets may have moved there
    if differences := _differences(request, record, tokenizer, change, now is not None):
        raise _refusal(out, differences)
    changed = _asked(request)
    steps = changed.get("steps")
    settings = dataclasses.replace(before if steps is None else before.prolonged(steps), **changed)
    taken = max((int(path.name.removeprefix("step-")) for path in checkpoints(out)), default=0)
    if settings.steps is None or settings.steps < taken:
        raise ValueError(f"steps {settings.steps} is below the {taken} that {out} has taken already: ask for more")
    check_sample(tokenizer, settings)
    train, validation = open_data(out, record, tokenizer, now, verify=verify)
    if now is not None:
        write_sources(out, now)
    warn_of_torch(out, record)
    choices = [choice for choice in record.choices if not choice.startswith(_PLANS)]
    early = record.early if settings.eval_every == before.eval_every else ()
    prepared = Prepared(
        record.config, settings, tokenizer, train, validation, record.baselines, choices, record.source, early
    )
    return prepared, before, record


def record_changes(out: Path, prepared: Prepared, agents: Sequence[str] = ()) -> None:
    """Write the settings of a resumed run into its `run.json`, and who resumed it: the next one needs no reminder."""
    record = read_json(out / RUN_FILE, max_bytes=MAX_RUN_BYTES)
    record |= {"settings": prepared.settings.to_dict(), "choices": prepared.choices}
    record |= {"early_evaluations": prepared.early, "agents": list(dict.fromkeys([*record.get("agents", ()), *agents]))}
    write_text(out / RUN_FILE, json.dumps(record, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class _Difference:
    """What was asked for now that contradicts what the run began with."""

    name: str
    was: str
    now: str
    on_demand: bool = False
    """Whether a resume may change it if it is told to."""


def _refusal(out: Path, differences: list[_Difference]) -> ValueError:
    """The differences: one of them in a line, several as a table that is a note of the error."""
    ways = (
        "leave it out, or begin a new run elsewhere" if len(differences) == 1 else "leave them out, or begin a new run"
    )
    if all(difference.on_demand for difference in differences):
        ways += ", or let the resume change it" if len(differences) == 1 else ", or let the resume change them"
    if len(differences) == 1:
        (only,) = differences
        return ValueError(f"{out} was begun differently: {only.name} was {only.was}, now {only.now}: {ways}")
    error = ValueError(f"{out} was begun differently in {len(differences)} ways: {ways}")
    rows = [("", "the run", "asked for"), *((d.name, d.was, d.now) for d in differences)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {name:{widths[0]}}  {was:{widths[1]}}  {now}" for name, was, now in rows]
    error.add_note("\n".join(lines))
    return error


def _asked(request: Request) -> dict[str, Any]:
    """The settings that were asked for; what was left to be picked was picked when the run began."""
    values = Settings.from_dict(request.settings).to_dict()
    picked = (None, "auto")
    return {name: values[name] for name in request.settings if values[name] not in picked}


def _differences(
    request: Request, record: RunRecord, tokenizer: Tokenizer, change: bool, datasets: bool
) -> list[_Difference]:
    """What was asked for now that contradicts what the run began with, and that must not `change`.

    Where it trains on `datasets`, others are told by their tokens, not by their names.
    """
    settings, config = record.settings.to_dict(), record.config
    on_demand = _ON_DEMAND - ({"keep"} if settings["keep"] == "last" else set())  # its best model so far is gone
    free = _CHANGEABLE | (on_demand if change else frozenset())
    differences = [
        _Difference(name, repr(settings[name]), repr(now), name in on_demand)
        for name, now in _asked(request).items()
        if now != settings[name] and name not in free
    ]
    texts, fields = [str(text) for text in request.texts], request.fields()
    if texts and not datasets and not _same_paths(texts, record.texts_from_here):
        differences.append(_Difference("the text", _listed(record.texts), _listed(texts)))
    if fields and fields != record.text_fields:
        differences.append(
            _Difference("the text's field", ", ".join(record.text_fields) or "not chosen", ", ".join(fields))
        )
    shape = dict(request.config)
    if request.shape is not None:
        shape = request.shapes(0)[0][1].to_dict() | {"vocab_size": config.vocab_size} | shape
        if isinstance(request.shape, str):  # a preset leaves these two to be picked
            shape |= {key: getattr(config, key) for key in ("drop_rate", "context_length") if key not in request.config}
    differences += [
        _Difference(name, repr(value), repr(shape[name]))
        for name, value in config.to_dict().items()
        if name in shape and shape[name] != value
    ]
    if request.model is not None and not _same_paths([str(request.model)], [str(record.source)]):
        source = IN_MEMORY if isinstance(request.model, GPTModel) else str(request.model)
        differences.append(_Difference("what it began with", record.source or "nothing, from scratch", source))
    elif not _is_same(request.tokenizer, tokenizer, record.tokenizer):
        asked = request.tokenizer
        now = f"one of {asked.n_vocab:,} tokens" if isinstance(asked, Tokenizer) else str(asked)
        differences.append(_Difference("the tokenizer", f"one of {tokenizer.n_vocab:,} tokens", now))
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


def _same_paths(some: list[str], others: list[str]) -> bool:
    """Whether these are the same places, as they were written or from here."""
    return some == others or [Path(path).resolve() for path in some] == [Path(path).resolve() for path in others]


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


def resume_report(out: Path, prepared: Prepared, before: Settings, step: int, rate: float = 1.0) -> list[str]:
    """Lines on a resume at `step`: where the run is, where it goes, and what changed since `before`.

    `rate` is the part of the learning rate that rollbacks have left.
    """
    settings = prepared.settings
    assert settings.steps is not None
    line = (
        f"resuming {out} at step {step:,} of {settings.steps:,}, epoch {prepared.epochs(step):.1f} of "
        f"{prepared.epochs(settings.steps):.1f}"
    )
    if step == settings.steps:
        line += ": all its steps are taken, ask for more steps or minutes"
    else:
        now, end = rate * schedule(step, settings), rate * schedule(settings.steps, settings)
        was = rate * schedule(step, before)
        jump = f"from {was:.0%} to {now:.0%}" if f"{was:.0%}" != f"{now:.0%}" else f"at {now:.0%}"
        line += f"; learning rate {jump} of its peak, in the end {end:.0%}"
    old, new = before.to_dict(), settings.to_dict()
    changes = [f"{name} {_text(old[name])} -> {_text(new[name])}" for name in new if new[name] != old[name]]
    return [line, *([f"changed: {', '.join(changes)}"] if changes else [])]


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else repr(value)
