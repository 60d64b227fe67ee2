"""`glassgpt demo` and `glassgpt train`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from glassgpt.cli.console import print_json, run_view, say
from glassgpt.cli.options import DONE, FAILED, above_zero, add_fields, add_machine, add_text_field, command, given
from glassgpt.config import PRESETS, GPTConfig, preset_sizes
from glassgpt.training.settings import Settings

OUT = "runs/model"
_KEYWORDS = ("shape", "model", "tokenizer", "minutes", "like", "resume", "change", "overwrite", "device", "threads")
"""What `train` takes under the name that the option has here."""


def add_commands(commands: Any) -> None:
    """Add the commands of this file."""
    demo = command(
        commands, "demo", _demo, "train a small GPT on Python's own manual for a minute, and watch it write", json=False
    )
    demo.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory of the run (default: runs/demo, or runs/demo-2 and so on where that is taken)",
    )
    demo.add_argument("--seconds", type=above_zero, default=60.0, help="time to train (default: %(default)g)")
    add_machine(demo, device=False)

    add_train_arguments(command(commands, "train", _train, "train a GPT on your own text"))


def add_train_arguments(train: argparse.ArgumentParser) -> None:
    """The arguments of `train`, which a sweep takes as well."""
    train.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="text files or folders, or datasets of glassgpt "
        "prepare, by weight where there are several: web=0.7 books=0.3 (none: Python's own manual)",
    )
    train.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings from a TOML file, such as the train.toml of a run; what is said here wins (default: none)",
    )
    add_text_field(train)
    train.add_argument("--out", metavar="DIR", help=f"directory of the run (default: {OUT})")
    train.add_argument(
        "--like",
        metavar="RUN",
        help="repeat this run, with its settings, tokens, tokenizer, seed and threads, but for what is said here "
        "(default: none)",
    )
    train.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    train.add_argument(
        "--change", action="store_true", help="with --resume: go on with the settings given here, where they differ"
    )
    train.add_argument("--overwrite", action="store_true", help="put a new run in the place of the one in --out")
    train.add_argument(
        "--from",
        dest="model",
        metavar="MODEL",
        help="begin with these weights and their tokenizer: a model directory or file, or a name to download "
        "(default: from scratch)",
    )
    train.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="how text becomes tokens: bpe, gpt2, char, byte, or a directory that holds one (default: bpe, trained on "
        "the text)",
    )
    train.add_argument(
        "--minutes",
        type=above_zero,
        help="train about this long, instead of --steps (default: 5); with --resume, this much longer",
    )
    shape = train.add_argument_group("shape of a new model")
    shape.add_argument(
        "--shape",
        choices=PRESETS,
        metavar="NAME",
        help=f"a size, trained from scratch: {preset_sizes()} (default: by the text, the machine and the minutes)",
    )
    add_fields(shape, GPTConfig, derived="the shape's, or picked")
    add_fields(train.add_argument_group("how to train"), Settings)
    add_machine(train)
    train.set_defaults(device=None)  # a file may say otherwise


def _demo(arguments: argparse.Namespace) -> int:
    from glassgpt.demo import demo
    from glassgpt.device import set_threads

    set_threads(arguments.threads)
    with run_view(on_stderr=False) as progress:
        result = demo(arguments.out, arguments.seconds, progress, sys.stdout)
    return DONE if result.finished else FAILED


def asked_for(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `train` that were given on the command line, checked (`ValueError`)."""
    values = {
        "texts": arguments.text,
        "text_fields": arguments.text_field,
        "out": arguments.out,
        "config": given(arguments, GPTConfig),
        **{name: getattr(arguments, name) for name in _KEYWORDS},
    }
    return {name: value for name, value in values.items() if value} | given(arguments, Settings)


def from_file(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `train` that were given, on the command line or in the file it names."""
    asked = asked_for(arguments)
    if arguments.config is None:
        return asked
    from glassgpt.training.train_file import merged, read_train_file

    return merged(read_train_file(arguments.config), asked)


def _train(arguments: argparse.Namespace) -> int:
    from glassgpt.device import set_threads
    from glassgpt.training.rank_watch import OtherRankError
    from glassgpt.training.ranks import is_first
    from glassgpt.training.train import train

    asked = from_file(arguments)
    set_threads(asked.get("threads"))
    try:
        with run_view(arguments.json) as progress:
            result = train(**{"out": OUT, **asked}, progress=progress)
    except OtherRankError as error:
        return FAILED if error.said else say(str(error), FAILED)
    if arguments.json and is_first():
        print_json(dataclasses.asdict(result))
    elif result.finished and is_first():
        print(f'next: glassgpt generate {shlex.quote(str(result.directory))} "Once upon a time"', file=sys.stderr)
    return DONE if result.finished else FAILED
