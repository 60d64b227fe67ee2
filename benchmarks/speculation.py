"""Tokens a second with speculation and without, on the compiled decoder in float32: where it wins, and what it costs.

    python benchmarks/speculation.py [--threads N]

Trains a model of 10.8M parameters and a draft of 0.1M for about a minute, on a list that is written again and again and
on Python's manual, and lets them write both. Every way writes the same tokens, which is checked; the ways take turns,
and each number is the median of the turns. Prints Markdown.
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

CONTEXT, PROMPT, NEW, TURNS = 160, 32, 120, 7
STEPS, ROWS = 120, 2
SHAPES = {"model": (384, 6), "draft": (64, 2)}
"""Width and layers."""


def texts() -> dict[str, bytes]:
    """What the models are trained on, and write."""
    towns = ["Aarhus", "Bergen", "Cork", "Delft", "Espoo", "Faro", "Ghent", "Hull"]
    table = "".join(f"{town}: {len(town) * 7919 % 1000}\n" for town in towns)
    manual = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    return {"a list, again and again": table.encode() * 400, "Python's manual": manual.encode()}


def train(width: int, layers: int) -> GPTModel:
    """For `STEPS` steps, on windows from anywhere in either text."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=257,
        context_length=CONTEXT,
        emb_dim=width,
        n_heads=width // 32,
        n_layers=layers,
        drop_rate=0.0,
    )
    model, every = GPTModel(config), [torch.tensor(list(text)) for text in texts().values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        windows = torch.cat(
            [ids[torch.randint(len(ids) - CONTEXT, (ROWS, 1)) + torch.arange(CONTEXT + 1)] for ids in every]
        )
        loss = torch.nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(loss)
    return model.eval()


def main() -> None:
    """Train, write by turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    tokenizer = Tokenizer.bytes_()
    decoders = {role: CPUDecoder(pack_model(train(*shape)), threads=threads) for role, shape in SHAPES.items()}
    ways: dict[str, dict[str, Any]] = {
        "none": {},
        "lookup": {"speculate": "lookup"},
        "draft": {"draft": decoders["draft"]},
    }
    print("| text | speculation | tokens/s | | guesses that were right | part of the text |")
    print("|---|---|---:|---:|---:|---:|")
    for name, text in texts().items():
        rates: dict[str, list[float]] = {way: [] for way in ways}
        tallies, written = {way: Tally() for way in ways}, set()
        for turn in range(TURNS):
            prompt = list(text[1000 * turn :][:PROMPT])
            options: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 0.7, "seed": turn, "ignore_eot": True}
            for way, how in ways.items():
                start = time.perf_counter()
                (row,) = complete(decoders["model"], tokenizer, [prompt], tally=tallies[way], **options, **how)
                rates[way].append(NEW / (time.perf_counter() - start))
                written.add((turn, tuple(row.ids)))
        assert len(written) == TURNS, "speculation changed a text"
        plain = statistics.median(rates["none"])
        for way, tally in tallies.items():
            rate = statistics.median(rates[way])
            shares = (tally.n_accepted / max(1, n) for n in (tally.n_proposed, tally.n_drawn))
            right, part = (f"{share:.0%}" if tally.n_proposed else "" for share in shares)
            print(f"| {name} | {way} | {rate:,.0f} | {rate / plain:.2f} x | {right} | {part} |", flush=True)


if __name__ == "__main__":
    main()
