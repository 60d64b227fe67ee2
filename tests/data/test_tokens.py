import json
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from glassgpt.data import tokens as tokens_module
from glassgpt.data.corpus import Document
from glassgpt.data.tokens import TokenFile, write_tokens


@dataclass
class Letters:
    """What the data code needs of a tokenizer, with an id for each code point."""

    n_vocab: int = 257
    eot_id: int | None = 256
    fingerprint: str = "f" * 64
    fail_after: int | None = None

    def has_fingerprint(self, fingerprint: str) -> bool:
        return fingerprint == self.fingerprint

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise KeyboardInterrupt
        return [[ord(letter) for letter in text] for text in texts]


def documents(*texts: str) -> list[Document]:
    return [Document.from_text(str(i), text) for i, text in enumerate(texts)]


def test_round_trip(tmp_path: Path) -> None:
    written = write_tokens(documents("ab", "é"), Letters(), tmp_path / "t.npy")
    assert written.tokens.tolist() == [97, 98, 256, 233, 256]
    for opened in (TokenFile.open(tmp_path / "t.npy", tokenizer=Letters()), TokenFile.open(str(written.path))):
        assert opened.tokens.tolist() == written.tokens.tolist()
        assert (opened.n_tokens, opened.n_bytes, opened.n_vocab) == (5, 4, 257)
        assert opened.fingerprint == sha256(np.array([97, 98, 256, 233, 256], "<u2").tobytes()).hexdigest()
        assert isinstance(opened.tokens, np.memmap)
        assert not opened.tokens.flags.writeable
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.npy", "t.npy.json"]


def test_numpy_reads_the_file(tmp_path: Path) -> None:
    written = write_tokens(documents("hello\n" * 1000), Letters(), tmp_path / "t.npy")
    array = np.load(tmp_path / "t.npy", mmap_mode="r")
    assert np.array_equal(array, written.tokens)
    assert array.offset % 64 == 0


@pytest.mark.parametrize(
    ("n_vocab", "dtype"), [(65_536, np.uint16), (65_537, np.uint32), (100_000, np.uint32), (2, np.uint16)]
)
def test_the_type_holds_the_vocabulary(tmp_path: Path, n_vocab: int, dtype: type) -> None:
    written = write_tokens(documents("\0" + chr(n_vocab - 1)), Letters(n_vocab, None), tmp_path / "t.npy")
    assert written.tokens.dtype == dtype
    assert written.tokens.tolist() == [0, n_vocab - 1]


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ids from 97 to 300, but says it has 257 ids"):
        write_tokens(documents("a" + chr(300)), Letters(), tmp_path / "t.npy")
    with pytest.raises(ValueError, match="but says it has 256"):
        write_tokens(documents("a"), Letters(256, eot_id=256), tmp_path / "t.npy")
    assert not list(tmp_path.iterdir())


@given(st.lists(st.text(alphabet="abc\n é", min_size=1), min_size=1, max_size=8), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_and_pieces_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], with_eot: bool
) -> None:
    """Documents cut into many pieces and batches keep their tokens, each with one end of text at its end."""
    monkeypatch.setattr(tokens_module, "_PIECE_BYTES", 8)
    monkeypatch.setattr(tokens_module, "_BATCH_BYTES", 20)
    written = write_tokens(documents(*texts), Letters(eot_id=256 if with_eot else None), tmp_path / "t.npy")
    assert written.tokens.tolist() == [
        token for text in texts for token in [*map(ord, text), *([256] if with_eot else [])]
    ]


def test_a_long_document_encodes_as_if_in_one_piece(tmp_path: Path) -> None:
    """With a BPE that, like GPT-2's, splits into words first, no token is changed where pieces meet."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "".join(f"def f{i}(x):\n\n    return  x *\t{i * i}\n\n\n" for i in range(12_000))
    bpe.train_from_iterator([text[:20_000]], trainers.BpeTrainer(vocab_size=300, show_progress=False))

    class Bpe(Letters):
        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [encoding.ids for encoding in bpe.encode_batch(texts)]

    encoder = Bpe(n_vocab=bpe.get_vocab_size(), eot_id=None)
    assert len(text) > 6 * tokens_module._PIECE_BYTES
    written = write_tokens(documents(text), encoder, tmp_path / "t.npy")
    assert written.tokens.tolist() == bpe.encode(text).ids


def test_progress_counts_the_bytes_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_BATCH_BYTES", 8)
    calls: list[tuple[int, int]] = []
    write_tokens(documents("éé\n" * 4, "abc"), Letters(), tmp_path / "t.npy", progress=lambda *c: calls.append(c))
    assert calls == [(20, 23), (23, 23)]


def test_an_interrupted_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_BATCH_BYTES", 2)
    old = write_tokens(documents("old"), Letters(), tmp_path / "t.npy")
    with pytest.raises(KeyboardInterrupt):
        write_tokens(documents("new", "text"), Letters(fail_after=1), tmp_path / "t.npy")
    assert TokenFile.open(tmp_path / "t.npy").fingerprint == old.fingerprint
    with pytest.raises(KeyboardInterrupt):
        write_tokens(documents("new", "text"), Letters(fail_after=1), tmp_path / "other.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.npy", "t.npy.json"]
    new = write_tokens(documents("new"), Letters(), tmp_path / "t.npy")
    assert TokenFile.open(tmp_path / "t.npy").fingerprint == new.fingerprint != old.fingerprint


def test_no_moment_shows_new_tokens_with_an_old_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two renames, the file is refused, not read with the older file's sidecar."""
    write_tokens(documents("old"), Letters(), tmp_path / "t.npy")
    rename = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(documents("new"), Letters(), tmp_path / "t.npy")
    with pytest.raises(ValueError, match=r"t\.npy\.json is missing"):
        TokenFile.open(tmp_path / "t.npy")


def test_no_text(tmp_path: Path) -> None:
    for nothing in ([], documents("")):
        with pytest.raises(ValueError, match="no text, so no tokens"):
            write_tokens(nothing, Letters(), tmp_path / "t.npy")
    assert not list(tmp_path.iterdir())


# ---- files that are not what they should be ----------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_tokens(documents("good text"), Letters(), tmp_path / "t.npy").path


def change(good: Path, **fields: Any) -> None:
    sidecar = good.with_name("t.npy.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_bytes()) | fields), encoding="utf-8")


def test_another_tokenizer_is_refused(good: Path) -> None:
    for other in (Letters(fingerprint="e" * 64), Letters(n_vocab=258)):
        with pytest.raises(ValueError, match="another tokenizer.*use that one, or encode the text again"):
            TokenFile.open(good, tokenizer=other)


def test_missing_files(good: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such token file"):
        TokenFile.open(good.with_name("gone.npy"))
    good.with_name("t.npy.json").unlink()
    with pytest.raises(ValueError, match="is missing beside it; encode the text again"):
        TokenFile.open(good)


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": "other"},
        {"version": 2},
        {"count": 9},
        {"count": -1},
        {"count": 0},
        {"count": "many"},
        {"count": 1e999},
        {"dtype": "uint32"},
        {"dtype": "O"},
        {"n_vocab": 70_000},
        {"n_vocab": None},
        {"n_vocab": 70_000, "dtype": "uint32"},
    ],
)
def test_a_sidecar_that_does_not_fit(good: Path, fields: dict[str, Any]) -> None:
    change(good, **fields)
    with pytest.raises(ValueError, match="encode the text again") as caught:
        TokenFile.open(good)
    assert "t.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_sidecar_that_is_no_description(good: Path, text: bytes) -> None:
    good.with_name("t.npy.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"t\.npy\.json: damaged.*; encode the text again"):
        TokenFile.open(good)


def test_a_damaged_array(good: Path) -> None:
    data = good.read_bytes()
    for damaged in (data[:-1], data[:-2], data + b"\0\0", data[:100], b"", b"X" + data[1:]):
        good.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t\.npy: its \d+ bytes are not the 10 tokens of uint16"):
            TokenFile.open(good)
    good.write_bytes(data)
    assert TokenFile.open(good).n_tokens == 10


# ---- memory ------------------------------------------------------------------------------------------------

WRITE_LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
from glassgpt.data.corpus import read_corpus
from glassgpt.data.tokens import write_tokens

class Encoder:
    n_vocab, eot_id, fingerprint = 256, None, "f"
    def has_fingerprint(self, fingerprint):
        return fingerprint == "f"
    def encode_batch(self, texts):
        return [list(text.encode("utf-8")[::4]) for text in texts]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

folder = Path(sys.argv[1])
(folder / "small.txt").write_text("warm up\\n", encoding="utf-8")
write_tokens(read_corpus([folder / "small.txt"]), Encoder(), folder / "small.npy")
before = peak()
write_tokens(read_corpus([folder / "large.txt"]), Encoder(), folder / "large.npy")
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="the peak memory of a process is measured on Unix only")
    with (tmp_path / "large.txt").open("wb") as file:
        for _ in range(100):
            file.write(b"a line of forty bytes, or at least near\n" * 25_000)
    done = subprocess.run(
        [sys.executable, "-c", WRITE_LARGE, str(tmp_path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    for large in tmp_path.glob("large.*"):
        large.unlink()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 20  # of 100 MB of text


def test_changed_tokens_are_noticed_when_asked(tmp_path: Path) -> None:
    opened = write_tokens(documents("hello\n" * 1000), Letters(), tmp_path / "t.npy")
    opened.verify()
    data = bytearray((tmp_path / "t.npy").read_bytes())
    data[-7] ^= 1
    (tmp_path / "t.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"t\.npy: its tokens were changed after they were written"):
        TokenFile.open(tmp_path / "t.npy").verify()


def test_a_closed_file_is_no_longer_mapped(tmp_path: Path) -> None:
    opened = write_tokens(documents("hello"), Letters(), tmp_path / "t.npy")
    opened.close()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text(encoding="utf-8")
