"""TOML: what is written is read back, what is wrong is one line with its place."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glassgpt import toml_file
from glassgpt.toml_file import place_of, read_toml, toml_value

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS


@example('\x7f\x00\x1f"\\\n\u2028')
@given(VALUES | st.lists(TEXTS) | st.lists(st.integers(-5, 5)).map(tuple))
def test_what_is_written_is_read_back(value: Any) -> None:
    found = tomllib.loads(f"key = {toml_value(value)}\n")["key"]
    assert found == (list(value) if isinstance(value, tuple) else value)
    assert type(found) is (list if isinstance(value, tuple) else type(value))


@pytest.mark.parametrize("value", [math.nan, math.inf, None, {"a": 1}, object()])
def test_what_toml_has_no_word_for_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be written as TOML"):
        toml_value(value)


def test_half_a_letter_becomes_a_question_mark() -> None:
    assert toml_value("a\udcff") == '"a?"'


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_value_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "some.toml"
    path.write_bytes(data)
    try:
        values, _ = read_toml(path)
        assert isinstance(values, dict)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a = ", "not valid TOML: Invalid value"),
        (b"a = 1\na = 2", "not valid TOML: Cannot overwrite a value"),
        (b"a = '\xff'", r"not UTF-8 \(byte 0xff at offset 5\)"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
    ],
)
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"some.toml: {says}"):
        read_toml(path)


def test_windows_line_ends_and_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n[b]\r\nc = 2\r\n")
    values, text = read_toml(tmp_path / "some.toml")
    assert values == {"a": 1, "b": {"c": 2}}
    assert place_of(text, "b", "c") == "line 3, [b]"


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.toml").write_bytes(b"a = 1")
    monkeypatch.setattr(toml_file, "MAX_TOML_BYTES", 4)
    with pytest.raises(ValueError, match="larger than the 4 bytes"):
        read_toml(tmp_path / "some.toml")


@pytest.mark.parametrize(
    ("table", "key", "place"),
    [
        ("", "top", "line 1"),
        ("", "steps", ""),
        ("training", "steps", "line 4, [training]"),
        ("model", "n_layers", "line 7, [model]"),
        ("model", "gelu", "[model]"),
        ("", "model", "line 6"),
    ],
)
def test_the_place_of_a_key(table: str, key: str, place: str) -> None:
    text = "top = 1\n\n[training]\nsteps = 5\nsteps_not = 6\n[ model ] # here\n  n_layers=2\n"
    assert place_of(text, table, key) == place
