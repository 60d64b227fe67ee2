"""`glassgpt compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from glassgpt.cli.console import picture_kind, print_json, say
from glassgpt.cli.options import DONE, command
from glassgpt.terminal_text import visible


def add_commands(commands: Any) -> None:
    """Add the commands of this file."""
    compare = command(commands, "compare", _compare, "lay runs side by side: settings that differ, figures, curves")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs, finished or not")
    compare.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="picture of the curves, in a new file of type .png or .svg (default: none)",
    )


def _compare(arguments: argparse.Namespace) -> int:
    from glassgpt.files import creating
    from glassgpt.training.compare import compare, report

    kind = picture_kind(arguments.out)
    comparison = compare(arguments.runs)
    if arguments.json:
        print_json(comparison.to_dict())
    else:
        print(visible(report(comparison)), end="", flush=True)
    if kind is not None:
        from glassgpt.training.plot import plot_runs

        with creating(arguments.out) as temporary:
            plot_runs([(each.run, each) for each in comparison.looks]).savefig(temporary, format=kind)
        say(f"curves: {arguments.out}", DONE)
    return DONE
