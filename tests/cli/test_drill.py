"""Nothing of the user's is ever lost: each command that writes is aimed at places that hold something of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glassgpt import GPTModel, Tokenizer, save_model
from glassgpt.cli import main
from glassgpt.training.run_directory import locked

SHAPE = dict(vocab_size=257, context_length=16, emb_dim=16, n_heads=2, n_layers=1)
TEXT = "The cat sat on the mat, and the dog sat on the cat.\n" * 40


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a text, a model, and files of the user's under names that the commands write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    torch.manual_seed(0)
    save_model(GPTModel(SHAPE), Tokenizer.bytes_(), tmp_path / "model")
    mine = tmp_path / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    for name in ("notes.txt", "model.safetensors", "config.json", "train.log", "loss.png", "checkpoints/step-5"):
        (mine / name).write_text(f"my {name}", encoding="utf-8")
    (tmp_path / "file").write_text("my file", encoding="utf-8")
    other = tmp_path / "other"  # another program's run
    (other / "124M").mkdir(parents=True)
    for name in ("run.json", "log.jsonl", "124M/checkpoint", "124M/hparams.json"):
        (other / name).write_text('{"mine": 1}', encoding="utf-8")
    (tmp_path / "link").symlink_to("mine", target_is_directory=True)
    return tmp_path


def contents(place: Path) -> dict[str, str]:
    """Everything below `place`: links as what they point to, files as their digests."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


TRAIN = ("train", "text.txt", "--steps", "2", "--tokenizer", "byte", "--shape", "nano")
WRITERS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "train": lambda out: (*TRAIN, "--out", out),
    "train --overwrite": lambda out: (*TRAIN, "--overwrite", "--out", out),
    "train --resume": lambda out: (*TRAIN, "--resume", "--out", out),
    "import": lambda out: ("import", "model", "--out", out),
    "export huggingface": lambda out: ("export", "model", "--to", "huggingface", "--out", out),
    "export book": lambda out: ("export", "model", "--to", "book", "--out", out),
    "export onnx": lambda out: ("export", "model", "--to", "onnx", "--out", out),
    "demo": lambda out: ("demo", "--seconds", "1", "--out", out),
    "download": lambda out: ("download", "someone/tiny", "--weights-dir", out),
    "download --openai": lambda out: ("download", "124M", "--openai", "--weights-dir", out),
    "export gguf": lambda out: ("export", "model", "--to", "gguf", "--out", out),
    "explain --html": lambda out: ("explain", "model", "The cat", "--html", out),
    "explain": lambda out: ("explain", "model", "--prompt", "The cat", "--out", out),
}


@pytest.mark.parametrize(
    "out", [".", "mine", "link", "model", "other", "file", "text.txt", "mine/notes.txt", "mine/loss.png"]
)
@pytest.mark.parametrize("command", WRITERS)
def test_what_lies_there_stays(place: Path, capsys: pytest.CaptureFixture[str], command: str, out: str) -> None:
    before = contents(place)
    try:
        code = main(list(WRITERS[command](out)))
    except SystemExit as leaving:
        code = leaving.code
    after = contents(place)
    assert {name: after.get(name) for name in before} == before
    if code:
        err = capsys.readouterr().err
        assert code in (1, 2) and "Traceback" not in err
        assert after == before, "a command that fails leaves nothing behind"


@pytest.mark.parametrize("more", [["--resume"], ["--overwrite"], []])
def test_a_run_in_use_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    assert main([*TRAIN, "--out", "run"]) == 0
    before = contents(place)
    capsys.readouterr()
    with locked(place / "run"):
        assert main([*TRAIN, *more, "--out", "run"]) == 1
    assert "run is in use by another training run" in capsys.readouterr().err
    assert contents(place) == before


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/kept/a.txt", "data/mine.npy"])
def test_a_run_replaces_only_what_it_wrote(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    again = [*TRAIN, "--seed", "7", "--overwrite", "--out", "run"]
    assert main([*TRAIN, "--out", "run"]) == 0
    assert main(again) == 0  # our own run may go
    (place / "run" / name).parent.mkdir(exist_ok=True)
    (place / "run" / name).write_text("mine", encoding="utf-8")
    before = contents(place)
    capsys.readouterr()
    assert main(again) == 2
    assert f"run holds '{name}' that no run here wrote" in capsys.readouterr().err
    assert contents(place) == before
