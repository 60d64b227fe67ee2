"""torch.save's files: what went in comes out, as `torch.load` gives it."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.weights.containers.pickled import UnsafePickleError, load_pickled

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
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: Any, path: Path, *, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.stride() == b.stride() or not a.numel()
        assert bits(a) == bits(b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any type and rank; some are views with an offset, a step or exchanged axes."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
    if shape and draw(st.booleans()):
        axis = draw(st.integers(0, len(shape) - 1))
        tensor = tensor.transpose(axis, 0)
    if shape and draw(st.booleans()):
        tensor = tensor[draw(st.integers(0, 2)) :: draw(st.integers(1, 2))]
    return tensor


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
)
KEYS = st.one_of(st.text(max_size=8), st.integers(-(2**40), 2**40))
VALUES = st.recursive(
    PLAIN | tensors(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


@settings(max_examples=80)
@given(value=VALUES, zipped=st.booleans(), protocol=st.integers(2, 5))
def test_round_trip(tmp_path_factory, value: Any, zipped: bool, protocol: int) -> None:
    path = tmp_path_factory.mktemp("round_trip") / "x.pt"
    save(value, path, zipped=zipped, protocol=protocol)
    assert_same(load_pickled(path), value)


@FORMS
def test_nanogpt_checkpoint(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    wte, head = torch.nn.Embedding(11, 4), torch.nn.Linear(4, 11, bias=False)
    wte.weight = head.weight
    model = torch.nn.ModuleDict({"wte": wte, "lm_head": head, "ln": torch.nn.LayerNorm(4)})
    optimizer = torch.optim.AdamW(model.parameters())
    head(model["ln"](wte(torch.tensor([1, 2])))).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 2, "block_size": 8, "bias": False, "vocab_size": None, "dropout": 0.0},
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True},
    }
    path = save(checkpoint, tmp_path / "ckpt.pt", zipped=zipped)
    loaded = load_pickled(path)
    assert_same(loaded, torch.load(path, weights_only=True))
    tied = loaded["model"]["wte.weight"], loaded["model"]["lm_head.weight"]
    assert tied[0].data_ptr() == tied[1].data_ptr()


@FORMS
def test_half_precision_state_dict_of_parameters(tmp_path: Path, zipped: bool) -> None:
    parameters = OrderedDict(w=torch.nn.Parameter(torch.randn(3, 2).bfloat16()), b=torch.ones(2).half())
    loaded = load_pickled(save(parameters, tmp_path / "x.pth", zipped=zipped))
    assert type(loaded["w"]) is torch.Tensor
    assert not loaded["w"].requires_grad
    assert bits(loaded["w"]) == bits(parameters["w"].detach())
    assert loaded["b"].dtype == torch.float16


@FORMS
def test_shared_memory_is_shared_and_writing_does_not_reach_the_file(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    path = save({"whole": whole, "column": whole[:, 1], "same": whole}, tmp_path / "x.pt", zipped=zipped)
    before = path.read_bytes()
    loaded = load_pickled(path)
    loaded["whole"].fill_(7)
    assert loaded["column"].tolist() == [7, 7, 7]
    assert loaded["same"] is loaded["whole"]
    assert path.read_bytes() == before
    assert load_pickled(path)["column"].tolist() == [1, 5, 9]


def test_sizes_and_dtypes(tmp_path: Path) -> None:
    value = {"size": torch.Size([2, 3]), "dtype": torch.bfloat16}
    assert load_pickled(save(value, tmp_path / "x.pt")) == {"size": (2, 3), "dtype": torch.bfloat16}


def test_file_without_checksums(tmp_path: Path) -> None:
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(torch.arange(5), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert load_pickled(path).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"device": torch.device("cpu")}, "torch.device"),
        ({"path": Path("x")}, "pathlib.P"),
        ({"z": torch.ones(1, dtype=torch.complex64)}, "torch.ComplexFloatStorage"),
        ({"s": torch.ones(3).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
        ({"tags": {1, 2}}, "__builtin__.set"),
    ],
)
def test_other_objects_are_named(tmp_path: Path, value: Any, name: str) -> None:
    path = save(value, tmp_path / "x.pt")
    with pytest.raises(UnsafePickleError, match=rf"^\S+x\.pt: refused: the pickle asks for '{name}") as error:
        load_pickled(path)
    assert "\n" not in str(error.value)


def test_a_stretched_tensor_is_refused(tmp_path: Path) -> None:
    path = save(torch.ones(1).expand(10**6), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="1000000 elements in a storage of 1; save a clone"):
        load_pickled(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content in (b"", b"P", b"PK\3\4", b"not a checkpoint at all", b"\x80", b"\x80\x02", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pt: "):
            load_pickled(path)
    with pytest.raises(FileNotFoundError):
        load_pickled(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        load_pickled(tmp_path)


def test_dropping_tensors_gives_memory_back(tmp_path: Path) -> None:
    if sys.platform != "linux":
        return  # where what is resident cannot be read from /proc
    save({f"v{i}": torch.full([2**20], float(i)) for i in range(16)}, tmp_path / "x.pt")
    program = """
import sys
from pathlib import Path
from glassgpt.weights.containers.pickled import load_pickled
def memory(kind):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
before = memory("VmRSS")
tensors = load_pickled(sys.argv[1])
loaded = memory("VmRSS") - before
copies = {name: tensors.pop(name).clone() for name in list(tensors)}
size = sum(copy.nbytes for copy in copies.values())
print(loaded / size, (memory("VmHWM") - before) / size)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.pt")], capture_output=True, text=True, check=True
    )
    loaded, peak = map(float, done.stdout.split())
    assert loaded < 0.2  # verified, but not resident
    assert peak < 1.3
