import threading
from pathlib import Path

import pytest

from glassgpt import Tokenizer
from glassgpt.config import preset
from glassgpt.data.corpus import read_corpus
from glassgpt.data.vocabulary import check_tokenizer
from glassgpt.training import choose
from glassgpt.training.choose import (
    choose_dropout,
    choose_epochs,
    choose_tokenizer,
    early_evaluations,
    shapes_for,
)
from glassgpt.training.progress import Progress


class Heard(Progress):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.works: list[tuple[str, int, int]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        self.works.append((name, done, total))


def write_texts(folder: Path, n: int) -> list[Path]:
    paths = [folder / f"{i}.txt" for i in range(n)]
    for i, path in enumerate(paths):
        path.write_text(f"{chr(ord('a') + i)} word " * 100, encoding="utf-8")
    return paths


def test_a_bpe_is_trained_on_a_part_spread_over_a_large_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = read_corpus(write_texts(tmp_path, 10))
    monkeypatch.setattr(choose, "MAX_BPE_BYTES", sum(d.n_bytes for d in documents) * 2 // 5)
    seen: list[str] = []

    def train_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
        seen.extend(text[0] for text in texts)
        return Tokenizer.bytes_()

    monkeypatch.setattr(choose.Tokenizer, "train_bpe", train_bpe)
    heard, choices = Heard(), []
    choose_tokenizer(None, documents, documents, choices, heard)
    assert "".join(seen) == "cehj"
    assert heard.messages == ["training a tokenizer on 40% of the training part, spread evenly"]
    assert choices == ["tokenizer: BPE of 257 tokens, trained on 40% of the training part, spread evenly"]


def test_a_text_of_usual_size_is_read_whole(tmp_path: Path) -> None:
    documents = read_corpus(write_texts(tmp_path, 3))
    heard, choices = Heard(), []
    tokenizer = choose_tokenizer("bpe", documents, documents, choices, heard)
    whole = Tokenizer.train_bpe([text for document in documents for text in document.pieces()], 512)
    assert tokenizer.fingerprint == whole.fingerprint
    assert heard.messages == ["training a tokenizer on the training part"]


def test_the_making_of_a_bpe_can_be_followed(tmp_path: Path) -> None:
    documents = read_corpus(write_texts(tmp_path, 3))
    size = sum(document.n_bytes for document in documents)
    heard, threads = Heard(), threading.enumerate()
    choose_tokenizer("bpe", documents, documents, [], heard)
    parts = [documents[0].n_bytes * n for n in (1, 2, 3)]
    assert heard.works[:4] == [*(("counting words", part, size) for part in parts), ("merging pairs", 0, 0)]
    assert heard.works[-1] == ("merging pairs", 1, 1)
    assert threading.enumerate() == threads


def test_a_bpe_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    documents = read_corpus(write_texts(tmp_path, 1))
    (tmp_path / "0.txt").unlink()
    threads = threading.enumerate()
    with pytest.raises(FileNotFoundError):
        choose_tokenizer("bpe", documents, documents, [], Heard())
    assert threading.enumerate() == threads


def test_characters_are_those_of_both_parts(tmp_path: Path) -> None:
    a, b = (read_corpus([path]) for path in write_texts(tmp_path, 2))
    assert choose_tokenizer("char", a, b, [], Heard()).decode([0, 1]) != ""
    assert choose_tokenizer("char", a, b, [], Heard()).encode("a b")


@pytest.mark.parametrize(
    ("n_bytes", "name"), [(1, "nano"), (299_999, "nano"), (300_000, "micro"), (10**8, "small"), (10**12, "small")]
)
def test_the_shape_goes_by_the_amount_of_text_and_may_be_smaller(n_bytes: int, name: str) -> None:
    names = shapes_for(n_bytes)
    assert names[0] == name
    sizes = [preset(each).n_parameters() for each in names]
    assert sizes == sorted(sizes, reverse=True)
    assert names[-1] == "nano"


def test_a_model_that_could_know_its_text_by_heart_is_regularised() -> None:
    ratios = [0.1, 1, 3, 10, 30, 100, 1000]
    dropouts = [choose_dropout(ratio, 20) for ratio in ratios]
    assert dropouts == sorted(dropouts) and dropouts[0] == 0 < dropouts[-1] < 0.5
    assert {choose_dropout(ratio, 2) for ratio in ratios} == {0}, "a text that is read twice is not learned by heart"
    epochs = [choose_epochs(ratio) for ratio in ratios]
    assert epochs == sorted(epochs) and epochs[0] > 8


def test_a_tokenizer_that_is_unknown() -> None:
    with pytest.raises(
        ValueError, match="^tokenizer 'runes' must be one of bpe, gpt2, char, byte, or a directory that holds one$"
    ):
        check_tokenizer("runes")
    check_tokenizer(None)
    check_tokenizer(Tokenizer.bytes_())


def test_a_small_text_is_measured_early() -> None:
    assert early_evaluations(400, 20.3) == (20, 41, 81, 162, 325)
    assert early_evaluations(10, 20.3) == (), "the regular ones are early enough"
    assert early_evaluations(5, 0.1) == (1, 2, 3), "epochs shorter than a step"
