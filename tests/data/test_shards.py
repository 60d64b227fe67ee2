"""Token files: ours, llm.c's, nanoGPT's; and what is none."""

import os
import struct
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glassgpt.data.shards import HEADER_BYTES, MOST_MAPS, TokenSequence, open_shard, write_shard

FINGERPRINT = "ab" * 32


def llmc(tokens: list[int], magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> bytes:
    """As llm.c's `dev/data/data_common.py` lays it out."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + np.array(tokens, dtype).tobytes()


@given(st.lists(st.lists(st.integers(0, 99)), max_size=4), st.sampled_from([100, 65_536, 65_537, 2**24]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, parts: list[list[int]], n_vocab: int) -> None:
    tokens = [token for part in parts for token in part] + [n_vocab - 1]
    arrays = [np.array(part, np.uint32) for part in parts] + [np.array([n_vocab - 1])]
    written = write_shard(tmp_path / "a.bin", arrays, n_vocab, FINGERPRINT)
    assert written == open_shard(tmp_path / "a.bin")
    assert (written.form, written.n_vocab, written.tokenizer) == ("glassgpt", n_vocab, FINGERPRINT)
    assert written.dtype == ("<u2" if n_vocab <= 65_536 else "<u4")
    assert written.map().tolist() == tokens
    assert not written.map().flags.writeable
    assert written.sha256 == sha256(np.array(tokens, written.dtype).tobytes()).hexdigest()
    written.verify()


@pytest.mark.parametrize(("n_vocab", "magic", "version"), [(50_257, 20240520, 1), (100_000, 20240801, 7)])
def test_llm_c_reads_our_shards(tmp_path: Path, n_vocab: int, magic: int, version: int) -> None:
    """What its loader asks for: magic, version, count, and a file of exactly that size."""
    shard = write_shard(tmp_path / "a.bin", [np.arange(7)], n_vocab, FINGERPRINT)
    data = (tmp_path / "a.bin").read_bytes()
    assert struct.unpack("<3i", data[:12]) == (magic, version, 7)
    assert len(data) == 1024 + 7 * shard.dtype.itemsize
    assert np.frombuffer(data[1024:], shard.dtype).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("data", "form", "tokens"),
    [
        (llmc([1, 2, 65_535]), "llm.c", [1, 2, 65_535]),
        (llmc([1, 128_000], 20240801, 7, "<u4"), "llm.c", [1, 128_000]),
        (np.array([5, 50_256, 11] * 50, "<u2").tobytes(), "nanoGPT", [5, 50_256, 11] * 50),
        (b"\1\0", "nanoGPT", [1]),
    ],
)
def test_the_files_of_others(tmp_path: Path, data: bytes, form: str, tokens: list[int]) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    shard = open_shard(tmp_path / "a.bin")
    assert (shard.form, shard.n_vocab, shard.sha256) == (form, None, None)
    assert shard.map().tolist() == tokens
    assert np.concatenate(list(shard.chunks())).tolist() == tokens


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no tokens: the file is empty"),
        (b"Plain text, and more of it than a few words would be, so that no one takes it for tokens.", "like text"),
        (b"PK\x03\x04" + bytes(200), "ZIP archive, not tokens"),
        (b"\x93NUMPY\x01\0" + bytes(200), "NumPy array, not tokens"),
        (bytes(101), "101 bytes are no whole number of uint16"),
        (llmc([1, 2, 3])[:-1], "cut off or damaged: 1,029 bytes, where the header tells of 3 tokens of 2 bytes"),
        (llmc([1, 2, 3]) + b"\0\0", "cut off or damaged"),
        (llmc([1])[:500], "version 1"),
        (llmc([1], version=2), "a token file of version 2, where 1 is read"),
        (llmc([1], magic=20240522), "an evaluation file of llm.c's"),
        (llmc([1], magic=20240326), "a model of llm.c's"),
    ],
)
def test_what_is_damaged_or_none(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        open_shard(tmp_path / "a.bin")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.bin") in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a.bin: no such token file"):
        open_shard(tmp_path / "a.bin")


@given(st.integers(0, HEADER_BYTES + 39), st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_every_flipped_bit_is_found(tmp_path: Path, place: int, bit: int) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, [np.arange(20)], 300, FINGERPRINT)
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
    try:
        shard = open_shard(path)
    except ValueError:
        return
    # a bit of the mark or the magic makes it a file of another form, which has no tokenizer to fit a dataset's
    if shard.form == "glassgpt":
        with pytest.raises(ValueError, match="changed after they were written"):
            shard.verify()
    else:
        assert shard.tokenizer is None


@given(st.integers(0, HEADER_BYTES + 39))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cut_is_found(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, [np.arange(20)], 300, FINGERPRINT)
    path.write_bytes(path.read_bytes()[:size])
    if size in range(2, 64, 2):  # so short that it might be anything
        return
    with pytest.raises(ValueError):
        open_shard(path)


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", [np.arange(3)], 10, FINGERPRINT)

    def failing():
        yield np.arange(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.bin", failing(), 10, FINGERPRINT)
    assert open_shard(tmp_path / "a.bin").map().tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


# ---- several as one ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(-30, 30), st.integers(-30, 30))
def test_several_arrays_are_one_sequence(sizes: list[int], start: int, stop: int) -> None:
    whole = np.arange(sum(sizes))
    sequence = TokenSequence(np.split(whole, np.cumsum(sizes)))
    assert len(sequence) == len(whole)
    assert sequence[start:stop].tolist() == whole[start:stop].tolist()
    assert sequence[:].tolist() == whole.tolist()


def test_memory_maps_are_released(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{i}.bin", [np.arange(9)], 10, FINGERPRINT) for i in range(2)]
    sequence = TokenSequence(shards)
    assert sequence[7:11].tolist() == [7, 8, 0, 1]
    sequence.forget_pages()
    assert sequence[7:11].tolist() == [7, 8, 0, 1]
    sequence.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on open files")
def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    import resource

    n, size = MOST_MAPS + 60, 40
    arrays = np.split(np.arange(n * size), n)
    shards = [write_shard(tmp_path / f"{i}.bin", [array], n * size, FINGERPRINT) for i, array in enumerate(arrays)]
    sequence = TokenSequence(shards)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    os.close(held)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + MOST_MAPS + 8, before[1]))
        first = sequence[size : size + 3]
        for turn in range(2):
            for start in range(0, len(sequence), 3 * size):  # slices that reach over two edges
                part = sequence[start + 1 : start + 2 * size + 5]
                assert part.tolist() == list(range(start + 1, min(start + 2 * size + 5, n * size))), turn
                sequence.forget_pages()
        assert first.tolist() == [size, size + 1, size + 2], "its map is closed, but not while it is in use"
        head = sequence.head(size + 7)
        assert head[size - 2 :].tolist() == list(range(size - 2, size + 7))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    sequence.close()
    head.close()
