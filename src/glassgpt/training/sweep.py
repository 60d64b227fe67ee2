"""A sweep: runs that differ in a few settings, with an equal budget each, one after the other, and kept when finished.

Its directory holds a run for each choice of values and `sweep.json`, which says what all of them have in common: the
same sweep again does what is missing, and more values add to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import random
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from glassgpt.config import PRESETS, GPTConfig
from glassgpt.device import pick_device
from glassgpt.files import replacing, write_text
from glassgpt.json_file import read_json
from glassgpt.options import check, nearest
from glassgpt.training.look import Look, look
from glassgpt.training.plot_sweep import plot_sweep
from glassgpt.training.progress import Progress
from glassgpt.training.repeat import request_of
from glassgpt.training.run_directory import MAX_RUN_BYTES, holds_run, is_run, locked
from glassgpt.training.settings import Settings
from glassgpt.training.train import train
from glassgpt.training.train_file import merged

SWEEP_FILE, SWEEP_PLOT = "sweep.json", "sweep.png"
_FORMAT = "glassgpt-sweep"
_KEYWORDS = {"shape": "shape", "tokenizer": "tokenizer", "from": "model"}
_BUDGET = ("steps", "minutes")
_TRIES = 100  # for each value that is drawn and is not there yet

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high` to draw from: evenly in their logarithm where they span a factor of ten or more."""

    low: float
    high: float
    whole: bool

    def draw(self, numbers: random.Random) -> float:
        """A number, rounded to three digits."""
        if self.low > 0 and self.high >= 10 * self.low:
            value = math.exp(numbers.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = numbers.uniform(self.low, self.high)
        value = min(max(float(f"{value:.3g}"), self.low), self.high)
        return round(value) if self.whole else value


@dataclasses.dataclass(frozen=True)
class Sweep:
    """How a sweep stands: its runs, by their names in its directory."""

    directory: Path
    values: dict[str, Values]
    looks: dict[str, Look]
    failed: dict[str, str]
    finished: bool

    def ranked(self) -> list[str]:
        """The names, the best bits per byte first, which compare tokenizers too; those without any last."""

        def loss(name: str) -> float:
            best = self.looks[name].best if name in self.looks else None
            return math.inf if best is None else best["bits_per_byte"]

        return sorted(self.values, key=loss)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON, the best run first."""
        runs = []
        for name in self.ranked():
            summary = self.looks[name].summary() if name in self.looks else {"run": str(self.directory / name)}
            runs.append({"values": self.values[name], **summary, "failed": self.failed.get(name)})
        return {"directory": str(self.directory), "finished": self.finished, "runs": runs}


def parse_over(text: str) -> tuple[str, list[Any] | Range]:
    """ "NAME=VALUE,VALUE" or "NAME=LOW..HIGH" as a setting and its values; `ValueError` for what cannot be."""
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    name = next((field for field, (_, rule) in GPTConfig.rules().items() if name == rule.short), name)
    known = {**GPTConfig.rules(), **Settings.rules()}
    if name in _BUDGET:
        raise ValueError(f"{name}: a sweep gives each of its runs the same budget; say it once, for all of them")
    if name not in known and name not in _KEYWORDS:
        raise ValueError(f"unknown setting {name!r} in {text!r}: {nearest(name, [*known, *_KEYWORDS])}")
    parts = [part.strip() for part in values.split(",")]
    if not equals or not all(parts):
        raise ValueError(f"{text!r} must be NAME=VALUE,VALUE or NAME=LOW..HIGH")
    if ".." in values:
        return name, _range(name, values, known.get(name))
    found = [_value(name, part, known.get(name)) for part in parts]
    if any(value in found[:n] for n, value in enumerate(found)):
        raise ValueError(f"{text!r} has a value twice")
    return name, found


def _value(name: str, text: str, known: tuple[Any, Any] | None) -> Any:
    """A value as the setting's own type."""
    if known is None:
        if name == "shape" and text not in PRESETS:
            raise ValueError(f"shape {text!r}: {nearest(text, PRESETS)}")
        return text
    kind, rule = known
    value: Any = text
    kinds = {kind, *typing.get_args(kind)}
    if typing.get_origin(kind) is tuple:
        value = text.split("+")
    elif bool in kinds:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif number := next((each for each in (float, int) if each in kinds), None):
        with contextlib.suppress(ValueError):  # `check` says what it must be
            value = number(text)
    check(name, value, kind, rule)
    return value


def _range(name: str, text: str, known: tuple[Any, Any] | None) -> Range:
    low, _, high = text.partition("..")
    ends = [_value(name, end.strip(), known) for end in (low, high)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends) or ends[0] >= ends[1]:
        raise ValueError(f"{name} {text!r} must be two numbers, the smaller one first")
    return Range(ends[0], ends[1], whole=all(isinstance(end, int) for end in ends))


def choices(over: Mapping[str, list[Any] | Range], n_random: int | None, seed: int) -> list[Values]:
    """The values of each run: every combination, or `n_random` different ones drawn by `seed`.

    More of them begin with the same ones.
    """
    if n_random is None:
        ranges = [name for name, values in over.items() if isinstance(values, Range)]
        if ranges:
            raise ValueError(f"{ranges[0]} is a range: say how many to draw at random, or list its values")
        lists = [values for values in over.values() if not isinstance(values, Range)]
        return [dict(zip(over, combination, strict=True)) for combination in itertools.product(*lists)]
    found: list[Values] = []
    for draw in range(_TRIES * n_random):
        numbers = random.Random(f"{seed} {draw}")
        values = {
            name: values.draw(numbers) if isinstance(values, Range) else numbers.choice(values)
            for name, values in over.items()
        }
        if values not in found:
            found.append(values)
        if len(found) == n_random:
            break
    return found


def name_of(values: Values) -> str:
    """The name of a run's directory: its values, in letters that every file system takes."""
    text = ",".join(f"{name}={'+'.join(v) if isinstance(v, list) else v}" for name, v in values.items())
    safe = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)
    if safe == text and len(text) <= 100:
        return text
    return f"{safe[:90]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sweep(
    base: Mapping[str, Any],
    over: Mapping[str, list[Any] | Range],
    out: str | Path,
    *,
    n_random: int | None = None,
    seed: int = 1,
    view: Callable[[], AbstractContextManager[Progress]],
    message: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Train with the keywords `base` for each choice of values, into directories below `out`.

    Runs that are there are kept if they are finished, else resumed. One whose training fails is noted and the others go
    on. `view` gives each run its own view. After Ctrl-C the result is not `finished`. Raises `ValueError`, before
    anything is trained, for values that cannot be or an `out` that holds something else; else what `train` raises.
    """
    out, every = Path(out), choices(over, n_random, seed)
    values = {name_of(each): each for each in every}
    device = pick_device(base.get("device", "auto"))
    for each in every:
        request_of(with_values(base, each), device).checked(device)
    refusal: ValueError | None = None
    with locked(out), _opened(out, base, values) as failed:
        for number, (name, each) in enumerate(values.items(), 1):
            if name in failed or _is_finished(out / name):
                continue
            message(f"run {number} of {len(values)}: {name}")
            with view() as progress:
                try:
                    if holds_run(out / name):
                        machine = {key: base[key] for key in ("device", "threads") if key in base}
                        result = train(out=out / name, resume=True, progress=progress, **machine)
                    else:
                        result = train(**with_values(base, each), out=out / name, progress=progress)
                except ValueError as error:  # the text is too short, for one
                    failed[name], refusal = " ".join(str(error).split()), error
                    message(f"failed: {failed[name]}")
                    continue
                except (RuntimeError, MemoryError) as error:  # the loss was not finite, or the memory too small
                    failed[name] = " ".join(str(error).split())
                    message(f"failed: {failed[name]}")
            _write(out, base, failed)
            found = _result(out, values, failed)
            with replacing(out / SWEEP_PLOT) as temporary:
                plot_sweep(found.values, found.looks).savefig(temporary, format="png")
            if name not in failed and not result.finished:
                return found
        if refusal is not None and failed.keys() == values.keys() and len(set(failed.values())) == 1:
            failed.clear()  # what is wrong is none of the choices
            raise refusal
        _write(out, base, failed)
    return dataclasses.replace(_result(out, values, failed), finished=True)


def with_values(base: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """The keywords of `train` for one run."""
    config = {name: value for name, value in values.items() if name in GPTConfig.rules()}
    own = {_KEYWORDS.get(name, name): value for name, value in values.items() if name not in config}
    result = merged(base, own)
    if both := {**base.get("config", {}), **config}:  # what was given for all runs holds whatever their size
        result["config"] = both
    return result


@contextlib.contextmanager
def _opened(out: Path, base: Mapping[str, Any], values: Mapping[str, Values]) -> Iterator[dict[str, str]]:
    """`_open`; a sweep that is broken off before there is any run leaves nothing behind."""
    new = not (out / SWEEP_FILE).exists()
    failed = _open(out, base)
    try:
        yield failed
    except BaseException:
        if new and not failed and not any(is_run(out / name) for name in values):
            (out / SWEEP_FILE).unlink()
        raise


def _open(out: Path, base: Mapping[str, Any]) -> dict[str, str]:
    """What failed in an earlier sweep of the same base; `ValueError` where `out` holds something else."""
    path = out / SWEEP_FILE
    if not path.exists():
        foreign = next((p.name for p in sorted(out.iterdir()) if not p.name.startswith(".")), None)
        if foreign is not None:
            raise ValueError(f"{out} holds {foreign!r} and no sweep: choose an empty or new directory")
        _write(out, base, {})
        return {}
    record = read_json(path, max_bytes=MAX_RUN_BYTES)
    if record.get("format") != _FORMAT or not isinstance(record.get("failed"), dict):
        raise ValueError(f"{path} is not the file of a sweep: choose an empty or new directory")
    before, now = record.get("base", {}), _plain(base)
    different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{out} holds a sweep with {name} {before.get(name)!r}, now {now.get(name)!r}: choose another directory"
        )
    return dict(record["failed"])


def _write(out: Path, base: Mapping[str, Any], failed: Mapping[str, str]) -> None:
    write_text(
        out / SWEEP_FILE, json.dumps({"format": _FORMAT, "base": _plain(base), "failed": failed}, indent=2) + "\n"
    )


def _plain(base: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a JSON file."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(base), default=str))
    return plain


def _is_finished(run: Path) -> bool:
    return is_run(run) and look(run).finished


def _result(out: Path, values: dict[str, Values], failed: dict[str, str]) -> Sweep:
    looks = {name: look(out / name) for name in values if is_run(out / name)}
    return Sweep(out, values, looks, {name: failed[name] for name in values if name in failed}, finished=False)
