"""What a run publishes and reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from glassgpt.training.writer import publish


def checkpoint(folder: Path, content: bytes) -> Path:
    (folder / "training_state").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(content + name.encode())
    (folder / "training_state" / "optimizer.safetensors").write_bytes(b"not for the top")
    return folder


def copying(*_: Any) -> None:
    raise OSError("no links on this disk")


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_becomes_the_model_at_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    run = tmp_path / "run"
    first, second = (checkpoint(run / "checkpoints" / name, name.encode()) for name in ("one", "two"))
    if not links:
        monkeypatch.setattr(os, "link", copying)
    for source in (first, second, second):
        publish(source, run)
        for path in (p for p in source.iterdir() if p.is_file()):
            assert (run / path.name).read_bytes() == path.read_bytes()
            linked = links and path.suffix == ".safetensors"  # people edit the small files
            assert (run / path.name).samefile(path) == linked
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_what_is_published_outlives_its_checkpoint(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "checkpoints" / "one", b"1")
    publish(source, tmp_path)
    (source / "config.json").unlink()
    assert (tmp_path / "config.json").read_bytes() == b"1config.json"


def test_editing_the_published_files_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "checkpoints" / "one", b"1")
    before = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    publish(source, tmp_path)
    for name in ("config.json", "tokenizer.json"):
        with (tmp_path / name).open("r+b") as file:  # in place, as an editor or `open("w")` does
            file.write(b"edited")
    assert {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()} == before
