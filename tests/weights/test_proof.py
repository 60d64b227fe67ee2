import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glassgpt import GPTModel, Tokenizer, load_model, save_model
from glassgpt.cli import main
from glassgpt.weights import convert
from glassgpt.weights.proof import Proof, compare, prompt_for, prove

Make = Callable[..., GPTModel]


def test_the_prompt_is_the_same_every_time_and_fits(tiny_model: Make) -> None:
    prompt = prompt_for(tiny_model(context_length=100))
    assert prompt.shape == (1, 64)
    assert prompt.dtype == torch.int64
    assert prompt.min() >= 0 and prompt.max() < 97
    assert prompt.unique().numel() > 30  # spread over the vocabulary
    torch.manual_seed(2)
    assert torch.equal(prompt, prompt_for(tiny_model(seed=5, context_length=100)))
    assert prompt_for(tiny_model(context_length=1)).shape == (1, 1)
    model, random = tiny_model(), torch.get_rng_state()
    prove(model, model)
    assert torch.equal(torch.get_rng_state(), random)  # it draws from a generator of its own


def test_a_model_and_itself(tiny_model: Make) -> None:
    found = prove(tiny_model(), tiny_model())
    assert (found.largest_difference, found.same_choice) == (0, 1)
    assert found.largest_score == prompt_scores(tiny_model()).abs().max()
    assert str(found) == "identical: largest difference of scores 0, same best token 100.0%"
    assert found.holds()


def prompt_scores(model: GPTModel) -> torch.Tensor:
    with torch.no_grad():
        return model(prompt_for(model))


@pytest.mark.parametrize("name", ["pos_emb.weight", "trf_blocks.1.att.W_key.weight", "final_norm.shift"])
def test_one_changed_parameter_shows(tiny_model: Make, name: str) -> None:
    source, result = tiny_model(), tiny_model()
    with torch.no_grad():
        result.get_parameter(name).view(-1)[3] += 0.1
    found = prove(source, result)
    assert found.largest_difference > 1e-3
    assert not found.holds()


def test_a_row_that_the_prompt_does_not_read_shows_in_the_scores(tiny_model: Make) -> None:
    """The head reads every row of its matrix at every position, whatever the prompt."""
    source, result = tiny_model(vocab_size=5000, tie_embeddings=True), tiny_model(vocab_size=5000, tie_embeddings=True)
    unread = next(i for i in range(5000) if i not in prompt_for(source))
    with torch.no_grad():
        result.tok_emb.weight[unread] += 0.1
    assert not prove(source, result).holds()


def test_what_is_compared() -> None:
    expected = torch.tensor([[[1.0, 2.0], [4.0, 3.0]]])
    found = torch.tensor([[[1.5, 2.0], [2.0, 3.0]]], dtype=torch.float64)
    assert compare(expected, found) == Proof(largest_difference=2.0, same_choice=0.5, largest_score=4.0)
    assert str(compare(expected, found)) == "different: largest difference of scores 2, same best token 50.0%"
    with pytest.raises(ValueError, match=r"^scores of shape \[1, 2, 3\] where \[1, 2, 2\] were expected$"):
        compare(expected, torch.zeros(1, 2, 3))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_that_are_no_numbers_prove_nothing(wrong: float) -> None:
    expected = torch.ones(1, 2, 2)
    found = expected.clone()
    found[0, 1, 1] = wrong
    assert not compare(expected, found).holds()
    assert not compare(found, expected).holds()
    assert not dataclasses.replace(compare(expected, found), rounding=0.5).holds()


def test_the_difference_is_seen_against_the_size_of_the_scores() -> None:
    assert Proof(9e-5, 1, 0.5).holds()
    assert not Proof(2e-4, 1, 0.5).holds()
    assert Proof(9e-3, 1, 100).holds()
    assert not Proof(2e-2, 1, 100).holds()


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        (Proof(0, 1, 5), "identical: largest difference of scores 0, same best token 100.0%"),
        (
            Proof(2e-6, 1, 5),
            "equal within float32's rounding: largest difference of scores 2e-06, same best token 100.0%",
        ),
        (Proof(0.25, 0.9, 5), "different: largest difference of scores 0.25, same best token 90.0%"),
        (
            Proof(0.25, 0.9, 5, rounding=0.981),
            "every weight within its number type's rounding, the worst at 0.98 of it; "
            "largest difference of scores 0.25",
        ),
        (
            Proof(0.25, 0.9, 5, rounding=1.5),
            "a weight beyond its number type's rounding, the worst at 1.50 of it; largest difference of scores 0.25",
        ),
    ],
)
def test_a_proof_says_what_it_means(proof: Proof, says: str) -> None:
    assert str(proof) == says
    assert proof.holds() == (not says.startswith(("different", "a weight beyond")))


# ---- the commands that end with it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_and_export_keep_the_numbers(
    tmp_path: Path,
    tiny_model: Make,
    tiny_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    dtype: torch.dtype,
) -> None:
    save_model(tiny_model(vocab_size=257, dtype=dtype), tiny_tokenizer, tmp_path / "a")
    assert main(["import", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 0
    assert main(["export", str(tmp_path / "b"), "--to", "huggingface", "--out", str(tmp_path / "c"), "--json"]) == 0
    said = capsys.readouterr()
    first, second, third = said.out.splitlines()
    assert first == f"{tmp_path / 'b'}: {tiny_model(vocab_size=257).config.n_parameters():,} parameters"
    assert second == "proof: identical: largest difference of scores 0, same best token 100.0%"
    answer = json.loads(third)
    assert (answer["largest_difference"], answer["verdict"], answer["quality"]) == (0, "identical", None)
    for name in ("b", "c"):
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "a" / file).read_bytes()


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_result_that_differs_is_a_failure(
    tmp_path: Path,
    tiny_model: Make,
    tiny_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "a")

    def spoil(model: GPTModel, tokenizer: Tokenizer, directory: Path) -> None:
        with torch.no_grad():
            model.trf_blocks[0].att.W_value.weight.mul_(-1)
        save_model(model, tokenizer, directory)
        with torch.no_grad():
            model.trf_blocks[0].att.W_value.weight.mul_(-1)

    monkeypatch.setattr(convert, "save_model", spoil)
    more = ["--to", "huggingface"] if command == "export" else []
    assert main([command, str(tmp_path / "a"), *more, "--out", str(tmp_path / "b")]) == 1
    said = capsys.readouterr()
    assert "proof: different: largest difference of scores" in said.out
    assert "does not compute what its source computes: do not use it" in said.err


def test_a_model_that_is_its_own_proof_is_loaded_anew(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof compares what was read from the disk, never the model with itself."""
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "a")
    seen = []

    def spy(source: GPTModel, result: GPTModel) -> Proof:
        seen.append(source is result or source.tok_emb.weight.data_ptr() == result.tok_emb.weight.data_ptr())
        return prove(source, result)

    monkeypatch.setattr(convert, "prove", spy)
    for command in (["import", str(tmp_path / "a")], ["export", str(tmp_path / "a"), "--to", "huggingface"]):
        assert main([*command, "--out", str(tmp_path / command[0])]) == 0
    assert seen == [False, False]
    assert load_model(tmp_path / "import")[0].config == tiny_model(vocab_size=257).config
