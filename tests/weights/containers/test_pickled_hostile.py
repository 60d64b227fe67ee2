"""Hostile pickles: nothing runs, nothing fills the memory, nothing is read from where it should not be."""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt.weights.containers.pickled import UnsafePickleError, load_pickled

MAGIC, VERSION, MACHINE = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}


def plain(value: Any) -> bytes:
    """The instructions that make a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def storage(key: Any = "0", numel: Any = 4, kind: bytes = b"torch\nFloatStorage") -> bytes:
    return b"(" + plain("storage") + b"c" + kind + b"\n" + plain(key) + plain("cpu") + plain(numel) + b"tQ"


def tensor(
    shape: Any = (4,),
    stride: Any = (1,),
    offset: Any = 0,
    memory: bytes | None = None,
    dtype: bytes | None = None,
) -> bytes:
    function = b"_rebuild_tensor_v3" if dtype else b"_rebuild_tensor_v2"
    args = plain(offset) + plain(shape) + plain(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n" + function + b"\n(" + (memory or storage()) + args + (dtype or b"") + b"tR"


def write_zip(path: Path, body: bytes, data: bytes = bytes(16), **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/data/0", data)
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def write_legacy(path: Path, body: bytes, keys: Any = ("0",), data: bytes | None = None) -> Path:
    if data is None:
        data = struct.pack("<q", 4) + bytes(16)
    if b"Q" not in body:
        keys, data = (), b""
    parts = [pickle.dumps(part, 2) for part in (MAGIC, VERSION, MACHINE)]
    parts += [b"\x80\x02" + body + b".", pickle.dumps(list(keys), 2), data]
    path.write_bytes(b"".join(parts))
    return path


Writer = Callable[[Path, bytes], Path]
FORMS = pytest.mark.parametrize("write", [write_zip, write_legacy], ids=["zip", "legacy"])


class Touch:
    """Unpickled the ordinary way, this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class TouchWhenBuilt:
    """Unpickled the ordinary way, this makes a file when its state is set."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


def test_the_helpers_of_these_tests_write_files_that_load(tmp_path: Path) -> None:
    assert load_pickled(write_legacy(tmp_path / "x.pt", tensor())).tolist() == [0, 0, 0, 0]
    path = write_zip(tmp_path / "x.pt", tensor(), **{"archive/version": b"3\n"})
    assert load_pickled(path).tolist() == [0, 0, 0, 0]
    assert torch.load(path, weights_only=True).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", [Touch, TouchWhenBuilt])
def test_objects_that_run_code_when_unpickled(tmp_path: Path, kind, protocol: int, zipped: bool) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(kind(marker)))
    assert marker.exists()  # the attack works on the one who unpickles
    marker.unlink()
    for value in (
        kind(marker),
        {"model": {"wte.weight": torch.ones(2), "config": [1, (kind(marker),)]}},
        [torch.ones(1), kind(marker)],
    ):
        path = tmp_path / "x.pt"
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafePickleError, match="refused: ") as error:
            load_pickled(path)
        assert "\n" not in str(error.value)
    assert not marker.exists()


SHELL = b"X\x05\x00\x00\x00touch"  # replaced by a command with the marker's path


@FORMS
@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b"cos\nsystem\nSHELL\x85R", r"'os\.system'"),
        (b"cos\nsystem\n", r"'os\.system'"),
        (b"cposix\nsystem\nSHELL\x85R", r"'posix\.system'"),
        (b"c__builtin__\neval\nSHELL\x85R", r"'__builtin__\.eval'"),
        (b"cbuiltins\nexec\nSHELL\x85R", r"'builtins\.exec'"),
        (b"c__builtin__\ngetattr\n", r"'__builtin__\.getattr'"),
        (b"csubprocess\nPopen\nSHELL\x85R", r"'subprocess\.Popen'"),
        (b"ctorch\nload\n", r"'torch\.load'"),
        (b"ctorch.hub\nload\n", r"'torch\.hub\.load'"),
        (b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n", "'torch._utils._rebuild_device"),
        (b"ctorch\nos.system\n", r"'torch\.os\.system'"),
        (b"ctorch\n_utils._rebuild_tensor_v2.__globals__\n", r"__globals__"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", r"'numpy\.core"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93SHELL\x85R", r"'os\.system'"),
        (b"(SHELLios\nsystem\n", "instruction INST"),
        (b"(cos\nsystem\nSHELLo", r"'os\.system'"),
        (b"(ccollections\nOrderedDict\nSHELLo", "instruction OBJ"),
        (b"ccollections\nOrderedDict\n)\x81", "instruction NEWOBJ"),
        (b"ccollections\nOrderedDict\n)}\x92", "instruction NEWOBJ_EX"),
        (b"\x82\x01", "instruction EXT1"),
        (b"\x83\x01\x00", "instruction EXT2"),
        (b"\x84\x01\x00\x00\x00", "instruction EXT4"),
        (b"Pwhatever\n", "instruction PERSID"),
        (b"}}b", "sets the state of an object"),
        (b"ccollections\nOrderedDict\n}b", "sets the state of an object"),
        (b"ccollections\nOrderedDict\n)R)b", "sets the state of an object"),
        (b"ctorch\nFloatStorage\nM\x01\x00\x85R", "calls something"),
        (b"X\x06\x00\x00\x00system)R", "calls something"),
        (b"}q\x00)R", "calls something"),
        (b"ctorch\nFloatStorage\n", "holds a bare name"),
        (storage(), "holds a bare storage"),
        (b"I1\n", "instruction INT"),
        (b"L1\n", "instruction LONG"),
        (b"F1\n", "instruction FLOAT"),
        (b"S'a'\n", "instruction STRING"),
        (b"K\x012", "instruction DUP"),
        (b"K\x010", "instruction POP"),
        (b"(1", "instruction POP_MARK"),
        (b"g0\n", "instruction GET"),
        (b"p0\n", "instruction PUT"),
        (b"(d", "instruction DICT"),
        (b"(l", "instruction LIST"),
        (b"\x8b\x04\x00\x00\x00\x01\x02\x03\x04", "instruction LONG4"),
        (b"\x8b\xff\xff\xff\x7f", "instruction LONG4"),
        (b"\x97", "instruction NEXT_BUFFER"),
        (b"\x8f", "instruction EMPTY_SET"),
    ],
)
def test_instructions_that_data_does_not_need(tmp_path: Path, write: Writer, body: bytes, refused: str) -> None:
    marker = tmp_path / "marker"
    body = body.replace(b"SHELL", plain(f"touch {marker}"))
    for program in (body, b"}X\x01\x00\x00\x00w" + body + b"s", b"](" + body + b"e"):
        with pytest.raises(UnsafePickleError, match=refused) as error:
            load_pickled(write(tmp_path / "x.pt", program))
        assert "\n" not in str(error.value)
    assert not marker.exists()


@FORMS
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"R", "takes more values"),
        (b"\x85", "takes more values"),
        (b"t", "a mark it has not set"),
        (b"(}u", "no dict where it needs one"),
        (b"}(K\x01u", "key without a value"),
        (b"h\x05", "recalls value 5"),
        (b"q\x05", "no object"),
        (b"K\x01K\x02a", "no list"),
        (b"\xff", "not an instruction"),
        (b"X\xff\xff\xff\xffabc", "expected 4294967295 bytes"),
        (b"\x8d" + b"\xff" * 7 + b"\x7f" + b"abc", "bytes in a unicodestring8"),
        (b"\x8e" + b"\xff" * 8 + b"abc", "bytes8"),
        (b"\x8a\xffabc", "not enough data"),
        (b"X\x02\x00\x00\x00\xff\xff", "codec can't decode"),
        (b"K\x01K\x02\x93", "a name that is not a string"),
        (b"]q\x00h\x00aq\x00K\x01\x93", "a name that is not a string"),
        (b"ccollections\nOrderedDict\nK\x01\x85R", "OrderedDict with arguments"),
        (b"ccollections\nOrderedDict\nK\x01R", "OrderedDict with arguments"),
        (b"ctorch\nSize\nK\x01R", "torch.Size with impossible"),
        (b"c_codecs\nencode\n" + plain(("a", "rot13")) + b"R", "bytes with impossible"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "tensor with impossible arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n)R", "tensor with impossible arguments"),
        (b"ctorch._utils\n_rebuild_parameter\n)R", "parameter with impossible arguments"),
        (b"K\x01Q", "description of a storage"),
        (b"(" + plain("storage") + b"K\x01K\x01K\x01K\x01tQ", "description of a storage"),
        (storage(numel=-1), "description of a storage"),
        (storage(numel="4"), "description of a storage"),
        (storage(key=0), "description of a storage"),
        (storage(kind=b"torch._utils\n_rebuild_tensor_v2"), "description of a storage"),
        (b"](" + storage() + storage(numel=5) + b"e", "two descriptions of storage"),
        (b"](" + storage() + storage(kind=b"torch\nIntStorage") + b"e", "two descriptions of storage"),
        (b"}((K\x01tK\x01u", "key of type tuple"),
        (b"}(" + b"]K\x01u", "key of type list"),
    ],
)
def test_programs_that_make_no_sense(tmp_path: Path, write: Writer, body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_pickled(write(tmp_path / "x.pt", body))
    assert "\n" not in str(error.value)


@FORMS
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor((5,)), "reads element 4 of a storage of 4"),
        (tensor((4,), offset=1), "reads element 4"),
        (tensor((2,), (4,)), "reads element 4"),
        (tensor((2, 2), (3, 1)), "reads element 4"),
        (tensor((1,), offset=2**70), "reads element"),
        (tensor((2**40, 2**40), (0, 0)), "save a clone"),
        (tensor((5,), (0,)), "save a clone"),
        (tensor((0, 2**60), (1, 1)), "an empty tensor with an impossible shape"),
        (tensor((4,), (1,), -1), "impossible shape, stride or offset"),
        (tensor((-4,)), "impossible shape"),
        (tensor((4,), (-1,)), "impossible shape"),
        (tensor((4,), (1, 1)), "impossible shape"),
        (tensor((1,) * 65, (1,) * 65), "impossible shape"),
        (tensor((4.0,)), "impossible shape"),
        (tensor((True,)), "impossible shape"),
        (tensor(((4,),)), "impossible shape"),
        (tensor([4]), "impossible arguments"),
        (tensor(offset="0"), "impossible arguments"),
        (tensor(memory=plain("0")), "impossible arguments"),
        (tensor(dtype=b"ctorch\nbool\n"), "impossible arguments"),  # its bytes would not be checked
        (tensor(dtype=b"K\x01"), "impossible arguments"),
    ],
)
def test_tensors_that_do_not_fit_their_memory(tmp_path: Path, write: Writer, body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pickled(write(tmp_path / "x.pt", body))


@pytest.mark.parametrize(
    "memory",
    [storage(numel=5), storage(numel=2**62), storage(numel=2**200), storage(key="1"), storage(key="../0")],
)
def test_storages_that_are_not_there(tmp_path: Path, memory: bytes) -> None:
    with pytest.raises(ValueError, match="is missing or has another size"):
        load_pickled(write_zip(tmp_path / "x.pt", tensor((1,), memory=memory)))


@pytest.mark.parametrize("numel", [5, 2**62, 2**200])
def test_legacy_storages_that_are_not_there(tmp_path: Path, numel: int) -> None:
    for claimed in (4, numel % 2**64):
        data = struct.pack("<Q", claimed) + bytes(16)
        path = write_legacy(tmp_path / "x.pt", tensor((1,), memory=storage(numel=numel)), data=data)
        with pytest.raises(ValueError, match="another size|are described"):
            load_pickled(path)


def test_legacy_storages_of_other_sizes(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "x.pt", tensor(), data=struct.pack("<q", 3) + bytes(16))
    with pytest.raises(ValueError, match="another size than described"):
        load_pickled(path)
    body = b"](" + storage(numel=2**62) + storage(key="1") + b"e"
    path = write_legacy(tmp_path / "x.pt", body, ["0", "1"], struct.pack("<q", 2**62) + bytes(16))
    with pytest.raises(ValueError, match="bytes where more than"):
        load_pickled(path)


@pytest.mark.parametrize("keys", [[], ["1"], ["0", "0"], ["0", "1"], [0], {"0": 1}, 7])
def test_legacy_order_of_storages(tmp_path: Path, keys: Any) -> None:
    path = tmp_path / "x.pt"
    parts = [pickle.dumps(part, 2) for part in (MAGIC, VERSION, MACHINE)]
    parts += [b"\x80\x02" + tensor() + b".", pickle.dumps(keys, 2), struct.pack("<q", 4), bytes(16)]
    path.write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match="damaged: the"):
        load_pickled(path)


def test_legacy_of_other_versions_and_machines(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for head in (
        (MAGIC + 1, VERSION, MACHINE),
        (MAGIC, 1000, MACHINE),
        (MAGIC, VERSION, {}),
        (MAGIC, VERSION, 3),
    ):
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (*head, {}, [])))
        with pytest.raises(ValueError, match="not a file of torch.save|unknown version"):
            load_pickled(path)


@FORMS
def test_bombs(tmp_path: Path, write: Writer) -> None:
    laughs = b"]q\x00" + b"".join(b"](" + b"h%c" % i * 9 + b"eq%c" % (i + 1) for i in range(30))
    for body, message in [
        (b"]" * 50_000 + b"a" * 49_999, "nested deeper than 32"),
        (b")" + b"\x85" * 50_000, "nested deeper than 32"),
        (laughs, "more than 500000 values"),  # ten to the thirtieth lists in 700 bytes
        (b"]q\x00h\x00a", "nested deeper than 32"),  # a list that holds itself
        (b"N" * 600_000, "more than 500000 pickle instructions"),
        (b"X\x00\x00\x00\x01" + b"a" * 2**24, "expected 16777216 bytes|more than the 16777216 allowed"),
        # A key that is hashed in 2**60 steps.
        (b"}q\x01)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"h\x01h\x00Ns", "key of type tuple"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_pickled(write(tmp_path / "x.pt", body))


def test_one_claim_makes_one_tensor(tmp_path: Path) -> None:
    # Else two bytes of file could take a kilobyte of memory.
    body = tensor() + b"q\x00](" + b"h\x00" * 1000 + b"e\x86"
    _, (first, *rest) = load_pickled(write_zip(tmp_path / "x.pt", body))
    assert all(tensor is first for tensor in rest)


@FORMS
def test_booleans_are_zero_or_one(tmp_path: Path, write: Callable[..., Path]) -> None:
    body = tensor((2,), memory=storage(numel=4, kind=b"torch\nBoolStorage"))
    data = b"\0\1\2\1" if write is write_zip else struct.pack("<q", 4) + b"\0\1\2\1"
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        load_pickled(write(tmp_path / "x.pt", body, data=data))


# Zip archives.


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + tensor(memory=storage(numel=2**24)) + b".")
        archive.writestr("archive/data/0", bytes(2**26))
    with pytest.raises(ValueError, match=r"'archive/data\.pkl' is compressed"):
        load_pickled(path)


@pytest.mark.parametrize(
    "name", ["../../evil", "archive/../evil", "/etc/evil", "archive\\evil", "archive/data/..", "archive/\x01"]
)
def test_path_tricks_in_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a name that torch.save never gives|name is not one"):
        load_pickled(write_zip(tmp_path / "x.pt", tensor(), **{name: b"x"}))
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pt"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_ambiguous_archives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is there twice"):
        load_pickled(write_zip(tmp_path / "x.pt", tensor(), **{"archive/data.pkl": b"N."}))
    with pytest.raises(ValueError, match=r"it has 2 data\.pkl"):
        load_pickled(write_zip(tmp_path / "x.pt", tensor(), **{"other/data.pkl": b"N."}))
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("archive/other", b"")
    with pytest.raises(ValueError, match=r"it has 0 data\.pkl"):
        load_pickled(tmp_path / "y.pt")


def test_big_endian_archive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="big-endian"):
        load_pickled(write_zip(tmp_path / "x.pt", tensor(), **{"archive/byteorder": b"big"}))


def patch(data: bytes, entry: int, position: int, form: str, *numbers: int) -> bytes:
    """Write numbers over those of a directory entry, given by its rank."""
    start = -1
    for _ in range(entry + 1):
        start = data.index(b"PK\1\2", start + 1)
    altered = bytearray(data)
    struct.pack_into(form, altered, start + position, *numbers)
    return bytes(altered)


def test_overlapping_entries(tmp_path: Path) -> None:
    # An entry inside the content of another: how a small zip claims to hold petabytes.
    inner = struct.pack("<4s22x2H", b"PK\3\4", 14, 0) + b"archive/data/1" + bytes(16)
    body = tensor(memory=storage(numel=len(inner) // 4))
    path = write_zip(tmp_path / "x.pt", body, inner, **{"archive/data/1": bytes(16)})
    data = path.read_bytes()
    path.write_bytes(patch(data, 2, 42, "<I", data.index(inner)))
    with pytest.raises(ValueError, match="zip entries overlap or lie outside"):
        load_pickled(path)


def test_entries_that_are_not_what_the_directory_says(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", tensor())
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    for altered, message in [
        (patch(data, 1, 20, "<2I", 10**6, 10**6), "overlap or lie outside"),
        (patch(data, 1, 20, "<I", 15), "is compressed or encrypted"),
        (patch(data, 1, 10, "<H", 8), "is compressed or encrypted"),
        (patch(data, 1, 8, "<H", 1), "is compressed or encrypted"),
        (patch(data, 1, 42, "<I", 1), "damaged or cut short"),
        (patch(data, 1, 42, "<I", 2**32 - 2), "damaged or cut short"),
        (patch(data, 0, 42, "<I", data.index(b"PK\3\4", 1)), "damaged or cut short"),  # another name there
        (data[: end + 10] + b"\1\0" + data[end + 12 :], "damaged or cut short"),  # one entry instead of two
        (data[: end + 10] + b"\xff\xff" + data[end + 12 :], "damaged or cut short"),
        (data[:end] + b"gap" + data[end:], "damaged or cut short"),
        (b"junk" + data, "not a file of torch.save"),
        (data[:4] + b"junk" + data[4:], "damaged or cut short"),
        (data + b"junk", "damaged or cut short"),
    ]:
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=message):
            load_pickled(path)


def test_numbers_that_point_nowhere(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", tensor())
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 2**64 - 1, 1)
    path.write_bytes(data[:end] + locator + data[end:])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_pickled(path)


def test_numbers_of_64_bits(tmp_path: Path) -> None:
    # As in an archive of more than 4 GB: the directory says 0xffffffff and an extra field the number.
    path = write_zip(tmp_path / "x.pt", tensor())
    data = path.read_bytes()
    directory, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    entries = b""
    for entry in data[directory:end].split(b"PK\1\2")[1:]:
        header, name = bytearray(b"PK\1\2" + entry[:42]), entry[42:]
        stored, size = struct.unpack("<2I", header[20:28])
        (start,) = struct.unpack("<I", header[42:46])
        extra = struct.pack("<2H2H3Q", 99, 0, 1, 24, size, stored, start)
        header[20:28], header[30:32], header[42:46] = b"\xff" * 8, struct.pack("<H", len(extra)), b"\xff" * 4
        entries += header + name + extra
    wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(entries), directory)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, directory + len(entries), 1)
    path.write_bytes(data[:directory] + entries + wide + locator + data[end:])
    assert load_pickled(path).tolist() == [0, 0, 0, 0]


def test_every_cut_is_refused(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = tmp_path / "x.pt"
        torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        for size in range(len(data)):
            path.unlink()  # several times quicker than writing over it
            path.write_bytes(data[:size])
            with pytest.raises(ValueError, match=r"x\.pt: "):
                load_pickled(path)


def test_every_changed_byte_of_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = [(info, archive.read(info)) for info in archive.infolist()]
    for info, content in places:
        if not info.filename.endswith(("data.pkl", "data/0", "byteorder")):
            continue  # versions and identifiers, which are not read
        assert zlib.crc32(content) == info.CRC
        start = data.index(content, info.header_offset)
        for position in range(start, start + len(content)):
            altered = bytearray(data)
            altered[position] ^= 1 << position % 8
            path.write_bytes(altered)
            with pytest.raises(ValueError, match="wrong checksum|big-endian"):
                load_pickled(path)
