"""GPT-2's tensor names and layout, and ours.

OpenAI's and Hugging Face's GPT-2 keep a linear layer's weight as (in, out), which Hugging Face calls `Conv1D`, and
query, key and value side by side in one matrix; nanoGPT keeps the names and turns the matrices to PyTorch's (out, in).
Ours are the book's. Both directions go through the one table below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

import torch
from torch import Tensor

from glassgpt.config import GPTConfig
from glassgpt.model import GPTModel

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
    out = {f"transformer.{theirs}": state[ours] for ours, theirs in _ENDS}
    for i in range(config.n_layers):
        ours_at, theirs_at = f"trf_blocks.{i}.", f"transformer.h.{i}."
        for ours, theirs in _BLOCK:
            tensor = state[ours_at + ours]
            out[theirs_at + theirs] = tensor.T if theirs in _MATRICES else tensor
        weights = [state[f"{ours_at}{name}.weight"].T for name in _QKV]
        zeros = weights[0].new_zeros(config.emb_dim)
        biases = [state[f"{ours_at}{name}.bias"] if config.qkv_bias else zeros for name in _QKV]
        out[theirs_at + "attn.c_attn.weight"] = torch.cat(weights, dim=1)
        out[theirs_at + "attn.c_attn.bias"] = torch.cat(biases)
    if not config.tie_embeddings:
        out["lm_head.weight"] = state["out_head.weight"]
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}


def from_gpt2_names(
    tensors: Mapping[str, Tensor],
    config: GPTConfig,
    *,
    transposed: bool = True,
    biased: bool = True,
    dtype: torch.dtype | None = None,
    source: str = "the weights",
) -> dict[str, Tensor]:
    """Our state dict from tensors under GPT-2's names, with or without `transformer.` before them.

    `transposed`: matrices are (in, out), as GPT-2's are; False for nanoGPT's. `biased` False: no layer and no norm
    has a bias in `tensors`, and each gets the zeros that this stands for. Every tensor of `tensors` is accounted
    for: one that is missing, unexpected, of another shape, not of a floating type or not finite raises `ValueError`,
    all of the first three kinds at once. Tensors are copied one at a time out of a lazy mapping, and out of a plain
    dict, which is emptied: the weights are never in memory twice.
    """
    names = _their_names(tensors)
    if config.n_layers > len(names):  # before a table of them is made: the config may be a stranger's
        raise ValueError(f"{source}: {config.n_layers} layers in the config, {len(names)} tensors in all")
    expected = dict(_their_shapes(config, transposed))
    ignored = {n for n in names if n.endswith((".attn.bias", ".attn.masked_bias"))}  # causal masks of old files
    if config.tie_embeddings and "lm_head.weight" in names:
        ignored.add("lm_head.weight")
        head = _pop(tensors, names["lm_head.weight"])
        embedding = tensors[names["wte.weight"]] if "wte.weight" in names else head
        if not same(head, embedding):
            check_tensor(embedding, "wte.weight", source)  # a NaN equals nothing
            raise ValueError(f"{source}: lm_head.weight differs from wte.weight though the config ties them")
        del head, embedding  # so that nobody holds them any longer
    if not config.qkv_bias:  # written as zeros, or not at all
        for i in range(config.n_layers):
            name = f"h.{i}.attn.c_attn.bias"
            if name in names and tensors[names[name]].any():
                raise ValueError(f"{source}: {name} is not zero though the config says qkv_bias false")
            del expected[name]
            ignored.add(name)
    zeros = {} if biased else {name: expected.pop(name) for name in [*expected] if name.endswith(".bias")}
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in names]
    problems += [f"unexpected {name[:100]}" for name in names if name not in expected and name not in ignored]
    problems += [
        f"{name} is {list(found)}, the config needs {list(shape)}"
        for name, shape in expected.items()
        if name in names and (found := _shape(tensors, names[name])) != shape
    ]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(f"{source} does not fit its config: {'; '.join(problems[:6])}{more}")

    dtype_of_zeros = dtype or (tensors[names["wte.weight"]].dtype if zeros else None)

    def take(name: str, turn: bool = False) -> Tensor:
        if name in zeros:
            return torch.zeros(zeros[name], dtype=dtype_of_zeros)
        tensor = _pop(tensors, names[name])
        check_tensor(tensor, name, source)
        return tensor.T if turn else tensor

    # the largest first: each is for a moment there twice
    state = {ours: own_copy(take(theirs), dtype) for ours, theirs in _ENDS}
    state["out_head.weight"] = (
        state["tok_emb.weight"] if config.tie_embeddings else own_copy(take("lm_head.weight"), dtype)
    )
    for i in range(config.n_layers):
        ours_at, theirs_at = f"trf_blocks.{i}.", f"h.{i}."
        for ours, theirs in _BLOCK:
            turn = transposed and theirs in _MATRICES
            state[ours_at + ours] = own_copy(take(theirs_at + theirs, turn), dtype)
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            whole = take(f"{theirs_at}attn.c_attn.{kind}", turn=transposed and kind == "weight")  # (3 d, d) or (3 d)
            for name, part in zip(_QKV, whole.chunk(3), strict=True):
                state[f"{ours_at}{name}.{kind}"] = own_copy(part, dtype)
    return state


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


def _pop(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor, no longer held by a plain dict."""
    return tensors.pop(name) if isinstance(tensors, dict) else tensors[name]


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a tensor, not read for it where the mapping knows."""
    known = getattr(tensors, "shape", None)
    return tuple(tensors[name].shape if known is None else known(name))


def _their_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name without `transformer.`, and `torch.compile`'s prefix, to the name it has in `tensors`."""
    names: dict[str, str] = {}
    for name in tensors:
        if not name.isprintable():
            raise ValueError(f"{name[:100]!r} is no tensor's name")
        short = name.removeprefix("_orig_mod.").removeprefix("transformer.")
        if short in names:
            raise ValueError(f"two tensors are called {short}: {names[short]} and {name}")
        names[short] = name
    return names


def _their_shapes(config: GPTConfig, transposed: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    d = config.emb_dim
    yield "wte.weight", (config.vocab_size, d)
    yield "wpe.weight", (config.context_length, d)
    for name in ("ln_f.weight", "ln_f.bias"):
        yield name, (d,)
    for i in range(config.n_layers):
        for name, n_in, n_out in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d),
            ("mlp.c_proj", 4 * d, d),
        ):
            yield f"h.{i}.{name}.weight", (n_in, n_out) if transposed else (n_out, n_in)
            yield f"h.{i}.{name}.bias", (n_out,)
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            yield f"h.{i}.{name}", (d,)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, d)
