"""Times training beside its peers, taking turns, and prints one table of medians; `glassgpt bench` times decoding.

    python benchmarks/compare.py train [--nanogpt CHECKOUT] [--shape small|124M] [--rounds 3]
    python benchmarks/compare.py where [--shape small|124M] [--contender "glassgpt bfloat16"]

Weights are random: speed does not depend on them. Every contender runs in a fresh process, which also measures its
peak memory. Beside its rate stands the share of what this machine reaches in large products of the same number type.
`where` profiles one of ours, and prints what a step's time goes to.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from glassgpt.terminal_text import table

if TYPE_CHECKING:
    from glassgpt import GPTConfig

SHAPES = {
    "small": (384, 6, 6, 8),
    "124M": (768, 12, 12, 4),
}  # width, heads, layers, batch; 256 tokens, GPT-2's vocabulary
LENGTH = 256
PARTS = {
    "products": {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmm_"},
    "optimizer": {"aten::_fused_adamw_", "aten::_foreach_lerp_", "aten::_foreach_mul_", "aten::_foreach_norm"},
    "softmax and its sums": {
        *(
            "aten::_softmax",
            "aten::_softmax_backward_data",
            "aten::exp_",
            "aten::sum",
            "aten::amax",
            "aten::scatter_add_",
        ),
        *("aten::sub_", "aten::mul_", "aten::masked_fill_", "aten::gather"),
    },
    "GELU": {"aten::gelu", "aten::gelu_backward"},
    "LayerNorm": {"aten::native_layer_norm", "aten::native_layer_norm_backward"},
    "copies and other number types": {"aten::copy_", "aten::clone", "aten::cat", "aten::contiguous"},
    "sums of gradients and shortcuts": {"aten::add", "aten::add_", "aten::zero_", "aten::fill_"},
    "embedding": {"aten::index_select", "aten::embedding_dense_backward"},
}

TRAINERS = (
    "nanoGPT",
    "nanoGPT compiled",
    "transformers",
    "glassgpt float32",
    "glassgpt bfloat16",
    "glassgpt bfloat16 muon",
)
"""Of AdamW, but for the last one, which has `glassgpt train`'s own optimizers."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", choices=("train", "where", "one"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--shape", choices=SHAPES, help="default: both")
    parser.add_argument("--contender", default="glassgpt bfloat16", help="of `where` (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.work == "one":
        return one(arguments)
    if arguments.work == "where":
        for shape in [arguments.shape] if arguments.shape else SHAPES:
            where(arguments.contender, shape, arguments.threads)
        return 0
    trainers = list(TRAINERS)
    if arguments.nanogpt is None:
        trainers = [name for name in trainers if not name.startswith("nanoGPT")]
        print("nanoGPT is left out: give its checkout with --nanogpt")
    for shape in [arguments.shape] if arguments.shape else SHAPES:
        width, _, layers, batch = SHAPES[shape]
        title = f"train, {layers} layers x {width}, {batch} x {LENGTH} tokens, forward + backward + clip + optimizer"
        compare(title, trainers, ["--shape", shape], arguments, base=trainers[0])
    return 0


def compare(
    title: str,
    contenders: list[str] | tuple[str, ...],
    extra: list[str],
    given: argparse.Namespace,
    base: str,
) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(given.rounds):
        for name in contenders:
            command = [
                sys.executable,
                __file__,
                "one",
                "--contender",
                name,
                "--threads",
                str(given.threads),
                *extra,
            ]
            if given.nanogpt:
                command += ["--nanogpt", str(given.nanogpt)]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: statistics.median(r["rate"] for r in rows) for name, rows in results.items()}
    shares = {name: statistics.median(r["share"] for r in rows) for name, rows in results.items()}
    print(f"\n{title}; {given.threads} threads, medians of {given.rounds} turns\n")
    table_rows = [
        [
            name,
            f"{medians[name]:.1f}",
            f"{medians[name] / medians[base]:.2f}",
            f"{100 * shares[name]:.0f} %",
            f"{max(r['memory'] for r in rows):.2f} GB",
        ]
        for name, rows in results.items()
    ]
    print(table(["contender", "tokens/s", f"x {base}", "of products' rate", "peak memory"], table_rows))


def one(given: argparse.Namespace) -> int:
    import torch

    from glassgpt.cores import peak_memory
    from glassgpt.training.heap import heap_kept
    from glassgpt.training.number_type import product_rate
    from glassgpt.training.peak import operations

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with heap_kept() if given.contender.startswith("glassgpt") else contextlib.nullcontext():  # as `train` does
        rate = train_rate(given.contender, given.shape, given.nanogpt)
    memory = (peak_memory() or 0) / 1e9
    dtype = "bfloat16" if "bfloat16" in given.contender else "float32"
    share = rate * operations(config_of(given.shape)) / product_rate(dtype, torch.device("cpu"))
    print(json.dumps({"rate": rate, "memory": memory, "share": share}))
    return 0


def config_of(shape: str) -> "GPTConfig":
    """Ours, of the shape that all train."""
    from glassgpt import GPTConfig

    width, heads, layers, _ = SHAPES[shape]
    sizes = dict(emb_dim=width, n_heads=heads, n_layers=layers, context_length=LENGTH)
    return GPTConfig(**sizes, drop_rate=0.0, qkv_bias=True, tie_embeddings=True)


def where(contender: str, shape: str, threads: int) -> None:
    """Profile a few steps, and print the parts of their time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from glassgpt.training.heap import heap_kept

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch = SHAPES[shape][3]
    x, y = (torch.randint(0, 50257, (batch, LENGTH)) for _ in range(2))
    step = trainer(contender, shape, None)
    with heap_kept():
        for _ in range(2):
            step(x, y)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(3):
                step(x, y)
    seconds: dict[str, float] = {}
    for event in profiled.key_averages():
        part = next((part for part, names in PARTS.items() if event.key in names), "the rest")
        seconds[part] = seconds.get(part, 0.0) + event.self_cpu_time_total / 1e6 / 3
    total = sum(seconds.values())
    width, _, layers, _ = SHAPES[shape]
    print(f"\n{contender}, {layers} layers x {width}, {batch} x {LENGTH} tokens: {1000 * total:.0f} ms a step\n")
    rows = sorted(seconds.items(), key=lambda item: -item[1])
    print(table(["part", "ms", "share"], [[p, f"{1000 * s:.0f}", f"{100 * s / total:.0f} %"] for p, s in rows]))


def train_rate(contender: str, shape: str, nanogpt: Path | None) -> float:
    """Tokens per second of whole steps, the median of those after the first two."""
    import torch

    batch = SHAPES[shape][3]
    x, y = (torch.randint(0, 50257, (batch, LENGTH)) for _ in range(2))
    step = trainer(contender, shape, nanogpt)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step(x, y)
        times.append(time.perf_counter() - start)
    return batch * LENGTH / statistics.median(times[2:])


def trainer(contender: str, shape: str, nanogpt: Path | None) -> Callable[..., None]:
    import torch

    width, heads, layers, _ = SHAPES[shape]

    if contender.startswith("glassgpt"):
        from glassgpt.device import DTYPES
        from glassgpt.training.build import build
        from glassgpt.training.settings import Settings
        from glassgpt.training.step import take_step

        name = contender.split()[1]
        settings = Settings(optimizer="muon" if "muon" in contender else "adamw", dtype=name).resolved(1000)
        ours = build(config_of(shape), settings, torch.device("cpu"))
        dtype = DTYPES[name]
        return lambda x, y: take_step(ours.objective, ours.optimizers, (x, y), 0, settings, dtype)

    if contender.startswith("nanoGPT"):
        assert nanogpt is not None
        sys.path.insert(0, str(nanogpt))
        from model import GPT, GPTConfig

        sizes = dict(n_embd=width, n_head=heads, n_layer=layers, block_size=LENGTH, vocab_size=50257)
        model = GPT(GPTConfig(**sizes, dropout=0.0, bias=True))
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
        run = torch.compile(model) if "compiled" in contender else model

        def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return run(x, y)[1]
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = dict(n_embd=width, n_head=heads, n_layer=layers, n_positions=LENGTH)
        model = GPT2LMHeadModel(GPT2Config(**sizes, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)

        def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return model(x, labels=x).loss

    model.train()

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        loss_of(x, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    sys.exit(main())
