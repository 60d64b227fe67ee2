"""`prepare` from end to end: the same bytes whatever the processes, kills and order; refusals; the report."""

import dataclasses
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glassgpt import Tokenizer
from glassgpt.data import vocabulary
from glassgpt.data.dataset import open_dataset
from glassgpt.data.prepare import duplicates as duplicates_module
from glassgpt.data.prepare import join as join_module
from glassgpt.data.prepare import parts as parts_module
from glassgpt.data.prepare import run as run_module
from glassgpt.data.prepare.run import WORK, PrepareResult, prepare
from glassgpt.data.prepare.settings import PrepareKeywords, PrepareSettings
from glassgpt.data.prepare.team import _ending

SMALL: PrepareKeywords = {"part_bytes": 4096, "section_bytes": 512, "shard_tokens": 7000, "validation": 0.2}
TEXT = "the of and a to in is you that it he was for on are as with his they at be this have from or one"
WORDS = TEXT.split()


def sentence(source: random.Random) -> str:
    return " ".join(source.choice(WORDS) for _ in range(source.randint(5, 30))) + ".\n"


def inputs(folder: Path) -> Path:
    """Some 60 kB of most kinds."""
    source = random.Random(1)
    folder.mkdir()
    (folder / "long.txt").write_text("".join(sentence(source) for _ in range(300)), encoding="utf-8")
    records = "".join(json.dumps({"text": sentence(source)}) + "\n" for _ in range(100))
    (folder / "a.jsonl").write_text(records, encoding="utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(records[:3000].rpartition("\n")[0].encode(), mtime=0))
    rows = "".join(f"{n},{sentence(source).strip()}\n" for n in range(50))
    (folder / "c.csv").write_text("id,text\n" + rows, encoding="utf-8")
    for n in range(20):
        (folder / f"small{n:02}.txt").write_text(sentence(source), encoding="utf-8")
    (folder / "empty.txt").touch()
    return folder


def files_of(out: Path) -> dict[str, str]:
    """The visible files and their digests."""
    return {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, PrepareResult]:
    """(inputs, dataset, result) of one undisturbed run."""
    folder = tmp_path_factory.mktemp("prepare")
    source = inputs(folder / "in")
    result = prepare([source], folder / "out", tokenizer="byte", processes=1, **SMALL)
    return source, folder / "out", result


def test_the_tokens_are_those_of_the_text(made: tuple[Path, Path, PrepareResult]) -> None:
    source, out, result = made
    dataset = open_dataset(out)
    dataset.train.verify()
    dataset.validation.verify()
    assert dataset.train.n_tokens == result.train_tokens
    assert dataset.validation.n_bytes == result.validation_bytes
    share = result.validation_bytes / (result.train_bytes + result.validation_bytes)
    assert 0.1 < share < 0.3
    found = []
    for side in (dataset.train, dataset.validation):
        tokens = side.tokens[:]
        assert tokens[-1] == dataset.tokenizer.eot_id
        pieces = np.split(tokens, np.flatnonzero(tokens == dataset.tokenizer.eot_id) + 1)
        found += [dataset.tokenizer.decode(piece[:-1]) for piece in pieces if len(piece)]
    long = (source / "long.txt").read_text(encoding="utf-8")
    whole = [piece for piece in found if piece in long]
    assert sum(map(len, whole)) == len(long), "each byte of a document that was cut is there once"
    small = {path.read_text(encoding="utf-8") for path in source.glob("small*.txt")}
    assert small <= set(found)


def test_a_document_goes_on_in_its_side_without_end_of_text(tmp_path: Path) -> None:
    """Only where the next section is on the other side, or left out, does an end of text stand inside a document."""
    (tmp_path / "a.txt").write_text("".join(sentence(random.Random(0)) + f"{n}\n" for n in range(400)), "utf-8")
    prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer="byte", section_bytes=512, validation=0.1)
    dataset = open_dataset(tmp_path / "out")
    ends = [int((side.tokens[:] == 256).sum()) for side in (dataset.train, dataset.validation)]
    n_sections = json.loads((tmp_path / "out" / "index.json").read_text("utf-8"))["duplicates"]["n_sections"]
    assert abs(ends[0] - ends[1]) <= 1
    assert 1 < ends[0] < 0.2 * n_sections


@pytest.mark.parametrize("processes", [2, 3])
def test_the_same_bytes_for_any_number_of_processes(
    made: tuple[Path, Path, PrepareResult], tmp_path: Path, processes: int
) -> None:
    source, out, result = made
    again = prepare([source], tmp_path / "out", tokenizer="byte", processes=processes, **SMALL)
    assert files_of(tmp_path / "out") == files_of(out)
    assert dataclasses.replace(again, directory=out) == result


def test_the_same_sections_in_any_order_of_the_inputs(made: tuple[Path, Path, PrepareResult], tmp_path: Path) -> None:
    """The split goes by the hash of the text."""
    source, out, _ = made
    files = sorted(source.glob("*.*"), reverse=True)
    files.remove(source / "empty.txt")
    prepare(files, tmp_path / "out", tokenizer="byte", processes=1, **SMALL)
    assert files_of(tmp_path / "out") != files_of(out)
    for name in ("train", "validation"):
        sides = [getattr(open_dataset(path), name).tokens[:] for path in (out, tmp_path / "out")]
        texts = [sorted(Tokenizer.bytes_().decode_bytes(side).split(b"<|endoftext|>")) for side in sides]
        assert texts[0] == texts[1]


def test_shares_of_several_machines_are_joined(made: tuple[Path, Path, PrepareResult], tmp_path: Path) -> None:
    source, out, _ = made
    for share in ((2, 2), (1, 2)):
        result = prepare([source], tmp_path / "out", tokenizer="byte", processes=1, share=share, **SMALL)
        assert not result.finished
        assert not (tmp_path / "out" / "index.json").exists()
    encoded: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "encode_here", lambda work, tasks, told: encoded.extend(tasks))
        prepare([source], tmp_path / "out", tokenizer="byte", processes=1, **SMALL)
    assert encoded == []
    assert files_of(tmp_path / "out") == files_of(out)


# ---- kills --------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from glassgpt import files
from glassgpt.data.prepare.run import prepare

left, sync = int(sys.argv[3]), files.sync
def dying(path):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
for module in [m for name, m in sys.modules.items() if name.startswith("glassgpt") and hasattr(m, "sync")]:
    module.sync = dying
prepare([sys.argv[1]], sys.argv[2], tokenizer="byte", processes=1, part_bytes=4096, section_bytes=512,
        shard_tokens=7000, validation=0.2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_at_any_moment_it_ends_as_if_undisturbed(made: tuple[Path, Path, PrepareResult], tmp_path: Path) -> None:
    source, out, _ = made
    moments = random.Random(5)
    kills = 0
    while True:
        command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out"), str(moments.randint(3, 25))]
        code = subprocess.run(command, check=False, timeout=60).returncode
        if not code:
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 40
    assert kills > 3
    assert files_of(tmp_path / "out") == files_of(out)
    assert not (tmp_path / "out" / WORK).exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.slow
def test_killed_with_its_processes_at_work(made: tuple[Path, Path, PrepareResult], tmp_path: Path) -> None:
    source, out, _ = made
    command = [sys.executable, "-m", "glassgpt", "prepare", str(source), "--out", str(tmp_path / "out")]
    command += ["--tokenizer", "byte", "--processes", "2", "--validation", "0.2"]
    command += ["--part-bytes", "4096", "--section-bytes", "512", "--shard-tokens", "7000"]
    for seconds in (1.5, 2.0, 2.5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(out)


def stopped(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, moment: str = "find_duplicates") -> None:
    """A run that is encoded and not joined."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, moment, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare([source], out, tokenizer="byte", processes=1, **SMALL)


def test_finished_parts_are_kept_and_a_damaged_one_is_made_again(
    made: tuple[Path, Path, PrepareResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    source, out, _ = made
    stopped(source, tmp_path / "out", monkeypatch)
    parts = sorted((tmp_path / "out" / WORK / "parts").iterdir())
    assert len(parts) > 5
    data = bytearray((parts[3] / "tokens").read_bytes())
    data[100] ^= 1
    (parts[3] / "tokens").write_bytes(data)
    (parts[4] / "part.json").unlink()
    written: list[str] = []
    write_part = parts_module.write_part
    monkeypatch.setattr(
        "glassgpt.data.prepare.worker.write_part",
        lambda path, *rest: (written.append(path.name), write_part(path, *rest)),
    )
    prepare([source], tmp_path / "out", tokenizer="byte", processes=1, **SMALL)
    assert written == [parts[3].name, parts[4].name]
    assert "tokens is damaged: it is encoded again" in caplog.text
    assert files_of(tmp_path / "out") == files_of(out)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: {"validation": 0.3}, "validation was 0.2, now 0.3"),
        (lambda folder: {"drop_duplicates": True}, "drop_duplicates was False, now True"),
        (lambda folder: {"tokenizer": "gpt2"}, "the tokenizer was .*, now "),
        (lambda folder: {"text_fields": "body"}, "the text fields were not chosen, now body"),
        (lambda folder: (folder / "long.txt").write_text("a", "utf-8") and {}, r"long.txt was [\d,]+ bytes, now 1"),
        (lambda folder: (folder / "new.txt").write_text("a", "utf-8") and {}, "new.txt was not there"),
        (lambda folder: (folder / "c.csv").unlink() or {}, "c.csv is gone"),
        (lambda folder: os.utime(folder / "c.csv", (1, 1)) or {}, "c.csv was changed"),
    ],
)
def test_other_settings_or_inputs_are_refused(
    made: tuple[Path, Path, PrepareResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], dict[str, Any]],
    message: str,
    finished: bool,
) -> None:
    source = tmp_path / "in"
    shutil.copytree(made[0], source)
    if finished:
        prepare([source], tmp_path / "out", tokenizer="byte", processes=1, **SMALL)
    else:
        stopped(source, tmp_path / "out", monkeypatch, "_left_to_do")
    options = {"tokenizer": "byte", "processes": 1, **SMALL, **change(source)}
    with pytest.raises(ValueError, match=f"was begun differently: .*{message}.* Ask for the same as before") as caught:
        prepare([source], tmp_path / "out", **options)
    assert "\n" not in str(caught.value)


def test_what_is_finished_is_not_done_again(made: tuple[Path, Path, PrepareResult]) -> None:
    source, out, result = made
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if not path.name.startswith(".")}
    assert prepare([source], out, tokenizer="byte", processes=2, **SMALL) == result
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ValueError, match="cut off or damaged"):
        shard = out / "train-00000.bin"
        data = shard.read_bytes()
        try:
            shard.write_bytes(data[:-2])
            prepare([source], out, tokenizer="byte", processes=2, **SMALL)
        finally:
            shard.write_bytes(data)


def test_a_second_process_is_refused(made: tuple[Path, Path, PrepareResult], tmp_path: Path) -> None:
    import filelock

    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".glassgpt-lock"), pytest.raises(OSError, match="in use by another"):
        prepare([made[0]], tmp_path / "out", tokenizer="byte", processes=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": []}, "no inputs"),
        ({"inputs": ["nowhere.txt"]}, "nowhere.txt: no such file"),
        ({"tokenizer": "runes"}, "tokenizer 'runes' must be one of"),
        ({"tokenizer": "gpt2", "vocab_size": 300}, "vocab_size 300: only a BPE"),
        ({"processes": 0}, "processes 0 must be"),
        ({"share": (3, 2)}, "share 3/2 must be one of 1/2 to 2/2"),
        ({"validation": 1.5}, "validation 1.5 must be"),
        ({"on_error": "ignore"}, "on_error 'ignore' must be one of stop, skip"),
    ],
)
def test_misuse(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    given = {"inputs": [tmp_path / "a.txt"], "out": tmp_path / "out"} | arguments
    with pytest.raises(ValueError, match=message):
        prepare(**given)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="out holds 'thesis.tex' that was not prepared here"):
        prepare([tmp_path / "a.txt"], tmp_path / "out")
    (tmp_path / "out" / "index.json").write_text('{"pages": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"index.json was not prepared here, so .*out is no dataset: choose another"):
        prepare([tmp_path / "a.txt"], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"index.json", "thesis.tex"}
    with pytest.raises(ValueError, match="new lies in the input .*: choose a directory outside"):
        prepare([tmp_path], tmp_path / "new")
    with pytest.raises(ValueError, match="a.txt is a file: a dataset needs a directory"):
        prepare([tmp_path / "a.txt"], tmp_path / "a.txt")


def test_a_text_that_is_too_short_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    with pytest.raises(ValueError, match="the text, 9 bytes in 1 sections, is too short: none of it is for validation"):
        prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer="byte", processes=1)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".bin", ".json")]
    (tmp_path / "a.txt").write_text(" ".join(map(str, range(5000))), encoding="utf-8")  # as it said
    made = prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer="byte", processes=1, section_bytes=512)
    assert (made.directory / "index.json").exists()


# ---- what cannot be read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_text_stops_or_is_skipped(tmp_path: Path, processes: int) -> None:
    source = random.Random(2)
    lines = [json.dumps({"text": sentence(source)}) for _ in range(300)]
    lines[200] = '{"text": '
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = {"tokenizer": "byte", "processes": processes, **SMALL}
    with pytest.raises(ValueError, match="a.jsonl:201: no JSON: "):
        prepare([tmp_path / "a.jsonl"], tmp_path / "out", **options)
    result = prepare([tmp_path / "a.jsonl"], tmp_path / "out", on_error="skip", **options)
    assert result.skipped["count"] == 1
    assert "a.jsonl:201: no JSON" in result.skipped["first"]


def test_what_was_skipped_is_counted_once_across_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed file is one task of many parts: those that are there are passed over, with what they skipped."""
    source = random.Random(2)
    lines = [json.dumps({"text": sentence(source)}) if n % 10 else "{no" for n in range(300)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    options = {"tokenizer": "byte", "processes": 1, "on_error": "skip", **SMALL}
    whole = prepare([tmp_path / "a.jsonl.gz"], tmp_path / "whole", **options)
    assert whole.skipped["count"] == 30
    write_part, left = parts_module.write_part, 3

    def dying(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write_part(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("glassgpt.data.prepare.worker.write_part", dying)
        prepare([tmp_path / "a.jsonl.gz"], tmp_path / "killed", **options)
    assert prepare([tmp_path / "a.jsonl.gz"], tmp_path / "killed", **options).skipped == whole.skipped
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_process_that_dies_is_told_of(
    made: tuple[Path, Path, PrepareResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glassgpt.data.prepare.team.worker.__name__", "glassgpt.no_such_module")
    with pytest.raises(RuntimeError, match="a process that encodes ended with code 1, in an error that it has"):
        prepare([made[0]], tmp_path / "out", tokenizer="byte", processes=2, **SMALL)
    assert _ending(-9).startswith(
        "a process that encodes was ended by signal 9: it was killed, or there was not enough"
    )


# ---- duplicates ----------------------------------------------------------------------------------------------


def report(tmp_path: Path, texts: list[str], **options: Any) -> tuple[PrepareResult, list[str]]:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    options = {"validation": 0.3, "section_bytes": 4096, "part_bytes": 2000} | options
    result = prepare([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer="byte", processes=1, **options)
    dataset = open_dataset(tmp_path / "out")
    sides = [dataset.tokenizer.decode_bytes(side.tokens[:]) for side in (dataset.train, dataset.validation)]
    return result, [text.decode() for side in sides for text in side.split(b"<|endoftext|>")[:-1]]


@pytest.mark.parametrize("drop", [False, True])
def test_equal_texts_are_counted_and_dropped(tmp_path: Path, drop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_module, "_MOST_KEYS", 10)
    monkeypatch.setattr(join_module, "_SLICE_TOKENS", 100)
    source = random.Random(3)
    texts = [sentence(source) for _ in range(60)]
    doubled = [*texts, texts[3], texts[5].replace(" ", "  "), texts[3], "short", "short"]
    result, found = report(tmp_path, doubled, drop_duplicates=drop)
    assert result.duplicates["equal"] == 4
    assert result.duplicates["equal_bytes"] == len(texts[3]) * 2 + len(texts[5].replace(" ", "  ")) + 5
    kept = [*texts, "short"] if drop else doubled
    assert sorted(found) == sorted(kept)
    equal = [each for each in result.duplicates["examples"] if each["kind"] == "equal"]
    assert len(equal) == 4
    assert all("a.jsonl, line" in each[key] for each in equal for key in ("section", "earlier"))


def test_similar_texts_and_leaks_are_counted(tmp_path: Path) -> None:
    source = random.Random(4)
    texts = [" ".join(f"w{source.randrange(9999)}" for _ in range(200)) for _ in range(60)]
    near = [f"{text} and a few more words" for text in texts[:40]]
    result, _ = report(tmp_path, [*texts, *near])
    assert 38 <= result.duplicates["similar"] <= 40
    assert result.duplicates["equal"] == 0
    dataset = open_dataset(tmp_path / "out")
    sides = [
        {text for text in dataset.tokenizer.decode(side.tokens[:]).split("<|endoftext|>") if text}
        for side in (dataset.train, dataset.validation)
    ]
    pairs = [*zip(texts, near, strict=False)]
    leaks = sum((a in sides[0]) != (b in sides[0]) for a, b in pairs)
    assert leaks > 5
    assert abs(result.duplicates["validation_like_training"] - leaks) <= 2


def test_texts_without_words_are_no_duplicates(tmp_path: Path) -> None:
    source = random.Random(6)
    (tmp_path / "a.txt").write_text("".join(sentence(source) for _ in range(200)) + "\n" * 9000, encoding="utf-8")
    result = prepare(
        [tmp_path / "a.txt"], tmp_path / "out", tokenizer="byte", processes=1, section_bytes=512, validation=0.3
    )
    assert result.duplicates["equal"] == 0
    assert result.train_bytes + result.validation_bytes == (tmp_path / "a.txt").stat().st_size


# ---- tokenizers ----------------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.works: list[tuple[str, int, int]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        self.works.append((name, done, total))


@pytest.mark.parametrize("tokenizer", [None, "bpe", "gpt2", "char", "byte"])
def test_each_tokenizer(made: tuple[Path, Path, PrepareResult], tmp_path: Path, tokenizer: str | None) -> None:
    size = {"vocab_size": 300} if tokenizer == "bpe" else {}
    result = prepare([made[0]], tmp_path / "out", tokenizer=tokenizer, processes=1, **SMALL, **size)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.tokenizer.n_vocab == result.n_vocab
    if tokenizer in (None, "bpe"):
        assert 257 < result.n_vocab <= (300 if size else 512)
    for side in (dataset.train, dataset.validation):
        text = dataset.tokenizer.decode_bytes(side.tokens[:]).replace(b"<|endoftext|>", b"")
        assert len(text) == side.n_bytes


def test_a_tokenizer_of_a_directory(made: tuple[Path, Path, PrepareResult], tmp_path: Path) -> None:
    Tokenizer.train_bpe(["the of and " * 50], 270).save(tmp_path / "tokenizer")
    result = prepare([made[0]], tmp_path / "out", tokenizer=tmp_path / "tokenizer", processes=1, **SMALL)
    assert result.n_vocab <= 270


def test_a_bpe_is_trained_on_the_training_part_and_a_large_text_is_sampled(
    made: tuple[Path, Path, PrepareResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def train_bpe(texts: Any, vocab_size: int) -> Tokenizer:
        seen.extend(texts)
        return Tokenizer.bytes_()

    monkeypatch.setattr(vocabulary.Tokenizer, "train_bpe", train_bpe)
    heard = Heard()
    result = prepare([made[0]], tmp_path / "a", processes=1, progress=heard, **SMALL)
    assert sum(len(text.encode()) for text in seen) == result.train_bytes
    assert heard.messages[0] == "training a tokenizer on the training part"

    seen.clear()
    monkeypatch.setattr(vocabulary, "MAX_BPE_BYTES", 20_000)
    heard = Heard()
    prepare([made[0]], tmp_path / "b", processes=1, progress=heard, **SMALL)
    assert 10_000 < sum(len(text.encode()) for text in seen) < 25_000
    assert "training a tokenizer on a sample, 0 of 0 MB: the beginning of each of " in heard.messages[0]
    works = [name for name, _, _ in heard.works]
    assert {"counting words", "merging pairs", "encoding", "comparing", "writing shards"} <= set(works)
    encoding = [(done, total) for name, done, total in heard.works if name == "encoding"]
    assert encoding == sorted(encoding)
    assert encoding[-1][0] == encoding[-1][1]


def test_the_keywords_are_the_settings() -> None:
    assert PrepareKeywords.__annotations__.keys() == PrepareSettings.rules().keys()


def test_fields_of_texts_without_records_are_refused_as_in_train(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text", encoding="utf-8")
    with pytest.raises(ValueError, match="text fields body: none of the files has records"):
        prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer="byte", text_fields="body")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on open files")
def test_many_parts_are_not_open_at_once(tmp_path: Path) -> None:
    import resource

    source = random.Random(5)
    text = "\n".join(sentence(source) for _ in range(4500))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert len(text) > 60 * SMALL["part_bytes"]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    os.close(held)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + 40, before[1]))
        prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer="byte", processes=1, **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
