"""A sharded model is trained, saved and resumed as a whole one is, by any number of ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launching import OPTIONS, Launch, assert_same_losses, at_step, losses
from safetensors.torch import load_file

from glassgpt import load_model, train
from glassgpt.training import shards
from glassgpt.training.log import read_log
from glassgpt.training.state import checkpoint_at, newest_checkpoint

MUON = ("train", *OPTIONS, "--fsdp", "--micro-batch-size", "2")

# in the save at step 40 rank 1 is killed before it writes its part
IN_SAVE = """
import os, signal
from glassgpt.training import state
def saving(tensors, directory, real=state.save_tensors):
    if rank == 1 and "step-00000040" in str(directory):
        os.kill(os.getpid(), signal.SIGKILL)
    real(tensors, directory)
state.save_tensors = saving
"""
# in the save at step 40 rank 0 is killed when all is written, and has another name still
BEFORE_RENAME = """
import os, signal
from glassgpt import files
def flushing(path, real=files.sync_tree):
    real(path)
    if "step-00000040" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
files.sync_tree = flushing
"""
# how many numbers this rank holds: of the model and of the optimizers' state
COUNTED = """
import json, os
from glassgpt.training import train
from glassgpt.training.shards import local
def taking(objective, optimizers, batch, step, *rest, real=train.take_step):
    if step == 3:
        states = [s for o in optimizers for of in o.state.values() for s in of.values() if s.ndim]
        numbers = [sum(local(t).numel() for t in tensors) for tensors in (objective.parameters(), states)]
        os.write(1, ("held " + json.dumps(numbers) + chr(10)).encode())
    return real(objective, optimizers, batch, step, *rest)
train.take_step = taking
"""
ON_WHOLE = """
import os, torch, torch.distributed as dist
from torch.distributed.tensor import distribute_tensor, init_device_mesh, Shard
from glassgpt.training.shards import local, on_whole, whole
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (3,))
seen = []
def function(matrices):
    seen.extend(matrices)
    return [m + m.sum() for m in matrices]
for n in (1, 2, 3, 5):
    torch.manual_seed(n)
    wholes = [torch.randn(shape) for shape in [(7, 2), (2, 7), (1, 3), (4, 4), (9, 2)][:n]]
    spread = [distribute_tensor(m, mesh, [Shard(0)]) for m in wholes]
    for m, part, like in zip(wholes, on_whole([local(s) for s in spread], spread, function), spread):
        assert torch.equal(part, local(distribute_tensor(m + m.sum(), mesh, [Shard(0)])))
assert len(seen) == [5, 4, 2][dist.get_rank()]  # the work is shared
dist.destroy_process_group()
"""


def contents(run: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors in a checkpoint, by file."""
    return {path.name: load_file(path) for path in checkpoint_at(run, step).rglob("*.safetensors")}


def assert_equal(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> None:
    """Bit for bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.slow
def test_sharded_ranks_compute_what_one_process_computes_whatever_happens(
    tmp_path: Path, shared_text: Path, alone: Path, launch: Launch
) -> None:
    """Muon, with accumulation. Killed at a step and twice in a save, a checkpoint damaged: and bit for bit the same."""
    whole, out, four, one = (tmp_path / name for name in ("whole", "killed", "four", "one"))
    done = launch(2, *MUON, shared_text, "--out", whole)
    assert done.finished, done
    assert_same_losses(whole, alone)
    for key in ("gradient_norm", "rate"):  # clipped by the norm over all ranks
        mine, theirs = ([r[key] for r in read_log(run) if r["kind"] == "step"] for run in (whole, alone))
        assert mine == pytest.approx(theirs, rel=1e-3)
    assert sorted(contents(whole, 50)) == [
        "model.safetensors",
        *(f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)),
    ]
    model = load_model(whole)[0]  # is a model directory, with the weights of one process but for rounding
    for mine, theirs in zip(model.parameters(), load_model(alone)[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)

    done = launch(2, *MUON, shared_text, "--out", out, code=at_step(25, 0, "SIGKILL"))
    assert done.codes[1] == 1
    (line,) = done.ours
    assert "rank 0" in line
    assert newest_checkpoint(out)[1].step == 20
    for copy in (four, one):
        shutil.copytree(out, copy)
    for code in (IN_SAVE, BEFORE_RENAME):
        done = launch(2, "train", "--resume", "--out", out, code=code, together=True)
        assert not done.finished
        assert newest_checkpoint(out)[1].step == 20
    for path in checkpoint_at(out, 20).rglob("shard-00002-*"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    done = launch(2, "train", "--resume", "--out", out)
    assert done.finished, done
    assert "training_state/shard-00002-model-00001-of-00001.safetensors) is damaged" in done.stderr
    assert losses(out) == losses(whole)
    assert_equal(contents(out, 50), contents(whole, 50))

    assert launch(4, "train", "--resume", "--out", four).finished
    assert_same_losses(four, alone)
    train(out=one, resume=True, threads=1)
    assert_same_losses(one, alone)
    assert (checkpoint_at(one, 50) / "training_state" / "optimizer.safetensors").exists()


@pytest.mark.slow
def test_adamw_on_four_ranks_which_hold_a_quarter_each(tmp_path: Path, shared_text: Path, launch: Launch) -> None:
    """With blocks that are computed twice, an untied head, samples, more ranks than batches to evaluate."""
    settings = dict(steps=50, eval_every=25, eval_batches=3, sample_tokens=4, seed=5, dtype="float32", batch_size=8)
    settings |= dict(optimizer="adamw", grad_clip=0.3, activation_checkpointing=True)
    config = {"drop_rate": 0.0, "tie_embeddings": False}
    train([shared_text], tmp_path / "alone", shape="nano", tokenizer="byte", config=config, threads=1, **settings)  # type: ignore[arg-type]
    options = ("--like", tmp_path / "alone", "--fsdp")
    done = launch(4, "train", *options, "--out", tmp_path / "sharded", code=COUNTED)
    assert done.finished, done
    assert_same_losses(tmp_path / "sharded", tmp_path / "alone")
    n = load_model(tmp_path / "alone")[0].n_parameters()
    held = [json.loads(line.removeprefix("held ")) for line in done.stdout.splitlines() if line.startswith("held ")]
    assert [sum(numbers) for numbers in zip(*held, strict=True)] == [n, 2 * n]
    assert max(model for model, _ in held) < 0.27 * n
    samples = [(tmp_path / name / "samples.jsonl").read_text(encoding="utf-8").splitlines() for name in RUNS]
    assert [len(lines) for lines in samples] == [3, 3]


RUNS = ("alone", "sharded")


@pytest.mark.slow
def test_dropout_is_that_of_ranks_with_whole_models(tmp_path: Path, shared_text: Path, launch: Launch) -> None:
    options = ("train", shared_text, *OPTIONS, "--steps", "8", "--dropout", "0.3", "--freeze", "embedding")
    for name, extra in (("whole", ()), ("sharded", ("--fsdp",))):
        done = launch(2, *options, *extra, "--out", tmp_path / name)
        assert done.finished, done
    assert_same_losses(tmp_path / "whole", tmp_path / "sharded")


def test_whole_matrices_go_round(launch: Launch) -> None:
    done = launch(3, "--version", code=ON_WHOLE)
    assert done.finished, done


@given(n=st.integers(0, 40), world_size=st.integers(1, 9))
def test_rows_are_dealt_out_as_pytorch_does(n: int, world_size: int) -> None:
    parts = [slice(*shards._rows(n, rank, world_size)) for rank in range(world_size)]
    rows = list(range(n))
    assert [row for part in parts for row in rows[part]] == rows
    if n:
        chunks = [len(chunk) for chunk in torch.arange(n).chunk(world_size)]
        assert [len(rows[part]) for part in parts] == chunks + [0] * (world_size - len(chunks))


def test_alone_there_is_nothing_to_shard(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ValueError, match=r"fsdp spreads .* start it with torchrun.*, or leave it out"):
        train([text], tmp_path / "run", fsdp=True, steps=2)
    assert not (tmp_path / "run").exists()


def test_an_older_pytorch_is_refused() -> None:
    shards.check_torch("2.13.0+cpu")
    shards.check_torch("3.0.1")
    with pytest.raises(ValueError, match=r"needs PyTorch 2\.13 or newer, this is 2\.9\.1"):
        shards.check_torch("2.9.1")


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device"), RuntimeError("connection closed")])
def test_a_rank_that_cannot_write_its_part_is_named(cause: Exception) -> None:
    from torch.distributed.checkpoint.api import CheckpointException

    def body() -> None:
        raise CheckpointException("write", {1: (cause, None)})  # type: ignore[dict-item]

    with pytest.raises(type(cause), match="rank 1: .*(No space left|closed)"):
        shards._explained(body)


def test_tensors_in_several_files_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without other ranks: what one process saves and loads, and what it cannot make out."""
    import torch.distributed as dist

    monkeypatch.setattr(shards, "_IN_FILE", 10)
    (empty := tmp_path / "empty").mkdir()
    tensors = {f"block {i}/x": torch.randn(4, i) for i in range(1, 5)} | {"s/step": torch.tensor(3.0)}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shards.save_tensors(tensors, tmp_path)
    finally:
        dist.destroy_process_group()
    assert len(list(tmp_path.glob("shard-*"))) > 2
    places: Callable[[str, torch.Size], torch.Tensor] = lambda name, shape: torch.empty(shape)  # noqa: E731
    loaded = shards.load_tensors(tmp_path, places)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert shards.load_tensors(empty, places) == {}
