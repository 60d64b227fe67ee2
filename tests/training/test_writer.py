"""What a run publishes and reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from glassgpt import GPTConfig, train
from glassgpt.training import log, writer
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


def test_the_log_is_on_the_disk_before_the_checkpoint_that_it_led_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave the checkpoint, and a hole in the log that no resume fills."""
    events, save = [], writer.save_checkpoint

    def saved(*arguments: Any) -> Path:
        events.append("checkpoint")
        return save(*arguments)

    monkeypatch.setattr(log, "sync", lambda path: events.append(path.name))
    monkeypatch.setattr(writer, "save_checkpoint", saved)
    text = tmp_path / "a.txt"
    text.write_text("This is a line of a text.\n" * 50, encoding="utf-8")
    shape = GPTConfig(vocab_size=257, context_length=8, emb_dim=8, n_heads=1, n_layers=1)
    train([text], tmp_path / "run", shape=shape, tokenizer="byte", steps=4, eval_every=2, batch_size=2, dtype="float32")
    assert events.count("checkpoint") == 3
    assert "log.jsonl" in events[0 : events.index("checkpoint")]
    between = " ".join(events).split("checkpoint")
    assert all("log.jsonl" in part for part in between[:-1])
