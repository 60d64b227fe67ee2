"""`glassgpt sweep`."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.console import print_json, run_view, say
from glassgpt.cli.options import DONE, FAILED, Parser, command, whole
from glassgpt.cli.train import add_train_arguments, asked_for, from_file
from glassgpt.terminal_text import table, visible

if TYPE_CHECKING:
    from glassgpt.training.sweep import Sweep

_OUT = "runs/sweep"
_OF_THE_SWEEP = ("out", "resume", "overwrite", "change")


def add_commands(commands: Any) -> None:
    """Add the command of this file."""
    sweep = command(commands, "sweep", _sweep, "train once for each choice of settings, or find a learning rate")
    what = sweep.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--over",
        action="append",
        metavar="NAME=VALUES",
        help="a setting of train and its values, with commas between them, or LOW..HIGH to draw from with --random; "
        "may be given more than once (default: none)",
    )
    what.add_argument(
        "--find",
        choices=("learning_rate", "muon_learning_rate"),
        help="find this rate by raising it step by step on a model that is thrown away (default: none)",
    )
    sweep.add_argument(
        "--random", type=whole, metavar="N", help="draw N choices of values (default: every combination)"
    )
    sweep.add_argument(
        "--random-seed", type=whole, default=1, metavar="N", help="decides which are drawn (default: %(default)s)"
    )
    sweep.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory of the runs, their table and picture; an unfinished sweep there is continued "
        f"(default: {_OUT}, with --find runs/find)",
    )
    sweep.add_argument(
        "train", nargs="*", metavar="-- TRAIN", help="what train takes, after two dashes: a text, --minutes 1, ..."
    )


def _sweep(arguments: argparse.Namespace) -> int:
    base = _base(arguments.train)
    return _find(arguments, base) if arguments.find else _run(arguments, base)


def _base(words: list[str]) -> dict[str, Any]:
    """The keywords of `train` that all runs have in common."""
    parser = Parser(prog="glassgpt sweep ... --")
    add_train_arguments(parser)
    given, unknown = parser.parse_known_args(words)
    if unknown:
        parser.refuse(unknown)
    keywords = from_file(given)
    wrong = next((name for name in _OF_THE_SWEEP if asked_for(given).get(name)), None)
    if wrong is not None:
        raise ValueError(f"--{wrong} is not for the runs of a sweep, which has a directory of its own: leave it out")
    return {name: value for name, value in keywords.items() if name != "out"}


def _run(arguments: argparse.Namespace, base: dict[str, Any]) -> int:
    from glassgpt.device import set_threads
    from glassgpt.training.sweep import parse_over, sweep

    set_threads(base.get("threads"))
    over: dict[str, Any] = {}
    for text in arguments.over:
        name, values = parse_over(text)
        if name in over:
            raise ValueError(f"{name} is given twice: list all its values once")
        over[name] = values
    result = sweep(
        base,
        over,
        arguments.out or Path(_OUT),
        n_random=arguments.random,
        seed=arguments.random_seed,
        view=functools.partial(run_view, arguments.json),
        message=_say,
    )
    if arguments.json:
        print_json(result.to_dict())
    else:
        print(visible(_report(result)), end="", flush=True)
    if not result.finished:
        return say("stopped: the same command goes on where it was", FAILED)
    return DONE


def _say(text: str) -> None:
    say(visible(text), DONE)


def _report(result: Sweep) -> str:
    """The table, the best run first, and the picture's name."""
    from glassgpt.training.compare import RESULTS, Comparison, results_row, shown
    from glassgpt.training.sweep import SWEEP_PLOT

    names = result.ranked()
    settings = list(result.values[names[0]]) if names else []
    rows = []
    for name in names:
        cells = [shown(result.values[name][setting]) for setting in settings]
        figures = results_row(result.looks[name]) if name in result.looks else ["not begun"] + [""] * (len(RESULTS) - 1)
        if name in result.failed:
            figures[0] = "failed"
        rows.append([*cells, *figures])
    lines = [table([*settings, *RESULTS], rows)]
    lines += [f"- {name}: {reason}" for name, reason in result.failed.items()]
    lines += [f"- {note}" for note in Comparison(list(result.looks.values()), {}).notes()]
    return "\n".join([*lines, f"picture: {result.directory / SWEEP_PLOT}"]) + "\n"


def _find(arguments: argparse.Namespace, base: dict[str, Any]) -> int:
    from glassgpt.device import pick_device, set_threads
    from glassgpt.files import creating
    from glassgpt.training.find_rate import find_rate
    from glassgpt.training.plot_sweep import plot_rate
    from glassgpt.training.repeat import request_of

    if arguments.random is not None:
        raise ValueError("--random is for --over: leave it out")
    out = (arguments.out or Path("runs/find")) / arguments.find
    set_threads(base.get("threads"))
    for path in (out.with_suffix(".png"), out.with_suffix(".json")):
        if path.exists():
            raise FileExistsError(f"{path} exists: choose a new name")
    with run_view(arguments.json) as progress:
        device = pick_device(base.get("device", "auto"))
        found = find_rate(request_of(base, device), arguments.find, device, progress)
    with creating(out.with_suffix(".png")) as picture, creating(out.with_suffix(".json")) as results:
        plot_rate(found).savefig(picture, format="png")
        results.write_text(json.dumps(found.to_dict()) + "\n", encoding="utf-8")
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(f"the loss falls fastest at {found.setting} {found.steepest:.2g}: a good peak")
        print(f"it is lowest at {found.lowest:.2g}, a tenth of which is {found.lowest / 10:.2g}")
        print(f"picture: {out.with_suffix('.png')}")
    return DONE
