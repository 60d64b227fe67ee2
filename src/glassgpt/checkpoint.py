"""A model directory, in and out: a Hugging Face GPT-2 that `transformers`, vLLM and llama.cpp's converter open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassgpt.files import sync, sync_tree, temporary, write_text
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.containers.safetensors_file import DTYPES as SAFETENSORS_DTYPES
from glassgpt.weights.containers.source import OnDemand
from glassgpt.weights.download.resolve import resolve_model
from glassgpt.weights.families.config_json import to_config_json
from glassgpt.weights.families.gpt2_names import iter_gpt2_names, to_gpt2_names
from glassgpt.weights.families.nanogpt import META, missing_meta, read_meta
from glassgpt.weights.formats import Found
from glassgpt.weights.read import recognise

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What `save_model` writes."""

_VOCABULARIES = ("tokenizer.json", "vocab.json", "encoder.json")


def save_model(
    model: GPTModel, tokenizer: Tokenizer, directory: str | Path, whole: Callable[[Tensor], Tensor] = lambda part: part
) -> None:
    """Write `MODEL_FILES`: `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer's two.

    Weights keep their dtype and are not rounded: what `load_model` gives back is equal bit for bit. All is written
    under temporary names first. A model that is already there is then replaced: its weights go first and the new ones
    come last, so that a crash leaves the old model, the new one, or none that loads; never a mixture. `whole` makes
    the tensors of a sharded model whole, of which few are in memory at once. Raises `ValueError` where the tokenizer
    has more tokens than the model, `OSError` where the disk does.
    """
    directory = Path(directory)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab} tokens, the model {model.config.vocab_size}: they do not fit"
        )
    stop_ids = sorted(tokenizer.stop_ids)
    eos = stop_ids[0] if len(stop_ids) == 1 else stop_ids or None
    generation = {"bos_token_id": tokenizer.eot_id, "eos_token_id": eos}
    with temporary(directory / "model") as new:
        new.mkdir()
        # the large file first: a full disk stops here, with nothing in the directory changed
        layout = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in _state(model).items()}
        write_tensors(
            to_gpt2_names(layout, model.config),
            new / "model.safetensors",
            metadata={"format": "pt"},
            values=whole_weights(model, whole),
        )
        config = to_config_json(model.config, tokenizer.eot_id) | {"eos_token_id": eos}
        write_text(new / "config.json", json.dumps(config, indent=2) + "\n")
        write_text(new / "generation_config.json", json.dumps(generation, indent=2) + "\n")
        tokenizer.save(new)
        sync_tree(new)
        _exchange(new, directory)
    sync(directory)


def _exchange(new: Path, directory: Path) -> None:
    """Move the model in `new` to `directory`; if that fails, the one that was there is put back."""
    weights_last = sorted(MODEL_FILES, key=lambda name: name == "model.safetensors")
    old = new / "old"
    old.mkdir()
    try:
        for name in reversed(weights_last):
            if (directory / name).exists():
                (directory / name).replace(old / name)
        for name in weights_last:
            (new / name).replace(directory / name)
    except BaseException:
        for name in weights_last:
            if (old / name).exists():
                (old / name).replace(directory / name)
        raise


def whole_weights(model: GPTModel, whole: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model under GPT-2's names, each made of what `whole` makes of its tensors when it is asked for.

    Those of a sharded model are gathered by all ranks together, in this order.
    """
    return iter_gpt2_names(OnDemand(_state(model), whole, lambda tensor: tensor.shape), model.config)


def _state(model: GPTModel) -> dict[str, Tensor]:
    # `torch.compile` wraps a module under this name; what was compiled is saved as if it were not
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
    values: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """A safetensors file, as the library writes it, but one tensor after the other.

    `tensors` may be on the meta device, names, shapes and number types alone, where `values` gives the tensors in any
    order: they need not be in memory at once. `OSError`, with the path, where the disk is full.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):  # so each is aligned
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    left = set(tensors)
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors.items() if values is None else values:
                assert (tensor.shape, tensor.dtype) == (tensors[name].shape, tensors[name].dtype), name
                left.remove(name)
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                content: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                file.write(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    assert not left, left


def load_model(
    model: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    tokenizer: Tokenizer | str | Path | None = None,
    n_heads: int | None = None,
    weights_dir: Path | None = None,
) -> tuple[GPTModel, Tokenizer]:
    """A model, in `eval` mode, and its tokenizer.

    `model` is a directory or file in any format that `weights.read` knows, or a name to download: "gpt2" and its
    sisters, or "owner/name" on Hugging Face (see `weights.download.resolve.resolve_model`, which `weights_dir` goes
    to). `tokenizer`, its directory or its file (nanoGPT's `meta.pkl` for one), is for files that come without one.
    `dtype` None keeps the file's own; `n_heads` is for the book's files. Raises `FileNotFoundError`, `ValueError` or
    `DownloadError`, in one line, where there is no model or a damaged one.
    """
    path = resolve_model(model, weights_dir=weights_dir)
    form, found = recognise(path)
    result: GPTModel = form.function("read")(found, dtype, n_heads)
    vocab_size = result.config.vocab_size
    if tokenizer is None:
        tokenizer = _tokenizer_beside(found, vocab_size, is_nanogpt=form.name == "nanogpt")
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = _tokenizer_at(Path(tokenizer), vocab_size)
    if tokenizer.n_vocab > vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.n_vocab} tokens, the model {vocab_size}; they do not belong together"
        )
    return result.to(device), tokenizer


def fingerprint(model: GPTModel) -> str:
    """SHA-256 of the configuration and every weight: models with the same one give the same scores."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict()).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()


def _tokenizer_beside(found: Found, vocab_size: int, is_nanogpt: bool) -> Tokenizer:
    directory = found.path if found.path.is_dir() else found.path.parent
    if _has_tokenizer(directory):
        return Tokenizer.load(directory)
    if is_nanogpt and (directory / META).exists():
        return read_meta(directory / META, vocab_size)
    if 50257 <= vocab_size <= 50304:  # nanoGPT pads GPT-2's vocabulary to 50304
        return Tokenizer.gpt2()
    way_out = missing_meta(found) if is_nanogpt else "give the directory of one"
    raise ValueError(f"{found.path} comes without a tokenizer: {way_out}")


def _tokenizer_at(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer that a user named by its directory or its file."""
    if path.is_file():
        return Tokenizer.load(path.parent) if path.name in _VOCABULARIES else read_meta(path, vocab_size)
    if (path / META).exists() and not _has_tokenizer(path):
        return read_meta(path / META, vocab_size)
    return Tokenizer.load(path)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in _VOCABULARIES)
