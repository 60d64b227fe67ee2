"""ONNX: the model as a graph for ONNX Runtime and whatever else reads the standard. Needs the extra `onnx`."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from glassgpt.files import replacing
from glassgpt.model import GPTModel
from glassgpt.weights.proof import Proof, compare, prompt_for


class _Scores(nn.Module):
    """The model with one input and one output, as a graph has them."""

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids)
        return logits


def write_onnx(model: GPTModel, path: Path) -> Proof:
    """Write `model` as an ONNX graph, int64 `input_ids` (batch, tokens) to float32 `logits`, both sizes free.

    There is no cache in the graph: each call reads all of its tokens. Returns the comparison of ONNX Runtime's scores
    with the model's. Raises `ImportError` where the extra is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"ONNX needs {package}: pip install 'glassgpt[onnx]'")
    import onnxruntime

    prompt = prompt_for(model)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=model.config.context_length)}
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            _Scores(model).eval(),
            (prompt.repeat(2, 1)[:, :-1],),
            dynamo=True,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=(sizes,),
            verbose=False,
        )
        assert program is not None
        program.save(str(temporary))
        session = onnxruntime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"input_ids": prompt.numpy()})[0])
    with torch.no_grad():
        return compare(model(prompt), found)
