"""What goes in and out of a command: standard input, warnings, JSON, a bar; and how an error is said."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings

import numpy as np
import pytest

from glassgpt.cli import describe
from glassgpt.cli.console import download_bar, print_json, read_standard_input, warnings_shown


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    monkeypatch.setattr(sys, "stdin", None if content is None else io.TextIOWrapper(io.BytesIO(content), "ascii"))


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"Once\n", "Once"), (b"Once\r\n", "Once"), (b"Once", "Once"), (b"a\n\n", "a\n"), ("é".encode(), "é"), (b"", "")],
)
def test_a_prompt_from_a_pipe_loses_the_line_end_of_echo(
    monkeypatch: pytest.MonkeyPatch, content: bytes, text: str
) -> None:
    standard_input(monkeypatch, content)
    assert read_standard_input() == text


def test_a_standard_input_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, None)
    with pytest.raises(ValueError, match="standard input is closed: give the prompt as an argument"):
        read_standard_input()
    standard_input(monkeypatch, b"a\xff")
    with pytest.raises(ValueError, match=r"standard input is not UTF-8 \(byte 0xff\)"):
        read_standard_input()


def test_warnings_of_both_kinds_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_shown():
        warnings.simplefilter("always")
        warnings.warn("two\nlines", stacklevel=1)
        logging.getLogger("glassgpt.x").warning("of %s", "a logger")
    assert capsys.readouterr().err == "glassgpt: warning: two lines\nglassgpt: warning: of a logger\n"
    assert logging.getLogger().handlers == [h for h in logging.getLogger().handlers if h.level != logging.WARNING]


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf")], "c": np.float64(2)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None], "c": 2.0}


def test_a_bar_that_nothing_moved_is_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with download_bar():
        pass
    assert capsys.readouterr() == ("", "")
    with download_bar() as progress:
        progress(5, 10)
        progress(10, 10)
    assert "10/10 bytes" in capsys.readouterr().err


def error_of(code: str) -> Exception:
    try:
        exec(code, {})
    except Exception as error:
        return error
    raise AssertionError(code)


@pytest.mark.parametrize(
    ("code", "line", "exit_code"),
    [
        ("raise ValueError('top_k 0 must be\\nat least 1')", "top_k 0 must be at least 1", 2),
        ("open('/no/such')", "/no/such: no such file or directory", 2),
        ("raise OSError('run is in use')", "run is in use", 1),
        ("raise ImportError('GGUF needs the extra')", "GGUF needs the extra", 1),
        ("raise MemoryError", "MemoryError", 1),
        ("int('x')", "internal error: ValueError: invalid literal", 1),  # out of a calculation: a bug of ours
        ("{}['key']", "internal error: KeyError: 'key' (please report it, with what --traceback shows)", 1),
    ],
)
def test_an_error_is_one_line_and_a_bug_is_no_misuse(code: str, line: str, exit_code: int) -> None:
    said, found = describe(error_of(code))
    assert said.startswith(line)
    assert "\n" not in said
    assert found == exit_code
