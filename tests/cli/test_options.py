"""Options are written once: each field of the dataclasses is an option of the command that takes it."""

from __future__ import annotations

import argparse
import importlib.metadata
import typing

import pytest

from glassgpt.cli import main, parser
from glassgpt.cli.options import Parser, above_zero, add_fields, given, whole
from glassgpt.generation.options import Generation
from glassgpt.options import Options
from glassgpt.training.settings import Settings


def options_of(command: str) -> dict[str, argparse.Action]:
    commands = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {flag: action for action in commands.choices[command]._actions for flag in action.option_strings}


@pytest.mark.parametrize(("command", "options"), [("train", Settings), ("generate", Generation), ("chat", Generation)])
def test_every_field_is_an_option_with_its_help(command: str, options: type[Options]) -> None:
    known = options_of(command)
    for name, (kind, rule) in options.rules().items():
        action = known[f"--{name.replace('_', '-')}"]
        assert action.help is not None and action.help.startswith(rule.help)
        if int in {kind, *typing.get_args(kind)}:  # a number, or a word instead of it
            assert callable(action.type) and [action.type(word) for word in ("7", *rule.choices)] == [7, *rule.choices]
        else:
            assert tuple(action.choices or ()) == rule.choices


def parsed(*argv: str) -> argparse.Namespace:
    result = Parser(prog="x")
    add_fields(result, Generation, overflow="slide")
    return result.parse_args(argv)


def test_only_what_was_given_is_passed_on() -> None:
    assert given(parsed(), Generation) == {"overflow": "slide"}
    found = given(parsed("--temperature", "0.5", "--ignore-eot", "--stop", "a", "--stop", "b"), Generation)
    assert found == {"overflow": "slide", "temperature": 0.5, "ignore_eot": True, "stop": ["a", "b"]}


@pytest.mark.parametrize("argv", [("--temperature", "-1"), ("--top-k", "0"), ("--top-p", "nan")])
def test_a_value_out_of_range_is_named_with_its_limit(argv: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=argv[0][2:].replace("-", "_")):
        given(parsed(*argv), Generation)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "x", "٣"])
def test_a_whole_number_is_at_least_1(text: str) -> None:
    assert whole("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number, at least 1"):
        whole(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "", "x"])
def test_a_number_is_above_0(text: str) -> None:
    assert above_zero("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError, match="must be a number, above 0"):
        above_zero(text)


def test_misuse_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parsed("--temperature", "hot")
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "x: argument --temperature: invalid float value: 'hot' (see x --help)\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("generate m x --top_k 5", "glassgpt generate: unrecognized arguments: --top_k 5; did you mean --top-k?"),
        ("generate m x --frob=y", "glassgpt generate: unrecognized arguments: --frob=y (see"),
        ("train --temprature 1", "glassgpt train: unrecognized arguments: --temprature (see glassgpt train --help)"),
        ("trian x", "glassgpt: argument COMMAND: invalid choice: 'trian': did you mean 'train'?"),
        ("train --shape mirco", "glassgpt train: argument --shape: invalid choice: 'mirco': did you mean 'micro'?"),
        ("frobnicate", "glassgpt: argument COMMAND: invalid choice: 'frobnicate': choose from demo, train"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(capsys: pytest.CaptureFixture[str], argv: str, said: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(argv.split())
    error = capsys.readouterr().err
    assert leaving.value.code == 2
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "train a GPT on your own text" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"glassgpt {importlib.metadata.version('glassgpt')}\n"
