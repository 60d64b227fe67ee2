"""Which learning rate suits a run that begins with weights: a table of validation losses by part of a new model's rate.

    python benchmarks/fine_tuning.py TEXT... [--steps 1500]

A small model is trained on Python's manual, and then on each text from those weights, for at most 8 epochs: with a new
model's learning rates, a third of them, a tenth, a thirtieth. Beside it a new model with the same tokenizer.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from glassgpt import train
from glassgpt.training.log import read_log
from glassgpt.training.settings import LEARNING_RATE, MUON_LEARNING_RATE

PARTS = (1.0, 1 / 3, 1 / 10, 1 / 30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--steps", type=int, default=1500, help="of the training on the manual (default: 1500)")
    parser.add_argument("--optimizer", default="muon", choices=("muon", "adamw"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        options = dict(sample_tokens=0, optimizer=given.optimizer, dtype="float32")
        train([], here / "manual", shape="nano", steps=given.steps, **options)
        print(
            f"| text, {given.optimizer} | before | new model | {' | '.join(f'rate x {part:.3g}' for part in PARTS)} |"
        )
        print(f"|---|---:|---:|{'---:|' * len(PARTS)}")
        for number, text in enumerate(given.texts):
            epochs = text.stat().st_size / 3 / (16 * 64)  # about three bytes a token
            steps = max(10, round(8 * epochs))
            cells = []
            new = train(
                [text], here / f"{number}-new", shape="nano", tokenizer=here / "manual", steps=3 * steps, **options
            )
            for part in PARTS:
                result = train(
                    [text],
                    here / f"{number}-{part:.3g}",
                    model=here / "manual",
                    steps=steps,
                    learning_rate=LEARNING_RATE * part,
                    muon_learning_rate=MUON_LEARNING_RATE * part,
                    **options,
                )
                cells.append(f"{result.best_val_loss:.3f}")
            before = first_loss(here / f"{number}-{part:.3g}")
            row = " | ".join([f"{before:.3f}", f"{new.best_val_loss:.3f}", *cells])
            print(f"| {text.name} | {row} |", flush=True)
    return 0


def first_loss(run: Path) -> float:
    return next(r["val_loss"] for r in read_log(run) if r["kind"] == "evaluation")


if __name__ == "__main__":
    sys.exit(main())
