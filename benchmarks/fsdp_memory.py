"""What a rank holds of a model, its gradients and its optimizer's state, and its peak of memory: whole and sharded.

    python benchmarks/fsdp_memory.py [--ranks 1 2 4] [--layers 24] [--optimizer adamw] [--steps 2]

Every rank is a process on this machine's CPU, which restores a checkpoint of a new model and takes a few steps. The
peak is of the process, without what it had in memory before. Prints a table: mebibytes of the rank that has most.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch

from glassgpt import Tokenizer
from glassgpt.config import GPTConfig
from glassgpt.cores import peak_memory
from glassgpt.training.build import build
from glassgpt.training.ranks import joined
from glassgpt.training.records import RunState
from glassgpt.training.settings import OPTIMIZERS, Settings
from glassgpt.training.shards import local
from glassgpt.training.state import checkpoint_at, restore, save_checkpoint
from glassgpt.training.step import accumulate_gradients, take_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="how many processes (default: 1 2 4)")
    parser.add_argument("--layers", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    settings = Settings(optimizer=arguments.optimizer, dtype="float32").resolved(1000)
    # 80 million parameters, of which, as in GPT-2 1.5B, about one in twenty is outside of the blocks
    config = GPTConfig(
        vocab_size=8192, context_length=64, emb_dim=512, n_heads=8, n_layers=arguments.layers, drop_rate=0.0
    )
    print("| ranks | | weights | gradients | optimizer | in all | peak | peak of a save |\n|" + "---|" * 8)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), build(config, settings, torch.device("cpu")), Tokenizer.bytes_(), RunState())
        for n in arguments.ranks:
            for fsdp in (False, True) if n > 1 else (False,):
                rows = launch(n, Path(folder), settings.replace(fsdp=fsdp, batch_size=n), arguments.steps)
                most = [max(column) / 2**20 for column in zip(*rows, strict=True)]
                cells = [f"{number:,.0f}" for number in [*most[:3], sum(most[:3]), *most[3:]]]
                print(f"| {n} | {'fsdp' if fsdp else 'whole'} | {' | '.join(cells)} |", flush=True)


def launch(n: int, run: Path, settings: Settings, steps: int) -> list[list[int]]:
    """What `work` measures on each of `n` ranks."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in range(n):
        seat = {"RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(context.Process(target=work, args=(run, settings, steps, seat)))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a rank failed")
    return [json.loads((run / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(n)]


def work(run: Path, settings: Settings, steps: int, seat: dict[str, Any]) -> None:
    """In a process of its own: bytes of weights, gradients and optimizer state, peak of the steps, peak of a save."""
    os.environ.update({name: str(value) for name, value in seat.items()} | {"GLOO_SOCKET_IFNAME": "lo"})
    torch.set_num_threads(1)
    for name in ("torch._dynamo", "torch.distributed.checkpoint.hf_storage", "torch.distributed.fsdp"):
        importlib.import_module(name)  # the code is no part of what is measured
    before = peak_memory() or 0
    with joined() as ranks:
        trainee = restore(checkpoint_at(run, 0), settings, torch.device("cpu"), ranks)
        length = trainee.model.context_length
        batch = torch.randint(0, 1000, (1, length)), torch.randint(0, 1000, (1, length))
        for step in range(steps):
            take_step(trainee.objective, trainee.optimizers, batch, step, settings, ranks=ranks)
        accumulate_gradients(trainee.objective, *batch, ranks=ranks)
        parameters = list(trainee.objective.parameters())
        states = [s for o in trainee.optimizers for of in o.state.values() for s in of.values()]
        held = [parameters, [p.grad for p in parameters if p.grad is not None], states]
        numbers = [sum(local(tensor).nbytes for tensor in tensors) for tensors in held]
        trainee.objective.zero_grad(set_to_none=True)
        numbers.append((peak_memory() or 0) - before)
        if trainee.sharded or ranks.first:
            save_checkpoint(run, trainee, Tokenizer.bytes_(), RunState(step=1), ranks)
        numbers.append((peak_memory() or 0) - before)
        (run / f"rank-{ranks.rank}.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
