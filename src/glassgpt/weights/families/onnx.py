"""ONNX: the model as a graph for ONNX Runtime and whatever else reads the standard. Needs the extra `onnx`."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from glassgpt.files import creating
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.families.state import build_model
from glassgpt.weights.proof import Proof, compare, prompt_for

MAX_BYTES = 2**31
"""What a protocol buffer, which an ONNX file is, can hold."""


class _Scores(nn.Module):
    """The model with one input and one output, as a graph has them."""

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        # written out step by step: the fused kernel wants to know now whether there is more than one token
        config = model.config.replace(attention="explicit")
        self.model = build_model(config, {name: t.float().cpu() for name, t in model.state_dict().items()})

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids)
        return logits


def write_onnx(model: GPTModel, path: Path) -> Proof:
    """Write `model` as an ONNX graph, int64 `input_ids` (batch, tokens) to float32 `logits`, both sizes free.

    There is no cache in the graph: each call reads all of its tokens. Returns the comparison of ONNX Runtime's scores
    with the model's. Raises `ValueError` for a model that cannot be one file, `ImportError` where the extra is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"ONNX needs {package}: pip install 'glassgpt[onnx]'")
    import onnxruntime

    if (size := 4 * model.config.n_parameters()) > MAX_BYTES - 2**24:  # 16 MiB for the graph itself
        raise ValueError(f"an ONNX file holds at most {MAX_BYTES:,} bytes, and the weights alone are {size:,}")
    if model.config.context_length == 1:
        raise ValueError("a context of one token leaves no number of tokens free: this model cannot be an ONNX graph")
    scores = _Scores(model).eval()
    prompt = prompt_for(model)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=model.config.context_length)}
    with creating(path) as temporary, _quiet():
        program = torch.onnx.export(
            scores,
            (prompt.repeat(2, 1),),
            dynamo=True,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=(sizes,),
            verbose=False,
        )
        assert program is not None
        program.save(str(temporary))
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"input_ids": prompt.numpy()})[0])
    with torch.no_grad():
        return compare(scores(prompt), found)


def export(
    model: GPTModel, tokenizer: Tokenizer, path: Path, number_type: str | None, name: str | None
) -> tuple[Proof, list[str], GPTModel | None]:
    """`write_onnx`, which proves itself."""
    return write_onnx(model, path), [], None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own deprecations, and its regret that torchvision is not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
