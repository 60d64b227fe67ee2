"""`glassgpt quantize`: its work, and its refusals in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glassgpt import GPTModel, Tokenizer, save_model
from glassgpt.cli import main

Make = Callable[..., GPTModel]


@pytest.fixture
def place(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "source")
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        code = main(line.split())
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    return (code, *capsys.readouterr())


def test_a_model_is_quantised_and_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run("quantize source --to int4 --out small --text text.txt --threads 1", capsys)
    assert code == 0
    for word in ("perplexity", "same token", "divergence", "bits a weight", "tokens/s", "stands out"):
        assert word in said
    assert run("generate small The --max-new-tokens 3 --seed 1", capsys)[0] == 0
    assert run("evaluate small text.txt", capsys)[0] == 0
    code, _, said = run("generate small The --precision int8", capsys)
    assert code == 2 and "quantised to int4" in said
    code, said, _ = run("quantize source --to int8 --out eight --text text.txt --method nearest --json", capsys)
    assert code == 0
    assert json.loads(said)["method"] == "nearest"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("quantize source --to int3 --out small", "invalid choice: 'int3'"),
        ("quantize source --out small", "--to"),
        ("quantize source --to int8 --out small --text nowhere.txt", "nowhere.txt"),
        ("quantize source --to int8 --out source --text text.txt", "source is not empty"),
        ("quantize nowhere/at/all --to int8 --out small", "nowhere"),
    ],
)
def test_misuse_is_one_line(place: Path, line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, complaint = run(line, capsys)
    assert code == 2 and not said
    assert words in complaint.splitlines()[-1]
    assert not (place / "small").exists()
