"""`glassgpt evaluate` and `glassgpt explain`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

from glassgpt.cli.console import picture_kind, print_json, run_view
from glassgpt.cli.options import (
    DONE,
    add_decoder,
    add_machine,
    add_model,
    add_text_field,
    command,
    load,
    load_to_look,
    wants_compiled,
    whole,
)


def add_commands(commands: Any) -> None:
    """Add the commands of this file."""
    evaluate = command(commands, "evaluate", _evaluate, "measure a model on text: loss, perplexity, bits per byte")
    add_model(evaluate)
    evaluate.add_argument(
        "text", nargs="*", metavar="TEXT", help="text files or folders (default: the validation part of a run)"
    )
    add_text_field(evaluate)
    add_decoder(evaluate, auto="cached", graphs=False)
    add_machine(evaluate)

    explain = command(commands, "explain", _explain, "show what a model expects at each token, and where it looks")
    add_model(explain)
    explain.add_argument("prompt", metavar="PROMPT", help="the text to look at")
    explain.add_argument("--top", type=whole, default=5, metavar="N", help="likeliest tokens shown (default: 5)")
    explain.add_argument(
        "--out", type=Path, metavar="FILE", help="new picture of the attention maps, .png or .svg (default: none)"
    )
    explain.add_argument("--layer", type=int, metavar="N", help="only this layer's maps, counted from 0 (default: all)")
    explain.add_argument("--head", type=int, metavar="N", help="only this head's maps, counted from 0 (default: all)")
    add_decoder(explain, auto="as for generate; the readable model with --out, whose maps are its own", graphs=False)
    add_machine(explain)


def _evaluate(arguments: argparse.Namespace) -> int:
    from glassgpt.training.evaluate import evaluate, evaluate_run

    model, tokenizer = load_to_look(arguments) if wants_compiled(arguments) else load(arguments)
    with run_view(on_stderr=True) as progress:
        if arguments.text:
            result = evaluate(model, tokenizer, arguments.text, text_fields=arguments.text_field, progress=progress)
        else:
            result = evaluate_run(model, tokenizer, arguments.model, progress=progress)
    if arguments.json:
        print_json(dataclasses.asdict(result))
    else:
        print(f"loss           {result.loss:.4f} nats per token")
        print(f"perplexity     {result.perplexity:.2f}")
        print(f"bits per byte  {result.bits_per_byte:.4f}")
        print(f"text           {result.n_bytes:,} bytes, {result.n_tokens:,} tokens")
    return DONE


def _explain(arguments: argparse.Namespace) -> int:
    from glassgpt.files import creating
    from glassgpt.generation.trace import trace

    kind = picture_kind(arguments.out)
    if arguments.out and wants_compiled(arguments):
        raise ValueError("--out shows the readable model's attention: leave out what is for the compiled decoder")
    readable = load(arguments) if arguments.out else None
    model, tokenizer = readable or load_to_look(arguments)
    tokens = trace(model, tokenizer, arguments.prompt, arguments.top)
    if arguments.json:
        print_json([dataclasses.asdict(token) for token in tokens])
    else:
        print(f"{'token':>16}  probability   likeliest next")
        for token in tokens:
            probability = "" if token.probability is None else f"{token.probability:.3f}"
            best = "  ".join(f"{text!r} {p:.2f}" for text, p in token.likeliest)
            print(f"{token.text!r:>16}  {probability:>11}   {best}")
    if readable:
        from glassgpt.explain import attention_maps, plot_attention

        maps = attention_maps(readable[0], tokenizer.encode(arguments.prompt))
        with creating(arguments.out) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box in the picture
            figure = plot_attention(maps, [token.text for token in tokens], arguments.layer, arguments.head)
            figure.savefig(temporary, format=kind)
        print(f"attention maps: {arguments.out}", file=sys.stderr)
    return DONE
