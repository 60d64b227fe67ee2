"""A stranger's tensors: accounted for, checked, copied, and made the parameters of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassgpt.config import GPTConfig
from glassgpt.model import GPTModel
from glassgpt.weights.containers.source import InMemory, TensorSource

_MAX_PARAMETERS = 2**48
MASKS = (".att.mask", ".attn.bias", ".attn.masked_bias")
"""How the names of causal masks end that the book's code and old GPT-2 files keep; nothing is read from them."""


def tensors_of(value: Any, path: Path) -> TensorSource:
    """The tensors by name that a file holds, a dict's as `load_state_dict` takes them; `ValueError` otherwise.

    Tensors may share memory, as an embedding and a tied head do. More than that would make a small file a model of any
    size, and is refused.
    """
    if isinstance(value, TensorSource):
        return value
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path} holds a {type(value).__name__}, not a dict of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not name.isprintable() or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: {str(name)[:100]!r} is a {type(tensor).__name__}, not a named tensor")
    weights = [tensor for name, tensor in value.items() if not name.endswith(MASKS)]
    sizes = [tensor.nbytes for tensor in weights]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights}
    if sum(sizes) > sum(held.values()) + max(sizes, default=0):
        raise ValueError(
            f"{path}: its tensors are {sum(sizes):,} bytes and share {sum(held.values()):,} bytes of memory, more than "
            "a tied embedding explains: save clones of them"
        )
    return InMemory(value)


def meta_state(config: GPTConfig, source: str) -> dict[str, Tensor]:
    """The state dict of a model of this config, on the meta device: names, shapes and no numbers.

    All layers stand for the first one: a file may claim any number of them. `ValueError` for a shape that is not
    possible.
    """
    if (n := config.n_parameters()) > _MAX_PARAMETERS:
        raise ValueError(f"{source}: a model of {n:,} parameters is not possible")
    with torch.device("meta"):
        one_layer = GPTModel(config.replace(n_layers=1)).state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in one_layer.items():
        part = name.removeprefix("trf_blocks.0.")
        names = [name] if part == name else [f"trf_blocks.{i}.{part}" for i in range(config.n_layers)]
        state |= dict.fromkeys(names, tensor)
    return state


def account_for(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    complaint: str,
    ignored: Collection[str] = (),
) -> None:
    """`ValueError`, `complaint` and the first problems, unless `found` has the names and shapes of `expected`.

    `ignored` names may be there or not.
    """
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    problems += [f"unexpected {name[:100]}" for name in found if name not in expected and name not in ignored]
    problems += [
        f"{name} is {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(f"{complaint}: {'; '.join(problems[:6])}{more}")


def check_tensor(tensor: Tensor, name: str, source: str) -> None:
    """`ValueError` naming the tensor, unless it is of a floating type and every value is finite."""
    if not tensor.is_floating_point():
        raise ValueError(f"{source}: {name} is {tensor.dtype}, not a floating type")
    # a NaN anywhere is both ends; nothing is copied for it
    if tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
        raise ValueError(f"{source}: {name} holds NaN or infinite values")


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in dtype, shape and values."""
    return a.dtype == b.dtype and torch.equal(a, b)


def own_copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A contiguous copy: the source may be a mapped file, which a later change must neither move nor reach."""
    return torch.empty(tensor.shape, dtype=dtype or tensor.dtype).copy_(tensor)


def build_model(config: GPTConfig, state: MutableMapping[str, Tensor]) -> GPTModel:
    """A model, in `eval` mode, whose parameters are the very tensors of `state`: no initialisation, no second copy."""
    with torch.device("meta"):
        model = GPTModel(config)
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.out_head.weight = model.tok_emb.weight
    return model.eval().requires_grad_(True)
