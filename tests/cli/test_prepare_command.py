"""`glassgpt prepare` as it is typed."""

import json
from pathlib import Path

import pytest

from glassgpt import cli


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"This is line number {n} of a text.\n" for n in range(900)), encoding="utf-8")
    return path


def test_what_it_says(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", str(text), "--out", str(tmp_path / "out"), "--tokenizer", "byte", "--processes", "1"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    heads = [line.split(" ")[0] for line in shown]
    assert heads == ["training", "validation", "vocabulary", "duplicates", "similar", "leaks", "next:"]
    assert shown[-1] == f"next: glassgpt train {tmp_path / 'out'} --out runs/mine"
    assert cli.main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["finished"] and result["directory"] == str(tmp_path / "out")
    assert result["train_bytes"] + result["validation_bytes"] == text.stat().st_size
    assert "is prepared already" in printed.err


def test_the_shares_of_an_array_of_jobs(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", str(text), "--out", str(tmp_path / "out"), "--tokenizer", "byte", "--processes", "1"]
    command += ["--part-bytes", "8192"]
    for part in ("1/2", "2/2"):
        assert cli.main([*command, "--share", part]) == 0
        assert f"share {part[0]} of 2 is encoded" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "next: glassgpt train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "0/2"], "share 0/2 must be one of 1/2 to 2/2"),
        (["--vocab-size", "20"], "vocab_size 20 must be"),
        (["--tokenizer", "runes"], "tokenizer 'runes' must be one of bpe, gpt2, char, byte"),
    ],
)
def test_misuse_is_one_line(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["prepare", str(text), "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_part_that_is_none(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["prepare", str(text), "--out", str(tmp_path / "out"), "--share", "first"])
    assert "'first' must be I/N, such as 1/8" in capsys.readouterr().err
