"""nanoGPT's recipe for a CPU beside ours, on the same text and split, in turns: seconds to nanoGPT's validation loss.

    python benchmarks/recipe.py tinyshakespeare.txt --nanogpt CHECKOUT [--rounds 3]

nanoGPT trains as its README says for a CPU, ours by `recipes/shakespeare_char.toml`. Seconds are of the whole command,
from its start to the evaluation that is at the target or below; nanoGPT's end if it never is. The last column is
measured afterwards on every character of the last tenth of the text, in windows of 64.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shakespeare import RECIPE, nanogpt_folder

from glassgpt import load_model
from glassgpt.terminal_text import table
from glassgpt.training.evaluate import evaluate
from glassgpt.training.settings import DTYPE_NAMES

TARGET = 1.8857
OURS = Path(__file__).parent.parent / "recipes" / "shakespeare_char.toml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each (default: 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, action="append", help="ours (default: auto)")
    parser.add_argument("--target", type=float, default=TARGET, help=f"nats per character (default: {TARGET})")
    given = parser.parse_args()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    text = given.text.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        tenth = here / "tenth.txt"
        tenth.write_text(text[int(0.9 * len(text)) :], encoding="utf-8")
        for turn in range(given.rounds):
            for dtype in given.dtype or ["auto"]:
                run = here / f"{dtype}-{turn}"
                command = ["-m", "glassgpt", "train", str(given.text.resolve()), "--config", str(OURS.resolve())]
                command += ["--out", str(run), "--dtype", dtype]
                row = timed(command, here, given, r"validation ([0-9.]+)")
                rows.setdefault(f"glassgpt, {dtype}", []).append((*row, loss_of(run, tenth)))
            folder = nanogpt_folder(text, given.nanogpt, here / f"nanogpt-{turn}")
            options = [f"--{key}={value}" for key, value in RECIPE.items()]
            row = timed(
                ["train.py", "config/train_shakespeare_char.py", *options], folder, given, r"val loss ([0-9.]+)"
            )
            loss = loss_of(folder / "out-shakespeare-char" / "ckpt.pt", tenth)
            rows.setdefault("nanoGPT", []).append((*row, loss))
    report(rows, given)
    return 0


def timed(command: list[str], folder: Path, given: argparse.Namespace, pattern: str) -> tuple[float, float]:
    """Seconds until the command says a loss at the target or below, else until its end, and the last loss it said."""
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "PYTHONUNBUFFERED": "1"}
    start, loss, reached = time.perf_counter(), float("nan"), None
    with subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(pattern, line):
                loss = float(found[1])
                if loss <= given.target and reached is None:
                    reached = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return reached or time.perf_counter() - start, loss


def loss_of(path: Path, text: Path) -> float:
    model, tokenizer = load_model(path)
    return evaluate(model, tokenizer, [text], 64).loss


def report(rows: dict[str, list[tuple[float, float, float]]], given: argparse.Namespace) -> None:
    base = statistics.median(seconds for seconds, _, _ in rows["nanoGPT"])
    print(f"\nto a validation loss of {given.target}; {given.threads} threads, medians of {given.rounds} turns\n")
    lines = []
    for name, turns in rows.items():
        seconds, said, whole = (statistics.median(values) for values in zip(*turns, strict=True))
        lines.append([name, f"{seconds:.1f}", f"1/{base / seconds:.1f}", f"{said:.4f}", f"{whole:.4f}"])
    print(table(["", "seconds", "of nanoGPT's", "said by the run", "on the whole tenth"], lines))
    for name, turns in rows.items():
        print(f"{name}: {', '.join(f'{seconds:.1f} s' for seconds, _, _ in turns)}")


if __name__ == "__main__":
    sys.exit(main())
