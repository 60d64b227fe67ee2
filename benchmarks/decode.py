"""`glassgpt bench` of a GPT-2 of 124M parameters with random weights, on which its speed does not depend: no download.

python benchmarks/decode.py --peers --out DIR     # all options are `glassgpt bench`'s
"""

import sys
import tempfile
from pathlib import Path

import torch

from glassgpt import Tokenizer, save_model
from glassgpt.cli import main
from glassgpt.config import preset
from glassgpt.training.build import initial_model

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "random-124M"
        save_model(initial_model(preset("gpt2").replace(drop_rate=0.0), 0).eval(), Tokenizer.gpt2(), path)
        sys.exit(main(["bench", str(path), *sys.argv[1:]]))
