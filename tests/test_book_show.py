"""What the book's files show, with models small enough to know the answer."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from glassgpt import Tokenizer, book
from glassgpt.book import show
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.weights.download.errors import DownloadError

CONFIG: dict[str, Any] = {
    "vocab_size": 257,
    "context_length": 48,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


@pytest.fixture
def model() -> book.CachedGPTModel:
    torch.manual_seed(0)
    return book.CachedGPTModel(CONFIG)


@pytest.fixture
def said() -> list[str]:
    return []


def test_the_parameters_of_each_part_are_all_of_them(model: book.CachedGPTModel, said: list[str]) -> None:
    show.show_parameters(model, said.append)
    assert said[0] == "  tok_emb                         3,084"
    assert said[2].startswith("  trf_blocks (2 blocks)") and said[2].endswith(
        "each: att 588, ff 1,212, norm1 24, norm2 24"
    )
    parts = [int(re.findall(r"[\d,]{2,}", line)[0].replace(",", "")) for line in said[:-1]]
    assert said[-1].startswith(f"Parameters: {sum(parts):,}\n") and sum(parts) == model.n_parameters()
    assert f"as in GPT-2: {sum(parts) - 3084:,}\n" in said[-1]


def test_the_shapes_are_those_of_the_pass_and_only_the_first_block_is_shown(
    model: book.CachedGPTModel, said: list[str]
) -> None:
    show.show_shapes(model.train(), torch.zeros(2, 5, dtype=torch.int64), said.append)
    shapes = {line.split()[0]: re.findall(r"\(.*?\)", line)[0] for line in said}
    assert shapes["ids"] == "(2, 5)" and shapes["pos_emb"] == "(5, 12)"
    assert shapes["trf_blocks.0.att.dropout"] == "(2, 3, 5, 5)"
    assert shapes["trf_blocks.0.ff.layers.0"] == "(2, 5, 48)"
    assert shapes["out_head"] == "(2, 5, 257)"
    assert not any(name.startswith("trf_blocks.1") for name in shapes)
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_a_batch_is_shown_as_text(tiny_tokenizer: Tokenizer, said: list[str]) -> None:
    dataset = book.GPTDatasetV1("abcdefghi", tiny_tokenizer, 4, 4)
    inputs, targets = show.show_batches(DataLoader(dataset, 2), tiny_tokenizer, said.append)
    assert inputs.shape == targets.shape == (2, 4)
    assert [line.split() for line in said[1:]] == [["'abcd'", "->", "'bcde'"], ["'efgh'", "->", "'fghi'"]]


def test_both_speeds_and_that_the_tokens_are_the_same(
    model: book.CachedGPTModel, tiny_tokenizer: Tokenizer, said: list[str]
) -> None:
    show.show_speedup(model, tiny_tokenizer, max_new_tokens=20, report=said.append)
    rows = [line.split() for line in said[2:-2]]
    assert [row[0] for row in rows] == ["2", "5", "10", "20"]
    assert all(len(row) == 8 for row in rows)
    assert re.fullmatch(r"Speed: [\d.]+ tokens/s without the cache, [\d.]+ with it, [\d.]+ x as fast", said[-2])
    out = book.generate_text_simple(model.eval(), torch.tensor([list(b"Hello, I am")]), 20, 48)
    assert said[-1].startswith(f"Identical tokens: yes\nOutput: {out[0].tolist()}\nOutput length: 31\n")


def test_tokens_that_differ_are_said_to(
    model: book.CachedGPTModel, tiny_tokenizer: Tokenizer, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> torch.Tensor:
        return book.generate_text_simple_cached(*arguments).flip(1)

    monkeypatch.setattr(show, "generate_text_simple_cached", wrong)
    show.show_speedup(model, tiny_tokenizer, max_new_tokens=3, report=said.append)
    assert said[-1].startswith("Identical tokens: no\n")


def test_a_window_as_a_picture(said: list[str]) -> None:
    show.show_window(2, 4, said.append)
    assert [line.partition("sees  ")[2] for line in said] == ["x . . .", "x x . .", ". x x .", ". . x x"]


def test_windows_bound_the_memory_and_change_no_token(model: book.CachedGPTModel, said: list[str]) -> None:
    show.show_windows(model, torch.arange(10)[None], (None, 8, 3), 4, said.append)
    assert [line.split() for line in said[1:]] == [
        ["none", "0.01", "MiB", "10", "yes"],
        ["8", "0.00", "MiB", "8,", "2", "yes"],
        ["3", "0.00", "MiB", "3,", "3,", "3,", "1", "yes"],
    ]
    assert model.config.sliding_window is None and not model.tok_emb._forward_hooks


def test_one_step_taken_apart(model: book.CachedGPTModel, said: list[str]) -> None:
    ids = torch.randint(257, (4, 9), generator=torch.Generator().manual_seed(1))
    before = model.out_head.weight.clone()
    optimizer = torch.optim.SGD(model.eval().parameters(), lr=0.5)
    loss = book.calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu").item()
    show.show_step(model, (ids[:, :-1], ids[:, 1:]), optimizer, max_norm=0.1, report=said.append)
    assert said[0].startswith(f"calc_loss_batch          {loss:.3f} nats a token (ln 257 = 5.549 ")
    high, clipped = (float(line.split()[2 if "after" in line else 1].rstrip(":")) for line in said[1:3])
    norm = float(re.findall(r"the norm of all was ([\d.]+), now at most 0.1", said[2])[0])
    assert clipped == pytest.approx(high * 0.1 / norm, abs=1e-3)
    after = book.calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu").item()
    assert said[3] == f"calc_loss_batch again    {after:.3f}, after one step" and after < loss
    assert not torch.equal(before, model.out_head.weight)


def test_what_sampling_leaves_to_choose_from(
    model: book.CachedGPTModel, tiny_tokenizer: Tokenizer, said: list[str]
) -> None:
    ids = torch.tensor([[5, 6, 7]])
    show.show_choices(model, ids, tiny_tokenizer, temperature=1.0, top_k=3, top_p=None, report=said.append)
    plain = model.eval()(ids)[0, -1].softmax(dim=-1).topk(5)
    assert [float(line.split()[0]) for line in said[1:6]] == pytest.approx(plain.values.tolist(), abs=1e-4)
    drawn = [float(line.split()[1]) for line in said[1:6]]
    assert drawn[:3] == pytest.approx((plain.values / plain.values[:3].sum())[:3].tolist(), abs=1e-4)
    assert drawn[3:] == [0, 0] and said[6] == "  3 of 257 tokens can come next"


def test_rates_fit_into_twenty_lines(said: list[str]) -> None:
    show.show_rates([step / 50 for step in range(51)], said.append)
    assert len(said) == 17 and said[0] == "  step   0  0.000000"
    assert said[-1] == f"  step  48  0.960000  {'#' * 38}"


# ---- started as scripts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ValueError("too\nlong"), "too long", 1),
        (FileNotFoundError("not here"), "not here", 1),
        (ModuleNotFoundError("x missing: pip install x"), "x missing: pip install x", 1),
        (DownloadError("no network", "a long story", ("gpt2", "openai")), "no network; this way out", 1),
        (DownloadError("the disk is full", "make room"), "the disk is full; make room", 1),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_errors_are_one_line(error: BaseException, line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.ArgumentParser(prog="door.py")
    with pytest.raises(SystemExit) as ended, errors_in_one_line(arguments, unreachable="this way out"):
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (code, f"door.py: {line}\n")


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors_in_one_line(parser("")):
        1 / 0  # noqa: B018


def test_the_help_keeps_the_lines_of_a_docstring() -> None:
    assert "Text.\n\n    a  b\n    c  d\n" in parser("Text.\n\n    a  b\n    c  d\n").format_help()
