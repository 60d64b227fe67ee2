"""What each choice of a recipe is worth: the recipe with one choice at a time as it would be without it.

    python benchmarks/ablations.py tinyshakespeare.txt [--seeds 2] [--results ablations.json]

Every loss is that of the whole validation part after a run's last step, the mean over the seeds. Each variant takes the
recipe's steps; one that is not at the target then takes more, in runs of their own whose schedules are as long, until
it is. Seconds are the steps times a fast step, one of the fastest tenth. Every finished run is kept in the results
file, from which the same command goes on. A markdown table ends it.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, load_model, train
from glassgpt.data.sources import validation_part
from glassgpt.device import DTYPES, set_threads
from glassgpt.files import write_text
from glassgpt.terminal_text import table
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.step import evaluate_loss
from glassgpt.training.train_file import read_train_file

RECIPE = Path(__file__).parent.parent / "recipes" / "shakespeare_char.toml"
TARGET = 1.8857
PARTS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Of the recipe's steps, in the order of size."""

VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "AdamW for all, at 0.004": dict(optimizer="adamw", learning_rate=4e-3),
    "AdamW for all, at 0.002": dict(optimizer="adamw", learning_rate=2e-3),
    "Muon's rate 0.02 for 0.06": dict(muon_learning_rate=0.02),
    "Muon's momentum 0.95 for 0.85": dict(muon_momentum=0.95),
    "AdamW's rate 0.004 for 0.008": dict(learning_rate=0.004),
    "half a cosine to 5 % for a line to 0": dict(decay="cosine", final_rate=0.05),
    "no warmup": dict(warmup_steps=0),
    "PyTorch's initial weights for GPT-2's": dict(initial="pytorch"),
    "an output head of its own": dict(config=dict(tie_embeddings=False)),
    "4 heads for 2": dict(config=dict(n_heads=4)),
    "GELU by tanh for erf": dict(config=dict(gelu="tanh")),
    "batches of 12 rows for 24": dict(batch_size=12),
    "2 layers for 4": dict(config=dict(n_layers=2)),
    "float32": dict(dtype="float32"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each variant and length (default: 2)")
    parser.add_argument("--results", type=Path, default=Path("ablations.json"), help="default: ablations.json")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="this variant; may be given more than once")
    parser.add_argument("--threads", type=int, help="default: all cores")
    given = parser.parse_args()
    set_threads(given.threads)
    bench = Ablations(given.text, given.seeds, given.results)
    print(table(HEADER, [bench.row(name) for name in given.only or VARIANTS]))
    return 0


HEADER = ["", "loss after the recipe's steps", "steps to the target", "tokens", "ms a step", "seconds"]


class Ablations:
    """The runs that were made, and those that are missing."""

    def __init__(self, text: Path, seeds: int, results: Path) -> None:
        self._text, self._seeds, self._path = text, seeds, results
        self._recipe = read_train_file(RECIPE)
        self._done: dict[str, dict[str, float]] = {}
        if results.exists():
            self._done = json.loads(results.read_text(encoding="utf-8"))

    def row(self, name: str) -> list[str]:
        """One line of the table: the fewest of the lengths in `PARTS` that reach the target."""
        at = 0
        while self._mean(name, at)[0] > TARGET and at + 1 < len(PARTS):
            at += 1
        loss = self._mean(name, 0)[0]
        reached, seconds = self._mean(name, at)
        steps = self._steps(name, at)
        if reached > TARGET:
            return [name, f"{loss:.4f}", f"above {steps:,}", "", f"{1000 * seconds:.1f}", ""]
        tokens = steps * self._settings(name)["batch_size"] * self._recipe["config"]["context_length"]
        return [name, f"{loss:.4f}", f"{steps:,}", f"{tokens:,}", f"{1000 * seconds:.1f}", f"{steps * seconds:.1f}"]

    def _settings(self, name: str) -> dict[str, Any]:
        return self._recipe | {key: value for key, value in VARIANTS[name].items() if key != "config"}

    def _steps(self, name: str, at: int) -> int:
        """Steps of a length: other batches take as many more as they are smaller."""
        rows = self._recipe["batch_size"] / self._settings(name)["batch_size"]
        return round(PARTS[at] * self._recipe["steps"] * rows)

    def _mean(self, name: str, at: int) -> tuple[float, float]:
        """(loss, seconds of a step) of a variant at a length, over all seeds."""
        runs = [self._run(name, self._steps(name, at), seed) for seed in range(1, self._seeds + 1)]
        return statistics.mean(run["loss"] for run in runs), min(run["step"] for run in runs)

    def _run(self, name: str, steps: int, seed: int) -> Mapping[str, float]:
        settings = self._settings(name) | dict(steps=steps, eval_every=steps, eval_batches=1, seed=seed)
        settings["config"] = self._recipe["config"] | VARIANTS[name].get("config", {})
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        key = f"{name}, {steps} steps, seed {seed}, settings {digest}"  # of another recipe nothing is taken
        if key not in self._done:
            started = time.perf_counter()
            self._done[key] = measured(self._text, settings)
            print(f"{key}: {self._done[key]['loss']:.4f}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
            write_text(self._path, json.dumps(self._done, indent=1))
        return self._done[key]


def measured(text: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Train once: the loss of the whole validation part, and the seconds of a fast step."""
    if settings.pop("initial", None) == "pytorch":
        tokenizer = Tokenizer.characters([text.read_text(encoding="utf-8")])
        torch.manual_seed(settings["seed"])
        model = GPTModel(GPTConfig(vocab_size=tokenizer.n_vocab, **settings.pop("config")))
        settings |= dict(model=model, tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if not train([text], run, **settings).finished:
            sys.exit("stopped; the same command goes on")
        records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        size = settings["batch_size"] * 64
        steps = [size / r["tokens_per_second"] for r in records if "tokens_per_second" in r]
        step = statistics.quantiles(steps, n=10)[0]  # others on the machine slow down most of the rest
        trained, tokenizer = load_model(run)
        part = validation_part(run, tokenizer)
        dtype = settings.get("dtype", "auto")
        loss = evaluate_loss(NextTokenLoss(trained), part.tokens, 64, dtype=DTYPES.get(dtype, torch.float32))
        part.close()
    return {"loss": loss, "step": step}


if __name__ == "__main__":
    sys.exit(main())
