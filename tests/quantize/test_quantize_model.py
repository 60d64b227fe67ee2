"""A quantised directory: written whole, read alike by both decoders, refused when it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glassgpt import GPTModel, Tokenizer, load_decoder, load_model, save_model
from glassgpt.generation.compare import compare
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.quantize.model import REPORT, quantize_model

Make = Callable[..., GPTModel]
ODD: dict[str, Any] = dict(vocab_size=257, emb_dim=42, n_heads=3, n_layers=2)  # no multiple of a group


@pytest.fixture
def source(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> Path:
    save_model(tiny_model(**ODD, tie_embeddings=True, qkv_bias=True), tiny_tokenizer, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def text(tmp_path: Path, sample_text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(sample_text, encoding="utf-8")
    return path


@pytest.fixture(params=["int8", "int4"])
def made(request: pytest.FixtureRequest, source: Path, text: Path, tmp_path: Path) -> Path:
    quantize_model(source, tmp_path / "small", request.param, text=text)
    return tmp_path / "small"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("to", ["int8", "int4"])
def test_both_decoders_read_the_same_model(
    tmp_path: Path, text: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, tied: bool, to: str
) -> None:
    save_model(tiny_model(**ODD, tie_embeddings=tied), tiny_tokenizer, tmp_path / "source")
    result = quantize_model(tmp_path / "source", tmp_path / "small", to, text=text)
    model, _ = load_model(tmp_path / "small")
    decoder, _ = load_decoder(tmp_path / "small")
    ids = [5, 9, 200, 13, 77]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].numpy()
    _, scores = decoder.read_all(ids)
    # the decoder rounds the activations to 8 bits, too, and a model with random weights makes the most of it
    np.testing.assert_allclose(scores, expected, atol=0.06 * np.abs(expected).max(), rtol=0)
    assert np.array_equal(scores[-1], decoder.read(ids).scores)
    assert model.config.tie_embeddings == tied
    assert result.n_bytes < result.float32_bytes / 2


def test_vectors_and_positions_stay_as_they_are(source: Path, made: Path) -> None:
    before, after = (load_model(path)[0].state_dict() for path in (source, made))
    for name, tensor in before.items():
        is_matrix = tensor.ndim == 2 and name != "pos_emb.weight"
        assert torch.equal(tensor, after[name]) != is_matrix, name


def test_the_report(made: Path, text: Path) -> None:
    report = json.loads((made / REPORT).read_text(encoding="utf-8"))
    assert report["text"] == str(text)
    assert report["method"] == "gptq"
    assert report["n_bytes"] == (made / "model.safetensors").stat().st_size
    found = report["comparison"]
    assert found["rise"] == pytest.approx(found["perplexity"] / found["reference_perplexity"] - 1)
    assert 0.5 < found["agreement"] <= 1
    assert 0 <= found["mean_divergence"] <= found["max_divergence"]
    assert found["score_error"] > 0
    assert report["tokens_per_second"] > 0 and report["float32_tokens_per_second"] > 0
    assert {each["matrix"] for each in report["outliers"]} > {"wte.weight", "h.0.mlp.c_fc.weight"}
    about = json.loads((made / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert about["calibration"] == {"text": str(text), "tokens": report["n_calibration_tokens"]}


def test_columns_that_stand_out_are_named(
    tmp_path: Path, text: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    model = tiny_model(**ODD)
    with torch.no_grad():
        model.trf_blocks[1].norm2.scale[17] = 300
    save_model(model, tiny_tokenizer, tmp_path / "source")
    result = quantize_model(tmp_path / "source", tmp_path / "small", "int4", text=text)
    (found,) = (each for each in result.outliers if each.matrix == "h.1.mlp.c_fc.weight")
    assert next(iter(found.activations)) == 17 and found.activations[17] > 50
    assert 0.2 < found.error_share <= 1


def test_without_a_text_the_model_writes_its_own(source: Path, tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        result = quantize_model(source, tmp_path / name, "int4")
        assert result.text == "text that the model wrote itself"
        reports.append((tmp_path / name / "model.safetensors").read_bytes())
    assert reports[0] == reports[1]


def test_a_model_beside_itself_differs_in_nothing(source: Path) -> None:
    decoder, _ = load_decoder(source)
    found = compare(decoder, decoder, [list(range(40, 57))])
    assert (found.n_tokens, found.agreement, found.mean_divergence, found.score_error) == (16, 1, 0, 0)
    assert found.perplexity == found.reference_perplexity
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            load_model(source)[0](torch.tensor([range(40, 56)]))[0], torch.arange(41, 57)
        )
    assert found.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)


# ---- refused ----------------------------------------


def test_nothing_is_overwritten(source: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ValueError, match="mine is not empty: choose a new directory"):
        quantize_model(source, tmp_path / "mine", "int8", text=text)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    quantize_model(source, tmp_path / "empty", "int8", text=text)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_quantised(made: Path, source: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="quantised already"):
        quantize_model(made, out, "int8", text=text)
    with pytest.raises(ValueError, match="int3"):
        quantize_model(source, out, "int3", text=text)
    with pytest.raises(ValueError, match="method"):
        quantize_model(source, out, "int8", text=text, method="magic")
    with pytest.raises(ValueError, match=r"nowhere.txt: no such file"):
        quantize_model(source, out, "int8", text=tmp_path / "nowhere.txt")
    text.write_text("short", encoding="utf-8")
    with pytest.raises(ValueError, match="5 tokens, and at least 128 are needed"):
        quantize_model(source, out, "int8", text=text)
    assert not out.exists()


def test_a_place_where_nothing_can_be_written_is_told_before_the_work(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glassgpt.quantize.model.load_model", lambda _: pytest.fail("nothing is loaded"))
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        quantize_model(source, tmp_path / "file" / "out", "int8", text=text)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"^\. is the current directory, which cannot be replaced: choose a new one$"):
        quantize_model(source, ".", "int8", text=text)
    assert not list((tmp_path / "here").iterdir())


def test_threads_are_those_of_every_decoder(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = CPUDecoder.__init__

    def told(self: CPUDecoder, *arguments: Any, threads: int = 1, **options: Any) -> None:
        asked.append(threads)
        real(self, *arguments, threads=threads, **options)

    monkeypatch.setattr(CPUDecoder, "__init__", told)
    quantize_model(source, tmp_path / "small", "int8", text=text, method="nearest", threads=1)
    assert asked == [1, 1]


def test_another_precision_is_refused(made: Path) -> None:
    with pytest.raises(ValueError, match="is quantised to int[48] and has no float32: leave the precision out"):
        load_decoder(made, precision="float32")


def assert_refused(directory: Path, words: str) -> None:
    for load in (load_decoder, load_model):
        with pytest.raises(ValueError, match=words) as refused:
            load(directory)
        assert "\n" not in str(refused.value)


def test_another_version_is_refused(made: Path) -> None:
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    for key, value in {"version": 2, "group_size": 64, "bits": 3}.items():
        changed = {**config, "quantization_config": {**config["quantization_config"], key: value}}
        (made / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        assert_refused(made, f"'{key}': {value}.*quantize the model again")


def _changed(tensors: dict[str, torch.Tensor], damage: str) -> dict[str, torch.Tensor]:
    name = "transformer.h.1.mlp.c_proj.weight"
    scales, numbers = tensors[f"{name}.scales"], tensors[f"{name}.numbers"]
    if damage == "NaN":
        scales[3, 1] = torch.nan
    elif damage == "scales":
        tensors[f"{name}.scales"] = scales[:, :-1].contiguous()
    elif damage == "rows":
        tensors[f"{name}.scales"] = scales[:-1].contiguous()
    elif damage == "both rows":
        tensors[f"{name}.scales"], tensors[f"{name}.numbers"] = scales[:-1].contiguous(), numbers[:-1].contiguous()
    elif damage == "columns":
        tensors[f"{name}.numbers"] = numbers[:, :-1].contiguous()
    elif damage == "kind":
        tensors[f"{name}.numbers"] = numbers.float()
    elif damage == "no scales":
        del tensors[f"{name}.scales"]
    elif damage == "no numbers":
        del tensors[f"{name}.numbers"]
    elif damage == "missing":
        del tensors["transformer.h.0.ln_1.weight"]
    elif damage == "added":
        tensors["transformer.h.0.more"] = torch.zeros(3)
    return tensors


@pytest.mark.parametrize(
    ("damage", "words"),
    {
        "NaN": "c_proj.weight has scales that are NaN",
        "scales": r"c_proj.weight is \[42, .*\] with scales \[42, 5\]",
        "rows": "do not fit each other",
        "both rows": r"c_proj.weight is ",
        "columns": "not of 168 columns",
        "kind": "c_proj.weight is float32 where [48] bits are said",
        "no scales": "do not fit each other",
        "no numbers": "belongs to no matrix",
        "missing": "ln_1.weight",
        "added": "more",
    }.items(),
)
def test_damage_is_refused(made: Path, damage: str, words: str) -> None:
    path = made / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(_changed(tensors, damage), path)
    if damage in ("both rows", "missing", "added"):  # found when the model is put together, each in its own words
        for load in (load_decoder, load_model):
            with pytest.raises(ValueError):
                load(made)
    else:
        assert_refused(made, words)


@pytest.mark.parametrize("n_bytes", [0, 4, 100, -1])
def test_a_file_that_was_cut_is_refused(made: Path, n_bytes: int) -> None:
    path = made / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:n_bytes])
    assert_refused(made, "model.safetensors is damaged")
