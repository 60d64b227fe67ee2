"""Measuring a model on text: the figures against their definitions."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from glassgpt import GPTModel, Tokenizer
from glassgpt.data.corpus import read_corpus
from glassgpt.data.tokens import write_tokens
from glassgpt.training.evaluate import evaluate, evaluate_run
from glassgpt.training.progress import Progress

TEXT = "To be, or not to be: that is the question. …é😀\n" * 9


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def by_hand(model: GPTModel, ids: list[int]) -> float:
    """Mean cross-entropy over consecutive windows, one at a time, the last one shorter."""
    size = model.config.context_length
    total = 0.0
    for start in range(0, len(ids) - 1, size):
        window = torch.tensor(ids[start : start + size + 1])
        with torch.no_grad():
            total += float(F.cross_entropy(model(window[None, :-1])[0].double(), window[1:], reduction="sum"))
    return total / (len(ids) - 1)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_figures_are_those_of_their_definitions(
    tiny_model, tiny_tokenizer: Tokenizer, tmp_path: Path, batch_size: int
) -> None:
    model = tiny_model(vocab_size=tiny_tokenizer.n_vocab)
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="\n")
    result = evaluate(model, tiny_tokenizer, [path], batch_size)
    ids = [*tiny_tokenizer.encode(TEXT), tiny_tokenizer.eot_id]
    assert (result.n_tokens, result.n_bytes) == (len(ids), len(TEXT.encode()))
    assert result.loss == pytest.approx(by_hand(model, ids), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) * len(ids) / len(TEXT.encode()))


def test_a_run_is_measured_on_the_whole_of_its_validation_part(
    tiny_model, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = tiny_model(vocab_size=tiny_tokenizer.n_vocab)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    write_tokens(
        read_corpus([tmp_path / "text.txt"]), tiny_tokenizer, tmp_path / "run" / "data" / "validation.npy"
    ).close()
    assert evaluate_run(model, tiny_tokenizer, tmp_path / "run") == evaluate(
        model, tiny_tokenizer, [tmp_path / "text.txt"]
    )
    with pytest.raises(ValueError, match="is not a run with a validation part of its own: name a text to measure on"):
        evaluate_run(model, tiny_tokenizer, tmp_path)


def test_bits_per_byte_do_not_depend_on_how_text_is_cut(
    tiny_model, tokenizers_by_kind: dict[str, Tokenizer], sample_text: str, tmp_path: Path
) -> None:
    """A model that knows nothing spends log2 V bits on each token, however many bytes there are in it."""
    path = tmp_path / "text.txt"
    path.write_text(sample_text, encoding="utf-8", newline="\n")
    for tokenizer in (tokenizers_by_kind["bpe"], tokenizers_by_kind["bytes"]):
        model = tiny_model(vocab_size=tokenizer.n_vocab)
        torch.nn.init.zeros_(model.out_head.weight)
        result = evaluate(model, tokenizer, [path])
        assert result.perplexity == pytest.approx(tokenizer.n_vocab, rel=1e-4)
        assert result.bits_per_byte == pytest.approx(math.log2(tokenizer.n_vocab) * result.n_tokens / result.n_bytes)


def test_dropout_is_off_and_the_model_is_left_as_it_was(tiny_model, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = tiny_model(vocab_size=tiny_tokenizer.n_vocab, drop_rate=0.5).train()
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    first, second = (evaluate(model, tiny_tokenizer, [path]) for _ in range(2))
    assert first == second
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_several_files_and_folders(tiny_model, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("one.txt", "folder/two.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8", newline="\n")
    model = tiny_model(vocab_size=tiny_tokenizer.n_vocab)
    result = evaluate(model, tiny_tokenizer, [tmp_path / "one.txt", tmp_path / "folder"])
    assert result.n_bytes == 2 * len(TEXT.encode())
    assert result.n_tokens == result.n_bytes + 2  # each ends with the end of text


def test_records_and_progress(tiny_model, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two records are measured as two files are."""

    class Heard(Progress):
        def __init__(self) -> None:
            self.messages: list[str] = []
            self.works: dict[str, tuple[int, int, str]] = {}

        def message(self, text: str) -> None:
            self.messages.append(text)

        def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
            self.works[name] = (done, total, unit)

    model, heard = tiny_model(vocab_size=tiny_tokenizer.n_vocab), Heard()
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8", newline="\n")
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"body": TEXT}) + "\n" + json.dumps({"body": TEXT}), encoding="utf-8")
    result = evaluate(model, tiny_tokenizer, [path], text_fields=["body"], progress=heard)
    assert result == evaluate(model, tiny_tokenizer, [tmp_path / "one.txt", tmp_path / "two.txt"])
    assert heard.messages == [f"{path}: 2 documents from the field 'body'"]
    size, n_targets = path.stat().st_size, result.n_tokens - 1
    assert heard.works == {
        "reading": (size, size, "bytes"),
        "encoding": (result.n_bytes, result.n_bytes, "bytes"),
        "evaluating": (n_targets, n_targets, "tokens"),
    }


def test_a_text_shorter_than_the_context(tiny_model, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("ab", encoding="utf-8")
    model = tiny_model(vocab_size=tiny_tokenizer.n_vocab)
    ids = torch.tensor([[97, 98, tiny_tokenizer.eot_id]])
    with torch.no_grad():
        expected = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
    assert evaluate(model, tiny_tokenizer, [path]).loss == pytest.approx(float(expected), rel=1e-5)


def test_a_hopeless_loss_has_a_perplexity_still(
    tiny_model, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("glassgpt.training.evaluate.evaluate_loss", lambda *_, **__: 5000.0)
    result = evaluate(tiny_model(vocab_size=257), tiny_tokenizer, [path])
    assert (result.loss, math.isfinite(result.perplexity)) == (5000.0, True)


def test_what_cannot_be_measured(tiny_model, tokenizers_by_kind: dict[str, Tokenizer], tmp_path: Path) -> None:
    letters = tokenizers_by_kind["characters"]
    model = tiny_model(vocab_size=letters.n_vocab)
    path = tmp_path / "text.txt"
    path.write_text("§ is no letter of it", encoding="utf-8")
    with pytest.raises(ValueError, match=r"characters not in the vocabulary of \d+: '\\xa7'"):
        evaluate(model, letters, [path])
    with pytest.raises(ValueError, match="missing: no such file"):
        evaluate(model, letters, [tmp_path / "missing"])
