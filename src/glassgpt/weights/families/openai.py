"""OpenAI's GPT-2: the variables of its TensorFlow checkpoints, and the params that the book makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassgpt.config import GPTConfig
from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.weights.containers.source import OnDemand, TensorSource
from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint
from glassgpt.weights.families.gpt2_names import from_gpt2_names
from glassgpt.weights.families.state import build_model
from glassgpt.weights.formats import Found

_PARTS = ("ln_1", "attn/c_attn", "attn/c_proj", "ln_2", "mlp/c_fc", "mlp/c_proj")
_SETTINGS = {
    "n_vocab": "vocab_size",
    "n_ctx": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
}


class _Place(NamedTuple):
    """One tensor under its three names."""

    variable: str  # in the checkpoint: model/h0/attn/c_attn/w
    keys: tuple[str | int, ...]  # in the book's params: blocks, 0, attn, c_attn, w
    gpt2_name: str  # on Hugging Face: h.0.attn.c_attn.weight


def config_from_settings(settings: Mapping[str, Any]) -> GPTConfig:
    """The model that `hparams.json` describes; `ValueError` where it does not describe one."""
    missing = [key for key in _SETTINGS if key not in settings]
    if missing:
        raise ValueError(f"the settings have no {missing[0]!r}: they are not those of an OpenAI GPT-2")
    shape = {ours: settings[theirs] for theirs, ours in _SETTINGS.items()}
    return GPTConfig(**shape, qkv_bias=True, tie_embeddings=True)


def params_from_variables(variables: Mapping[str, npt.NDArray[Any]], n_layers: int) -> dict[str, Any]:
    """The book's nested params from a checkpoint's variables; matrices lose the leading 1 of their shape.

    The arrays are those of `variables`, not copies. Raises `ValueError` for one that is missing, and for one
    more under `model/`; others, as a training run keeps them, are left out.
    """
    params: dict[str, Any] = {"blocks": []}
    expected = set()
    for place in _places(n_layers):
        if place.variable not in variables:
            raise ValueError(f"the checkpoint has no {place.variable}: it is not a GPT-2 of {n_layers} layers")
        expected.add(place.variable)
        array = variables[place.variable]
        _put(params, place.keys, array.reshape(_without_leading_1(array.shape)))
    unexpected = [name for name in variables if name.startswith("model/") and name not in expected]
    if unexpected:
        raise ValueError(
            f"the checkpoint has {len(unexpected)} variables more than a GPT-2 of {n_layers} layers, "
            f"{unexpected[0]} among them"
        )
    return params


def matches(found: Found) -> bool:
    """Whether it is a directory with OpenAI's `hparams.json`."""
    return found.value is None and (found.path / "hparams.json").exists()


def read(found: Found, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """The GPT-2 in a directory with `hparams.json`, which says its number of heads, and a TensorFlow checkpoint.

    Every variable under `model/` is accounted for, see `from_gpt2_names`. Raises `OSError` and `ValueError`.
    """
    settings = found.path / "hparams.json"
    try:
        config = config_from_settings(read_json(settings))
    except ValueError as error:
        raise ValueError(str(error) if str(settings) in str(error) else f"{settings}: {error}") from None
    tensors = tensors_from_variables(TensorFlowCheckpoint(found.path), config.n_layers)
    return build_model(config, from_gpt2_names(tensors, config, dtype=dtype, source=str(found.path)))


def tensors_from_variables(variables: TensorFlowCheckpoint, n_layers: int) -> TensorSource:
    """A checkpoint's variables under GPT-2's names, for `from_gpt2_names`; each read when it is asked for.

    Variables that are not under `model/`, as a training run keeps them, are left out; one more under it keeps its
    name, so that whoever accounts for the names finds it.
    """
    known = {place.variable: place.gpt2_name for place in _places(min(n_layers, len(variables)))}
    names = {known.get(name, name): name for name in variables if name.startswith("model/")}
    return OnDemand(
        names, lambda name: _tensor(variables[name]), lambda name: _without_leading_1(variables.shape(name))
    )


def tensors_from_params(params: Mapping[str, Any], *, head: bool = False) -> TensorSource:
    """The book's params under GPT-2's names, for `from_gpt2_names`; each a tensor when it is asked for.

    `head` adds the token embedding once more, as the output head. What has no place in a GPT-2 keeps its
    path as its name, so that whoever accounts for the names finds it.
    """
    names = {place.keys: place.gpt2_name for place in _places(len(params.get("blocks", ())))}
    arrays = {names.get(keys, "/".join(map(str, keys))): array for keys, array in _leaves(params)}
    if head and "wte.weight" in arrays:
        arrays["lm_head.weight"] = arrays["wte.weight"]
    return OnDemand(arrays, _tensor, lambda array: _without_leading_1(np.shape(array)))


def _tensor(array: npt.ArrayLike) -> Tensor:
    """An array as a tensor over the same memory, which may be read-only: to be read and copied, not written to."""
    array = np.asarray(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, that the array is read-only
        return torch.from_numpy(array.reshape(_without_leading_1(array.shape)))


def _without_leading_1(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a matrix that is kept as the kernel of a convolution over one place."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _places(n_layers: int) -> Iterator[_Place]:
    for name in ("wte", "wpe"):
        yield _Place(f"model/{name}", (name,), f"{name}.weight")
    for theirs, long in (("g", "weight"), ("b", "bias")):
        yield _Place(f"model/ln_f/{theirs}", (theirs,), f"ln_f.{long}")
    for layer in range(n_layers):
        for part in _PARTS:
            for theirs, long in (("g" if part.startswith("ln") else "w", "weight"), ("b", "bias")):
                yield _Place(
                    f"model/h{layer}/{part}/{theirs}",
                    ("blocks", layer, *part.split("/"), theirs),
                    f"h.{layer}.{part.replace('/', '.')}.{long}",
                )


def _put(params: dict[str, Any], keys: tuple[str | int, ...], array: npt.NDArray[Any]) -> None:
    target: Any = params
    for key in keys[:-1]:
        if isinstance(key, int):
            if key == len(target):
                target.append({})
            target = target[key]
        else:
            target = target.setdefault(key, {})
    target[keys[-1]] = array


def _leaves(tree: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], npt.NDArray[Any]]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*at, key))
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from _leaves(value, (*at, i))
    else:
        yield at, tree
