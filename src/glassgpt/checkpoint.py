"""A model directory, in and out: a Hugging Face GPT-2 that `transformers`, vLLM and llama.cpp's converter open."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from glassgpt.files import replacing, write_text
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.gpt2_names import to_gpt2_names
from glassgpt.weights.huggingface import load_huggingface, to_config_json


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
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> tuple[GPTModel, Tokenizer]:
    """The model, in `eval` mode, and the tokenizer of a model directory.

    `dtype` None keeps the file's own. Raises `FileNotFoundError` or `ValueError` in one line where there is no model,
    or a damaged one.
    """
    directory = Path(path)
    if not directory.is_dir() or not (directory / "config.json").exists():
        raise FileNotFoundError(f"{path} is no model directory: expected a folder with config.json in it")
    model = load_huggingface(directory, dtype)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.n_vocab} tokens, the model {model.config.vocab_size}; "
            "they are not of one model"
        )
    return model.to(device), tokenizer
