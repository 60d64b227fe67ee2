"""`glassgpt generate --prompts`: many prompts from a file, to records that a killed one goes on with."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from glassgpt.cli.console import prompts_bar, say
from glassgpt.cli.options import DONE, FAILED, load_draft, load_for_text, readable, say_choice, whole


class _Prompts(argparse.Action):
    """Who names a file of prompts need not give one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: Any) -> None:
        setattr(namespace, self.dest, value)
        # an argument that may be absent (nargs="?") would be taken for absent before an option: argparse, until 3.12
        next(action for action in parser._actions if action.dest == "prompt").required = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a batch, in a group of their own."""
    group = parser.add_argument_group(
        "many prompts",
        "Writes a record (JSON) for each as it finishes: index, prompt, text, finish_reason, n_prompt_tokens, "
        "n_new_tokens, seed, digest. The same command goes on where a stopped one was.",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        action=_Prompts,
        metavar="FILE",
        help="continue every prompt in FILE instead of PROMPT: one on each line or, in a .jsonl file, objects with "
        "prompt and any of these options by name, such as max_new_tokens; prompt number i, from 0, has the seed "
        "--seed + i, and --seed is then 0 unless given (default: none)",
    )
    group.add_argument(
        "--out", type=Path, metavar="FILE", help="file of the records; those in it are kept (default: standard output)"
    )
    group.add_argument(
        "--batch", type=whole, metavar="N", help="most prompts at once (default: 64, or as many as fit 2 GiB of cache)"
    )


def check_arguments(arguments: argparse.Namespace) -> None:
    """`ValueError` for arguments that do not go together."""
    if arguments.prompts is None:
        for name in ("out", "batch"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} goes with --prompts FILE")
    elif arguments.prompt is not None:
        raise ValueError("PROMPT and --prompts exclude each other: write the prompt to the file")
    elif arguments.n != 1:
        raise ValueError("--n goes with PROMPT: write a prompt to the file as often as it is to be continued")


def generate_batch(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    """The body of `generate --prompts`; returns the exit code."""
    from glassgpt.generation.batch import complete_tasks, read_prompts, record_line, records_at, tasks_for
    from glassgpt.weights.download.resolve import resolve_model

    prompts = read_prompts(arguments.prompts, options)
    arguments.model = resolve_model(arguments.model)
    model, tokenizer = load_for_text(arguments)
    draft = load_draft(arguments, tokenizer, model, load_for_text)
    from glassgpt.generation.speculation import Tally

    tasks = tasks_for(model, tokenizer, arguments.prompts, prompts, _fingerprint(model))
    tally, outgrown = Tally(), list[int]()
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(records_at(arguments.out, tasks)) if arguments.out else None
        done = {} if records is None else records.done
        left = [task for task in tasks if task.index not in done]
        progress = stack.enter_context(prompts_bar(len(tasks), sum(t.generation.max_new_tokens for t in tasks)))
        for task in tasks:
            if task.index in done:
                progress.kept(task.generation.max_new_tokens)
        try:
            for task, completion in complete_tasks(
                model, tokenizer, left, arguments.batch, draft, tally, outgrown.append
            ):
                progress.token()
                if completion is not None:
                    if records is not None:
                        records.append(task, completion)
                    else:
                        sys.stdout.write(record_line(task.record(completion)))
                        sys.stdout.flush()
                    n_drawn = len(completion.ids) + (completion.finish_reason == "end_of_text")
                    progress.finished(task.generation.max_new_tokens - n_drawn)
        except KeyboardInterrupt:
            stack.close()  # the bar ends before what is said of it
            kept = f", which are kept in {arguments.out}: the same command goes on" if arguments.out else ""
            return say(f"interrupted after {progress.n_done} of {len(tasks)} prompts{kept}", FAILED)
    say(progress.summary(), DONE)
    if outgrown:
        say(
            f"{len(outgrown)} texts grew longer than the model's context of {outgrown[0]} tokens: from there on it saw "
            "only their last part (--overflow)",
            DONE,
        )
    if tally.n_drawn:
        say(str(tally), DONE)
    say_choice(arguments, model)
    return DONE


def _fingerprint(model: Any) -> str:
    if hasattr(model, "fingerprint"):  # a decoder
        return str(model.fingerprint())
    from glassgpt.checkpoint import fingerprint

    return fingerprint(readable(model))
