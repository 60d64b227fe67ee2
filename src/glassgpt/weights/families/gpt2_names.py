"""GPT-2's tensor names and layout, and ours.

OpenAI's and Hugging Face's GPT-2 keep a linear layer's weight as (in, out), which Hugging Face calls `Conv1D`, and
query, key and value side by side in one matrix; nanoGPT keeps the names and turns the matrices to PyTorch's (out, in).
Ours are the book's. Both directions go through the one table below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from glassgpt.config import GPTConfig
from glassgpt.weights.containers.source import TensorSource
from glassgpt.weights.families.state import MASKS, account_for, check_tensor, meta_state, own_copy, same

# (ours, theirs) inside one block, apart from query, key and value; the matrices are named in _MATRICES
_BLOCK = (
    ("norm1.scale", "ln_1.weight"),
    ("norm1.shift", "ln_1.bias"),
    ("att.out_proj.weight", "attn.c_proj.weight"),
    ("att.out_proj.bias", "attn.c_proj.bias"),
    ("norm2.scale", "ln_2.weight"),
    ("norm2.shift", "ln_2.bias"),
    ("ff.layers.0.weight", "mlp.c_fc.weight"),
    ("ff.layers.0.bias", "mlp.c_fc.bias"),
    ("ff.layers.2.weight", "mlp.c_proj.weight"),
    ("ff.layers.2.bias", "mlp.c_proj.bias"),
)
_MATRICES = ("attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_QKV = ("att.W_query", "att.W_key", "att.W_value")
_ENDS = (
    ("tok_emb.weight", "wte.weight"),
    ("pos_emb.weight", "wpe.weight"),
    ("final_norm.scale", "ln_f.weight"),
    ("final_norm.shift", "ln_f.bias"),
)


def to_gpt2_names(state: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our state dict under GPT-2's names, contiguous, (in, out); a missing QKV bias is written as its equal, zeros."""
    return dict(iter_gpt2_names(state, config))


def iter_gpt2_names(state: Mapping[str, Tensor], config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """As `to_gpt2_names`, one tensor after the other, so that not all of them need be in memory at once."""
    for ours, theirs in _ENDS:
        yield f"transformer.{theirs}", _plain(state[ours])
    for i in range(config.n_layers):
        ours_at, theirs_at = f"trf_blocks.{i}.", f"transformer.h.{i}."
        for ours, theirs in _BLOCK:
            tensor = state[ours_at + ours]
            yield theirs_at + theirs, _plain(tensor.T if theirs in _MATRICES else tensor)
        weights = [state[f"{ours_at}{name}.weight"].T for name in _QKV]
        zeros = weights[0].new_zeros(config.emb_dim)
        yield theirs_at + "attn.c_attn.weight", _plain(torch.cat(weights, dim=1))
        biases = [state[f"{ours_at}{name}.bias"] if config.qkv_bias else zeros for name in _QKV]
        yield theirs_at + "attn.c_attn.bias", _plain(torch.cat(biases))
    if not config.tie_embeddings:
        yield "lm_head.weight", _plain(state["out_head.weight"])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


def from_gpt2_names(
    tensors: TensorSource,
    config: GPTConfig,
    *,
    transposed: bool = True,
    biased: bool = True,
    dtype: torch.dtype | None = None,
    source: str = "the weights",
    part: Callable[[Tensor], Tensor] = lambda whole: whole,
) -> dict[str, Tensor]:
    """Our state dict from tensors under GPT-2's names, with or without `transformer.` before them.

    `transposed`: matrices are (in, out), as GPT-2's are; False for nanoGPT's. `biased` False: no layer and no norm
    has a bias in `tensors`, and each gets the zeros that this stands for. Every tensor of `tensors` is accounted
    for: one that is missing, unexpected, of another shape, not of a floating type or not finite raises `ValueError`,
    all of the first three kinds at once. Tensors are taken and copied one at a time: the weights are never in memory
    twice. Of each of ours that `part` is kept.
    """
    names = _their_names(tensors)
    zeros = _check_names(tensors, names, config, transposed, biased, source)
    dtype_of_zeros = dtype or (tensors[names["wte.weight"]].dtype if zeros else None)

    def take(name: str, turn: bool = False) -> Tensor:
        if name in zeros:
            return torch.zeros(zeros[name], dtype=dtype_of_zeros)
        tensor = tensors.take(names[name])
        check_tensor(tensor, name, source)
        return tensor.T if turn else tensor

    def keep(tensor: Tensor) -> Tensor:
        return own_copy(part(tensor), dtype)

    # largest first: each tensor briefly exists twice
    state = {ours: keep(take(theirs)) for ours, theirs in _ENDS}
    state["out_head.weight"] = state["tok_emb.weight"] if config.tie_embeddings else keep(take("lm_head.weight"))
    for i in range(config.n_layers):
        ours_at, theirs_at = f"trf_blocks.{i}.", f"h.{i}."
        for ours, theirs in _BLOCK:
            turn = transposed and theirs in _MATRICES
            state[ours_at + ours] = keep(take(theirs_at + theirs, turn))
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            whole = take(f"{theirs_at}attn.c_attn.{kind}", turn=transposed and kind == "weight")  # (3 d, d) or (3 d)
            for name, third in zip(_QKV, whole.chunk(3), strict=True):
                state[f"{ours_at}{name}.{kind}"] = keep(third)
    return state


def _check_names(
    tensors: TensorSource, names: Mapping[str, str], config: GPTConfig, transposed: bool, biased: bool, source: str
) -> dict[str, tuple[int, ...]]:
    """`ValueError` unless names and shapes are those of the config; the biases that are absent, and their shapes."""
    # no layer has fewer than 6; before a table of them is made, as the config may be a stranger's
    if 6 * config.n_layers > len(names):
        raise ValueError(f"{source}: {config.n_layers} layers in the config, {len(names)} tensors in all")
    expected = {}
    for name, tensor in to_gpt2_names(meta_state(config, source), config).items():
        turned = name.endswith((*_MATRICES, "attn.c_attn.weight")) and not transposed
        expected[name.removeprefix("transformer.")] = tuple(tensor.T.shape if turned else tensor.shape)
    ignored = {name for name in names if name.endswith(MASKS)}
    if config.tie_embeddings and "lm_head.weight" in names:
        ignored.add("lm_head.weight")
        head = tensors.take(names["lm_head.weight"])
        embedding = tensors[names["wte.weight"]] if "wte.weight" in names else head
        if not same(head, embedding):
            check_tensor(embedding, "wte.weight", source)  # a NaN equals nothing
            raise ValueError(f"{source}: lm_head.weight differs from wte.weight though the config ties them")
    if not config.qkv_bias:  # written as zeros, or not at all
        for name in [name for name in expected if name.endswith("attn.c_attn.bias")]:
            if name in names and tensors[names[name]].any():
                raise ValueError(f"{source}: {name} is not zero though the config says qkv_bias false")
            del expected[name]
            ignored.add(name)
    zeros = {} if biased else {name: expected.pop(name) for name in [*expected] if name.endswith(".bias")}
    shapes = {name: tensors.shape(theirs) for name, theirs in names.items() if name not in ignored}
    account_for(expected, shapes, f"{source} does not fit its config")
    return zeros


def _their_names(tensors: TensorSource) -> dict[str, str]:
    """Name without `transformer.`, and `torch.compile`'s prefix, to the name it has in `tensors`."""
    names: dict[str, str] = {}
    for name in tensors:
        if not name.isprintable():
            raise ValueError(f"{name[:100]!r} is not the name of a tensor")
        short = name.removeprefix("_orig_mod.").removeprefix("transformer.")
        if short in names:
            raise ValueError(f"two tensors are called {short}: {names[short]} and {name}")
        names[short] = name
    return names
