"""`glassgpt prepare`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

from glassgpt.cli.console import print_json, run_view
from glassgpt.cli.options import DONE, add_fields, add_text_field, command, given, whole
from glassgpt.data.prepare.settings import PrepareSettings

if TYPE_CHECKING:
    from glassgpt.data.prepare.run import PrepareResult


def add_commands(commands: Any) -> None:
    """Add the command of this file."""
    prepare = command(commands, "prepare", _prepare, "encode a text of any size, once, into files that train reads")
    prepare.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="text, JSON lines, CSV, Parquet or Arrow, also in gzip or zstd; folders; URLs such as s3://bucket/folder",
    )
    prepare.add_argument("--out", required=True, metavar="DIR", help="the new dataset; the same command continues it")
    add_text_field(prepare)
    prepare.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="how text becomes tokens: bpe, gpt2, char, byte, or a directory that holds one (default: bpe, trained on "
        "the text, or on a sample of a large one)",
    )
    prepare.add_argument(
        "--processes",
        type=whole,
        metavar="N",
        help="processes that encode; the result is the same (default: one for each core)",
    )
    prepare.add_argument(
        "--share",
        type=_share,
        metavar="I/N",
        help="encode share I of N, from 1 on, on one of N machines; the command without it then joins them "
        "(default: all of it)",
    )
    add_fields(prepare, PrepareSettings)


def _share(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N, such as 1/8")
    return int(i), int(n)


def _prepare(arguments: argparse.Namespace) -> int:
    from glassgpt.data.prepare.run import prepare

    settings = given(arguments, PrepareSettings)
    with run_view(on_stderr=True) as progress:
        result = prepare(
            arguments.input,
            arguments.out,
            tokenizer=arguments.tokenizer,
            text_fields=arguments.text_field,
            processes=arguments.processes,
            share=arguments.share,
            progress=progress,
            **settings,
        )
    if arguments.json:
        print_json(dataclasses.asdict(result))
    elif result.finished:
        print("\n".join(_lines(result)))
    return DONE


def _lines(result: PrepareResult) -> list[str]:
    found, skipped = result.duplicates, result.skipped
    n = found["n_sections"]
    validation = result.validation_bytes / (result.train_bytes + result.validation_bytes)
    lines = [
        f"training     {result.train_tokens:,} tokens, {result.train_bytes:,} bytes",
        f"validation   {result.validation_tokens:,} tokens, {result.validation_bytes:,} bytes ({validation:.2%})",
        f"vocabulary   {result.n_vocab:,} tokens, {result.train_bytes / result.train_tokens:.2f} bytes each",
        f"duplicates   {found['equal']:,} of {n:,} sections equal an earlier one, {found['equal_bytes']:,} bytes"
        + (", left out" if found["dropped"] else ""),
        f"similar      {found['similar']:,} more have {found['similar_from']:.0%} of an earlier one's shingles or "
        f"more, {found['similar_bytes']:,} bytes (estimated)",
        f"leaks        {found['validation_like_training']:,} sections for validation are similar to one for training",
        *(f"  {each['kind']}: {each['section']} and {each['earlier']}" for each in found["examples"][:3]),
    ]
    if skipped["count"]:
        lines.append(f"skipped      {skipped['count']:,} that could not be read; the first: {skipped['first']}")
    if skipped["records_without_text"]:
        lines.append(f"empty        {skipped['records_without_text']:,} records without text")
    return [*lines, f"next: glassgpt train {shlex.quote(str(result.directory))} --out runs/mine"]
