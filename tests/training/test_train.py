"""The whole of training: what it writes, that it resumes bit for bit, that it refuses what cannot work."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, load_model, train
from glassgpt.config import preset
from glassgpt.data.tokens import TokenFile
from glassgpt.training import build
from glassgpt.training import train as train_module
from glassgpt.training.evaluate import evaluate
from glassgpt.training.log import read_log
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.progress import Progress
from glassgpt.training.records import TrainingFailedError, TrainResult
from glassgpt.training.run_directory import RUN_FILE
from glassgpt.training.state import checkpoints, newest_checkpoint
from glassgpt.training.step import evaluate_loss

Start = Callable[..., subprocess.Popen[Any]]

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2)
SETTINGS = dict(steps=20, batch_size=4, eval_every=5, eval_batches=2, sample_tokens=0, dtype="float32")


def run(text: Path, out: Path, **options: Any) -> TrainResult:
    return train([text], out, **{**dict(shape=CONFIG, tokenizer="byte"), **SETTINGS, **options})


class StopAt(Progress):
    """Breaks a run off after the given step, as a crash would: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, record: dict) -> None:
        if record["step"] == self.at:
            raise RuntimeError("pulled the plug")


def final_tensors(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    path, _ = newest_checkpoint(out)
    weights = load_file(path / "model.safetensors")
    return weights | load_file(path / "training_state" / "optimizer.safetensors")


def losses(out: Path) -> list[tuple]:
    """Every record but what a clock decides."""
    return [
        tuple((k, v) for k, v in r.items() if k not in ("tokens_per_second", "time", "seconds", "memory_bytes"))
        for r in read_log(out)
    ]


def assert_same_run(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    mine, theirs = final_tensors(a), final_tensors(b)
    assert mine.keys() == theirs.keys()
    assert [k for k in mine if not torch.equal(mine[k], theirs[k])] == []


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("micro", [None, 2])
def test_a_broken_run_resumes_bit_for_bit(tmp_path: Path, text: Path, optimizer: str, micro: int | None) -> None:
    options = dict(optimizer=optimizer, micro_batch_size=micro)
    run(text, tmp_path / "whole", **options)
    broken = tmp_path / "broken"
    for crash in (7, 13):  # twice, neither at a checkpoint
        with pytest.raises(RuntimeError, match="plug"):
            if crash == 7:
                run(text, broken, progress=StopAt(crash), **options)
            else:
                train(out=broken, resume=True, progress=StopAt(crash))
    result = train(out=broken, resume=True)
    assert result.finished
    assert_same_run(tmp_path / "whole", broken)


def test_the_resumed_steps_cross_an_epoch(tmp_path: Path, text: Path) -> None:
    options = dict(batch_size=256, steps=12, eval_every=2)
    run(text, tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="plug"):
        run(text, tmp_path / "broken", progress=StopAt(5), **options)
    train(out=tmp_path / "broken", resume=True)
    evaluations = [r for r in read_log(tmp_path / "whole") if r["kind"] == "evaluation"]
    assert evaluations[-1]["epoch"] > 2
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_kill_9_and_resume_by_the_command_line(tmp_path: Path, text: Path, started: Start) -> None:
    command = [sys.executable, "-m", "glassgpt", "train"]
    options = [str(text), "--shape", "nano", "--tokenizer", "byte", "--steps", "60", "--eval-every", "10"]
    options += ["--eval-batches", "2", "--sample-tokens", "0", "--seed", "5", "--dtype", "float32", "--threads", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, *options, "--out", str(whole)], check=True, capture_output=True)
    process = started([*command, *options, "--out", str(killed)], stdout=subprocess.DEVNULL)
    wait_for(lambda: len(read_log(killed)) > 25)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len([r for r in read_log(killed) if r["kind"] == "step"]) < 60, "the kill came too late to test anything"
    subprocess.run([*command, "--resume", "--threads", "1", "--out", str(killed)], check=True, capture_output=True)
    assert_same_run(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path, text: Path, how: signal.Signals, started: Start) -> None:
    out = tmp_path / "run"
    options = [
        str(text),
        "--shape",
        "nano",
        "--tokenizer",
        "byte",
        "--steps",
        "100000",
        "--eval-every",
        "50000",
    ]
    command = [sys.executable, "-m", "glassgpt", "train", *options, "--out", str(out), "--sample-tokens", "0"]
    process = started(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    wait_for(lambda: len(read_log(out)) > 10)
    process.send_signal(how)
    if how == signal.SIGTERM:  # from a supervisor, which tells every process, and from torchrun, which hands it on
        time.sleep(0.02)
        process.send_signal(how)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"resume with: glassgpt train --resume --out {out}" in printed
    _, state = newest_checkpoint(out)
    assert state.step == len([r for r in read_log(out) if r["kind"] == "step"]) > 0


def wait_for(ready: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_what_a_run_leaves_behind(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    result = run(text, out)
    names = {p.name for p in out.iterdir()} - {".glassgpt-lock"}
    assert names == {
        *(
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        *("run.json", "train.toml", "log.jsonl", "log.csv", "loss.png", "report.html", "data", "checkpoints"),
    }
    assert [p.name for p in checkpoints(out)] == ["step-00000020", "step-00000015"]
    records = read_log(out)
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(20))
    evaluations = {r["step"]: r["val_loss"] for r in records if r["kind"] == "evaluation"}
    assert list(evaluations) == [0, 5, 10, 15, 20]
    assert result.best_val_loss == min(evaluations.values())
    assert abs(evaluations[0] - result_uniform(out)) < 0.05 * result_uniform(out)  # the first loss is ln V
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    model, tokenizer = load_model(out)
    assert model.config == CONFIG.replace(vocab_size=tokenizer.n_vocab)


def result_uniform(out: Path) -> float:
    return json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["baselines"]["uniform"]


def test_the_top_of_the_run_is_the_best_model(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    # a rate that makes the loss rise again after the first steps
    result = run(text, out, learning_rate=3.0, muon_learning_rate=3.0, warmup_steps=8, steps=15)
    evaluations = {r["val_loss"]: r["step"] for r in read_log(out) if r["kind"] == "evaluation"}
    best_step = evaluations[min(evaluations)]
    assert result.best_val_loss == min(evaluations) < result.val_loss
    assert best_step < 15
    last, _ = load_model(newest_checkpoint(out)[0])
    best, _ = load_model(out)
    assert not torch.equal(best.tok_emb.weight, last.tok_emb.weight)


def test_it_learns(tmp_path: Path, text: Path) -> None:
    result = run(text, tmp_path / "run", steps=150, eval_every=150, batch_size=16)
    start = result_uniform(tmp_path / "run")
    assert result.best_val_loss < 0.5 * start


@pytest.mark.slow
def test_random_tokens_teach_nothing(tmp_path: Path) -> None:
    """Where the next byte is pure chance no model may beat ln of the alphabet: one that does sees the future."""
    letters = random.Random(1)
    path = tmp_path / "noise.txt"
    path.write_text("".join(letters.choice("abcdefgh") for _ in range(20_000)))
    result = train(
        [path],
        tmp_path / "run",
        shape=CONFIG,
        tokenizer="char",
        **{**SETTINGS, "steps": 200, "eval_batches": 200},
    )
    assert result.best_val_loss > 0.99 * torch.tensor(8.0).log().item()


def test_a_damaged_newest_checkpoint_is_passed_over(
    tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    run(text, tmp_path / "whole")
    run(text, out)
    damaged = checkpoints(out)[0] / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.unlink()  # it is linked to the published model: that one stays as it is
    damaged.write_bytes(data)
    assert train(out=out, resume=True).finished
    assert "checkpoint step-00000020 (model.safetensors) is damaged: resuming from an older one" in caplog.text
    assert_same_run(tmp_path / "whole", out)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassgpt.training import state

    out = tmp_path / "run"
    real, calls = state.write_tensors, []

    def full(tensors: object, path: Path, *rest: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr(state, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        run(text, out)
    monkeypatch.undo()
    assert [p.name for p in checkpoints(out)] == ["step-00000005", "step-00000000"]
    assert not list((out / "checkpoints").glob(".*"))
    run(text, tmp_path / "whole")
    train(out=out, resume=True)
    assert_same_run(tmp_path / "whole", out)


def test_resume_refuses_what_the_run_was_not(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    run(text, out)
    with pytest.raises(ValueError, match=r"learning_rate was 0.004, now 0.1"):
        train(out=out, resume=True, learning_rate=0.1)
    with pytest.raises(
        ValueError, match="was begun differently in 2 ways: leave them out, or begin a new run"
    ) as error:
        train(out=out, resume=True, shape="nano")
    assert error.value.__notes__ == ["           the run  asked for\n  emb_dim  16       64\n  n_heads  2        4"]
    with pytest.raises(ValueError, match=r"eval_batches was 2, now 3"):  # losses would not be comparable
        train(out=out, resume=True, eval_batches=3)
    with pytest.raises(ValueError, match=f"the text was {text}, now other.txt"):
        train(["other.txt"], out, resume=True)
    with pytest.raises(ValueError, match="the tokenizer was one of 257 tokens, now char"):
        train(out=out, resume=True, tokenizer="char")
    with pytest.raises(ValueError, match="minutes and steps exclude each other"):
        train(out=out, resume=True, minutes=3, steps=30)
    with pytest.raises(FileNotFoundError, match="holds no run to resume: there is no such directory"):
        train(out=tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run\.json is missing"):
        train(out=tmp_path / "empty", resume=True)
    # longer is welcome, and so is asking again for what was picked
    assert train([text], out, resume=True, steps=25, dtype="auto", shape=CONFIG, tokenizer="byte").steps == 25


def test_records_train_as_files_do(tmp_path: Path, text: Path) -> None:
    """The same documents give the same run, and a resume knows the fields again."""
    words = text.read_text(encoding="utf-8")
    parts = [words[start : start + 400] for start in range(0, len(words), 400)]
    folder = tmp_path / "folder"
    folder.mkdir()
    for n, part in enumerate(parts):
        (folder / f"{n:04}.txt").write_text(part, encoding="utf-8", newline="\n")
    records = tmp_path / "texts.jsonl"
    records.write_text("\n".join(json.dumps({"body": part}) for part in parts), encoding="utf-8")
    run(folder, tmp_path / "files")
    run(records, tmp_path / "records", text_fields=["body"])
    assert_same_run(tmp_path / "files", tmp_path / "records")
    with pytest.raises(ValueError, match="the text's field was body"):
        train(out=tmp_path / "records", resume=True, text_fields=["text"])
    assert train([records], tmp_path / "records", resume=True, text_fields="body", steps=21).steps == 21
    with pytest.raises(ValueError, match="text fields body: Python's own manual has no fields"):
        train(out=tmp_path / "new", text_fields=["body"], **SETTINGS)


def test_numbers_that_break_are_skipped_then_given_up(tmp_path: Path, text: Path, monkeypatch: object) -> None:
    from glassgpt.training import step

    real, seen = step.accumulate_gradients, []

    def breaking(objective: torch.nn.Module, *rest: object) -> float:
        seen.append({k: v.clone() for k, v in objective.state_dict().items()})
        loss = real(objective, *rest)
        return float("nan") if len(seen) in broken else loss

    monkeypatch.setattr(step, "accumulate_gradients", breaking)
    broken = {8}
    assert run(text, tmp_path / "one").finished
    assert all(torch.equal(v, seen[8][k]) for k, v in seen[7].items())  # the broken step changed nothing
    assert not all(torch.equal(v, seen[9][k]) for k, v in seen[8].items())
    seen.clear()
    broken = set(range(8, 100))
    with pytest.raises(TrainingFailedError, match="lower learning rate"):
        run(text, tmp_path / "all", rollbacks=0)
    assert newest_checkpoint(tmp_path / "all")[1].step == 15


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(steps=0), "steps 0"),
        (dict(batch_size=-1), "batch_size -1"),
        (dict(micro_batch_size=3), "does not divide"),
        (dict(optimizer="sgd"), "one of muon, adamw"),
        (dict(learning_rate=0.0), "learning_rate 0.0"),
        (dict(final_rate=2.0), "final_rate 2.0"),
        (dict(dtype="int8"), "int8"),
        (dict(device="tpu"), "tpu"),
        (dict(shape="huge"), "gpt2-xl"),
        (dict(tokenizer="words"), "bpe"),
        (dict(minutes=-1.0, steps=None), "minutes -1.0"),
        (dict(speed=1), "unknown setting 'speed'"),
    ],
)
def test_bad_settings_are_named_and_touch_nothing(tmp_path: Path, text: Path, options: dict, says: str) -> None:
    given = {k: v for k, v in {**SETTINGS, **options}.items() if v is not None}
    with pytest.raises(ValueError, match=says):
        train([text], tmp_path / "run", **{**dict(shape=CONFIG, tokenizer="byte"), **given})
    assert not (tmp_path / "run").exists()


def test_a_text_shorter_than_a_block_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("only a few words")
    with pytest.raises(ValueError, match="context length"):
        train([path], tmp_path / "deep" / "run", shape=CONFIG, tokenizer="byte", **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["short.txt"]  # nor the directories on the way


def test_sizes_are_picked_and_said(tmp_path: Path, text: Path) -> None:
    said: list[str] = []

    class Listen(Progress):
        def start(self, prepared: object, first_step: int) -> None:
            said.extend(prepared.choices)

    settings = {k: v for k, v in SETTINGS.items() if k != "dtype"} | {"steps": 2}
    train([text], tmp_path / "run", progress=Listen(), **settings)
    together = "\n".join(said)
    assert "shape: nano" in together
    assert "in 1 document, every" in together
    assert "tokenizer: BPE" in together
    assert "parameters" in together


# ---- what a resume needs to be exact ----------------------------------------


def test_micro_batches_bound_the_rows_of_an_evaluation_too(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []

    def watched(*arguments: Any) -> Any:
        model = real(*arguments)
        model.tok_emb.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        return model

    real = build.initial_model
    monkeypatch.setattr(build, "initial_model", watched)
    run(text, tmp_path / "run", micro_batch_size=2)
    assert set(rows) == {2}


def test_the_number_of_threads_is_part_of_a_run(tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture) -> None:
    used: list[int] = []

    class Watch(StopAt):
        def step(self, record: dict) -> None:
            used.append(torch.get_num_threads())
            super().step(record)

    before, out = torch.get_num_threads(), tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, threads=2, progress=Watch(7))
    assert set(used) == {2}
    assert torch.get_num_threads() == before  # as it was found
    used.clear()
    with pytest.raises(RuntimeError, match="plug"):
        train(out=out, resume=True, progress=Watch(8))
    assert set(used) == {2}
    assert caplog.text == "" or "more than the cores here" in caplog.text
    train(out=out, resume=True, threads=1)
    assert "this run began with 2 threads: with 1 the last bits differ" in caplog.text


def test_changed_tokens_are_not_resumed(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    run(text, out)
    tokens = np.load(out / "data" / "train.npy", mmap_mode="r+")
    tokens[100:200] = 5
    tokens.flush()
    del tokens
    with pytest.raises(ValueError, match=r"train\.npy"):
        train(out=out, resume=True, steps=25)


def test_the_global_random_numbers_are_left_alone(tmp_path: Path, text: Path) -> None:
    before = torch.get_rng_state()
    run(text, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tokenizer_without_an_end_of_text_gives_no_sample_from_nothing(tmp_path: Path, text: Path) -> None:
    samples: list[str] = []

    class Listen(Progress):
        def sample(self, text: str) -> None:
            samples.append(text)

    options: dict[str, Any] = dict(tokenizer=without_end_of_text(), sample_tokens=5, progress=Listen())
    run(text, tmp_path / "run", **options)
    assert samples == []
    run(text, tmp_path / "two", sample_prompt="t", **options)
    assert len(samples) == 5


def without_end_of_text() -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    backend = tokenizers.Tokenizer(models.WordLevel({c: i for i, c in enumerate("abcdeghmnost ")}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend)


def test_only_good_checkpoints_count_for_keeping(tmp_path: Path, text: Path) -> None:
    """After a damaged newest one was passed over, the two newest good ones stay."""
    out = tmp_path / "run"
    run(text, out)
    (checkpoints(out)[0] / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="plug"):
        train(out=out, resume=True, eval_every=1, progress=StopAt(18))
    good = [path.name for path in checkpoints(out) if (path / "model.safetensors").exists()]
    assert good == ["step-00000018", "step-00000017"]


def test_the_log_of_a_run_resumed_from_its_start_is_whole(tmp_path: Path, text: Path) -> None:
    run(text, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="plug"):
        run(text, tmp_path / "broken", progress=StopAt(2))
    train(out=tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_of_version_0_1_resumes(tmp_path: Path, text: Path) -> None:
    """Its `run.json` says nothing of threads, its `state.json` nothing of the best step."""
    out = tmp_path / "run"
    run(text, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, progress=StopAt(12))
    record = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    del record["threads"], record["torch"]
    (out / RUN_FILE).write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(out / "checkpoints" / "step-00000005")
    path = out / "checkpoints" / "step-00000010" / "training_state" / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    del state["best_step"]
    path.write_text(json.dumps(state), encoding="utf-8")
    train(out=out, resume=True)
    assert_same_run(tmp_path / "whole", out)


# ---- checkpoints by the clock ----------------------------------------


class Saved(StopAt):
    """Remembers what was saved between evaluations; `evaluated` in the newest checkpoint is the one before."""

    def __init__(self, out: Path, step: int = -1) -> None:
        super().__init__(step)
        self.out, self.steps, self.evaluated = out, [], []

    def saved(self, step: int) -> None:
        _, state = newest_checkpoint(self.out)
        assert state.step == step
        self.steps.append(step)
        self.evaluated.append(state.evaluated)


def test_saving_by_the_clock_changes_nothing_of_a_run(tmp_path: Path, text: Path) -> None:
    a, b = tmp_path / "undisturbed", tmp_path / "saved"
    run(text, a, save_minutes=0)
    view = Saved(b)
    run(text, b, save_minutes=1e-9, progress=view)  # after every step
    assert view.steps == [step for step in range(1, 20) if step % 5]
    assert view.evaluated == [step // 5 * 5 for step in view.steps]
    assert_same_run(a, b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert [p.name for p in checkpoints(b)] == ["step-00000020", "step-00000019"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_resumes_bit_for_bit_from_a_checkpoint_by_the_clock(tmp_path: Path, text: Path, optimizer: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(text, whole, optimizer=optimizer, save_minutes=0)
    with pytest.raises(RuntimeError, match="plug"):
        run(text, broken, optimizer=optimizer, save_minutes=1e-9, progress=StopAt(8))
    _, state = newest_checkpoint(broken)
    assert (state.step, state.evaluated) == (8, 5)
    with pytest.raises(RuntimeError, match="plug"):
        run(text, tmp_path / "until", optimizer=optimizer, save_minutes=0, progress=StopAt(5))
    assert (broken / "model.safetensors").read_bytes() == (tmp_path / "until" / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError, match="plug"):
        train(out=broken, resume=True, progress=(view := Saved(broken, 13)))
    assert view.steps == [9, 11, 12, 13]  # the one that it began with is not written again
    train(out=broken, resume=True, save_minutes=0)
    assert_same_run(whole, broken)


def test_the_clock_counts_from_the_last_checkpoint(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0
        perf_counter = staticmethod(time.perf_counter)

        def monotonic(self) -> float:
            return self.now

    class Ticking(Saved):
        """Each step takes a minute."""

        def step(self, record: dict) -> None:
            clock.now += 60

    clock = Clock()
    monkeypatch.setattr(train_module, "time", clock)
    view = Ticking(tmp_path / "run")
    run(text, tmp_path / "run", steps=40, eval_every=15, save_minutes=4, progress=view)
    assert view.steps == [4, 8, 12, 19, 23, 27, 34, 38]  # evaluations at 15, 30 and 40 save as well
    view = Ticking(tmp_path / "never")
    run(text, tmp_path / "never", steps=40, eval_every=15, save_minutes=0, progress=view)
    assert view.steps == []


def test_the_last_model_is_the_last_one_saved_by_the_clock_too(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, keep="last", save_minutes=1e-9, progress=StopAt(8))
    assert load_model(out)[0].out_head.weight.equal(load_model(newest_checkpoint(out)[0])[0].out_head.weight)


def test_a_stop_at_a_checkpoint_by_the_clock_is_logged_once(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, save_minutes=1e-9, progress=StopAt(8))
    train(out=out, resume=True, steps=8)  # measured at the very step of the checkpoint
    assert [r["step"] for r in read_log(out) if r["kind"] == "evaluation"] == [0, 5, 8]
    assert newest_checkpoint(out)[1].evaluated == 8


def test_damaged_checkpoints_are_no_reason_to_delete_a_good_one(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, save_minutes=1e-9, progress=StopAt(13))
    assert [p.name for p in checkpoints(out)] == ["step-00000013", "step-00000012", "step-00000010"]
    (checkpoints(out)[0] / "training_state" / "optimizer.safetensors").write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match="plug"):
        train(out=out, resume=True, save_minutes=0, progress=StopAt(15))
    assert [p.name for p in checkpoints(out)] == ["step-00000015", "step-00000012"]


@pytest.mark.slow
def test_kill_9_right_after_a_checkpoint_by_the_clock(tmp_path: Path, text: Path, started: Start) -> None:
    command = [sys.executable, "-m", "glassgpt", "train"]
    options = [str(text), "--shape", "nano", "--tokenizer", "byte", "--steps", "60", "--eval-every", "40"]
    options += ["--eval-batches", "2", "--sample-tokens", "0", "--seed", "5", "--dtype", "float32", "--threads", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, *options, "--out", str(whole)], check=True, capture_output=True)
    process = started([*command, *options, "--out", str(killed), "--save-minutes", "0.001"], stdout=subprocess.DEVNULL)
    wait_for(lambda: any(path.name > "step-00000003" for path in checkpoints(killed)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest_checkpoint(killed)[1].evaluated == 0, "the kill came too late to test anything"
    subprocess.run([*command, "--resume", "--threads", "1", "--out", str(killed)], check=True, capture_output=True)
    assert_same_run(whole, killed)


# ---- a text that is learned by heart ----------------------------------------


def memorised(tmp_path: Path, **options: Any) -> TrainResult:
    """A run on a text of random letters: what it learns of the training part makes it worse on the validation part."""
    letters = random.Random(1)
    text = tmp_path / "noise.txt"
    text.write_text("".join(letters.choice("abcdefgh") for _ in range(1500)), encoding="utf-8")
    settings = dict(steps=200, eval_every=10, eval_batches=None, optimizer="adamw", learning_rate=2e-2)
    return run(text, tmp_path / "run", **{**settings, "shape": CONFIG.replace(drop_rate=0.0), **options})


def last_weights(out: Path) -> torch.Tensor:
    path, _ = newest_checkpoint(out)
    return load_model(path, tokenizer=Tokenizer.bytes_())[0].out_head.weight


def test_a_run_that_grows_no_better_stops_with_its_best_model(tmp_path: Path) -> None:
    class Heard(Progress):
        def message(self, text: str) -> None:
            messages.append(text)

    messages: list[str] = []
    result = memorised(tmp_path, patience=3, progress=Heard())
    assert result.finished
    assert result.steps < 200
    assert result.steps == result.best_step + 30
    assert result.best_val_loss < result.val_loss
    assert f"stopping: no better model since step {result.best_step}" in messages[-1]
    evaluations = {r["step"]: r["val_loss"] for r in read_log(tmp_path / "run") if r["kind"] == "evaluation"}
    assert evaluations[result.best_step] == min(evaluations.values()) == result.best_val_loss
    assert not torch.equal(load_model(tmp_path / "run")[0].out_head.weight, last_weights(tmp_path / "run"))
    again = train(out=tmp_path / "run", resume=True)  # nothing is left to do
    assert (again.steps, again.finished) == (result.steps, True)
    assert train(out=tmp_path / "run", resume=True, patience=0, steps=result.steps + 20).steps == result.steps + 20


def test_without_patience_all_steps_are_taken(tmp_path: Path) -> None:
    result = memorised(tmp_path, steps=100)
    assert (result.steps, result.finished) == (100, True)
    assert result.best_step < 100


def test_the_last_model_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    result = memorised(tmp_path, steps=100, keep="last")
    assert (result.keep, result.best_step < 100) == ("last", True)
    assert torch.equal(load_model(tmp_path / "run")[0].out_head.weight, last_weights(tmp_path / "run"))


def test_minutes_are_capped_by_what_the_text_can_bear(tmp_path: Path, text: Path) -> None:
    result = train([text], tmp_path / "run", tokenizer="byte", minutes=5, sample_tokens=0, threads=1)
    assert result.finished
    assert result.best_step > 0
    assert result.epochs <= 37
    record = json.loads((tmp_path / "run" / RUN_FILE).read_text(encoding="utf-8"))
    assert record["config"]["drop_rate"] > 0
    assert any("after which more make it worse" in choice for choice in record["choices"])
    assert any(choice.startswith("shape: nano, for") for choice in record["choices"])


def begin(text: Path, out: Path, **options: Any) -> TrainResult:
    """`run` without a shape of its own."""
    return train([text], out, **{**SETTINGS, **options})


def test_training_goes_on_from_weights(tmp_path: Path, text: Path) -> None:
    """The first evaluation is that of the source; its tokenizer and its shape come along."""
    run(text, tmp_path / "first")
    source, tokenizer = load_model(tmp_path / "first")
    begin(text, tmp_path / "second", model=tmp_path / "first", eval_batches=1000)
    first = next(r for r in read_log(tmp_path / "second") if r["kind"] == "evaluation")
    validation = tmp_path / "validation.txt"
    tokens = TokenFile.open(tmp_path / "second" / "data" / "validation.npy").tokens
    validation.write_bytes(tokenizer.decode_bytes(t for t in tokens.tolist() if t != tokenizer.eot_id))
    whole = evaluate_loss(NextTokenLoss(source), tokens, 4, 10**9)
    assert first["val_loss"] == pytest.approx(whole, abs=1e-6)
    # `evaluate` encodes the text itself, so it reads what the run reads but for the ends of texts
    assert first["val_loss"] == pytest.approx(evaluate(source, tokenizer, [validation]).loss, abs=0.02)
    assert min(r["val_loss"] for r in read_log(tmp_path / "second") if r["kind"] == "evaluation") < first["val_loss"]
    record = json.loads((tmp_path / "second" / RUN_FILE).read_text())
    assert record["source"] == str(tmp_path / "first")
    assert GPTConfig.from_dict(record["config"]) == CONFIG.replace(vocab_size=257)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_from_weights_resumes_bit_for_bit(tmp_path: Path, text: Path, optimizer: str) -> None:
    run(text, tmp_path / "first")
    options = dict(model=tmp_path / "first", optimizer=optimizer, freeze=("embedding", "bias"))
    begin(text, tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="plug"):
        begin(text, tmp_path / "broken", progress=StopAt(12), **options)
    shutil.rmtree(tmp_path / "first")  # a run needs its source no more
    train(out=tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    with pytest.raises(ValueError, match="what it began with was .*first, now .*whole"):
        train(out=tmp_path / "broken", resume=True, model=tmp_path / "whole")


def test_a_model_in_memory_is_copied(tmp_path: Path, text: Path) -> None:
    torch.manual_seed(0)
    model = GPTModel(CONFIG.replace(vocab_size=257))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begin(text, tmp_path / "run", model=model, tokenizer=Tokenizer.bytes_(), freeze="head")
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    trained, _ = load_model(tmp_path / "run" / "checkpoints" / "step-00000020")
    moved = {n for n, t in trained.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == before.keys() - {"out_head.weight"}, "all but what is frozen"


def test_weights_read_in_shorter_blocks_lose_only_positions(tmp_path: Path, text: Path) -> None:
    torch.manual_seed(0)
    model = GPTModel(CONFIG.replace(vocab_size=257))
    begin(text, tmp_path / "run", model=model, tokenizer=Tokenizer.bytes_(), config={"context_length": 5})
    start, _ = load_model(tmp_path / "run" / "checkpoints" / "step-00000015")
    assert start.config == model.config.replace(context_length=5)
    begin(text, tmp_path / "still", model=model, tokenizer=Tokenizer.bytes_(), config={"context_length": 5}, steps=1)
    first, _ = load_model(tmp_path / "still" / "checkpoints" / "step-00000000")
    assert torch.equal(first.pos_emb.weight, model.pos_emb.weight[:5])
    assert torch.equal(first.tok_emb.weight, model.tok_emb.weight)


def test_the_epochs_of_the_log_are_those_of_the_result(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("only a few words, and then a few more")
    result = train([path], tmp_path / "run", shape="nano", tokenizer="byte", **SETTINGS)
    epochs = [record["epoch"] for record in read_log(tmp_path / "run") if record["kind"] == "evaluation"]
    assert epochs[-1] == pytest.approx(result.epochs, abs=1e-4)


def test_fields_of_the_shape_and_a_tiny_text(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("only a few words, and then a few more")
    train([path], tmp_path / "run", config={"n_layers": 1, "emb_dim": 24}, tokenizer="byte", **SETTINGS)
    config = load_model(tmp_path / "run")[0].config
    assert (config.n_layers, config.emb_dim, config.context_length) == (1, 24, 32), "blocks fit the text"
    with pytest.raises(ValueError, match=r"your text is 3\d tokens, but a context length of 40 needs 41"):
        train([path], tmp_path / "long", config={"context_length": 40}, tokenizer="byte", **SETTINGS)


@pytest.mark.parametrize(
    ("tokenizer", "asked", "size"),
    [("byte", 300, 300), ("byte", None, 257), ("bpe", 265, 265), ("bpe", 5000, 272), ("char", 64, 64)],
)
def test_the_vocabulary_is_as_large_as_asked_for_or_as_the_text_allows_or_as_the_text_allows(
    tmp_path: Path, text: Path, tokenizer: str, asked: int | None, size: int
) -> None:
    config = {"vocab_size": asked} if asked else {}
    train([text], tmp_path / "run", shape="nano", config=config, tokenizer=tokenizer, **SETTINGS)
    assert load_model(tmp_path / "run")[0].config.vocab_size == size


def test_a_vocabulary_below_the_tokenizers_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size 100 is less than the 257 tokens of the tokenizer"):
        train([text], tmp_path / "run", shape="nano", config={"vocab_size": 100}, tokenizer="byte", **SETTINGS)


def test_the_tokenizer_of_another_model(tmp_path: Path, text: Path) -> None:
    run(text, tmp_path / "first", tokenizer="bpe")
    run(text, tmp_path / "second", tokenizer=tmp_path / "first")
    one, two = (Tokenizer.load(tmp_path / name) for name in ("first", "second"))
    assert one.fingerprint == two.fingerprint


def test_a_preset_by_name_is_regularised_and_a_config_is_not(tmp_path: Path, text: Path) -> None:
    options = dict(tokenizer="byte", **{**SETTINGS, "steps": 200, "batch_size": 32, "eval_every": 200})
    train([text], tmp_path / "named", shape="nano", **options)
    assert load_model(tmp_path / "named")[0].config.drop_rate > 0
    train([text], tmp_path / "exact", shape=preset("nano"), **options)
    assert load_model(tmp_path / "exact")[0].config.drop_rate == 0
    train([text], tmp_path / "given", shape="nano", config={"drop_rate": 0.05}, **options)
    assert load_model(tmp_path / "given")[0].config.drop_rate == 0.05


def test_the_best_of_many_epochs_is_not_missed(tmp_path: Path, text: Path) -> None:
    """Where it is not said when to measure, the first epochs are measured, too, and a resume knows it."""
    options = {**SETTINGS, "steps": 1600, "eval_every": None, "batch_size": 16}
    measured = []

    class Watching(StopAt):
        def evaluation(self, record: dict, best: bool) -> None:
            measured.append(record["step"])

    with pytest.raises(RuntimeError, match="plug"):
        run(text, tmp_path / "run", progress=Watching(100), **options)
    with pytest.raises(RuntimeError, match="plug"):
        train(out=tmp_path / "run", resume=True, progress=Watching(205))
    epoch = TokenFile.open(tmp_path / "run" / "data" / "train.npy").n_tokens / (16 * CONFIG.context_length)
    early = [round(n * epoch) for n in (1, 2, 4)]
    assert early[-1] < 200 < round(8 * epoch)
    assert sorted(set(measured)) == [0, *early, 200]


@pytest.mark.parametrize("which", ["text", "out"])
def test_a_name_that_is_no_text_is_refused_before_any_work(tmp_path: Path, text: Path, which: str) -> None:
    strange = tmp_path / "b\udcff"
    out = strange if which == "out" else tmp_path / "run"
    with pytest.raises(ValueError, match=r"^the name '.*b\\udcff' is not UTF-8, which a run's files are: rename it$"):
        train([strange if which == "text" else text], out)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
