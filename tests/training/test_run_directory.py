"""Nothing that a run did not write is ever deleted, and nothing of a run before its successor is whole."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glassgpt import GPTConfig, load_model, train
from glassgpt.training import run_directory, writer
from glassgpt.training.records import TrainResult
from glassgpt.training.run_directory import NEXT, holds_run, locked, recover

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)
SETTINGS: dict[str, Any] = dict(steps=4, batch_size=4, eval_every=2, eval_batches=1, sample_tokens=0, dtype="float32")
LOCK = ".glassgpt-lock"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words.choice(["cat", "dog", "sat", "on", "the", "mat"]) for _ in range(600)))
    return path


def run(text: Path, out: Path, **options: Any) -> TrainResult:
    return train([text], out, **{**dict(shape=CONFIG, tokenizer="byte"), **SETTINGS, **options})


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


# ---- what is not ours ----------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["data/my.txt"],  # the very text that is trained on
        ["checkpoints/notes.txt"],
        ["log.jsonl"],
        ["loss.png"],
        ["tokenizer.json", "config.json"],
        ["model.safetensors"],
        ["run.json"],
        ["run.json", "data/train.npy", "log.jsonl"],
        ["thesis.tex"],
        [".git/config", "data/my.txt"],
    ],
)
def test_a_folder_of_somebody_elses_stays_as_it_is(
    tmp_path: Path, text: Path, names: list[str], overwrite: bool
) -> None:
    home = tmp_path / "home"
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("years of work " * 200)
    before = files(home)
    with pytest.raises(ValueError, match=r"that no run here wrote: choose an empty or new directory"):
        run(text, home, overwrite=overwrite)
    with pytest.raises(ValueError, match="that no run here wrote"):
        train([home], home, shape=CONFIG, tokenizer="byte", overwrite=overwrite, **SETTINGS)
    assert files(home) == before


@pytest.mark.parametrize("name", ["notes.txt", "data/my.txt", "checkpoints/best.txt", "checkpoints/step-00000002/a.py"])
def test_a_run_with_a_foreign_file_in_it_is_not_overwritten(tmp_path: Path, text: Path, name: str) -> None:
    out = tmp_path / "run"
    run(text, out)
    (out / name).write_text("mine")
    before = files(out)
    with pytest.raises(ValueError, match=f"holds '{name}' that no run here wrote"):
        run(text, out, overwrite=True)
    assert files(out) == before


def test_links_are_not_followed(tmp_path: Path, text: Path) -> None:
    out, home = tmp_path / "run", tmp_path / "home"
    run(text, out)
    home.mkdir()
    (home / "train.npy").write_text("mine")
    shutil.rmtree(out / "data")
    (out / "data").symlink_to(home)
    with pytest.raises(ValueError, match="holds 'data' that no run here wrote"):
        run(text, out, overwrite=True)
    assert files(home) == {"train.npy": b"mine"}


def test_a_run_is_not_overwritten_unasked_nor_trained_on_itself(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    run(text, out)
    before = files(out)
    with pytest.raises(ValueError, match="already holds a run: resume it"):
        run(text, out)
    for source in (out, out / "log.jsonl"):
        with pytest.raises(ValueError, match=r"the text .* lies in .*: choose a directory of its own"):
            train([source], out, overwrite=True, shape=CONFIG, tokenizer="byte", **SETTINGS)
    assert files(out) == before


# ---- a run in use ----------------------------------------


def test_a_directory_in_use_is_refused(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    with locked(out):
        code = f"from glassgpt import train; train([{str(text)!r}], {str(out)!r}, steps=1)"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"OSError: {out} is in use by another training run" in answer.stderr
    run(text, out)
    with locked(out), pytest.raises(OSError, match="is in use by another training run"):
        train(out=out, resume=True, steps=6)
    assert train(out=out, resume=True, steps=6).steps == 6


# ---- the successor first ----------------------------------------


class BoomError(Exception):
    pass


@pytest.mark.parametrize("where", ["prepare", "build", "measure", "promote"])
def test_a_successor_that_fails_leaves_the_old_run_whole(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    out = tmp_path / "run"
    run(text, out)
    before = files(out)

    def fail(*_: Any, **__: Any) -> None:
        raise BoomError

    if where == "measure":
        monkeypatch.setattr(writer, "save_checkpoint", fail)
    else:
        monkeypatch.setattr(sys.modules["glassgpt.training.train"], where, fail)
    with pytest.raises(BoomError):
        run(text, out, overwrite=True, seed=2)
    assert files(out) == before
    with pytest.raises(BoomError):
        run(text, tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_successor_takes_the_old_runs_place(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    run(text, out, steps=6)
    run(text, out, overwrite=True, seed=2)
    run(text, tmp_path / "alone", seed=2)
    mine, alone = files(out), files(tmp_path / "alone")
    assert mine.keys() == alone.keys()
    assert mine["model.safetensors"] == alone["model.safetensors"]
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [LOCK]


def killed_before_change(n: int, patch: pytest.MonkeyPatch) -> None:
    """From now on the n-th change to the directory is not made, and none after it: the process is gone."""
    left = [n]

    def limited(real: Any) -> Any:
        def change(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise BoomError
            return real(*arguments, **options)

        return change

    for name in ("rename", "unlink", "rmdir"):
        patch.setattr(Path, name, limited(getattr(Path, name)))


def test_a_kill_at_any_moment_of_the_exchange_is_recovered(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old run until its successor is whole, the new one after: never neither, never a mixture."""
    run(text, tmp_path / "old")
    run(text, tmp_path / "new", seed=2)
    wanted = {name: files(tmp_path / name) for name in ("old", "new")}
    outcomes, finished = [], False
    while not finished:
        out = tmp_path / f"run{len(outcomes)}"
        shutil.copytree(tmp_path / "old", out)
        shutil.copytree(tmp_path / "new", out / NEXT, ignore=shutil.ignore_patterns(LOCK))
        with monkeypatch.context() as patch:
            killed_before_change(len(outcomes), patch)
            try:
                run_directory.promote(out)
                finished = True
            except BoomError:
                pass
        assert holds_run(out)  # also while it moves up, when it has no `run.json`
        recover(out)
        outcomes += [name for name in wanted if files(out) == wanted[name]]
        assert len(outcomes) == int(out.name.removeprefix("run")) + 1
        assert train(out=out, resume=True).steps == 4
    assert outcomes[0] == "old"
    assert set(outcomes[1:]) == {"new"}
    assert len(outcomes) > 10


def test_what_a_kill_left_goes_at_the_next_start(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    run(text, out)
    before = files(out)
    left = out / "checkpoints" / ".step-00000004.fedc4711.glassgpt-tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"gigabytes")
    (out / ".data.fedc4711.glassgpt-tmp").mkdir()
    (out / ".run.json.fedc4711.glassgpt-tmp").write_text("{")
    (out / NEXT / "data").mkdir(parents=True)
    (out / NEXT / "data" / "train.npy").write_bytes(b"half")
    left = out / NEXT / "checkpoints" / ".step-00000000.0123abcd.glassgpt-tmp" / ".model.0123abcd.glassgpt-tmp"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    (out / ".mine.tmp").write_text("not a name that we give")
    train(out=out, resume=True)
    assert files(out) == before | {".mine.tmp": b"not a name that we give"}


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_in_a_directory_of_somebody_else_nothing_is_touched(
    tmp_path: Path, text: Path, options: dict[str, bool]
) -> None:
    out = tmp_path / "theirs"
    for name in (
        "data/.backup.2024-11.tmp/f",
        "data/.a.12345678.glassgpt-tmp",
        ".notes.12345678.glassgpt-tmp",
        "a.txt",
    ):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious", encoding="utf-8")
    before = files(out)
    with pytest.raises((ValueError, FileNotFoundError)):
        train([] if "resume" in options else [text], out, **options)  # type: ignore[arg-type]
    assert files(out) == before


def test_a_killed_overwrite_leaves_the_old_run(tmp_path: Path, text: Path) -> None:
    """kill -9 while the successor is prepared: the old model loads, and its run resumes."""
    out = tmp_path / "run"
    run(text, out)
    before = files(out)
    code = f"""
import os
from glassgpt import train
from glassgpt.training.progress import Progress
class Kill(Progress):
    def start(self, prepared, first_step):
        os.kill(os.getpid(), 9)
train([{str(text)!r}], {str(out)!r}, steps=2, overwrite=True, shape="nano", tokenizer="byte", progress=Kill())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == -9
    assert (out / NEXT / "run.json").exists()
    assert {name: data for name, data in files(out).items() if not name.startswith(NEXT)} == before
    load_model(out)
    assert train(out=out, resume=True).finished
    assert files(out) == before
