"""`glassgpt generate` and `glassgpt chat`."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from glassgpt.cli import batch
from glassgpt.cli.console import print_json, read_standard_input, say
from glassgpt.cli.options import (
    DONE,
    FAILED,
    add_decoder,
    add_draft,
    add_fields,
    add_machine,
    add_model,
    add_verbose,
    command,
    given,
    load_draft,
    load_for_text,
    say_choice,
    whole,
)
from glassgpt.data.transcript import MODEL, PERSON, STOP, asked
from glassgpt.generation.options import Generation
from glassgpt.terminal_text import one_line, visible

_CHAT_HELP = """\
/reset  forgets the talk so far
/help   shows this
/quit   ends, as Ctrl-D does; Ctrl-C stops an answer"""
_CHAT_ANSWERS = {"/help": _CHAT_HELP, "/reset": "the talk so far is forgotten"}

_THREADS = "as many as there are cores to use, or fewer for one text where that is measured to be faster"
_OVERFLOW = "shift"  # a person wants more text rather than an error, and not to wait a whole context for each token


def add_commands(commands: Any) -> None:
    """Add the commands of this file."""
    generate = command(commands, "generate", _generate, "continue a prompt")
    add_model(generate)
    generate.add_argument(
        "prompt", metavar="PROMPT", help="the text to continue; - reads standard input, but for its final line end"
    )
    generate.add_argument("--n", type=whole, default=1, metavar="N", help="number of continuations (default: 1)")
    batch.add_arguments(generate)
    add_fields(generate, Generation, overflow=_OVERFLOW)
    add_draft(generate)
    add_decoder(generate)
    add_machine(generate, threads=_THREADS)
    add_verbose(generate)

    chat = command(commands, "chat", _chat, "talk with a model, line by line", json=False)
    add_model(chat)
    add_fields(chat, Generation, overflow=_OVERFLOW)
    add_draft(chat)
    add_decoder(chat)
    add_machine(chat, threads=_THREADS)
    add_verbose(chat)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Generation` that were given, all checked before anything is loaded or compiled."""
    options = given(arguments, Generation)
    Generation.from_dict(options)
    return options


def _generate(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    batch.check_arguments(arguments)
    if options.get("logprobs") is not None and not arguments.json and arguments.prompts is None:
        raise ValueError("--logprobs is told in JSON: add --json, or --prompts")
    if arguments.prompts is not None:
        return batch.generate_batch(arguments, options)
    prompt = read_standard_input() if arguments.prompt == "-" else arguments.prompt
    model, tokenizer = load_for_text(arguments)
    draft = load_draft(arguments, tokenizer, model, load_for_text)
    from glassgpt.generation.speculation import Tally
    from glassgpt.generation.text import complete, stream_rows

    tally = Tally()

    prompts = [prompt] * arguments.n
    seed = options.pop("seed", None)
    options["on_overflow"] = _overflow_note(options["overflow"])
    options["seeds"] = [None if seed is None else seed + n for n in range(arguments.n)]
    if arguments.json:
        completions = complete(model, tokenizer, prompts, draft=draft, tally=tally, **options)
        print_json({"prompt": prompt, "completions": [completion.to_dict() for completion in completions]})
        say_choice(arguments, model)
        return DONE
    pieces = stream_rows(model, tokenizer, prompts, draft=draft, tally=tally, **options)
    held = [""] * arguments.n  # the first continuation is shown while it is written, the others after it

    def first() -> Iterator[str]:
        for number, piece in pieces:
            if number:
                held[number] += piece
            else:
                yield piece

    for number in range(arguments.n):
        if arguments.n > 1:
            print(f"--- {number + 1} of {arguments.n}", flush=True)
        for _ in _printed(prompt, iter([held[number]]) if number else first()):
            pass
    if tally.n_drawn:
        say(str(tally), DONE)
    say_choice(arguments, model)
    return DONE


def _chat(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    if "logprobs" in options:
        raise ValueError("--logprobs has no place in a talk on a terminal: leave it out")
    options["stop"] = [*options.get("stop", ()), STOP]
    options["on_overflow"] = _overflow_note(options["overflow"])
    model, tokenizer = load_for_text(arguments)
    draft = load_draft(arguments, tokenizer, model, load_for_text)
    from glassgpt.generation.speculation import Tally
    from glassgpt.generation.text import stream

    tally = Tally()
    with contextlib.suppress(ImportError):  # line editing and history, where the platform has them
        __import__("readline")
    print("A base model continues the text of this talk: it was never taught to answer.")
    print(_CHAT_HELP)
    _talk(lambda text: stream(model, tokenizer, text, draft=draft, tally=tally, **options))
    if tally.n_drawn:
        say(str(tally), DONE)
    say_choice(arguments, model)
    return DONE


def _talk(answer: Callable[[str], Iterator[str]]) -> None:
    """Until the person ends it; `answer` goes on with a text, or raises `ValueError`."""
    text = ""
    while True:
        try:
            line = input(f"{PERSON} ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        word = line.strip()
        if not word:
            continue
        if re.fullmatch(r"/\w*", word):  # and not /usr/bin, which one may talk about
            if word in ("/quit", "/exit"):
                return
            if word == "/reset":
                text = ""
            print(_CHAT_ANSWERS.get(word, f"unknown command {word}: /help shows those that there are"))
            continue
        now = asked(text, line)
        try:
            pieces = answer(now)
        except ValueError as error:  # a character that the vocabulary lacks, or too long a talk: the line is forgotten
            say(one_line(error), FAILED)
            continue
        text = now
        with contextlib.suppress(KeyboardInterrupt):  # what was shown so far stays in the talk
            for piece in _printed(MODEL, pieces):
                text += piece
        text += "\n"


_unfinished: list[str] = []
"""What stands at the beginning of a line that has no end yet."""


def _overflow_note(policy: str) -> Callable[[int], None]:
    """Says once what becomes of a text that is longer than the context, and what that costs."""
    said = False

    def note(context_length: int) -> None:
        nonlocal said
        if said:
            return
        said = True
        if _unfinished and sys.stdout.isatty() and sys.stderr.isatty():
            print(flush=True)  # the text so far ends in the middle of a line
        least = context_length // 2 + 1
        stride = context_length + 1 - least
        seen = {
            "shift": f"{least} to {context_length}, and reads {least} again for every {stride} new ones",
            "slide": f"{context_length}, and reads them all again for every new one",
        }[policy]
        say(
            f"the text is longer than the model's context of {context_length} tokens: "
            f"from here on it sees only the last {seen} (--overflow {policy})",
            DONE,
        )

    return note


def _printed(shown: str, pieces: Iterator[str]) -> Iterator[str]:
    """Print the text `shown` and then each piece, which is handed on once it is printed; a line end comes last."""
    # a file gets the text as it is; a terminal would obey the control characters in it
    show = visible if sys.stdout.isatty() else str
    sys.stdout.write(show(shown))
    sys.stdout.flush()
    _unfinished.append(shown)
    try:
        for piece in pieces:
            sys.stdout.write(show(piece))
            sys.stdout.flush()
            yield piece
    finally:
        _unfinished.clear()
        sys.stdout.write("\n")  # after Ctrl-C, too: what comes next begins a line
