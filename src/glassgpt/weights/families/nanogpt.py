"""nanoGPT's `ckpt.pt`: GPT-2's names with matrices as (out, in), often without biases, and the exact GELU.

Its character models come with a `meta.pkl`, the characters and their ids (see nanoGPT's
`data/shakespeare_char/prepare.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from glassgpt.config import GPTConfig
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.containers.pickled import load_plain_pickle
from glassgpt.weights.families.gpt2_names import from_gpt2_names
from glassgpt.weights.families.state import build_model, tensors_of
from glassgpt.weights.formats import Found

META = "meta.pkl"

_ARGUMENTS = {
    "vocab_size": "vocab_size",
    "block_size": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "dropout": "drop_rate",
}


def matches(found: Found) -> bool:
    """Whether it is a checkpoint that nanoGPT's `train.py` wrote."""
    return isinstance(found.value, dict) and {"model", "model_args"} <= found.value.keys()


def read(found: Found, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """The model of a `ckpt.pt`, which says its number of heads. An absent bias becomes the zeros it stands for.

    `torch.compile`'s prefix `_orig_mod.` is dropped; the checkpoint loses its weights on the way. Raises `ValueError`
    where a tensor or an argument is missing or wrong.
    """
    path, arguments = found.path, found.value["model_args"]
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{path}: model_args is a {type(arguments).__name__}, not a dict")
    if missing := [key for key in _ARGUMENTS if key not in arguments]:
        raise ValueError(f"{path}: model_args lacks {missing[0]!r}: it is not a checkpoint of nanoGPT's")
    biased = bool(arguments.get("bias", True))
    shape = {ours: arguments[theirs] for theirs, ours in _ARGUMENTS.items()}
    try:
        config = GPTConfig.of(shape | {"qkv_bias": biased, "tie_embeddings": True, "gelu": "erf"})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tensors = tensors_of(found.value["model"], path)
    state = from_gpt2_names(tensors, config, transposed=False, biased=biased, dtype=dtype, source=str(path))
    return build_model(config, state)


def read_meta(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """The characters of a `meta.pkl`, under the very ids that `stoi` gives them; nothing in it is run.

    Raises `ValueError` for anything but `{"vocab_size": int, "stoi": {character: id}, "itos": {id: character}}` with
    ids from 0 on, each once, `stoi` and `itos` in agreement, and as many of them as the model's `vocab_size`, if that
    is given.
    """
    meta = load_plain_pickle(path)
    if not isinstance(meta, dict) or not {"vocab_size", "stoi", "itos"} <= meta.keys():
        raise ValueError(f"{path} is not a meta.pkl of nanoGPT's: it has no vocab_size, stoi and itos")
    size, stoi, itos = meta["vocab_size"], meta["stoi"], meta["itos"]
    if not isinstance(stoi, dict) or not isinstance(itos, dict):
        raise ValueError(f"{path}: stoi and itos must be dicts, from characters to ids and back")
    try:
        tokenizer = Tokenizer.with_characters(stoi)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if itos != {i: character for character, i in stoi.items()}:
        raise ValueError(f"{path}: stoi and itos disagree")
    if type(size) is not int or size != len(stoi):
        raise ValueError(f"{path}: vocab_size is {ascii(size)[:40]}, but stoi has {len(stoi)} characters")
    if vocab_size not in (None, size):
        raise ValueError(f"{path} has {size} characters, the model {vocab_size} ids; they do not belong together")
    return tokenizer


def missing_meta(found: Found) -> str:
    """Where nanoGPT keeps the `meta.pkl` of a checkpoint that has none beside it, and what to do with it."""
    config = found.value.get("config")
    dataset = config.get("dataset") if isinstance(config, Mapping) else None
    known = isinstance(dataset, str) and re.fullmatch(r"[\w.-]{1,80}", dataset)
    name = dataset if known else "DATASET"
    return f"nanoGPT keeps one in data/{name}/{META}: copy that beside it, or import it with that as its tokenizer"
