"""What this machine can do: device and number type. Each choice comes with its reason, to be shown."""

from __future__ import annotations

import torch

from glassgpt.cores import peak_memory, wanted_threads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


def gpu_dtype(device: torch.device) -> tuple[str, str]:
    """The number type of matrix products on a device that is not a CPU, a key of `DTYPES`, and why."""
    fast, what = has_bfloat16_products(device), "this GPU" if device.type == "cuda" else device.type.upper()
    return "bfloat16" if fast else "float32", f"{what} has {'' if fast else 'no '}bfloat16 matrix instructions"


def check_dtype(name: str, device: torch.device) -> None:
    """`ValueError` for a number type that is unknown, or that `device` cannot compute with."""
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype {name!r} must be one of auto, {', '.join(DTYPES)}")
    if name == "bfloat16" and device.type == "cuda" and not has_bfloat16_products(device):
        raise ValueError("dtype 'bfloat16' needs a GPU of compute capability 8.0 or more: use float32")


def peak_memory_on(device: torch.device) -> int | None:
    """The most bytes in use so far: what PyTorch took of a CUDA device, else this process; None where unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def device_name(device: torch.device) -> str:
    """Of a GPU its own, else the kind: what measurements hang on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def set_threads(threads: int | None = None) -> int:
    """Let PyTorch compute with `cores.wanted_threads(threads)`; returns their number."""
    threads = wanted_threads(threads)
    torch.set_num_threads(threads)
    return threads
