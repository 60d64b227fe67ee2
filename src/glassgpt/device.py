"""What this machine can do: device and number type. Each choice comes with its reason, to be shown."""

from __future__ import annotations

from typing import Any

import torch

from glassgpt.cores import peak_memory, wanted_threads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_MIN_BFLOAT16_WIDTH = 256  # at 128 turning numbers into bfloat16 and back cost more than it won, at 384 less


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" takes CUDA where there is one, then Apple's MPS, else the CPU. `ValueError` for one that is not here."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown: use auto, {', '.join(available)}") from None
    if device.type not in available:
        raise ValueError(f"device {name!r} is not on this machine: use {' or '.join(available)}")
    return device


def has_bfloat16_products(device: torch.device) -> bool:
    """Whether a GPU has matrix instructions for bfloat16: CUDA from compute capability 8.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def pick_dtype(name: str, device: torch.device, emb_dim: int) -> tuple[str, str]:
    """The number type of matrix products in training, a key of `DTYPES`, and why.

    Weights, optimizer, norms and loss are float32 always. "auto" takes bfloat16 only where the processor has matrix
    instructions for it (AMX, or CUDA from compute capability 8.0) and the model is wide enough to gain from them on a
    CPU: elsewhere it is slower than float32. `ValueError` where the device cannot do what is asked.
    """
    check_dtype(name, device)
    if name != "auto":
        return name, "as asked"
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 has none
        fast, what = bool(capabilities.get("amx_bf16")), "this CPU"
        if fast and emb_dim < _MIN_BFLOAT16_WIDTH:
            return "float32", f"matrices under {_MIN_BFLOAT16_WIDTH} wide gain nothing from bfloat16 on a CPU"
    else:
        fast, what = has_bfloat16_products(device), "this GPU" if device.type == "cuda" else device.type.upper()
    verb = "has" if fast else "has no"
    return "bfloat16" if fast else "float32", f"{what} {verb} bfloat16 matrix instructions"


def check_dtype(name: str, device: torch.device) -> None:
    """`ValueError` for a number type that is unknown, or that `device` cannot compute with."""
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype {name!r} must be one of auto, {', '.join(DTYPES)}")
    if name == "bfloat16" and device.type == "cuda" and not has_bfloat16_products(device):
        raise ValueError("dtype 'bfloat16' needs a GPU of compute capability 8.0 or more: use float32")


def peak_memory_on(device: torch.device) -> int | None:
    """The most bytes in use so far: what PyTorch took of a CUDA device, else this process; None where unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def set_threads(threads: int | None = None) -> int:
    """Let PyTorch compute with `cores.wanted_threads(threads)`; returns their number."""
    threads = wanted_threads(threads)
    torch.set_num_threads(threads)
    return threads
