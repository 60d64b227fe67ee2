"""GGUF, the one-file form of llama.cpp and Ollama: weights, shape and tokenizer together.

Written through the `gguf` package (the extra `gguf`), as architecture "gpt2". The names and keys are those of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's own converter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassgpt.config import NORM_EPS, GPTConfig
from glassgpt.files import creating
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.containers.source import OnDemand
from glassgpt.weights.families.gpt2_names import from_gpt2_names, to_gpt2_names
from glassgpt.weights.families.state import build_model
from glassgpt.weights.formats import NUMBER_TYPES
from glassgpt.weights.proof import Proof, prove

_PARTS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_ENDS = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # token types of the format
# llama.cpp wants merges, and the format's library writes no empty list. This one never applies: none makes its parts.
_NO_MERGE = "[none] [none]"


def write_gguf(model: GPTModel, tokenizer: Tokenizer, path: Path, kind: str = "f32", name: str = "glassgpt") -> None:
    """Write one file that llama.cpp runs; `kind` is one of `NUMBER_TYPES`.

    Rows that do not divide into Q8_0's blocks of 32 are kept in float16. Raises `ValueError` for a model or tokenizer
    that the format cannot express, `ImportError` where the extra is missing.
    """
    if kind not in NUMBER_TYPES:
        raise ValueError(f"GGUF type {kind!r} is unknown: use one of {', '.join(NUMBER_TYPES)}")
    if model.config.sliding_window is not None:
        raise ValueError("llama.cpp's GPT-2 has no sliding window: this model cannot be a GGUF")
    gguf = _library()
    config = model.config
    tokens, types, merges = _vocabulary(tokenizer, config.vocab_size)
    with creating(path) as temporary, closing(gguf.GGUFWriter(str(temporary), "gpt2")) as writer:
        writer.add_name(name)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.emb_dim)
        writer.add_feed_forward_length(4 * config.emb_dim)
        writer.add_block_count(config.n_layers)
        writer.add_head_count(config.n_heads)
        writer.add_layer_norm_eps(NORM_EPS)
        writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7}[kind])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        if tokenizer.eot_id is not None:
            writer.add_bos_token_id(tokenizer.eot_id)
            writer.add_eos_token_id(tokenizer.eot_id)
            writer.add_add_bos_token(False)
        tensors = to_gpt2_names(model.state_dict(), config)
        for ours in list(tensors):
            target, turned = _to_gguf_name(ours.removeprefix("transformer."))
            tensor = tensors.pop(ours)  # taken out, so that it is not held beside what is made of it
            array = (tensor.T if turned else tensor).float().cpu().numpy()
            _add_tensor(writer, gguf, target, np.ascontiguousarray(array), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def read_gguf(path: Path, *, gelu: str = "tanh") -> GPTModel:
    """The model in a GGUF that `write_gguf` wrote, quantised tensors expanded.

    `gelu` is the form that the file does not say. This is how an export is proved. It is not for files from strangers:
    the `gguf` package believes the counts that a file claims. Raises `ValueError` for another architecture,
    `ImportError` where the extra is missing.
    """
    gguf = _library()
    reader = gguf.GGUFReader(str(path))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    kept = {tensor.name: tensor for tensor in reader.tensors}
    if fields.get("general.architecture") != "gpt2":
        raise ValueError(f"{path} is a GGUF of {fields.get('general.architecture')!r}, not of a GPT-2")
    try:
        config = GPTConfig(
            vocab_size=len(fields["tokenizer.ggml.tokens"]),
            context_length=fields["gpt2.context_length"],
            emb_dim=fields["gpt2.embedding_length"],
            n_heads=fields["gpt2.attention.head_count"],
            n_layers=fields["gpt2.block_count"],
            drop_rate=0.0,
            qkv_bias=True,
            tie_embeddings="output.weight" not in kept,
            gelu=gelu,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a complete GPT-2: {error!r}") from None
    names = {_to_gguf_name(ours)[0]: ours for ours in _our_names(config)}

    def expanded(tensor: Any) -> Tensor:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(array, dtype=np.float32))

    renamed = {names.get(name, name): tensor for name, tensor in kept.items()}
    # the format counts the dimensions from the last
    tensors = OnDemand(renamed, expanded, lambda tensor: [int(n) for n in reversed(tensor.shape)])
    return build_model(config, from_gpt2_names(tensors, config, transposed=False, source=str(path)))


def export(
    model: GPTModel, tokenizer: Tokenizer, path: Path, number_type: str | None, name: str | None
) -> tuple[Proof, list[str], GPTModel | None]:
    """`write_gguf`, proved by reading the file again; the note says where llama.cpp computes something else."""
    number_type = number_type or "f32"
    write_gguf(model, tokenizer, path, number_type, name or path.stem)
    notes = []
    if model.config.gelu == "erf":
        notes.append("note: this model computes the erf form of GELU, llama.cpp the tanh form")
    # the file does not say which form of GELU: the weights are compared under the source's
    result = read_gguf(path, gelu=model.config.gelu)
    if number_type == "f32":
        return prove(model, result), notes, None
    return prove(model, result, rounding=rounding(number_type)), notes, result


def rounding(number_type: str) -> Callable[[str, Tensor], Tensor]:
    """For `prove`: the largest error of each weight of a tensor in a GGUF of one of `NUMBER_TYPES`.

    float16 keeps 11 bits, and its smallest steps are 2**-24. Q8_0 keeps blocks of 32 in steps of their largest
    magnitude / 127, a step that is itself a float16.
    """

    def errors(name: str, weights: Tensor) -> Tensor:
        if weights.ndim == 1 or name == "pos_emb.weight" or number_type == "f32":
            return torch.zeros_like(weights)
        if number_type == "q8_0" and weights.shape[1] % 32 == 0:
            largest = weights.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True)
            step = largest / 127
            error = step / 2 + 127 * (step * 2**-11 + 2**-25)
            return error.expand(-1, -1, 32).flatten(1)
        return weights.abs() * 2**-11 + 2**-25

    return errors


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("GGUF needs the extra: pip install 'glassgpt[gguf]'") from None
    return gguf


def _to_gguf_name(name: str) -> tuple[str, bool]:
    """GPT-2's name to GGUF's, and whether the matrix is kept the other way round, (out, in)."""
    if name in _ENDS:
        return _ENDS[name], False
    _, layer, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_PARTS[part]}.{kind}", kind == "weight" and not part.startswith("ln")


def _our_names(config: GPTConfig) -> Iterator[str]:
    yield from _ENDS
    for layer in range(config.n_layers):
        for part in _PARTS:
            yield from (f"h.{layer}.{part}.weight", f"h.{layer}.{part}.bias")


def _add_tensor(writer: Any, gguf: Any, name: str, array: np.ndarray[Any, Any], kind: str) -> None:
    if array.ndim == 1 or name == "position_embd.weight" or kind == "f32":
        writer.add_tensor(name, array)
    elif kind == "q8_0" and array.shape[1] % 32 == 0:
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(array, q8_0), raw_dtype=q8_0)
    else:
        writer.add_tensor(name, array.astype(np.float16))


def _vocabulary(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens in the order of their ids, their types, and the merges; ids the tokenizer does not have are padding."""
    byte_level = tokenizer.byte_level_vocabulary()
    if byte_level is None:
        raise ValueError(
            "this tokenizer cannot be in a GGUF: it must be byte-level, as GPT-2's, with GPT-2's cutting into words"
        )
    vocabulary, merges = byte_level
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [_UNUSED] * size
    for token, i in vocabulary.items():
        tokens[i], types[i] = token, _CONTROL if i in tokenizer.special_ids else _NORMAL
    return tokens, types, [" ".join(pair) for pair in merges] or [_NO_MERGE]
