"""`glassgpt evaluate` and `glassgpt explain`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.console import picture_kind, print_json, run_view
from glassgpt.cli.options import (
    DONE,
    add_decoder,
    add_fields,
    add_machine,
    add_model,
    add_text_field,
    command,
    given,
    load,
    load_to_look,
    wants_compiled,
    whole,
)
from glassgpt.generation.options import Sampling

if TYPE_CHECKING:
    from glassgpt.model import GPTModel
    from glassgpt.tokenizer import Tokenizer

_CANDIDATES = 50  # of each token on the page


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
    explain.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="new page of each token's candidates, filters and attention, one file that needs nothing else "
        "(default: none)",
    )
    explain.add_argument(
        "--attention", action="store_true", help="with --json: where each layer and head looked, at each token"
    )
    add_fields(explain.add_argument_group("sampling", "how a token is drawn, for --json and --html"), Sampling)
    add_decoder(
        explain,
        auto="as for generate; the readable model with --out, --html and --attention, which are of its own",
        graphs=False,
    )
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
    from glassgpt.generation.trace import trace

    kind = picture_kind(arguments.out)
    sampling = Sampling.from_dict(given(arguments, Sampling))
    if arguments.attention and not arguments.json:
        raise ValueError("--attention is for --json: give both, or --html for a page")
    if arguments.html and arguments.html.exists():
        raise FileExistsError(f"{arguments.html} exists: choose a new name")
    inside = next((name for name in ("out", "html", "attention") if getattr(arguments, name)), None)
    if inside and wants_compiled(arguments):
        raise ValueError(f"--{inside} shows the readable model's attention: leave out what is for the compiled decoder")
    readable = load(arguments) if inside else None
    model, tokenizer = readable or load_to_look(arguments)
    tokens = trace(model, tokenizer, arguments.prompt, arguments.top)
    if arguments.json:
        following = _following(arguments, sampling, model, tokenizer)
        ids = tokenizer.encode(arguments.prompt)
        shown = zip(tokens, ids, following, strict=True)
        print_json([{**dataclasses.asdict(token), "id": i, "next": choice} for token, i, choice in shown])
    else:
        print(f"{'token':>16}  probability   likeliest next")
        for token in tokens:
            probability = "" if token.probability is None else f"{token.probability:.3f}"
            best = "  ".join(f"{text!r} {p:.2f}" for text, p in token.likeliest)
            print(f"{token.text!r:>16}  {probability:>11}   {best}")
    if readable and arguments.out:
        _write_maps(arguments, kind, readable, [token.text for token in tokens])
    if readable and arguments.html:
        _write_page(arguments, sampling, readable)
    return DONE


def _following(arguments: argparse.Namespace, sampling: Sampling, model: Any, tokenizer: Tokenizer) -> Iterator[Any]:
    """After each token of the prompt what may come, ready for JSON, without the bins that only the page needs."""
    if arguments.attention:
        from glassgpt.generation.inspection import inspect_text

        for place in inspect_text(model, tokenizer, arguments.prompt, sampling, arguments.top)["places"][1:]:
            del place["rest"]
            yield place
        return
    from glassgpt.generation.candidates import explain_choice
    from glassgpt.generation.trace import scores_along

    ids = tokenizer.encode(arguments.prompt)
    for end, scores in enumerate(scores_along(model, ids), start=1):
        choice = explain_choice(sampling, scores, tokenizer, ids[:end], n=arguments.top, also=ids[end : end + 1])
        place = {"position": end, "token": ids[end] if end < len(ids) else None, **choice.to_dict()}
        del place["rest"]
        yield place


def _write_maps(
    arguments: argparse.Namespace, kind: str | None, readable: tuple[GPTModel, Tokenizer], labels: list[str]
) -> None:
    from glassgpt.explain import attention_maps, plot_attention
    from glassgpt.files import creating

    model, tokenizer = readable
    maps = attention_maps(model, tokenizer.encode(arguments.prompt))
    with creating(arguments.out) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box in the picture
        figure = plot_attention(maps, labels, arguments.layer, arguments.head)
        figure.savefig(temporary, format=kind)
    print(f"attention maps: {arguments.out}", file=sys.stderr)


def _write_page(arguments: argparse.Namespace, sampling: Sampling, readable: tuple[GPTModel, Tokenizer]) -> None:
    from glassgpt.files import create_text
    from glassgpt.generation.inspection import inspect_text
    from glassgpt.server.page.document import one_file

    data = inspect_text(*readable, arguments.prompt, sampling, max(arguments.top, _CANDIDATES))
    create_text(arguments.html, one_file({"model": str(arguments.model), **data}))
    print(f"page: {arguments.html}", file=sys.stderr)
