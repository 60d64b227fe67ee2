"""`glassgpt plan`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.console import print_json, run_view
from glassgpt.cli.options import DONE, above_zero, command
from glassgpt.cli.train import OUT, add_train_arguments, from_file
from glassgpt.terminal_text import visible

if TYPE_CHECKING:
    from glassgpt.training.forecast import Forecast, Goal


def add_commands(commands: Any) -> None:
    """Add the command of this file."""
    plan = command(commands, "plan", _plan, "say what train would do with the same options, what it takes and how long")
    plan.add_argument("--tokens", type=above_zero, metavar="N", help="look ahead to a run of N tokens (default: none)")
    plan.add_argument(
        "--epochs", type=above_zero, metavar="N", help="look ahead to N readings of the text (default: none)"
    )
    plan.add_argument("--price", type=above_zero, help="of this machine for an hour, for the cost (default: none)")
    add_train_arguments(plan)


def _plan(arguments: argparse.Namespace) -> int:
    from glassgpt.device import pick_device, set_threads
    from glassgpt.training.forecast import forecast
    from glassgpt.training.repeat import request_of

    asked = from_file(arguments)
    wrong = next((name for name in ("resume", "change") if asked.get(name)), None)
    if wrong is not None:
        raise ValueError(f"--{wrong} is not for a plan, which is of a new run: leave it out")
    device = pick_device(asked.get("device", "auto"))
    request = request_of(asked, device)
    set_threads(asked.get("threads", request.like.record.threads if request.like else None))
    with run_view(on_stderr=True) as progress:
        found = forecast(
            request,
            Path(asked.get("out", OUT)),
            device,
            progress,
            tokens=None if arguments.tokens is None else round(arguments.tokens),
            epochs=arguments.epochs,
            price=arguments.price,
        )
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(visible("\n".join(_lines(found))))
    return DONE


def _lines(found: Forecast) -> list[str]:
    """The plan for people."""
    parts = ", ".join(f"{part} {n:,}" for part, n in found.parameters.items() if n)
    lines = [
        *(f"train would pick  {choice}" for choice in found.choices),
        "",
        f"parameters   {found.n_parameters:,}, of which {found.without_embeddings:,} in the blocks",
        f"             {parts}",
        f"memory       {_gb(found.memory.total)} at once"
        + ("" if found.available is None else f", of {_gb(found.available)} that can be had here"),
        *(f"             {_gb(n):>9}  {part}" for part, n in found.memory.parts.items() if n),
        *([f"             {_gb(found.memory.process):>9}  Python and PyTorch"] if found.memory.process else []),
    ]
    if found.tokens_per_second is not None and found.step_seconds is not None:
        lines.append(f"speed        {found.tokens_per_second:,.0f} tokens/s, {found.step_seconds:.3g} s a step")
    if found.share is not None and found.product_rate is not None:
        lines.append(
            f"             {found.share:.0%} of the {found.product_rate / 1e9:,.0f} GFLOPS that products reach here"
        )
    lines += [f"{'time' if n == 0 else '':12} {_goal(goal)}" for n, goal in enumerate(found.goals)]
    lines += [f"{'advice' if n == 0 else '':12} {line}" for n, line in enumerate(found.advice)]
    return lines


def _goal(goal: Goal) -> str:
    from glassgpt.training.compare import clock

    line = f"{goal.name}: {goal.steps:,} steps, {goal.tokens:,} tokens, {goal.epochs:,.1f} epochs"
    if goal.seconds is not None:
        line += f", {clock(goal.seconds)}"
    return line if goal.cost is None else f"{line}, cost {goal.cost:,.2f}"


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"
