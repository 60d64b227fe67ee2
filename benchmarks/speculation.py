"""Tokens a second with speculation and without, on the compiled decoder in float32: where it wins, and where it loses.

    python benchmarks/speculation.py [--threads N]

Trains a model of 5.6M parameters and a draft of 0.1M for less than a minute, on a sentence that is written again and
again and on Python's manual, and lets them write both. The large model is the small one with further layers, which add
nothing to what it computes and everything to what it costs: the same texts, at the price of 104M parameters. Every way
writes the same tokens, which is checked; the ways take turns, and each number is the median of the turns. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import statistics
import time
from typing import Any

import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, complete
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.speculation import Tally

VOCABULARY, CONTEXT, PROMPT, NEW, TURNS = 512, 160, 32, 120, 7
STEPS, WARMUP, ROWS = 160, 20, 2
SMALL, DRAFT = (384, 3), (64, 2)
"""Width and layers."""
LAYERS = 58
"""Of the large model."""


def texts() -> dict[str, str]:
    """What the models are trained on, and write."""
    manual = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    sentence = "All work and no play makes Jack a dull boy.\n"
    return {"one sentence, again and again": sentence * 400, "Python's manual": manual}


def train(ids: dict[str, list[int]], vocab_size: int, width: int, layers: int) -> GPTModel:
    """For `STEPS` steps, on windows from anywhere in either text."""
    config = GPTConfig(
        vocab_size=vocab_size,
        context_length=CONTEXT,
        emb_dim=width,
        n_heads=width // 32,
        n_layers=layers,
        drop_rate=0.0,
    )
    model, every = GPTModel(config), [torch.tensor(text) for text in ids.values()]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / WARMUP)
        windows = torch.cat(
            [text[torch.randint(len(text) - CONTEXT, (ROWS, 1)) + torch.arange(CONTEXT + 1)] for text in every]
        )
        loss = torch.nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def with_layers(model: GPTModel, n: int) -> GPTModel:
    """The same function in `n` layers: the further ones add 0 to what passes through them."""
    large = GPTModel(model.config.replace(n_layers=n)).eval()
    large.load_state_dict(model.state_dict(), strict=False)
    for block in large.trf_blocks[model.config.n_layers :]:
        for last in (block.att.out_proj, block.ff.layers[2]):
            last.weight.zero_()
            last.bias.zero_()
    return large


def measure(begin: str, ids: list[int], tokenizer: Tokenizer, decoder: CPUDecoder, draft: CPUDecoder) -> None:
    """A row of the table for each way, which begins with `begin`; the prompts are from `ids`."""
    ways: dict[str, dict[str, Any]] = {"none": {}, "lookup": {"speculate": "lookup"}, "draft": {"draft": draft}}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    tallies = {way: Tally() for way in ways}
    for turn in range(TURNS):
        prompt = ids[200 * turn :][:PROMPT]
        options: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 0.7, "seed": turn, "ignore_eot": True}
        written = set()
        for way, how in ways.items():
            start = time.perf_counter()
            (row,) = complete(decoder, tokenizer, [prompt], tally=tallies[way], **options, **how)
            rates[way].append(NEW / (time.perf_counter() - start))
            written.add(tuple(row.ids))
        assert len(written) == 1, "speculation changed a text"
    plain = statistics.median(rates["none"])
    for way, tally in tallies.items():
        rate = statistics.median(rates[way])
        shares = (tally.n_accepted / max(1, n) for n in (tally.n_proposed, tally.n_drawn))
        right, part = (f"{share:.0%}" if tally.n_proposed else "" for share in shares)
        print(f"| {begin} | {way} | {rate:,.0f} | {rate / plain:.2f} x | {right} | {part} |", flush=True)


def main() -> None:
    """Train, write by turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    tokenizer = Tokenizer.train_bpe(list(texts().values()), VOCABULARY)
    ids = {name: tokenizer.encode(text) for name, text in texts().items()}
    small, little = (train(ids, tokenizer.n_vocab, *shape) for shape in (SMALL, DRAFT))
    draft = CPUDecoder(pack_model(little), threads=threads)
    print("| parameters | text | speculation | tokens/s | | guesses that were right | part of the text |")
    print("|---|---|---|---:|---:|---:|---:|")
    for model in (small, with_layers(small, LAYERS)):
        size = f"{model.config.n_parameters() / 1e6:.1f}M"
        decoder = CPUDecoder(pack_model(model), threads=threads)
        for name, text in ids.items():
            measure(f"{size} | {name}", text, tokenizer, decoder, draft)


if __name__ == "__main__":
    main()
