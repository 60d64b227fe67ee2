"""A model directory, in and out: a Hugging Face GPT-2 that `transformers`, vLLM and llama.cpp's converter open."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from glassgpt.files import replacing, write_text
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.download import Progress, resolve_model
from glassgpt.weights.formats import read_model
from glassgpt.weights.gpt2_names import to_gpt2_names
from glassgpt.weights.huggingface import to_config_json


def save_model(model: GPTModel, tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer's files.

    Weights keep their dtype and are not rounded: what `load_model` gives back is equal bit for bit. Each file is
    replaced as a whole, the weights last; they are written first, under a temporary name.
    """
    directory = Path(directory)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab} tokens, the model {model.config.vocab_size}: they do not fit"
        )
    eot = tokenizer.eot_id
    generation = {"bos_token_id": eot, "eos_token_id": eot}
    # `torch.compile` wraps a module under this name; what was compiled is saved as if it were not
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    with replacing(directory / "model.safetensors") as temporary:
        # the large file first: a full disk stops here, with nothing in the directory changed
        save_file(to_gpt2_names(state, model.config), temporary, metadata={"format": "pt"})
        write_text(directory / "config.json", json.dumps(to_config_json(model.config, eot), indent=2) + "\n")
        write_text(directory / "generation_config.json", json.dumps(generation, indent=2) + "\n")
        tokenizer.save(directory)


def load_model(
    model: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    tokenizer: Tokenizer | str | Path | None = None,
    n_heads: int | None = None,
    weights_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[GPTModel, Tokenizer]:
    """A model, in `eval` mode, and its tokenizer.

    `model` is a directory or file in any format that `weights.formats` reads, or a name to download: "gpt2" and its
    sisters, "owner/name" on Hugging Face, a URL (see `weights.download.resolve_model`, which `weights_dir` and
    `progress` go to). `tokenizer`, or the directory of one, is for files that come without. `dtype` None keeps the
    file's own; `n_heads` is for the book's files. Raises `FileNotFoundError`, `ValueError` or `DownloadError`, in one
    line, where there is no model or a damaged one.
    """
    path = resolve_model(model, weights_dir=weights_dir, progress=progress)
    source = read_model(path, dtype=dtype, n_heads=n_heads)
    found = source.tokenizer
    if isinstance(tokenizer, Tokenizer):
        found = tokenizer
    elif tokenizer is not None:
        found = Tokenizer.load(tokenizer)
    if found is None and 50257 <= source.model.config.vocab_size <= 50304:
        found = Tokenizer.gpt2()  # nanoGPT pads GPT-2's vocabulary to 50304
    if found is None:
        raise ValueError(f"{path} comes without a tokenizer: give the directory of one (--tokenizer)")
    if found.n_vocab > source.model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {found.n_vocab} tokens, the model {source.model.config.vocab_size}; "
            "they are not of one model"
        )
    return source.model.to(device), found
