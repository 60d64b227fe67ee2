"""What each way of quantising costs a model: perplexity, divergence, agreement. Prints Markdown.

    python benchmarks/quantize.py MODEL TEXT [--outliers FACTOR]

`--outliers` first makes a few channels stand out as GPT-2's do: their norm's scale is multiplied and the next matrix's
columns are divided by the factor, which changes nothing that the model computes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from glassgpt import GPTModel, load_model, save_model
from glassgpt.quantize.model import quantize_model
from glassgpt.quantize.rounding import METHODS

CHANNELS = 4
"""How many stand out in each norm, spread evenly."""


@torch.no_grad()
def make_outliers(model: GPTModel, factor: float) -> None:
    """The same function, with channels that stand out."""
    channels = torch.arange(CHANNELS) * (model.config.emb_dim // CHANNELS) + 7
    for block in model.trf_blocks:
        att = block.att
        for norm, matrices in (
            (block.norm1, (att.W_query, att.W_key, att.W_value)),
            (block.norm2, (block.ff.layers[0],)),
        ):
            norm.scale[channels] *= factor
            norm.shift[channels] *= factor
            for matrix in matrices:
                matrix.weight[:, channels] /= factor


def main() -> None:
    """Quantise in every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--outliers", type=float, default=1.0, metavar="FACTOR")
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        if arguments.outliers != 1:
            make_outliers(model, arguments.outliers)
        save_model(model, tokenizer, source)
        print("| numbers | method | perplexity | rise | divergence, nats | same token |\n|---|---|---:|---:|---:|---:|")
        for to in ("int8", "int4"):
            for method in METHODS:
                found = quantize_model(source, Path(folder) / f"{to}-{method}", to, text=arguments.text, method=method)
                figures = found.comparison
                print(
                    f"| {to} | {method} | {figures.perplexity:.3f} | {figures.rise:+.3%} | "
                    f"{figures.mean_divergence:.5f} | {figures.agreement:.2%} |",
                    flush=True,
                )
        print(f"\nfloat32: {figures.reference_perplexity:.3f}, over {figures.n_tokens:,} tokens")


if __name__ == "__main__":
    main()
