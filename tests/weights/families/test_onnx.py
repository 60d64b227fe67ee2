"""ONNX Runtime's scores against the model's, where the extra is installed."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt import GPTModel, Tokenizer, save_model
from glassgpt.cli import main
from glassgpt.weights.families import onnx as ours
from glassgpt.weights.families.onnx import write_onnx

Make = Callable[..., GPTModel]


@pytest.fixture(scope="module")
def onnxruntime() -> Any:
    reason = "an extra: pip install 'glassgpt[onnx]'"
    pytest.importorskip("onnxscript", reason=reason)
    return pytest.importorskip("onnxruntime", reason=reason)


@torch.no_grad()
def differences(onnxruntime: Any, path: Path, model: GPTModel) -> list[float]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (ids,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (ids.name, ids.shape, ids.type) == ("input_ids", ["batch", "tokens"], "tensor(int64)")
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    assert logits.shape == ["batch", "tokens", model.config.vocab_size]
    random = np.random.default_rng(0)
    out = []
    for rows, tokens in ((1, 1), (1, 2), (3, 1), (4, 7), (2, model.config.context_length)):
        prompt = random.integers(0, model.config.vocab_size, (rows, min(tokens, model.config.context_length)))
        (found,) = session.run(None, {"input_ids": prompt})
        out.append(float((torch.tensor(found) - model.float()(torch.tensor(prompt))).abs().max()))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": True, "tie_embeddings": True, "gelu": "erf"},
        {"attention": "explicit", "drop_rate": 0.5},
        {"sliding_window": 5},
        {"context_length": 2},
        {"dtype": torch.bfloat16},
    ],
)
def test_any_batch_of_any_length_gives_the_models_scores(
    onnxruntime: Any, tmp_path: Path, tiny_model: Make, changes: dict[str, Any]
) -> None:
    model = tiny_model(**changes)
    proof = write_onnx(model, tmp_path / "m.onnx")
    assert proof.largest_difference < 1e-4
    assert proof.same_choice == 1
    assert max(differences(onnxruntime, tmp_path / "m.onnx", model)) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_comparison_above_can_fail(onnxruntime: Any, tmp_path: Path, tiny_model: Make) -> None:
    model = tiny_model()
    write_onnx(model, tmp_path / "m.onnx")
    with torch.no_grad():
        model.trf_blocks[1].norm2.shift[3] += 0.01
    assert max(differences(onnxruntime, tmp_path / "m.onnx", model)) > 1e-4


def test_the_command_line_writes_and_proves(
    onnxruntime: Any,
    tmp_path: Path,
    tiny_model: Make,
    tiny_tokenizer: Tokenizer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "model")
    capfd.readouterr()
    arguments = ["export", str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "m.onnx"), "--json"]
    assert main(arguments) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["largest_difference"] < 1e-4
    assert said.err == ""  # the exporter is talkative


# ---- without the extra ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(
    tmp_path: Path, tiny_model: Make, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ImportError, match=rf"^ONNX needs {missing}: pip install 'glassgpt\[onnx\]'$"):
        write_onnx(tiny_model(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_one_file_is_refused(
    onnxruntime: Any, tmp_path: Path, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="a context of one token leaves no number of tokens free"):
        write_onnx(tiny_model(context_length=1), tmp_path / "m.onnx")
    size = 4 * tiny_model().config.n_parameters()
    monkeypatch.setattr(ours, "MAX_BYTES", 2**24 + size - 1)
    with pytest.raises(ValueError, match=rf"at most {2**24 + size - 1:,} bytes, and the weights alone are {size:,}$"):
        write_onnx(tiny_model(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
