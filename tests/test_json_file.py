"""JSON of strangers: what is valid and small comes back, all else is one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.json_file import MAX_JSON_DEPTH, parse_json, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_round_trip(value: dict) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


def test_reads_a_file_with_and_without_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (b'{"a": "\xc3\xa9"}', b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n'):
        path.write_bytes(content)
        assert read_json(str(path)) == {"a": "é"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON: Expecting value"),
        (b"{", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON: Extra data"),
        (b"<!DOCTYPE html>", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON: 'utf-8' codec"),
        (b'\xff\xfe{\0"\0a\0"\0:\0001\0}\0', "not valid JSON: 'utf-8' codec"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b"[1, 2]", "expected a JSON object {...}, found list"),
        (b"7", "found int"),
        (b"null", "found NoneType"),
        (b"[" * 10**6, "nested deeper than 64 levels"),
        (b'{"a":' * 10**5, "nested deeper than 64 levels"),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "nested deeper than 64 levels"),
    ],
)
def test_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="config.json: ") as error:
        read_json(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_depth_limit_is_exact() -> None:
    deepest = b'{"a":' + b"[" * (MAX_JSON_DEPTH - 1) + b"]" * (MAX_JSON_DEPTH - 1) + b"}"
    parse_json(deepest)
    with pytest.raises(ValueError, match="nested deeper"):
        parse_json(deepest.replace(b"[]", b"[[]]"))
    with pytest.raises(ValueError, match="nested deeper"):
        parse_json(deepest.replace(b"[]", b"[{}]"))


def test_size_limit_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, max_bytes=8) == {"a": 1}
    with pytest.raises(ValueError, match="larger than the 7 bytes"):
        read_json(path, max_bytes=7)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
