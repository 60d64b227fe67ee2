"""`glassgpt download`, `glassgpt import` and `glassgpt export`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.console import download_bar, print_json, say
from glassgpt.cli.options import DONE, FAILED, add_model, command, whole
from glassgpt.weights.formats import NUMBER_TYPES, WRITABLE

if TYPE_CHECKING:
    from glassgpt.weights.convert import Conversion


def add_commands(commands: Any) -> None:
    """Add the commands of this file."""
    download = command(commands, "download", _download, "fetch GPT-2's weights, checked before they count")
    download.add_argument(
        "name", metavar="NAME", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, 124M ..., or owner/name"
    )
    download.add_argument("--openai", action="store_true", help="OpenAI's original files instead of Hugging Face's")
    download.add_argument("--weights-dir", type=Path, metavar="DIR", help="where they go (default: the usual cache)")
    download.add_argument("--print-urls", action="store_true", help="only show what to fetch by hand, and its sha256")

    imports = command(commands, "import", _import, "turn weights of any known format into a model directory")
    imports.add_argument("path", metavar="PATH", help="the directory or file; its format is found by looking")
    imports.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new model directory")
    imports.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="the tokenizer: its directory or file, nanoGPT's meta.pkl for one (default: beside the weights)",
    )
    imports.add_argument(
        "--n-heads", type=whole, metavar="N", help="for the book's files (default: GPT-2's of the same width)"
    )

    export = command(commands, "export", _export, "write a model for other tools, and prove that it is the same")
    add_model(export)
    export.add_argument("--to", required=True, choices=tuple(WRITABLE), help="the format")
    export.add_argument("--out", type=Path, required=True, metavar="PATH", help="the new file; huggingface: directory")
    export.add_argument("--type", choices=NUMBER_TYPES, help="GGUF only: number type (default: f32)")
    export.add_argument(
        "--proof-text",
        type=Path,
        metavar="FILE",
        help="GGUF f16 and q8_0: the text that they are judged on (default: the run's validation part, else Python's "
        "manual)",
    )
    export.add_argument("--name", help="GGUF only: the model's name in the file (default: the file's)")


def _download(arguments: argparse.Namespace) -> int:
    from glassgpt.weights.download.openai import download_openai_gpt2
    from glassgpt.weights.download.resolve import files_to_fetch, resolve_model

    if arguments.print_urls:
        files = files_to_fetch(arguments.name, "openai" if arguments.openai else "huggingface")
        if arguments.json:
            print_json([file._asdict() for file in files])
        else:
            for file in files:
                print(file.described())
            if arguments.openai:
                where = "gpt2/, or another directory that --weights-dir names"
            else:
                where = "a directory of models that GLASSGPT_WEIGHTS names"
            print(f"put them under these names into {where}", file=sys.stderr)
        return DONE
    if arguments.openai:
        with download_bar() as progress:
            path = download_openai_gpt2(arguments.name, arguments.weights_dir or Path("gpt2"), progress=progress)
    else:
        path = resolve_model(arguments.name, weights_dir=arguments.weights_dir)  # huggingface_hub shows its own bar
    if arguments.json:
        print_json({"path": path})
    else:
        print(path)
    return DONE


def _import(arguments: argparse.Namespace) -> int:
    from glassgpt.weights.convert import import_model

    result = import_model(arguments.path, arguments.out, tokenizer=arguments.tokenizer, n_heads=arguments.n_heads)
    return _report(arguments, result)


def _export(arguments: argparse.Namespace) -> int:
    from glassgpt.weights.convert import export_model

    result = export_model(
        arguments.model,
        arguments.out,
        arguments.to,
        number_type=arguments.type,
        name=arguments.name,
        proof_text=arguments.proof_text,
    )
    return _report(arguments, result)


def _report(arguments: argparse.Namespace, result: Conversion) -> int:
    if arguments.json:
        proof = dataclasses.asdict(result.proof) | {"verdict": result.proof.verdict()}
        print_json(proof | {"quality": _figures(result), "out": result.path, "config": result.config.to_dict()})
    else:
        print(f"{result.path}: {result.config.n_parameters():,} parameters")
        print(f"proof: {result.proof}")
        if result.quality is not None:
            print(f"quality: {result.quality}")
    for note in result.notes:
        print(note, file=sys.stderr if arguments.json else sys.stdout)
    if not result.proof.holds():
        return say(f"{result.path} does not compute what its source computes: do not use it", FAILED)
    return DONE


def _figures(result: Conversion) -> dict[str, Any] | None:
    if (quality := result.quality) is None:
        return None
    return dataclasses.asdict(quality) | {"rise": quality.rise, "verdict": "good" if quality.is_good() else "poor"}
