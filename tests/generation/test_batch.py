"""Prompts from files, and the records of a batch: whose they are, what a kill leaves, what is refused."""

import copy
import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt import GPTModel, Tokenizer, complete
from glassgpt.checkpoint import fingerprint
from glassgpt.generation.batch import Task, complete_tasks, read_prompts, record_line, records_at, tasks_for

Make = Callable[..., GPTModel]
TEXT = "one\n\n  two \r\nthree with 😀"


@pytest.fixture(scope="module")
def model(tiny_model: Make) -> GPTModel:
    return tiny_model(vocab_size=260, context_length=32)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines: list[dict[str, Any]] = [{"prompt": f"{'The same beginning. ' * (n % 3)}{n}"} for n in range(9)]
    lines[3] |= {"seed": 77, "max_new_tokens": 4, "stop": ["a", "b"]}
    lines[4] |= {"temperature": 0, "stop": "é"}
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def tasks(model: GPTModel, tiny_tokenizer: Tokenizer, prompts: Path) -> list[Task]:
    options = {"max_new_tokens": 12, "overflow": "slide", "seed": 5}
    return tasks_for(model, tiny_tokenizer, prompts, read_prompts(prompts, options), fingerprint(model))


def write(path: Path, model: GPTModel, tokenizer: Tokenizer, tasks: list[Task], n: int = 99) -> list[dict[str, Any]]:
    """Goes on with the records at `path` until `n` are new; returns all of them by index."""
    with records_at(path, tasks) as records:
        left = [task for task in tasks if task.index not in records.done]
        for task, completion in complete_tasks(model, tokenizer, left, 3):
            if completion is not None:
                records.append(task, completion)
                n -= 1
                if n == 0:
                    break
    lines = path.read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["index"])


# ---- prompts ----------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_text_has_a_prompt_on_each_line(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(pack(b"\xef\xbb\xbf" + TEXT.encode()))
    found = read_prompts(path, {"seed": 2**64 - 1, "top_k": 3})
    assert [(p.line, p.text, p.generation.seed) for p in found] == [
        (1, "one", 2**64 - 1),
        (3, "  two ", 0),  # past the largest seed comes the smallest
        (4, "three with 😀", 1),
    ]
    assert all(p.generation.top_k == 3 for p in found)
    assert [p.generation.seed for p in read_prompts(path, {})] == [0, 1, 2]


def test_json_lines_have_options_of_their_own(prompts: Path) -> None:
    found = read_prompts(prompts, {"seed": 10, "max_new_tokens": 9, "stop": ["z"]})
    assert [p.generation.seed for p in found] == [10, 11, 12, 77, 14, 15, 16, 17, 18]
    assert [p.generation.max_new_tokens for p in found][2:5] == [9, 4, 9]
    assert [p.generation.stop for p in found][2:5] == [("z",), ("a", "b"), ("é",)]
    assert found[4].generation.temperature == 0
    assert [p.line for p in found] == [1, 3, 5, 7, 9, 11, 13, 15, 17]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "x", "top_pp": 1}', r"unknown field 'top_pp': did you mean 'top_p'\?$"),
        ('{"prompt": "x", "prompts": 1}', r"unknown field 'prompts': did you mean 'prompt'\?$"),
        ('{"prompt": "x", "top_p": 2}', "top_p 2 must be a number, above 0 and at most 1, or None$"),
        ('{"prompt": "x", "temperature": NaN}', "temperature nan must be"),
        ('{"prompt": "x", "seed": -1}', "seed -1 must be"),
        ('{"prompt": "x", "seed": 1.5}', "seed 1.5 must be"),
        ('{"prompt": "x", "stop": {"a": 1}}', "stop .* must be"),
        ('{"prompt": "x", "max_new_tokens": ' + "9" * 5000 + "}", "not valid JSON: "),
        ('{"prompt": 7}', "no field 'prompt' that is a text$"),
        ("{}", "no field 'prompt' that is a text$"),
        ('{"prompt": "x"', "not valid JSON: "),
        ('{"prompt": "x"} {"prompt": "y"}', "not valid JSON: "),
        ('["x"]', "expected a JSON object"),
        ("[" * 100_000, "JSON nested deeper"),
        ("\0", "not valid JSON|looks binary"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{path}(:3)?: ({says})") as caught:
        read_prompts(path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("p.txt", b"", ": no prompts in it: write one on each line$"),
        ("p.txt", b" \n\t\n", ": no prompts in it"),
        ("p.jsonl", b"\n", ": no prompts in it"),
        ("p.txt", b"good\ncaf\xe9\n", r":2: not UTF-8 \(byte 0xe9\)"),
        ("p.txt", b"%PDF-1.7\n", ": a PDF, not text"),
        ("p.txt", bytes(range(256)), ": looks binary"),
        ("p.json", b'[{"prompt": "x"}]', ": write the prompts as JSON lines to a .jsonl file"),
        ("p.txt", b"x" * (2**24 + 1), ":1: longer than the 16 MiB that a line may have$"),
        ("p.txt.gz", gzip.compress(b"one\n" * 1000, mtime=0)[:-9], ": damaged gzip file"),
    ],
)
def test_a_file_that_holds_no_prompts(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path}{says}"):
        read_prompts(path, {})


def test_what_a_model_cannot_take_is_named_by_its_line(tmp_path: Path, model: GPTModel) -> None:
    path = tmp_path / "prompts.jsonl"
    letters = Tokenizer.characters(["abc"])
    for line, says in (
        ('{"prompt": "abz"}', "'z'"),
        (r'{"prompt": "\ud800"}', "the prompt is not valid UTF-8: its character 1 stands for no text"),
        (
            '{"prompt": "abc", "max_new_tokens": 30}',
            "a prompt of 3 tokens and 30 new ones exceed the context length of 32",
        ),
        ('{"prompt": "abc", "max_new_tokens": 3, "logit_bias": {"4": 1}}', "logit_bias names the token 4, the tokeni"),
    ):
        path.write_text(f'{{"prompt": "a", "max_new_tokens": 1}}\n{line}\n', encoding="utf-8")
        with pytest.raises(ValueError, match=rf"^{path}:2: .*{says}"):
            tasks_for(model, letters, path, read_prompts(path, {}), "x")


# ---- records ----------------------------------------


def test_each_record_is_what_its_prompt_gives_alone(
    model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task], tmp_path: Path
) -> None:
    records = write(tmp_path / "deep" / "out.jsonl", model, tiny_tokenizer, tasks)
    assert len(records) == len(tasks)
    for index, (task, record) in enumerate(zip(tasks, records, strict=True)):
        wanted = complete(model, tiny_tokenizer, task.prompt, **task.generation.to_dict())
        digest = record.pop("digest")
        assert len(digest) == 16
        assert record == {
            "index": index,
            "prompt": task.prompt,
            "text": wanted.text,
            "finish_reason": wanted.finish_reason,
            "n_prompt_tokens": wanted.n_prompt_tokens,
            "n_new_tokens": len(wanted.ids),
            "seed": 77 if index == 3 else 5 + index,
        }


def test_a_record_has_log_probabilities_where_they_were_asked_for(
    model: GPTModel, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    lines = [{"prompt": "a", "logprobs": 2, "logit_bias": {"65": 5}}, {"prompt": "a", "seed": 0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tasks = tasks_for(model, tiny_tokenizer, path, read_prompts(path, {"max_new_tokens": 4, "ignore_eot": True}), "x")
    first, second = write(tmp_path / "out.jsonl", model, tiny_tokenizer, tasks)
    assert [len(entry["top"]) for entry in first["logprobs"]] == [2] * 4
    assert all(entry["logprob"] <= entry["top"][0][1] <= 0 for entry in first["logprobs"])
    assert "logprobs" not in second


def test_tasks_keep_to_their_number_and_order(model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task]) -> None:
    begun: list[int] = []
    live: set[int] = set()
    for task, completion in complete_tasks(model, tiny_tokenizer, tasks, 2):
        begun += [task.index] * (task.index not in begun)
        live.add(task.index)
        assert len(live) <= 2
        if completion is not None:
            live.remove(task.index)
    assert begun == list(range(len(tasks)))


@pytest.mark.parametrize("n", [0, 1, 4, 8, 9])
def test_records_cut_off_anywhere_are_gone_on_with(
    model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task], tmp_path: Path, n: int
) -> None:
    path = tmp_path / "out.jsonl"
    wanted = write(path, model, tiny_tokenizer, tasks)
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in (0, 13, 30, 60, -1) if n < len(lines) else (0,):
        kept = b"".join(lines[:n])
        path.write_bytes(kept + (lines[n][:cut] if cut else b""))
        assert write(path, model, tiny_tokenizer, tasks) == wanted
        assert path.read_bytes().startswith(kept)


def test_a_record_of_any_length_is_kept(
    model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    wanted = write(path, model, tiny_tokenizer, tasks)
    before = path.read_bytes()
    monkeypatch.setattr("glassgpt.generation.batch._LONGEST_LINE", 20)
    assert write(path, model, tiny_tokenizer, tasks) == wanted
    assert path.read_bytes() == before
    path.write_bytes(before[:-9])
    assert write(path, model, tiny_tokenizer, tasks) == wanted
    path.write_bytes(b"x" * 99)
    with pytest.raises(ValueError, match=":1: not a record of ours"), records_at(path, tasks):
        pass


def test_a_model_that_ends_elsewhere_has_other_records(
    model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task], prompts: Path
) -> None:
    options = {"max_new_tokens": 12, "overflow": "slide", "seed": 5}
    other = copy.copy(tiny_tokenizer)
    other.stop_ids = frozenset({*tiny_tokenizer.stop_ids, 65})
    read = read_prompts(prompts, options)
    changed = tasks_for(model, other, prompts, read, fingerprint(model))
    assert not {task.digest for task in changed} & {task.digest for task in tasks}


def test_a_line_that_cannot_speculate_is_named(tiny_model: Make, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "speculate": "lookup", "max_new_tokens": 20}\n', encoding="utf-8")
    windowed = tiny_model(vocab_size=260, context_length=32, sliding_window=8)
    with pytest.raises(ValueError, match=rf"^{path}:2: the model cannot speculate: "):
        tasks_for(windowed, tiny_tokenizer, path, read_prompts(path, {"max_new_tokens": 4}), "x")


def test_texts_that_outgrow_the_context_are_told(model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task]) -> None:
    told: list[int] = []
    list(complete_tasks(model, tiny_tokenizer, tasks, 3, on_overflow=told.append))
    longer = [task for task in tasks if len(task.ids) + task.generation.max_new_tokens > 32]
    assert 0 < len(told) <= len(longer)
    assert set(told) == {32}


def test_a_disk_that_is_full_is_named_and_the_records_stay(
    model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task], tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    wanted = write(path, model, tiny_tokenizer, tasks)
    path.unlink()
    with (
        records_at(path, tasks) as records,
        pytest.raises(OSError, match=f"^{path}: no space left on device; its whole records are kept, and the same"),
    ):
        for task, completion in complete_tasks(model, tiny_tokenizer, tasks, 3):
            if completion is not None:
                if len(path.read_bytes().splitlines()) == 3:
                    records._file = Full()  # type: ignore[assignment]
                records.append(task, completion)
    assert write(path, model, tiny_tokenizer, tasks) == wanted


class Full:
    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"my thesis\n", ":1: not a record of ours: choose a new name for the records$"),
        (b"my thesis", ":1: not a record of ours"),
        (b"{", ":1: not a record of ours"),
        (b"\n", ":1: not a record of ours"),
        (b"\0" * 100, ":1: not a record of ours"),
        (b'{"index": 0}\n', ":1: not a record of ours"),
        (b'{"index": true, "digest": "x"}\n', ":1: not a record of ours"),
        (b'{"index": 0, "prompt": "another', ":1: not a record of ours"),
        (b'{"index": 0, "digest": "x"}\n', ":1: a record of other prompts or options or of another model: give the"),
        (b'{"index": 99, "digest": "x"}\n', ":1: a record of other prompts"),
        (b'{"index": -1, "digest": "x"}\n', ":1: a record of other prompts"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(
    tasks: list[Task], tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}{says}"), records_at(path, tasks):
        pass
    assert path.read_bytes() == content


def test_records_twice_or_with_something_after_them_are_refused(
    model: GPTModel, tiny_tokenizer: Tokenizer, tasks: list[Task], tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    write(path, model, tiny_tokenizer, tasks, n=2)
    whole = path.read_bytes()
    for more in (whole, b"garbage", b"\n", record_line(tasks[8].beginning()).encode()):
        path.write_bytes(whole + more)
        with pytest.raises(ValueError, match=f"^{path}:3: "), records_at(path, tasks):
            pass
        assert path.read_bytes() == whole + more


def test_other_options_another_model_other_prompts_are_refused(
    model: GPTModel, tiny_model: Make, tiny_tokenizer: Tokenizer, tasks: list[Task], prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    write(path, model, tiny_tokenizer, tasks, n=3)
    before = path.read_bytes()
    options = {"max_new_tokens": 12, "overflow": "slide", "seed": 5}
    other = tiny_model(seed=1, vocab_size=260, context_length=32)
    read = read_prompts(prompts, options)
    for different in (
        tasks_for(model, tiny_tokenizer, prompts, read_prompts(prompts, options | {"top_k": 5}), fingerprint(model)),
        tasks_for(model, tiny_tokenizer, prompts, read_prompts(prompts, options | {"seed": 6}), fingerprint(model)),
        tasks_for(other, tiny_tokenizer, prompts, read, fingerprint(other)),
        tasks_for(model, tiny_tokenizer, prompts, read[::-1], fingerprint(model)),
    ):
        error = pytest.raises(ValueError, match="a record of other prompts or options or of another model")
        with error, records_at(path, different):
            pass
    assert path.read_bytes() == before
    more = [*read, *read_prompts(prompts, options)]  # prompts that were added at the end change none before them
    longer = tasks_for(model, tiny_tokenizer, prompts, more, fingerprint(model))
    with records_at(path, longer) as records:
        assert len(records.done) == 3


def test_a_second_process_is_refused(tasks: list[Task], tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="the operating system has no such locks")
    path = tmp_path / "out.jsonl"
    error = pytest.raises(OSError, match=f"^{path} is in use by another process")
    with records_at(path, tasks), error, records_at(path, tasks):
        pass
    with records_at(path, tasks) as records:
        assert records.done == {}
    with pytest.raises(ValueError, match=f"^{tmp_path} is not a file"), records_at(tmp_path, tasks):
        pass


def test_a_fingerprint_is_of_every_weight_and_of_the_shape(tiny_model: Make) -> None:
    model = tiny_model()
    first = fingerprint(model)
    assert first == fingerprint(tiny_model())
    prints = {first, fingerprint(tiny_model(n_heads=2)), fingerprint(tiny_model(tie_embeddings=True))}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        prints.add(fingerprint(model))
    assert len(prints) == 3 + len(list(model.parameters()))


def test_speculation_changes_no_record_and_no_count_of_tokens(
    tiny_model: Callable[..., GPTModel], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = tiny_model(vocab_size=257, context_length=64)
    path = tmp_path / "prompts.txt"
    path.write_text("abababab\nx\nTo be or not to be\n", encoding="utf-8")
    options = {"max_new_tokens": 30, "temperature": 0}
    found = []
    for speculate in ("none", "lookup"):
        prompts = read_prompts(path, {**options, "speculate": speculate})
        items = list(complete_tasks(model, tiny_tokenizer, tasks_for(model, tiny_tokenizer, path, prompts, "f")))
        records = [task.record(completion) for task, completion in items if completion]
        found.append((len(items), sorted(records, key=lambda record: record["index"])))
    assert found[0] == found[1]
