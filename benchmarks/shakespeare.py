"""The minute of `glassgpt train TEXT --tokenizer char --minutes 1` beside nanoGPT's own CPU recipe on the same text.

    python benchmarks/shakespeare.py tinyshakespeare.txt --nanogpt CHECKOUT

nanoGPT trains as its README says for a CPU: 4 layers, 128 wide, block 64, batch 12, 2,000 steps. Both models, nanoGPT's
through `glassgpt.load_model`, are then measured on the whole last tenth of the text. Seconds are of the whole command.
"""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from glassgpt import load_model
from glassgpt.training.evaluate import evaluate

RECIPE = dict(
    device="cpu",
    compile=False,
    eval_iters=20,
    eval_interval=250,
    log_interval=500,
    block_size=64,
    batch_size=12,
    n_layer=4,
    n_head=4,
    n_embd=128,
    max_iters=2000,
    lr_decay_iters=2000,
    dropout=0.0,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        text = arguments.text.read_text(encoding="utf-8")
        tenth = here / "tenth.txt"
        tenth.write_text(text[int(0.9 * len(text)) :], encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        rows = [
            ("nanoGPT", *nanogpt(text, arguments.nanogpt, here / "nanogpt", environment)),
            ("glassgpt", *glassgpt(arguments.text, here / "run", environment)),
        ]
        print("| trained by | seconds | parameters | loss of the last tenth, nats per character |")
        print("|---|---:|---:|---:|")
        for name, seconds, path in rows:
            model, tokenizer = load_model(path)
            loss = evaluate(model, tokenizer, [tenth]).loss
            print(f"| {name} | {seconds:.0f} | {model.n_parameters():,} | {loss:.4f} |")
    return 0


def nanogpt_folder(text: str, checkout: Path, here: Path) -> Path:
    """A copy of nanoGPT in `here` that has the text's characters, as its own preparation writes them."""
    shutil.copytree(checkout, here)
    data = here / "data" / "shakespeare_char"
    characters = sorted(set(text))
    stoi = {c: i for i, c in enumerate(characters)}
    ids = np.array([stoi[c] for c in text], dtype=np.uint16)
    ids[: int(0.9 * len(ids))].tofile(data / "train.bin")
    ids[int(0.9 * len(ids)) :].tofile(data / "val.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    (here / "out-shakespeare-char").mkdir()
    shutil.copy(data / "meta.pkl", here / "out-shakespeare-char")
    return here


def nanogpt(text: str, checkout: Path, here: Path, environment: dict[str, str]) -> tuple[float, Path]:
    nanogpt_folder(text, checkout, here)
    seconds = timed(
        [sys.executable, "train.py", "config/train_shakespeare_char.py", *(f"--{k}={v}" for k, v in RECIPE.items())],
        here,
        environment,
    )
    return seconds, here / "out-shakespeare-char" / "ckpt.pt"


def glassgpt(text: Path, run: Path, environment: dict[str, str]) -> tuple[float, Path]:
    command = [sys.executable, "-m", "glassgpt", "train", str(text.resolve()), "--out", str(run)]
    return timed([*command, "--tokenizer", "char", "--minutes", "1"], run.parent, environment), run


def timed(command: list[str], directory: Path, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
