"""TensorFlow checkpoints: what TensorFlow wrote comes back bit for bit, what was altered is refused."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_writer as tfw
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint

# Written by TensorFlow 2.21: SaveV2 of four variables under two prefixes, put together by MergeV2Checkpoints.
GOLDEN_INDEX = bytes.fromhex(
    "00000608021a02080100160f6d6f64656c2f68302f6174746e2f635f6174746e2f620801120412020803280c3544cbf6be150119"
    "770801120c120208011202080212020803200c2818357aebf5ab060315777065080e1208120208011202080218012804352e4a56"
    "f200040f737465700809120018012004280835bbd79f11000000000100000000f133b290000000000100000000c0f2a1b0000103"
    "740087010000000001000000001ac69a6d8c010899010f0000000000000000000000000000000000000000000000000000000000"
    "000000000057fb808b247547db"
)
GOLDEN_SHARDS = (
    bytes.fromhex("0000003f0000c0bf000040400000803f0000004000004040000080400000a0400000c040"),
    bytes.fromhex("c03f00c00700000000000000"),
)


def read_all(prefix: Path) -> dict[str, np.ndarray]:
    return dict(TensorFlowCheckpoint(prefix))


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()  # several times quicker than writing over it
    path.write_bytes(content)


def write_one(prefix: Path, data: bytes, **changes) -> None:
    pairs = {b"": tfw.header(), b"v": tfw.entry(data, **changes)}
    tfw.write_files(prefix, tfw.table(pairs), data)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    tfw.write_files(tmp_path / "model.ckpt", GOLDEN_INDEX, *GOLDEN_SHARDS)
    return tmp_path / "model.ckpt"


def test_reads_what_tensorflow_wrote(golden: Path) -> None:
    checkpoint = TensorFlowCheckpoint(golden)
    assert list(checkpoint) == ["model/h0/attn/c_attn/b", "model/h0/attn/c_attn/w", "model/wpe", "step"]
    assert checkpoint["model/h0/attn/c_attn/b"].tolist() == [0.5, -1.5, 3.0]
    assert checkpoint["model/h0/attn/c_attn/w"].tolist() == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]
    assert checkpoint["model/wpe"].tolist() == [[1.5, -2.0]]
    assert checkpoint["step"].tolist() == 7
    assert [checkpoint.dtype(name) for name in checkpoint] == ["float32", "float32", "bfloat16", "int64"]
    assert [checkpoint.shape(name) for name in checkpoint] == [(3,), (1, 2, 3), (1, 2), ()]
    assert checkpoint["model/wpe"].dtype == np.float32
    with pytest.raises(KeyError):
        checkpoint["model/wte"]


def test_arrays_cannot_be_written(golden: Path) -> None:
    for array in TensorFlowCheckpoint(golden).values():
        assert not array.flags.writeable


def test_found_by_prefix_index_and_directory(golden: Path) -> None:
    names = list(TensorFlowCheckpoint(golden))
    assert list(TensorFlowCheckpoint(str(golden) + ".index")) == names
    assert list(TensorFlowCheckpoint(golden.parent)) == names
    (golden.parent / "other.index").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"2 \.index files"):
        TensorFlowCheckpoint(golden.parent)
    (golden.parent / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "other"\n', encoding="utf-8"
    )
    assert list(TensorFlowCheckpoint(golden.parent)) == names


@pytest.mark.parametrize(
    "path", ["../model.ckpt", "/etc/model.ckpt", "a/b", "..", ".", "", "a\\b", "c:model", "a\x01b", "a\0b"]
)
def test_state_file_cannot_lead_elsewhere(golden: Path, path: str) -> None:
    directory = golden.parent / "inner"
    directory.mkdir()
    (directory / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="is not a plain file name") as error:
        TensorFlowCheckpoint(directory)
    assert "\n" not in str(error.value)


def test_state_file_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(ValueError, match="no model_checkpoint_path"):
        TensorFlowCheckpoint(tmp_path)


def test_missing_files(golden: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no TensorFlow checkpoint index at .*absent\.index"):
        TensorFlowCheckpoint(golden.parent / "absent")
    golden.with_name("model.ckpt.data-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError):
        TensorFlowCheckpoint(golden)


ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.dtype(name) for name in tfw.DATA_TYPES if name != "uint16"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=60)
@given(
    tensors=st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=12),
    num_shards=st.integers(1, 3),
    alignment=st.sampled_from([1, 64]),
    pairs_per_block=st.integers(1, 20),
)
def test_round_trip(tmp_path_factory, tensors, num_shards, alignment, pairs_per_block) -> None:
    prefix = tmp_path_factory.mktemp("round_trip") / "m"
    tfw.write_checkpoint(prefix, tensors, num_shards=num_shards, alignment=alignment, pairs_per_block=pairs_per_block)
    read = read_all(prefix)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
        assert read[name].flags.aligned


def test_many_names_with_common_beginnings(tmp_path: Path) -> None:
    # Prefix compression, restart points and several blocks, as in a checkpoint of many layers.
    tensors = {f"model/h{i}/mlp/c_fc/{k}": np.float32([i, ord(k)]) for i in range(48) for k in "bw"}
    tfw.write_checkpoint(tmp_path / "m", tensors, pairs_per_block=40)
    read = read_all(tmp_path / "m")
    assert list(read) == sorted(tensors)
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)


def test_every_bfloat16_is_exact(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    tfw.write_checkpoint(tmp_path / "m", {"v": bits})
    read = TensorFlowCheckpoint(tmp_path / "m")["v"]
    assert read.dtype == np.float32
    assert np.array_equal(read.view(np.uint32), bits.astype(np.uint32) << 16)


def test_every_changed_byte_of_the_index_is_refused(golden: Path) -> None:
    index = golden.with_name("model.ckpt.index")
    for position in range(len(GOLDEN_INDEX)):
        for change in (1, 8, 128, 255):
            altered = bytearray(GOLDEN_INDEX)
            altered[position] ^= change
            rewrite(index, altered)
            with pytest.raises(ValueError, match=r"^[^\n]*model\.ckpt\.index: [^\n]+$"):
                TensorFlowCheckpoint(golden)


def test_every_changed_byte_of_the_data_is_refused(golden: Path) -> None:
    for number, shard in enumerate(GOLDEN_SHARDS):
        path = golden.with_name(f"model.ckpt.data-{number:05d}-of-00002")
        for position in range(len(shard)):
            altered = bytearray(shard)
            altered[position] ^= 1 << position % 8
            rewrite(path, altered)
            with pytest.raises(ValueError, match="wrong checksum for"):
                read_all(golden)
        path.write_bytes(shard)


def test_changed_byte_of_a_large_file_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"v{i}": rng.normal(size=(50, 70)).astype(np.float32) for i in range(7)}
    tfw.write_checkpoint(tmp_path / "m", tensors, num_shards=2, alignment=4096)
    draw = random.Random(0)
    for path in sorted(tmp_path.glob("m.data*")):
        shard = path.read_bytes()
        for position in [draw.randrange(len(shard)) for _ in range(60)]:
            altered = bytearray(shard)
            altered[position] ^= draw.randrange(1, 256)
            rewrite(path, altered)
            with pytest.raises(ValueError, match="wrong checksum for|belong to no variable"):
                read_all(tmp_path / "m")
        path.write_bytes(shard)


def test_cut_and_prolonged_files_are_refused(golden: Path) -> None:
    index = golden.with_name("model.ckpt.index")
    for size in range(len(GOLDEN_INDEX)):
        rewrite(index, GOLDEN_INDEX[:size])
        with pytest.raises(ValueError, match="fetch it again"):
            TensorFlowCheckpoint(golden)
    for longer in (GOLDEN_INDEX + b"\0", b"\0" + GOLDEN_INDEX):
        index.write_bytes(longer)
        with pytest.raises(ValueError, match=r"model\.ckpt\.index"):
            TensorFlowCheckpoint(golden)
    index.write_bytes(GOLDEN_INDEX)
    shard = golden.with_name("model.ckpt.data-00000-of-00002")
    for data in (b"", GOLDEN_SHARDS[0][:-1], GOLDEN_SHARDS[0] + b"x", GOLDEN_SHARDS[0] + bytes(2**17)):
        shard.write_bytes(data)
        with pytest.raises(ValueError, match="data-00000-of-00002"):
            TensorFlowCheckpoint(golden)


def test_partitioned_and_string_variables_are_listed_but_not_read(tmp_path: Path) -> None:
    data = np.float32([1, 2, 3, 4]).tobytes()
    pairs = {
        b"": tfw.header(),
        b"\0slice\x80": tfw.entry(data, shape=[2, 2]),
        b"names": tfw.entry(b"\x01abcdx", dtype=tfw.STRING, shape=[1], offset=16),
        b"parted": tfw.entry(b"", shape=[4, 2], size=0, slices=b""),
    }
    tfw.write_files(tmp_path / "m", tfw.table(pairs), data + b"\x01abcdx")
    checkpoint = TensorFlowCheckpoint(tmp_path / "m")
    assert list(checkpoint) == ["names", "parted"]
    assert checkpoint.dtype("names") == "string"
    assert checkpoint.shape("parted") == (4, 2)
    with pytest.raises(ValueError, match="'parted' is partitioned"):
        checkpoint["parted"]
    with pytest.raises(ValueError, match="'names' has unsupported type string"):
        checkpoint["names"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [5]}, r"shape \[5\] needs 20 bytes, 16 are stored"),
        ({"shape": [2**40, 2**40]}, "is not possible"),
        ({"shape": [0, 2**62], "size": 0}, "is not possible"),
        ({"shape": [1] * 33}, "33 dimensions"),
        ({"shape": [-4]}, "negative number -4"),
        ({"shape": [4], "offset": 1}, "has 16 bytes, its index describes 17"),
        ({"shape": [2**40], "size": 2**42}, "has 16 bytes"),
        ({"shape": [4], "offset": -1}, "negative number -1"),
        ({"shape": [4], "shard": 1}, "lies in data file 1, but there are 1"),
        ({"shape": [4], "shard": -1}, "negative number -1"),
        ({"shape": [3], "size": 12}, "bytes 12 to 16 belong to no variable"),
    ],
)
def test_impossible_entries_are_refused(tmp_path: Path, changes, message) -> None:
    write_one(tmp_path / "m", np.float32([1, 2, 3, 4]).tobytes(), **changes)
    with pytest.raises(ValueError, match=message):
        TensorFlowCheckpoint(tmp_path / "m")


def test_unknown_rank_is_refused(tmp_path: Path) -> None:
    value = tfw.field(1, tfw.FLOAT) + tfw.field(2, tfw.field(3, 1))
    tfw.write_files(tmp_path / "m", tfw.table({b"": tfw.header(), b"v": value}), b"")
    with pytest.raises(ValueError, match="unknown rank"):
        TensorFlowCheckpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (tfw.header(endianness=1), "big-endian"),
        (tfw.header(min_consumer=2), "bundle version 2"),
        (tfw.header(0), "0 data files"),
        (tfw.header(10**9), "1000000000 data files"),
        (b"\x0b", "wire type 3"),
        (b"\x12\x05abc", "cut short"),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "damaged number"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "damaged number"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, header, message) -> None:
    tfw.write_files(tmp_path / "m", tfw.table({b"": header}))
    with pytest.raises(ValueError, match=message):
        TensorFlowCheckpoint(tmp_path / "m")


HEADER, EMPTY = tfw.header(), tfw.entry(b"", shape=[0])
VALID = tfw.table({b"": HEADER, b"a": EMPTY, b"b": EMPTY})


def spoiled(block: bytes) -> bytes:
    """A table whose one data block is ``block``."""
    blocks = iter([block])
    return tfw.table({b"": HEADER}, spoil=lambda content: next(blocks, content))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (tfw.table({b"a": EMPTY}), "no header"),
        (tfw.table({b"": HEADER}, compression=1), "compressed"),
        (tfw.table({b"": HEADER, b"a\xff": EMPTY}), "can't decode"),
        (tfw.table({b"": HEADER, b"a" * 5000: EMPTY}), "a key or value outside its bounds"),
        (bytes(9 * 2**20), "larger than"),
        (bytes(48), "not an index of a TensorFlow checkpoint"),
        (VALID[:-48] + b"junk" + VALID[-48:], "the last block ends at"),
        (tfw.table({b"": HEADER}, gap=b"x"), "a block starts at byte 1 instead of 0"),
        (VALID[:-48] + (tfw.varint(10**6) * 4).ljust(40, b"\0") + tfw.MAGIC, "reaches to byte 2000000"),
        (spoiled(b"\xff\xff\xff\xff"), "more restart points than bytes"),
        (spoiled(b"\1\0\0" + bytes(4)), "a key or value outside its bounds"),
        (spoiled(b"\0\1\1a" + bytes(4)), "a key or value outside its bounds"),
        (spoiled(b"\0\1"), "more restart points than bytes"),
        (spoiled(tfw.block([(b"", HEADER), (b"b", EMPTY), (b"a", EMPTY)], 16)), "keys are out of order"),
        (spoiled(tfw.block([(b"", HEADER), (b"", HEADER)], 16)), "keys are out of order"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, index: bytes, message: str) -> None:
    tfw.write_files(tmp_path / "m", index)
    with pytest.raises(ValueError, match=message) as error:
        TensorFlowCheckpoint(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_blocks_out_of_order_are_refused(tmp_path: Path) -> None:
    blocks = [tfw.block([(key, value)], 16) for key, value in [(b"", HEADER), (b"b", EMPTY), (b"a", EMPTY)]]
    contents = iter(blocks)
    pairs = {b"": HEADER, b"a": EMPTY, b"b": EMPTY}
    index = tfw.table(pairs, pairs_per_block=1, spoil=lambda content: next(contents, content))
    tfw.write_files(tmp_path / "m", index)
    with pytest.raises(ValueError, match="keys are out of order"):
        TensorFlowCheckpoint(tmp_path / "m")


def test_too_many_variables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassgpt.weights.containers.tensorflow._MAX_VARIABLES", 9)
    tfw.write_files(tmp_path / "m", tfw.table({b"": HEADER} | {b"%d" % i: EMPTY for i in range(9)}), b"")
    with pytest.raises(ValueError, match="more than 9 variables"):
        TensorFlowCheckpoint(tmp_path / "m")


def test_booleans_are_zero_or_one(tmp_path: Path) -> None:
    write_one(tmp_path / "m", b"\0\1\2", dtype=10, shape=[3])
    with pytest.raises(ValueError, match="neither true nor false"):
        TensorFlowCheckpoint(tmp_path / "m")["v"]


def test_copying_needs_no_second_copy(tmp_path: Path) -> None:
    if sys.platform != "linux":
        return  # where what is resident can neither be read from /proc nor given back by madvise
    # 16 variables of 4 MiB: copies and one variable more are 1.06 times the file, all of it mapped too is 2.
    tfw.write_checkpoint(tmp_path / "m", {f"v{i}": np.full(2**20, i, np.float32) for i in range(16)})
    program = """
import sys
from pathlib import Path
from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint
def memory(kind):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
before = memory("VmRSS")
checkpoint = TensorFlowCheckpoint(sys.argv[1])
copies = {name: checkpoint[name].copy() for name in checkpoint}
print((memory("VmHWM") - before) / sum(copy.nbytes for copy in copies.values()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.3
