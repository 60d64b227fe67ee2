"""Microseconds that drawing one token takes, by setting: what comes on top of the model's own time for each token.

    python benchmarks/sampling.py [--vocab-size 50257] [--history 1000]

The scores are random, because only their spread matters: normal with a standard deviation of 3; the same with five
tokens far above the rest, as a trained model's often are; and almost flat, the most that top-p can have to look at.
Every draw gets scores it has not seen; each number is the median of rounds in which the settings take turns.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np

from glassgpt import Tokenizer
from glassgpt.generation.options import Generation
from glassgpt.generation.row import Row

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top_k=50": {"top_k": 50},
    "top_k=5000": {"top_k": 5000},
    "top_p=0.95": {"top_p": 0.95},
    "min_p=0.05": {"min_p": 0.05},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "ignore_eot": {"ignore_eot": True},
    "all together": {
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "ignore_eot": True,
    },
    "all but top_k": {
        "temperature": 0.8,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "ignore_eot": True,
    },
}
ROUNDS, DRAWS = 21, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab-size", type=int, default=50257, help="default: GPT-2's")
    parser.add_argument("--history", type=int, default=1000, help="tokens already in the text (default: 1000)")
    arguments = parser.parse_args()
    rng, tokenizer = np.random.default_rng(0), Tokenizer.gpt2()
    prompt = rng.integers(0, min(arguments.vocab_size, tokenizer.n_vocab), arguments.history).tolist()
    scores = spreads(rng, arguments.vocab_size)
    times: dict[tuple[str, str], list[float]] = {(s, p): [] for s in SETTINGS for p in scores}
    for _ in range(ROUNDS):
        for setting, spread in times:
            row = Row(prompt, tokenizer, Generation(seed=1, **SETTINGS[setting]))
            start = time.perf_counter()
            for one in scores[spread]:
                row.choose(one)
            times[setting, spread].append((time.perf_counter() - start) / DRAWS)
    print(f"| microseconds per draw | {' | '.join(scores)} |")
    print(f"|---|{'---:|' * len(scores)}")
    for setting in SETTINGS:
        medians = [statistics.median(times[setting, spread]) * 1e6 for spread in scores]
        print(f"| {setting} | {' | '.join(f'{median:,.0f}' for median in medians)} |")
    return 0


def spreads(rng: np.random.Generator, vocab_size: int) -> dict[str, np.ndarray]:
    """(DRAWS, vocab_size) float32 scores of each kind."""
    normal = rng.normal(0, 3, (DRAWS, vocab_size))
    peaked = normal.copy()
    peaked[:, rng.integers(0, vocab_size, 5)] += 15
    kinds = {"normal": normal, "peaked": peaked, "flat": normal / 10}
    return {name: scores.astype(np.float32) for name, scores in kinds.items()}


if __name__ == "__main__":
    raise SystemExit(main())
