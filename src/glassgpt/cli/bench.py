"""`glassgpt bench`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.bench.plan import ON_GPU, WORKS
from glassgpt.cli.console import print_json, say
from glassgpt.cli.options import DONE, FAILED, add_machine, add_model, command, whole

if TYPE_CHECKING:
    from glassgpt.bench.run import Progress

_ROUNDS = 5
_LINE_SECONDS = 10.0


def add_commands(commands: Any) -> None:
    """Add the command of this file."""
    bench = command(commands, "bench", _bench, "time every way to decode a model on this machine, and peers")
    add_model(bench)
    rounds = bench.add_mutually_exclusive_group()
    rounds.add_argument(
        "--rounds",
        type=whole,
        default=_ROUNDS,
        metavar="N",
        help=f"turns of each contender, each in a fresh process; medians are shown (default: {_ROUNDS})",
    )
    rounds.add_argument("--quick", action="store_const", dest="rounds", const=1, help="one round")
    bench.add_argument(
        "--work",
        action="append",
        choices=WORKS,
        help="decode: one row; prompt: a long one; rows: 1 to 16 together; context: cost of a token over its length; "
        "first: the whole command for one token; may be repeated (default: all)",
    )
    bench.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="contenders whose names begin so; may be repeated (default: all)",
    )
    bench.add_argument(
        "--peers", action="store_true", help="beside them transformers, CTranslate2 and llama.cpp, where installed"
    )
    bench.add_argument(
        "--out", type=Path, metavar="DIR", help="where bench.json, bench.md and bench.png are written (default: none)"
    )
    add_machine(bench, device=False)


def _bench(arguments: argparse.Namespace) -> int:
    from glassgpt.bench.report import check_new, report, write_files
    from glassgpt.bench.run import bench

    if arguments.out is not None:
        check_new(arguments.out)  # before an hour of work
    with _progress() as progress:
        result = bench(
            arguments.model,
            rounds=arguments.rounds,
            works=arguments.work or WORKS,
            only=arguments.only,
            peers=arguments.peers,
            threads=arguments.threads,
            first_token=_generate_command,
            progress=progress,
        )
    if arguments.json:
        print_json(result.to_dict())
    else:
        print(report(result), end="", flush=True)
    if arguments.out is not None:
        write_files(result, arguments.out)
        say(f"results: {arguments.out}", DONE)
    if not result.finished:
        return say("interrupted: these are the results so far", FAILED)
    return DONE


def _generate_command(model: str, contender: str, threads: int) -> list[str]:
    """`glassgpt generate` as a contender would be chosen, for one token."""
    decoder, rest = contender.partition(" ")[::2]
    how = ["--device", "cuda" if contender in ON_GPU else "cpu", "--decoder", decoder]
    if decoder == "compiled":
        how += ["--precision", rest]
    options = ["--max-new-tokens", "1", "--temperature", "0", "--threads", str(threads)]
    return [sys.executable, "-m", "glassgpt", "generate", model, "-", *options, *how]


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """On standard error: a bar on a terminal, else a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (BarColumn(bar_width=30), TextColumn("{task.fields[shown]}", markup=False))
    shown_at = -_LINE_SECONDS
    # drawn between turns alone: a clock that ticks would take time from what is measured
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False) as bar:
        task = bar.add_task("", total=None, shown="")

        def progress(name: str, done: int, total: int, left: float | None) -> None:
            nonlocal shown_at
            parts = [f"{done} of {total} turns"] if total else []
            if left is not None:
                parts.append(f"{datetime.timedelta(seconds=round(left))} left")
            shown = "  ".join([*parts, name])
            bar.update(task, completed=done, total=total or None, shown=shown, refresh=True)
            if not console.is_terminal and name and time.monotonic() - shown_at >= _LINE_SECONDS:
                shown_at = time.monotonic()
                say(shown, DONE)

        yield progress
