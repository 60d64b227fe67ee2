"""Directories of shards: ours, nanoGPT's, llm.c's."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glassgpt import Tokenizer
from glassgpt.data.dataset import is_dataset, open_dataset
from glassgpt.data.prepare.run import prepare

WORDS = [f"Line {n} of a text that is long enough to have some for validation.\n" for n in range(400)]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("".join(WORDS), encoding="utf-8")
    prepare(
        [tmp_path / "a.txt"], tmp_path / "ours", tokenizer="byte", processes=1, section_bytes=512, shard_tokens=9000
    )
    return tmp_path / "ours"


def nanogpt(folder: Path, tokens: list[int], validation: list[int], header: bytes = b"") -> Path:
    folder.mkdir()
    (folder / "train.bin").write_bytes(header + np.array(tokens, "<u2").tobytes())
    (folder / "val.bin").write_bytes(header + np.array(validation, "<u2").tobytes())
    return folder


def llmc(folder: Path, shards: list[list[int]], validation: list[int]) -> Path:
    folder.mkdir()
    for n, tokens in enumerate([validation, *shards]):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(tokens)
        name = f"edu_fineweb_train_{n:06}.bin" if n else "edu_fineweb_val_000000.bin"
        (folder / name).write_bytes(header.tobytes() + np.array(tokens, "<u2").tobytes())
    return folder


def test_ours(ours: Path) -> None:
    assert is_dataset(ours)
    dataset = open_dataset(ours, Tokenizer.bytes_())
    assert len(dataset.train.shards) > 1
    text = dataset.tokenizer.decode(dataset.train.tokens[:])
    assert sum(word in text for word in WORDS) > 250
    assert dataset.train.n_bytes + dataset.validation.n_bytes == len("".join(WORDS))
    assert open_dataset(ours).train.fingerprint == dataset.train.fingerprint
    dataset.train.close()


def test_another_tokenizer_is_refused(ours: Path) -> None:
    with pytest.raises(ValueError, match="written with another tokenizer .*; leave the tokenizer out"):
        open_dataset(ours, Tokenizer.gpt2())
    Tokenizer.train_bpe(["some text"], 260).save(ours)
    with pytest.raises(ValueError, match="its tokenizer is not the one that its tokens were made with"):
        open_dataset(ours)


def swap(folder: Path) -> None:
    a, b = folder / "train-00000.bin", folder / "train-00001.bin"
    a.rename(folder / "c")
    b.rename(a)
    (folder / "c").rename(b)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train-00001.bin").unlink(), "train-00001.bin: no such token file"),
        (lambda f: (f / "train-00001.bin").write_bytes(bytes(3000)), "is not the shard that index.json tells of"),
        (swap, "is not the shard that index.json tells of"),
        (
            lambda f: (f / "index.json").write_text(
                (f / "index.json").read_text("utf-8").replace('"sha256": "', '"sha256": "0', 1), "utf-8"
            ),
            "index.json is damaged: prepare the text again",
        ),
    ],
)
def test_what_is_damaged_is_refused(ours: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(ours)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(ours)


def test_a_flipped_token_is_found(ours: Path) -> None:
    data = bytearray((ours / "train-00001.bin").read_bytes())
    data[-2] ^= 1
    (ours / "train-00001.bin").write_bytes(data)
    with pytest.raises(ValueError, match="train-00001.bin: its tokens were changed"):
        open_dataset(ours).train.verify()


def test_nanogpts(tmp_path: Path) -> None:
    tokenizer = Tokenizer.gpt2()
    text = "It is GPT-2's vocabulary, unless something says otherwise.\n"
    ids = [*tokenizer.encode(text), tokenizer.eot_id]
    folder = nanogpt(tmp_path / "openwebtext", ids * 20, ids * 4)
    assert is_dataset(folder)
    dataset = open_dataset(folder)
    assert dataset.train.tokens[:].tolist() == ids * 20
    assert dataset.validation.n_bytes == 4 * len(text), "ends of text are no text"
    assert dataset.tokenizer.n_vocab == 50257
    before = dataset.train.fingerprint
    (folder / "train.bin").write_bytes(np.array(ids * 19 + ids[::-1], "<u2").tobytes())
    assert open_dataset(folder).train.fingerprint != before
    with pytest.raises(ValueError, match="changed after"):
        dataset.train.verify()


def test_nanogpts_characters(tmp_path: Path) -> None:
    folder = nanogpt(tmp_path / "shakespeare_char", [0, 1, 2] * 50, [2, 1, 0] * 20)
    characters = {"a": 0, "b": 1, "é": 2}
    meta = {"vocab_size": 3, "stoi": characters, "itos": {i: c for c, i in characters.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    dataset = open_dataset(folder)
    assert dataset.tokenizer.decode(dataset.train.tokens[:3]) == "abé"
    assert dataset.train.n_bytes == 200


def test_llm_cs(tmp_path: Path) -> None:
    folder = llmc(tmp_path / "edu_fineweb10B", [[50256, 464], [262, 11]], [50256, 13])
    dataset = open_dataset(folder)
    assert dataset.train.tokens[:].tolist() == [50256, 464, 262, 11]
    assert dataset.validation.tokens[:].tolist() == [50256, 13]


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = nanogpt(tmp_path / "a", [1, 2, 60_000] * 50, [1, 0] * 50)
    with pytest.raises(ValueError, match=r"train.bin: it has the id 60000, outside the 50257 of the tokenizer"):
        open_dataset(folder)
    with pytest.raises(ValueError, match="outside the 257"):
        open_dataset(llmc(tmp_path / "b", [[300]], [1]), Tokenizer.bytes_())


def test_what_is_none(tmp_path: Path) -> None:
    assert not is_dataset(tmp_path)
    assert not is_dataset(tmp_path / "nowhere")
    (tmp_path / "train.bin").write_bytes(bytes(200))
    assert not is_dataset(tmp_path), "no validation"
    (tmp_path / "index.json").write_text("{}", encoding="utf-8")
    assert not is_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no dataset: expected index.json, or token files named train"):
        open_dataset(tmp_path)
