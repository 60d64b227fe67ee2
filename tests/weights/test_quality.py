"""What a rounded export costs: measured as written down here once more, judged, and said."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model, train
from glassgpt.cli import main
from glassgpt.data.corpus import Document
from glassgpt.weights.convert import export_model
from glassgpt.weights.quality import MAY_LOSE, N_TOKENS, Quality, Sample, measure

Make = Callable[..., GPTModel]
SENTENCE = "The function returns a list. Once upon a time it returned a tuple.\n"
GOOD = Quality("q8_0", "a text", 1024, perplexity=20.1, source_perplexity=20, divergence=0.0005, same_choice=0.98)


@pytest.fixture(autouse=True)
def library() -> None:
    pytest.importorskip("gguf", reason="GGUF needs its library")


# ---- the sample ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 16, 17, 18, 40, N_TOKENS, N_TOKENS + 1, 5000])
@pytest.mark.parametrize("context", [1, 16, 4096])
def test_the_windows_lie_in_the_text_and_end_at_its_ends(n: int, context: int) -> None:
    windows = Sample("x", np.arange(n, dtype=np.uint16)).windows(context)
    assert windows.dtype == torch.int64
    assert windows.shape[1] == min(context, n - 1, N_TOKENS) + 1
    assert (windows.diff(dim=1) == 1).all()
    assert windows[0, 0] == 0
    assert windows[-1, -1] == n - 1 or len(windows) == 1
    targets = windows[:, 1:].flatten()
    assert targets.unique().numel() == targets.numel() <= min(n - 1, N_TOKENS)
    assert targets.numel() > min(n - 1, N_TOKENS) - min(context, n - 1)


def test_only_as_much_of_a_text_is_read_as_is_needed() -> None:
    tokenizer = Tokenizer.bytes_()
    documents = [Document.from_text(str(i), "x" * 700) for i in range(3)]
    documents.append(Document("gone", Path("/nowhere"), 0, 9))
    assert len(Sample.of_documents("x", documents, tokenizer).tokens) == N_TOKENS + 1
    assert len(Sample.of_documents("x", documents[:1], tokenizer).tokens) == 700
    with pytest.raises(ValueError, match=r"^x is too short to judge a model by: give a longer text$"):
        Sample.of_documents("x", [Document.from_text("x", "y")], tokenizer)


# ---- the measure ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_figures(tiny_model: Make) -> None:
    source, result = tiny_model(), tiny_model()
    result.trf_blocks[1].ff.layers[0].weight.add_(0.05)
    sample = Sample("a text", np.random.default_rng(0).integers(0, 97, 500))
    found = measure(source, result, sample, "q8_0")
    windows = sample.windows(16)
    targets = windows[:, 1:].flatten()
    ours, theirs = (model(windows[:, :-1]).flatten(0, 1) for model in (source, result))
    assert (found.text, found.number_type, found.n_tokens) == ("a text", "q8_0", targets.numel())
    # two sums over 496 tokens in different orders and dtypes
    assert math.isclose(found.source_perplexity, F.cross_entropy(ours, targets).exp(), rel_tol=1e-5)
    assert math.isclose(found.perplexity, F.cross_entropy(theirs, targets).exp(), rel_tol=1e-5)
    expected = F.kl_div(theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="batchmean")
    assert math.isclose(found.divergence, expected, rel_tol=1e-4)
    assert math.isclose(found.same_choice, (ours.argmax(-1) == theirs.argmax(-1)).float().mean(), abs_tol=1e-6)
    assert found.divergence > 0 and found.same_choice < 1


def test_a_model_and_itself(tiny_model: Make) -> None:
    found = measure(tiny_model(), tiny_model(), Sample("a text", np.arange(97)), "f16")
    assert (found.rise, found.divergence, found.same_choice, found.is_good()) == (0, 0, 1, True)


# ---- the verdict ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_type", MAY_LOSE)
@pytest.mark.parametrize(
    ("rise", "divergence", "good"), [(1, 1, True), (-9, 0, True), (1.01, 0, False), (0, 1.01, False)]
)
def test_the_limits(number_type: str, rise: float, divergence: float, good: bool) -> None:
    limit = MAY_LOSE[number_type]
    found = dataclasses.replace(
        GOOD,
        number_type=number_type,
        perplexity=20 * (1 + limit * rise * (1 - 1e-9)),
        divergence=limit * divergence,
    )
    assert found.is_good() == good
    assert str(found).startswith("good: " if good else "poor: ")


@pytest.mark.parametrize("field", ["perplexity", "divergence"])
def test_what_is_no_number_is_not_good(field: str) -> None:
    assert not dataclasses.replace(GOOD, **{field: math.nan}).is_good()


def test_what_it_says() -> None:
    figures = "perplexity 20.1, float32's 20 (+0.500%), same best token 98.0%, divergence 0.0005 nats"
    assert str(GOOD) == f"good: {figures}, as expected of q8_0; over 1,024 tokens of a text"
    assert str(dataclasses.replace(GOOD, number_type="f16")) == (
        f"poor: {figures}, where f16 should lose at most 0.1% and 0.001 nats: keep more bits; over "
        "1,024 tokens of a text"
    )


# ---- the export ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    (folder / "my.txt").write_text(SENTENCE * 200, encoding="utf-8")
    shape = GPTConfig(vocab_size=257, context_length=32, emb_dim=32, n_heads=2, n_layers=1, drop_rate=0.0)
    sizes = dict(steps=30, eval_batches=1, sample_tokens=0, dtype="float32", tokenizer="byte")
    train([folder / "my.txt"], folder / "run", shape=shape, **sizes)
    return folder / "run"


@pytest.mark.parametrize("number_type", MAY_LOSE)
def test_an_honest_export_is_good(run: Path, tmp_path: Path, number_type: str) -> None:
    found = export_model(run, tmp_path / "m.gguf", "gguf", number_type=number_type)
    assert found.proof.holds() and found.quality is not None and found.quality.is_good()
    assert found.quality.text == "the run's validation part"
    assert found.quality.number_type == number_type
    # it learned something: below every byte alike, which random prompts would never show
    assert found.quality.source_perplexity < 30


def test_the_text_is_the_runs_or_pythons_manual_or_ones_own(
    run: Path, tmp_path: Path, tiny_model: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def judged_on(model: Path, **options: Path) -> str:
        out = tmp_path / "m.gguf"
        out.unlink(missing_ok=True)
        quality = export_model(model, out, "gguf", number_type="q8_0", **options).quality
        assert quality is not None and quality.n_tokens > 900
        return quality.text

    save_model(tiny_model(vocab_size=257, emb_dim=32, n_heads=2), Tokenizer.bytes_(), tmp_path / "model")
    assert judged_on(tmp_path / "model") == "Python's own manual"
    assert judged_on(run, proof_text=run.parent / "my.txt") == str(run.parent / "my.txt")
    assert not caplog.records
    Tokenizer.train_bpe([SENTENCE], 257).save(tmp_path / "model")
    (tmp_path / "model" / "data").mkdir()
    for name in ("validation.npy", "validation.npy.json"):
        (tmp_path / "model" / "data" / name).write_bytes((run / "data" / name).read_bytes())
    assert judged_on(tmp_path / "model") == "Python's own manual"
    assert "another tokenizer" in caplog.text and "judged on Python's manual instead" in caplog.text


@pytest.mark.parametrize(("number_type", "to"), [("f32", "gguf"), (None, "gguf"), (None, "book")])
def test_a_text_is_for_what_is_rounded(run: Path, tmp_path: Path, number_type: str | None, to: str) -> None:
    with pytest.raises(ValueError, match=r"^a text to judge by is for number types that round: f16, q8_0$"):
        export_model(run, tmp_path / "m", to, number_type=number_type, proof_text=run.parent / "my.txt")


def test_a_text_that_is_no_use_leaves_no_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    for name, message in (("a.txt", "too short"), ("missing.txt", "no such file")):
        with pytest.raises(ValueError, match=message):
            export_model(run, tmp_path / "m.gguf", "gguf", number_type="f16", proof_text=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_poor_one_is_said_and_is_still_what_was_asked_for(
    tmp_path: Path, tiny_model: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """One large weight in each block of 32 leaves the other 31 few steps; each is within its rounding all the same."""
    model = tiny_model(vocab_size=257, emb_dim=32, n_heads=2)
    with torch.no_grad():
        for block in model.trf_blocks:  # large weights of hidden units that never speak
            block.ff.layers[0].bias[::32] = -1000
            block.ff.layers[2].weight[:, ::32] = 50
    save_model(model, Tokenizer.bytes_(), tmp_path / "model")
    argv = ["export", str(tmp_path / "model"), "--to", "gguf", "--type", "q8_0"]
    assert main([*argv, "--out", str(tmp_path / "a.gguf")]) == 0
    _, proof, quality = capsys.readouterr().out.splitlines()
    assert proof.startswith("proof: every weight within its number type's rounding, the worst at ")
    assert quality.startswith("quality: poor: perplexity ")
    assert quality.endswith(
        "where q8_0 should lose at most 1.0% and 0.01 nats: keep more bits; over 1,024 tokens of Python's own manual"
    )
    assert main([*argv, "--out", str(tmp_path / "b.gguf"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["quality"].keys() == {field.name for field in dataclasses.fields(Quality)} | {"rise", "verdict"}
    assert (answer["quality"]["verdict"], answer["quality"]["n_tokens"]) == ("poor", 1024)
    assert answer["verdict"] == "every weight within its number type's rounding"
