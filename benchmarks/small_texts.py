"""What default options make of small texts, against the best that a search over schedules finds for the same shape.

    python benchmarks/small_texts.py TEXT... [--minutes 1] [--reference]

For each text: a run with `--minutes` and nothing else; with `--reference`, runs of the same shape over more and fewer
epochs, with and without dropout, evaluated forty times each, of which the best evaluation counts. Where the minutes buy
fewer epochs than the search would try, and for texts above 50 kB, it is the run's own schedule, evaluated forty times.
Prints a table, with the seconds of the first run.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from glassgpt import GPTConfig, train
from glassgpt.training.log import read_log
from glassgpt.training.records import TrainResult

EPOCHS, DROPOUTS = (10, 20, 40), (0.0, 0.1, 0.2, 0.4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--minutes", type=float, default=1.0, help="default: 1")
    parser.add_argument("--reference", action="store_true", help="also search for the best schedule")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(
        "| text | bytes | shape | dropout | epochs | steps | validation loss | unigram | bigram | best found | ratio "
        "| seconds |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for text in arguments.texts:
        with tempfile.TemporaryDirectory() as directory:
            print(row(text, arguments.minutes, arguments.reference, Path(directory)), flush=True)
    return 0


def row(text: Path, minutes: float, reference: bool, directory: Path) -> str:
    start = time.perf_counter()
    result = train([text], directory / "run", minutes=minutes, sample_tokens=0)
    seconds = time.perf_counter() - start
    record = json.loads((directory / "run" / "run.json").read_text(encoding="utf-8"))
    config, baselines = record["config"], record["baselines"]
    best = result.best_val_loss
    if reference:
        best = min([best, *(search(text, config, result, directory))])
    shape = f"{config['n_layers']} x {config['emb_dim']}"
    return (
        f"| {text.name} | {text.stat().st_size:,} | {shape} | {config['drop_rate']:g} | {result.epochs:.1f} "
        f"| {result.steps:,} | {result.best_val_loss:.3f} | {baselines['unigram']:.3f} "
        f"| {baselines['bigram']:.3f} | {f'{best:.3f}' if reference else ''} "
        f"| {f'{result.best_val_loss / best:.3f}' if reference else ''} | {seconds:.0f} |"
    )


def search(text: Path, config: dict, result: TrainResult, directory: Path) -> list[float]:
    found, steps_per_epoch = [], result.steps / result.epochs
    large = text.stat().st_size > 50_000 or result.epochs <= EPOCHS[0]
    for epochs in [result.epochs] if large else EPOCHS:
        for dropout in [config["drop_rate"]] if large else DROPOUTS:
            out = directory / f"{epochs}-{dropout}"
            shape = GPTConfig.from_dict(config).replace(drop_rate=dropout)
            steps = max(8, round(epochs * steps_per_epoch))
            train([text], out, shape=shape, steps=steps, eval_every=max(1, steps // 40), sample_tokens=0)
            found.append(min(r["val_loss"] for r in read_log(out) if r["kind"] == "evaluation"))
    return found


if __name__ == "__main__":
    sys.exit(main())
