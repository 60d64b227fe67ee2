"""What bfloat16 costs: the same run in float32 and in bfloat16, and the loss of each on the whole validation part.

    python benchmarks/number_types.py TEXT [--steps 500] [--shape micro] [--tokenizer bpe] [--limit 0.005]

Seed, batches and settings are the same. Exit code 1 where the losses differ by more than the limit, as part of
float32's.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from glassgpt import load_model, train
from glassgpt.config import PRESETS
from glassgpt.data.vocabulary import TOKENIZERS
from glassgpt.device import set_threads
from glassgpt.terminal_text import table
from glassgpt.training.evaluate import evaluate_run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--shape", choices=PRESETS, default="micro", help="default: micro")
    parser.add_argument("--tokenizer", choices=TOKENIZERS, default="bpe", help="default: bpe, trained on the text")
    parser.add_argument("--batch-size", type=int, default=16, help="default: 16")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--limit", type=float, default=0.005, help="default: 0.005")
    given = parser.parse_args()
    set_threads()
    rows, losses = [], []
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            run, start = Path(folder) / "run", time.perf_counter()
            result = train(
                [given.text],
                run,
                shape=given.shape,
                tokenizer=given.tokenizer,
                steps=given.steps,
                batch_size=given.batch_size,
                seed=given.seed,
                dtype=dtype,
                eval_every=given.steps,
                eval_batches=1,
                keep="last",
                sample_tokens=0,
            )
            if not result.finished:
                sys.exit("stopped")
            seconds = time.perf_counter() - start
            model, tokenizer = load_model(run)
            losses.append(evaluate_run(model, tokenizer, run).loss)
        rows.append([dtype, f"{losses[-1]:.4f}", f"{losses[-1] / losses[0] - 1:+.2%}", f"{seconds:.0f}"])
    print(table([f"{given.shape}, {given.steps} steps", "validation loss", "difference", "seconds"], rows))
    return int(abs(losses[1] / losses[0] - 1) > given.limit)


if __name__ == "__main__":
    sys.exit(main())
