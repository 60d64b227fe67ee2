"""The number type of the matrix products in training: as asked, or by measuring this machine on this model's shapes."""

from __future__ import annotations

import dataclasses
import time

import torch

from glassgpt.config import GPTConfig
from glassgpt.device import DTYPES, check_dtype, gpu_dtype
from glassgpt.language_model import seeded
from glassgpt.measured import recall, remember, this_machine
from glassgpt.model import TransformerBlock

_MIN_WIDTH = 128  # below, most of a step is not in products
_MOST_TOKENS = 512
_RATE_WIDTH = 2048  # of the square matrices whose product tells a CPU's rate
_GPU_RATE_WIDTH = 8192
_RATE_SECONDS = 1.5
_ENOUGH = 1.2
"""So many times as fast bfloat16 must be: it rounds, after all."""


def choose_dtype(name: str, device: torch.device, config: GPTConfig, rows: int) -> tuple[str, str]:
    """A key of `DTYPES` and why, for a model whose steps compute so many rows at once.

    Weights, optimizer, norms and loss are float32 always. "auto" on a CPU is what a block of the model is faster in,
    forward and backward: flags do not say it, as some processors have bfloat16 products that are slower than float32.
    The measurement takes less than a second and is remembered. `ValueError` where `device` cannot do what is asked.
    """
    check_dtype(name, device)
    if name != "auto":
        return name, "as asked"
    if device.type != "cpu":
        return gpu_dtype(device)
    if config.emb_dim < _MIN_WIDTH:
        return "float32", f"matrices under {_MIN_WIDTH} wide gain too little from bfloat16 on a CPU"
    shape = dict(emb_dim=config.emb_dim, n_heads=config.n_heads, tokens=min(rows * config.context_length, _MOST_TOKENS))
    about = {"what": "training products", **shape, "threads": torch.get_num_threads(), **this_machine("torch")}
    found = recall(about)
    if found is None or not isinstance(found.get("times"), float):
        found = {"times": float32_by_bfloat16(config, shape["tokens"])}
        remember(about, found)
    times = found["times"]
    measured = f"measured on {found['when']}" if "when" in found else "measured just now"
    return (
        "bfloat16" if times >= _ENOUGH else "float32",
        f"a block of this model is {times:.1f} times as fast in bfloat16 here, {measured}",
    )


def product_rate(dtype: str, device: torch.device) -> float:
    """Floating-point operations per second of large matrix products in `dtype` here and now: the best of a few.

    Not remembered, because it is for comparing with what else is measured now, on a machine that may be busy.
    """
    n = _RATE_WIDTH if device.type == "cpu" else _GPU_RATE_WIDTH
    x = torch.ones(n, n, dtype=DTYPES[dtype], device=device)
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < _RATE_SECONDS):
        start = time.perf_counter()
        float(torch.mm(x, x)[0, 0])  # read: a GPU is waited for
        times.append(time.perf_counter() - start)
    return 2.0 * n**3 / min(times)


def float32_by_bfloat16(config: GPTConfig, n_tokens: int) -> float:
    """The time of one block of the model in float32, divided by that in bfloat16."""
    with seeded(0):
        block = TransformerBlock(dataclasses.replace(config, drop_rate=0.0))
        x = torch.randn(1, n_tokens, config.emb_dim, requires_grad=True)

    def seconds(dtype: torch.dtype, most: float) -> float:
        """The best of at least four, and of a tenth of a second; one alone where it takes longer than `most`."""
        times: list[float] = []
        while (len(times) < 4 or sum(times) < 0.1) and min(times, default=0.0) < most:
            start = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = block(x).sum()
            loss.backward()
            times.append(time.perf_counter() - start)
        return min(times)

    plain = seconds(DTYPES["float32"], most=1.0)
    # the first time of a small block is that of making its kernels
    return round(plain / seconds(DTYPES["bfloat16"], most=max(2 * plain, 0.1)), 2)
