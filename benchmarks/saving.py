"""How long a run stands still for a checkpoint, beside a step and a copy of the same state in memory.

    python benchmarks/saving.py [--emb-dim 384] [--n-layers 4] [--dir DIR]

Prints one line of JSON: medians in seconds. A save in the background would leave `copy` of `save`, and compete with
the steps for cores and memory.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from glassgpt.config import GPTConfig
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.build import build
from glassgpt.training.records import RunState
from glassgpt.training.settings import Settings
from glassgpt.training.state import save_checkpoint
from glassgpt.training.step import take_step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--emb-dim", type=int, default=384)
    parser.add_argument("--n-layers", type=int, default=4)
    parser.add_argument("--dir", type=Path, help="where to make a temporary directory, on the disk to be measured")
    arguments = parser.parse_args()
    shape = dict(vocab_size=8192, context_length=256, n_heads=6, drop_rate=0.0, tie_embeddings=True)
    config = GPTConfig.of({**shape, "emb_dim": arguments.emb_dim, "n_layers": arguments.n_layers})
    settings = Settings(batch_size=8).resolved(1000)
    trainee = build(config, settings, torch.device("cpu"))
    ids = torch.randint(0, 257, (8, 257))
    batch = ids[:, :-1], ids[:, 1:]
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        run, tokenizer = Path(name), Tokenizer.bytes_()
        result = {
            "parameters": config.n_parameters(),
            "step": timed(lambda n: take_step(trainee.objective, trainee.optimizers, batch, n, settings)),
            "save": timed(lambda n: save_checkpoint(run, trainee, tokenizer, RunState(step=n))),
            "copy": timed(lambda _: copied(trainee.model, trainee.optimizers)),
        }
    print(json.dumps(result))
    return 0


def timed(act: Callable[[int], object], rounds: int = 5) -> float:
    seconds = []
    for n in range(rounds + 1):  # the first one allocates and is not counted
        start = time.perf_counter()
        act(n)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds[1:]), 4)


def copied(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[torch.Tensor]:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    tensors = [*model.state_dict().values(), *(value for state in states for value in state.values())]
    return [tensor.detach().clone() for tensor in tensors]


if __name__ == "__main__":
    raise SystemExit(main())
