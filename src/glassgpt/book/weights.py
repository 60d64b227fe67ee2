"""Chapter 5: GPT-2's published weights, fetched, read and put into a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.packages import require
from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint
from glassgpt.weights.download import file, openai
from glassgpt.weights.families.gpt2_names import from_gpt2_names
from glassgpt.weights.families.openai import config_from_settings, params_from_variables, tensors_from_params


def download_file(url: str, destination: str | Path, backup_url: str | None = None) -> Path:
    """`destination`, fetched from `url` or else `backup_url` if it is not there; see `weights.download.file`.

    The book compares sizes; here an existing file counts as right, and a partial one never takes its name.
    Raises `DownloadError`, an `OSError`, in one line.
    """
    return file.download_file([url] if backup_url is None else [url, backup_url], Path(destination))


def download_and_load_gpt2(
    model_size: str, models_dir: str | Path, *, report: Callable[[str], None] = print
) -> tuple[dict[str, Any], dict[str, Any]]:
    """OpenAI's GPT-2 of `model_size` ("124M", "355M", "774M" or "1558M"): its settings and its params.

    The files lie in `models_dir / model_size` and are fetched only if they are not there. `params` as in
    `load_gpt2_params_from_tf_ckpt`. Raises `ValueError` for another size or damaged files, `DownloadError`, and
    `ModuleNotFoundError` with the command that installs what is missing.
    """
    require("google_crc32c", "filelock", "httpx")  # all at once, and before half a gigabyte has come
    directory = openai.download_openai_gpt2(
        model_size, Path(models_dir), progress=_every_tenth(f"GPT-2 {model_size}", report)
    )
    settings = read_json(directory / "hparams.json")
    return settings, load_gpt2_params_from_tf_ckpt(directory, settings)


def load_gpt2_params_from_tf_ckpt(ckpt_path: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The book's nested params of a TensorFlow checkpoint, its prefix or its directory.

    `{"blocks": [{"attn": {"c_attn": {"w", "b"}, "c_proj"}, "mlp": {"c_fc", "c_proj"}, "ln_1": {"g", "b"},
    "ln_2"}], "wpe", "wte", "g", "b"}`, NumPy arrays over the mapped file, read-only, each checked by its own
    checksum. Raises `ValueError` where they are not those of a GPT-2 with `settings["n_layer"]` layers.
    """
    config = config_from_settings(settings)
    return params_from_variables(TensorFlowCheckpoint(ckpt_path), config.n_layers)


def assign(left: Tensor, right: npt.ArrayLike | Tensor) -> nn.Parameter:
    """`right` as a parameter with the dtype and device of `left`; `ValueError` where their shapes differ.

    An array is copied; a tensor that fits already is taken as it is.
    """
    tensor = right if isinstance(right, Tensor) else torch.tensor(right)
    if left.shape != tensor.shape:
        raise ValueError(f"shapes differ: left is {list(left.shape)}, right is {list(tensor.shape)}")
    return nn.Parameter(tensor.detach().to(left.device, left.dtype).contiguous())


def load_weights_into_gpt(gpt: GPTModel, params: Mapping[str, Any]) -> None:
    """Put the book's `params` into `gpt`; an output head of its own gets a copy of the token embedding.

    Everything is checked before anything changes. Raises `ValueError` that names the tensors which are
    missing, too many, not finite, or of another shape than the model's: GPT-2's need `qkv_bias` and a context
    length of 1024.
    """
    tensors = tensors_from_params(params, head=not gpt.config.tie_embeddings)
    state = from_gpt2_names(tensors, gpt.config, dtype=gpt.tok_emb.weight.dtype, source="params")
    for name, parameter in list(gpt.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        setattr(gpt.get_submodule(owner), attribute, assign(parameter, state.pop(name)))
    if gpt.config.tie_embeddings:
        gpt.out_head.weight = gpt.tok_emb.weight


def _every_tenth(what: str, report: Callable[[str], None]) -> file.Progress:
    shown = 0

    def progress(done: int, total: int | None) -> None:
        nonlocal shown
        if total and done * 10 // total > shown:
            shown = done * 10 // total
            report(f"{what}: {shown * 10} % of {total / 1e6:,.0f} MB")

    return progress
