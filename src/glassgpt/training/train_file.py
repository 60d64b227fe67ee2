"""`train.toml`: all that `train` can be given, in a file that people write and that every run writes about itself.

At its top stand the text, the tokenizer and where to compute, in `[model]` the fields of `GPTConfig`, in `[training]`
those of `Settings`. Paths are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.config import PRESETS, WEIGHTS_LEAVE_OPEN, GPTConfig
from glassgpt.data.vocabulary import TOKENIZERS
from glassgpt.options import Options, Rule, check, nearest
from glassgpt.toml_file import place_of, read_toml, toml_value
from glassgpt.training.settings import Settings

if TYPE_CHECKING:
    from glassgpt.training.records import Prepared
    from glassgpt.training.request import Request

_TOP: dict[str, tuple[str, Any, Rule]] = {
    "text": ("texts", tuple[str, ...], Rule(help="")),
    "text_field": ("text_fields", tuple[str, ...], Rule(help="")),
    "out": ("out", str, Rule(help="")),
    "from": ("model", str, Rule(help="")),
    "tokenizer": ("tokenizer", str, Rule(help="")),
    "shape": ("shape", str, Rule(help="", choices=tuple(PRESETS))),
    "minutes": ("minutes", float, Rule(help="", above=0)),
    "device": ("device", str, Rule(help="")),
    "threads": ("threads", int, Rule(help="", at_least=1)),
}
"""The keys above the tables: `train`'s keyword, what it takes."""
_TABLES: dict[str, type[Options]] = {"model": GPTConfig, "training": Settings}
_DECIDED = {"text_fields": "texts", "steps": "minutes", "minutes": "steps", "shape": "model", "model": "shape"}
"""A keyword of a file that no longer counts once another one is given."""

_FOLLOWS = ("learning_rate", "muon_learning_rate", "warmup_steps", "eval_every")
"""Settings that, where they are not given, follow from the others."""


def read_train_file(path: str | Path) -> dict[str, Any]:
    """The keywords of `train` that a TOML file holds; fields of `GPTConfig` are in `config`.

    `ValueError` in one line, with the file, the line and the table, for what is unknown or cannot be; `OSError` where
    the file cannot be read.
    """
    path = Path(path)
    values, text = read_toml(path)
    result: dict[str, Any] = {}
    for key, value in values.items():
        try:
            if key in _TABLES:
                _read_table(path, text, key, value, result)
                continue
            if key not in _TOP:
                raise ValueError(f"unknown key {key!r}: {_meant(key)}")
            keyword, kind, rule = _TOP[key]
            check(key, value, kind, rule)
            if isinstance(value, list) and not all(isinstance(part, str) for part in value):
                raise ValueError(f"{key} {value!r} must be a list of texts")
        except ValueError as error:
            raise _at(path, text, "", key, error) from None
        result[keyword] = _from_here(path.parent, key, value)
    return result


def _read_table(path: Path, text: str, table: str, values: Any, result: dict[str, Any]) -> None:
    """Put the fields of a table where `train` takes them."""
    options = _TABLES[table]
    if not isinstance(values, dict):
        raise ValueError(f"{table} {values!r} must be a table: [{table}] on a line of its own")
    for key, value in values.items():
        try:
            if key not in options.rules():
                raise ValueError(f"unknown {options.noun} {key!r}: {_meant(key, table)}")
            options.check_fields({key: value})
        except ValueError as error:
            raise _at(path, text, table, key, error) from None
    if table == "model":
        result["config"] = dict(values)
    else:
        result |= values


def _meant(key: str, table: str = "") -> str:
    """The rest of a message about an unknown key: where it belongs, or the nearest one."""
    for other, options in _TABLES.items():
        if key in options.rules() and other != table:
            return f"it belongs below [{other}]"
    if table and key in _TOP:
        return f"it belongs above [{table}], at the top of the file"
    return nearest(key, _TABLES[table].rules() if table else [*_TOP, *_TABLES])


def _at(path: Path, text: str, table: str, key: str, error: ValueError) -> ValueError:
    if str(error).startswith(f"{path}"):  # said already, by the table
        return error
    place = place_of(text, table, key)
    return ValueError(f"{path}{f', {place}' if place else ''}: {error}")


def _from_here(folder: Path, key: str, value: Any) -> Any:
    """A value whose paths, relative to `folder`, are those of this process."""
    if key in ("text", "text_field"):
        several = [value] if isinstance(value, str) else value
        return [str(folder / part) for part in several] if key == "text" else several
    if key == "out" or (key == "tokenizer" and value not in TOKENIZERS):
        return str(folder / value)
    if key == "from" and ((folder / value).exists() or Path(value).exists()):  # else a name to download
        return str(folder / value)
    return value


def merged(file: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a file and those that were `asked` for beside it, which win.

    What they exclude goes with it: `steps` and `minutes` replace each other, and so do a `shape` or weights to begin
    with and all that the file says of the model; other texts have other fields. A run that is resumed has its minutes
    behind it.
    """
    gone = {keyword for keyword, other in _DECIDED.items() if other in asked}
    if "shape" in asked or "model" in asked:
        gone |= {"shape", "model", "config"}
    if asked.get("resume"):
        gone |= {"minutes"}
    result = {keyword: value for keyword, value in file.items() if keyword not in gone} | dict(asked)
    if "config" in asked:
        result["config"] = ({} if "config" in gone else file.get("config", {})) | asked["config"]
    return result


def begun_with(request: Request, settings: Settings) -> dict[str, Any]:
    """The settings that decide a run: all but those that follow from others and were not given."""
    return {
        name: value
        for name, value in settings.to_dict().items()
        if value is not None and not _follows(name, request.settings)
    }


def _follows(name: str, given: Mapping[str, Any]) -> bool:
    return name in _FOLLOWS and given.get(name) is None


def train_toml(request: Request, prepared: Prepared, out: Path, device: str, threads: int) -> str:
    """The `train.toml` of the run in `out`: what it was begun with, and in comments what follows from that."""
    return "\n".join(
        [
            "# What this run was begun with; `glassgpt train` takes it again as its config. What stands in comments",
            "# follows from the rest; a line whose comment says `picked` may be deleted, to have it picked anew.",
            *_top_lines(request, prepared, out),
            f"device = {toml_value(device)}",
            f"threads = {threads}",
            "",
            "[model]",
            *_model_lines(request, prepared.config),
            "",
            "[training]",
            *_settings_lines(request, prepared.settings),
            "",
        ]
    )


def _top_lines(request: Request, prepared: Prepared, out: Path) -> list[str]:
    texts = [_relative(text, out) for text in request.texts]
    lines = [f"text = {toml_value(texts)}" + ("" if texts else "  # Python's own manual")]
    if request.fields():
        lines.append(f"text_field = {toml_value(request.fields())}")
    if isinstance(request.model, str | Path):
        named = Path(request.model).exists()
        lines.append(f"from = {toml_value(_relative(request.model, out) if named else str(request.model))}")
    elif request.model is not None:
        lines.append("# from: a model in memory, which no file can name")
    if isinstance(request.tokenizer, str | Path):
        name = str(request.tokenizer)
        lines.append(f"tokenizer = {toml_value(name if name in TOKENIZERS else _relative(name, out))}")
    elif request.tokenizer is not None or (request.model is not None and not isinstance(request.model, str | Path)):
        lines.append('tokenizer = "."  # the one in this directory')
    elif request.model is None:
        of_text = request.tokenizer_name is not None
        lines.append('tokenizer = "bpe"  # default' if of_text else "# tokenizer: of the datasets")
    if isinstance(request.shape, str):
        lines.append(f"# shape = {toml_value(request.shape)}")
    if prepared.settings.steps is not None and request.settings.get("steps") is None:
        lines.append(f"# minutes = {toml_value(request.minutes)}" if request.minutes else "# minutes: the default")
    return lines


def _model_lines(request: Request, config: GPTConfig) -> list[str]:
    lines, preset = [], PRESETS.get(request.shape) if isinstance(request.shape, str) else None
    free = GPTConfig.rules().keys() if request.model is None else WEIGHTS_LEAVE_OPEN
    for name, value in config.to_dict().items():
        if value is None:
            lines.append(f"# {name}: {GPTConfig.rules()[name][1].derived}")
        elif name not in free:
            lines.append(f"# {name} = {toml_value(value)}  # of the weights")
        elif name in request.config or isinstance(request.shape, GPTConfig):
            lines.append(f"{name} = {toml_value(value)}")
        else:
            same = preset is not None and getattr(preset, name) == value
            origin = "of the weights" if request.model is not None else f"as {request.shape}" if same else "picked"
            lines.append(f"{name} = {toml_value(value)}  # {origin}")
    return lines


def _settings_lines(request: Request, settings: Settings) -> list[str]:
    lines, defaults, begun = [], Settings(), begun_with(request, settings)
    for name, value in settings.to_dict().items():
        rule = Settings.rules()[name][1]
        if value is None:
            lines.append(f"# {name}: {rule.derived}")
        elif name not in begun:
            lines.append(f"# {name} = {toml_value(value)}  # {rule.derived}")
        elif request.settings.get(name) is not None and request.settings[name] != "auto":
            lines.append(f"{name} = {toml_value(value)}")
        else:
            picked = getattr(defaults, name) != value
            lines.append(f"{name} = {toml_value(value)}  # {'picked' if picked else 'default'}")
    return lines


def _relative(path: str | Path, out: Path) -> str:
    """`path` as seen from the directory `out`; as it is where there is no way between them (drives of Windows)."""
    try:
        return Path(os.path.relpath(Path(path).resolve(), out.resolve())).as_posix()
    except ValueError:
        return str(Path(path).resolve())
