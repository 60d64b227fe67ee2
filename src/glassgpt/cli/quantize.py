"""`glassgpt quantize`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.console import print_json, run_view
from glassgpt.cli.options import DONE, add_machine, add_model, command

if TYPE_CHECKING:
    from glassgpt.quantize.model import Quantization

_SHOWN = 5


def add_commands(commands: Any) -> None:
    """Add the command of this file."""
    quantize = command(commands, "quantize", _quantize, "write a model in 8 or 4 bits, and say what that costs")
    add_model(quantize)
    quantize.add_argument("--to", required=True, choices=("int8", "int4"), help="the number type of the matrices")
    quantize.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new model directory")
    quantize.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="text or folder: of its first 20,480 tokens the most weigh the errors, and the last fifth measures them "
        "(default: text that the model writes itself)",
    )
    quantize.add_argument(
        "--method",
        choices=("nearest", "search", "gptq"),
        default="gptq",
        help="nearest: round; search: try scales for each group; gptq: that, and later columns make up for the errors "
        "of earlier ones (default: gptq)",
    )
    add_machine(quantize, device=False)


def _quantize(arguments: argparse.Namespace) -> int:
    from glassgpt.device import set_threads
    from glassgpt.quantize.model import quantize_model

    set_threads(arguments.threads)
    with run_view(on_stderr=True) as progress:
        result = quantize_model(
            arguments.model,
            arguments.out,
            arguments.to,
            text=arguments.text,
            method=arguments.method,
            threads=arguments.threads,
            progress=progress,
        )
    if arguments.json:
        print_json(result.to_dict() | {"out": result.path})
    else:
        print("\n".join(_lines(result)))
    return DONE


def _lines(result: Quantization) -> list[str]:
    found = result.comparison
    lines = [
        f"{result.path}: {result.number_type} by {result.method}, calibrated on {result.n_calibration_tokens:,} tokens "
        f"of {result.text}",
        f"perplexity   {found.perplexity:.4f}, float32 {found.reference_perplexity:.4f} ({found.rise:+.3%}), "
        f"{found.n_tokens:,} tokens held out",
        f"same token   {found.agreement:.2%} of the likeliest next tokens",
        f"divergence   {found.mean_divergence:.2g} nats a token, at most {found.max_divergence:.2g}; "
        f"scores differ by {found.score_error:.3f}",
        f"size         {result.n_bytes:,} bytes, float32 {result.float32_bytes:,}; {result.bits_per_weight:.2f} bits a "
        "weight in the matrices",
        f"speed        {result.tokens_per_second:,.0f} tokens/s, float32 {result.float32_tokens_per_second:,.0f}",
    ]
    out = [each for each in result.outliers if each.activations or each.weights]
    out.sort(key=lambda each: max([*each.activations.values(), *each.weights.values()]), reverse=True)
    for each in out[:_SHOWN]:
        kinds = (("activations", each.activations), ("weights", each.weights))
        columns = "; ".join(
            f"{kind} in columns " + ", ".join(f"{column} ({ratio:g}x)" for column, ratio in columns.items())
            for kind, columns in kinds
            if columns
        )
        lines.append(f"stands out   {each.matrix}: {columns}; {each.error_share:.1%} of its error")
    if not out:
        lines.append("stands out   no column of activations or weights")
    return lines
