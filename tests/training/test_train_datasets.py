"""Training from prepared datasets: nothing is copied, a resume is exact, changed data is refused."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glassgpt import GPTConfig, Tokenizer, load_model, train
from glassgpt.data.dataset import open_dataset
from glassgpt.data.prepare.run import prepare
from glassgpt.data.shards import TokenSequence
from glassgpt.training.evaluate import evaluate_run
from glassgpt.training.log import read_log
from glassgpt.training.progress import Progress
from glassgpt.training.records import TrainResult
from glassgpt.training.run_directory import is_run
from glassgpt.training.state import newest_checkpoint
from glassgpt.training.train_file import read_train_file

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2)
SETTINGS = dict(steps=20, batch_size=4, eval_every=5, eval_batches=2, sample_tokens=0, dtype="float32")


def dataset(folder: Path, words: str, seed: int = 0, tokenizer: str = "byte", sentences: int = 300) -> Path:
    source = random.Random(seed)
    text = folder.with_suffix(".txt")
    lines = (" ".join(source.choice(words.split()) for _ in range(12)) + ".\n" for _ in range(sentences))
    text.write_text("".join(lines), encoding="utf-8")
    prepare([text], folder, tokenizer=tokenizer, processes=1, section_bytes=512, shard_tokens=5000, validation=0.2)
    text.unlink()
    return folder


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return dataset(tmp_path / "animals", "cat dog sat on the mat")


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    return dataset(tmp_path / "numbers", "one two three four five", sentences=200)


def run(texts: list[Any], out: Path, **options: Any) -> TrainResult:
    return train(texts, out, **{**dict(shape=CONFIG), **SETTINGS, **options})


class StopAt(Progress):
    """Breaks a run off after the given step, as a crash would: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.at:
            raise RuntimeError("pulled the plug")


def assert_same_run(a: Path, b: Path) -> None:
    clock = ("tokens_per_second", "time", "seconds", "memory_bytes")
    logs = [[{k: v for k, v in record.items() if k not in clock} for record in read_log(out)] for out in (a, b)]
    assert logs[0] == logs[1]
    states = []
    for out in (a, b):
        path, _ = newest_checkpoint(out)
        tensors = load_file(path / "model.safetensors") | load_file(path / "training_state" / "optimizer.safetensors")
        states.append(tensors)
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def broken_and_resumed(texts: list[Any], tmp_path: Path, **options: Any) -> None:
    run(texts, tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="plug"):
        run(texts, tmp_path / "broken", progress=StopAt(7), **options)
    with pytest.raises(RuntimeError, match="plug"):
        train(out=tmp_path / "broken", resume=True, progress=StopAt(13))
    assert train(out=tmp_path / "broken", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_broken_run_resumes_bit_for_bit(tmp_path: Path, animals: Path) -> None:
    broken_and_resumed([animals], tmp_path)
    out = tmp_path / "whole"
    assert [path.name for path in (out / "data").iterdir()] == ["sources.json"], "no token is copied"
    model, tokenizer = load_model(out)
    made_with = open_dataset(animals).tokenizer
    assert tokenizer.fingerprint == made_with.fingerprint
    assert evaluate_run(model, tokenizer, out).n_tokens == open_dataset(animals).validation.n_tokens
    assert is_run(out)
    run([animals], out, overwrite=True, seed=2)


def test_across_an_epoch(tmp_path: Path, animals: Path) -> None:
    broken_and_resumed([animals], tmp_path, batch_size=256, eval_every=2)
    assert read_log(tmp_path / "whole")[-1]["epoch"] > 3


def test_a_mixture_resumes_bit_for_bit(tmp_path: Path, animals: Path, numbers: Path) -> None:
    broken_and_resumed([f"{animals}=0.7", f"{numbers}=0.3"], tmp_path)
    model, tokenizer = load_model(tmp_path / "whole")
    evaluation = evaluate_run(model, tokenizer, tmp_path / "whole")
    sizes = [open_dataset(path).validation.n_tokens for path in (animals, numbers)]
    assert evaluation.n_tokens == pytest.approx(min(sizes[0] / 0.7, sizes[1] / 0.3), abs=2)
    assert 0.9 < evaluation.n_bytes / evaluation.n_tokens < 1


def test_a_mixture_is_repeated_and_begun_from_its_own_file(
    tmp_path: Path, animals: Path, numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(["animals=0.7", "numbers=0.3"], tmp_path / "whole", activation_checkpointing=False)
    train(out=tmp_path / "again", like=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again" / "data").iterdir()) == ["sources.json"]
    monkeypatch.chdir(tmp_path / "whole")
    train(**read_train_file("train.toml"), out=tmp_path / "anew")
    assert_same_run(tmp_path / "whole", tmp_path / "anew")
    shutil.rmtree(numbers)
    with pytest.raises(ValueError, match="numbers: the dataset of .* is not there"):
        train(out=tmp_path / "gone", like=tmp_path / "whole")


def test_a_part_without_validation_is_named(
    tmp_path: Path, animals: Path, numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nanoGPT's and llm.c's files may be."""

    def opened(path: Path, *rest: Any) -> Any:
        found = open_dataset(path, *rest)
        return dataclasses.replace(found, validation=SimpleNamespace(n_tokens=0)) if path == numbers else found

    monkeypatch.setattr("glassgpt.data.sources.open_dataset", opened)
    with pytest.raises(ValueError, match=f"^{numbers} has no tokens for validation: it cannot be part of a mixture"):
        run([f"{animals}=0.9", f"{numbers}=0.1"], tmp_path / "run")


def test_no_parts_are_a_sequence_of_nothing() -> None:
    assert (len(TokenSequence([])), len(TokenSequence([]).head(5))) == (0, 0)


def test_a_mixture_without_weights_goes_by_the_tokens(tmp_path: Path, animals: Path, numbers: Path) -> None:
    result = run([animals, numbers], tmp_path / "run")
    tokens = sum(open_dataset(path).train.n_tokens for path in (animals, numbers))
    assert result.epochs == pytest.approx(20 * 4 * 16 / tokens, rel=0.01)


@pytest.mark.parametrize("step", [7, None])
def test_changed_data_is_refused(tmp_path: Path, animals: Path, step: int | None) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run([animals], out, progress=StopAt(7))
    shard = animals / "train-00000.bin"
    if step is None:
        data = bytearray(shard.read_bytes())
        data[-2] ^= 1
        shard.write_bytes(data)
        message = "its tokens were changed after they were written"
    else:
        shutil.rmtree(animals)
        dataset(animals, "cat dog sat on the mat", seed=9)
        message = "is not the data this run began with"
    with pytest.raises(ValueError, match=message):
        train(out=out, resume=True)


def test_data_that_moved_is_named_anew(tmp_path: Path, animals: Path, numbers: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run([animals], out, progress=StopAt(7))
    animals.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"animals: the dataset of .*run is not there: put it back, or say where"):
        train(out=out, resume=True)
    with pytest.raises(ValueError, match="numbers is not the data this run began with"):
        train([numbers], out, resume=True)
    assert train([tmp_path / "elsewhere"], out, resume=True).finished
    assert train(out=out, resume=True).finished, "the new place is kept"


def test_a_damaged_shard_is_refused_before_the_first_step(tmp_path: Path, animals: Path) -> None:
    shard = animals / "validation-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"validation-00000.bin: cut off or damaged"):
        run([animals], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nanogpts_files_train(tmp_path: Path) -> None:
    folder = tmp_path / "openwebtext"
    folder.mkdir()
    ids = Tokenizer.gpt2().encode("A text in nanoGPT's files.\n") * 40
    for name in ("train", "val"):
        (folder / f"{name}.bin").write_bytes(np.array(ids, "<u2").tobytes())
    result = run([folder], tmp_path / "run", shape=None, config={"n_layers": 1, "emb_dim": 8, "n_heads": 1}, steps=2)
    assert result.finished
    assert load_model(tmp_path / "run")[1].n_vocab == 50257


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["animals", "text.txt"], {}, "text.txt is no dataset, but .*animals is: prepare the text first"),
        (["animals=0.5", "numbers"], {}, "numbers has no weight, but others have: write .*numbers=0.5"),
        (["animals=half", "numbers=1"], {}, "the weight 'half' must be a number"),
        (["animals=0", "numbers=1"], {}, "weight 0 must be above 0"),
        (["animals"], {"tokenizer": "bpe"}, "tokenizer 'bpe': a dataset has the tokenizer it was prepared with"),
        (["animals"], {"tokenizer": "gpt2"}, "animals: written with another tokenizer"),
        (["animals"], {"text_fields": "body"}, "text fields body: a dataset has none"),
        (["animals", "characters"], {}, "characters: written with another tokenizer"),
        (["animals"], {"shape": CONFIG.replace(context_length=100_000)}, r"your text is [\d]+ tokens, but a context"),
    ],
)
def test_misuse(
    tmp_path: Path, animals: Path, numbers: Path, texts: list[str], options: dict[str, Any], message: str
) -> None:
    (tmp_path / "text.txt").write_text("some text", encoding="utf-8")
    if "characters" in texts:
        dataset(tmp_path / "characters", "some other words", tokenizer="char")
    with pytest.raises(ValueError, match=message) as caught:
        run([str(tmp_path / text) for text in texts], tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_kill_9_and_resume_by_the_command_line(
    tmp_path: Path, animals: Path, numbers: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    command = [sys.executable, "-m", "glassgpt", "train"]
    options = [f"{animals}=0.6", f"{numbers}=0.4", "--shape", "nano", "--steps", "60", "--eval-every", "10"]
    options += ["--eval-batches", "2", "--sample-tokens", "0", "--dtype", "float32", "--threads", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, *options, "--out", str(whole)], check=True, capture_output=True)
    process = started([*command, *options, "--out", str(killed)], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(read_log(killed)) <= 25 and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len([r for r in read_log(killed) if r["kind"] == "step"]) < 60, "the kill came too late to test anything"
    subprocess.run([*command, "--resume", "--threads", "1", "--out", str(killed)], check=True, capture_output=True)
    assert_same_run(whole, killed)
    assert json.loads((killed / "data" / "sources.json").read_text("utf-8"))["sources"][0]["weight"] == 0.6
