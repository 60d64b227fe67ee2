"""Prints docs/cli.md, the help of every command: `python docs/render_cli.py > docs/cli.md` (`make docs`)."""

import argparse
import os
import sys

from glassgpt.cli import parser


def render() -> str:
    """The whole page. Python 3.11's wording: later versions of argparse break usage lines elsewhere."""
    os.environ["COLUMNS"] = "100"
    top = parser()
    (commands,) = (action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        "# The command line\n",
        "Made from the parser by `make docs`; a test compares them. Exit codes: 0 it worked, 1 it could not be done or",
        "was stopped, 2 it was used incorrectly. `glassgpt train` and Python's `train` share one class of options,",
        "`Settings`; `generate`, `chat` and Python's `complete` share `Generation`.\n",
        f"```\n{top.format_help()}```\n",
    ]
    for name, command in commands.items():
        parts.append(f"## glassgpt {name}\n\n```\n{command.format_help()}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(render())
