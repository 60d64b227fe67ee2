"""Safetensors: what the library writes comes back, what it would refuse is refused, shards stay at home."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from glassgpt.weights.containers.safetensors_file import INDEX_NAME, SafetensorsWeights, resolve_shards

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: Any = (1,), begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A directory of two shards: a and b in the first, c in the second."""
    directory = tmp_path / "model"
    directory.mkdir()
    save_file({"a": torch.arange(3.0), "b": torch.ones(2, 2)}, directory / "model-00001-of-00002.safetensors")
    save_file({"c": torch.zeros(5)}, directory / "model-00002-of-00002.safetensors")
    index(directory, a=1, b=1, c=2)
    return directory


def index(directory: Path, **shards: int | str | None) -> None:
    names = {k: f"model-{v:05d}-of-00002.safetensors" if isinstance(v, int) else v for k, v in shards.items()}
    text = json.dumps({"metadata": {"total_size": 48}, "weight_map": names})
    (directory / INDEX_NAME).write_text(text, encoding="utf-8")


@settings(max_examples=60)
@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda s: s != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    )
)
def test_round_trip(tmp_path_factory, shapes) -> None:
    path = tmp_path_factory.mktemp("round_trip") / "model.safetensors"
    tensors = {name: (torch.rand(shape) * 9).to(dtype) for name, (dtype, shape) in shapes.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    for source in (path, path.parent):
        weights = SafetensorsWeights(source)
        assert weights.keys() == tensors.keys()
        for name, tensor in tensors.items():
            read = weights[name]
            assert weights.shape(name) == tuple(tensor.shape)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert read.is_contiguous()
            assert not read.numel() or torch.equal(
                read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
            )


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(4.0)}, path)
    weights = SafetensorsWeights(path)
    weights["w"].fill_(9)
    assert weights["w"].tolist() == [0, 1, 2, 3]


def test_numbers_at_odd_addresses(tmp_path: Path) -> None:
    text = json.dumps({"a": entry((2,), 0, 8)}).encode()
    for spaces in range(8):
        path = write(tmp_path / "x.safetensors", text + b" " * spaces, struct.pack("<2f", 1.5, -2))
        tensor = SafetensorsWeights(path)["a"]
        assert tensor.tolist() == [1.5, -2]
        assert tensor.data_ptr() % 4 == 0


HUGE = 2**63 - 1
BROKEN = [
    b"",
    b"[" * 100_000,
    b'{"a":' * 1000 + b"1" + b"}" * 1000,
    b"[]",
    b'{"a": ' + b"9" * 5000 + b"}",
    {"a": 1},
    {"a": {"dtype": "F32", "shape": [1]}},
    {"a": entry(begin="0")},
    {"a": entry(shape=4)},
    {"a": entry(dtype="F31")},
    {"a": entry(dtype=None)},
    {"a": entry((2,))},
    {"a": entry((HUGE, HUGE))},
    {"a": entry((0, HUGE), 0, 0)},
    {"a": entry((-1, -1))},
    {"a": entry((1.0,))},
    {"a": entry((True,))},
    {"a": entry(begin=4, end=8)},
    {"a": entry(begin=-4, end=0)},
    {"a": entry(), "b": entry()},
    {"a": entry(), "b": entry(begin=2, end=6)},
    {"a": entry((2,), 0, 8)},
    {},
    {"__metadata__": {"a": 1}, "a": entry()},
    {"__metadata__": [], "a": entry()},
]


@pytest.mark.parametrize("header", BROKEN, ids=[str(header)[:40] for header in BROKEN])
def test_broken_headers(tmp_path: Path, header: Any) -> None:
    path = write(tmp_path / "x.safetensors", header, bytes(4))
    with pytest.raises(ValueError, match=r"x\.safetensors: ") as error:
        _ = SafetensorsWeights(path)["a"]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 100_000_001, 9 * 2**20, 200])
def test_absurd_header_lengths(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry()}, bytes(4), length)
    if length == 9 * 2**20:
        path = write(tmp_path / "x.safetensors", b"{}" + b" " * length)  # inside the file, but too long
    with pytest.raises(ValueError, match=r"x\.safetensors: .*safetensors"):
        SafetensorsWeights(path)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int8)}, path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.unlink()
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"x\.safetensors: "):
            SafetensorsWeights(path)


@settings(max_examples=150)
@given(data=st.data())
def test_what_the_library_refuses_is_refused(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    header = {"a": entry((2, 3), 0, 24), "b": entry((5,), 24, 29, "I8"), "__metadata__": {"format": "pt"}}
    text = bytearray(json.dumps(header).encode())
    for _ in range(data.draw(st.integers(1, 2))):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position] = data.draw(st.sampled_from(b'0123456789{}[],:"- aFI\\') | st.integers(0, 255))
    write(path, bytes(text), bytes(range(29)))
    try:
        weights = {name: tensor.tolist() for name, tensor in SafetensorsWeights(path).items()}
    except ValueError:
        return
    try:
        with safe_open(path, framework="pt") as file:
            assert weights == {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        pytest.fail(f"the library refuses {bytes(text)!r}: {error}")


def test_booleans_are_zero_or_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry((4,), dtype="BOOL")}, b"\0\1\2\1")
    with pytest.raises(ValueError, match="tensor 'a' holds booleans that are neither 0 nor 1"):
        SafetensorsWeights(path)["a"]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        SafetensorsWeights(tmp_path)
    with pytest.raises(FileNotFoundError):
        SafetensorsWeights(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError):
        resolve_shards(tmp_path)


# Shards.


def test_shards(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))
    assert resolve_shards(sharded) == {"a": first, "b": first, "c": second}
    weights = SafetensorsWeights(sharded)
    assert sorted(weights) == ["a", "b", "c"]
    assert weights["a"].tolist() == [0, 1, 2]
    assert weights["c"].tolist() == [0] * 5


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "..",
        ".",
        "",
        "/etc/passwd",
        "sub/model.safetensors",
        "..\\outside.safetensors",
        "C:model.safetensors",
        "a\0b",
        "a\nb",
    ],
)
def test_shard_names_that_lead_elsewhere(sharded: Path, name: str) -> None:
    save_file({"c": torch.zeros(5)}, sharded.parent / "outside.safetensors")
    index(sharded, a=1, b=1, c=name)
    with pytest.raises(ValueError, match="is not the name of a file in this directory") as error:
        resolve_shards(sharded)
    assert "\n" not in str(error.value)


def test_links_out_of_the_directory(sharded: Path) -> None:
    second = sharded / "model-00002-of-00002.safetensors"
    inside, outside = sharded / "inside", sharded.parent / "outside.safetensors"
    second.rename(inside)
    second.symlink_to("inside")
    assert resolve_shards(sharded)["c"] == second
    inside.rename(outside)
    second.unlink()
    second.symlink_to(outside)
    with pytest.raises(ValueError, match="is a link to .*outside.safetensors, out of this directory"):
        resolve_shards(sharded)


def test_links_of_the_hugging_face_cache(sharded: Path) -> None:
    snapshot = sharded.parent / "models--gpt2" / "snapshots" / "607a30d"
    blobs = snapshot.parent.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sharded.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
        path.rename(blobs / path.name)
    assert sorted(SafetensorsWeights(snapshot)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"a": 1, "b": 1, "c": 2, "d": 2}, "lacks tensor 'd'"),
        ({"a": 1, "b": 2, "c": 2}, "also holds tensor 'b'|lacks tensor 'b'"),
        ({"a": 1, "c": 2}, "also holds tensor 'b'"),
        ({"a": 1, "b": 1, "c": "gone.safetensors"}, "'gone.safetensors' is missing"),
        ({"a": 1, "b": 1, "c": None}, "tensor 'c' is not in a file but in a NoneType"),
        ({}, "'weight_map' has to be an object"),
    ],
)
def test_index_and_shards_have_to_agree(sharded: Path, shards: dict, message: str) -> None:
    index(sharded, **shards)
    with pytest.raises(ValueError, match=message):
        resolve_shards(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"c": torch.zeros(5), "a": torch.zeros(3)}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"00002\.safetensors: also holds tensor 'a'"):
        resolve_shards(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": ' + "[" * 10**5])
def test_broken_indexes(sharded: Path, content: str) -> None:
    (sharded / INDEX_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"index\.json: ") as error:
        SafetensorsWeights(sharded)
    assert "\n" not in str(error.value)


def test_copying_needs_no_second_copy(tmp_path: Path) -> None:
    if sys.platform != "linux":
        return  # where what is resident cannot be read from /proc
    save_file({f"v{i}": torch.full([2**20], float(i)) for i in range(16)}, tmp_path / "model.safetensors")
    program = """
import sys
from pathlib import Path
from glassgpt.weights.containers.safetensors_file import SafetensorsWeights
def memory(kind):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
before = memory("VmRSS")
weights = SafetensorsWeights(sys.argv[1])
copies = {name: weights[name].clone() for name in weights}
print((memory("VmHWM") - before) / sum(copy.nbytes for copy in copies.values()))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3
