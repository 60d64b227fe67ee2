"""Feed damaged weights files to the readers: ``python tests/fuzz_weights.py --seconds 60 --seed 0``.

Each case takes a valid or hostile file, changes it (bytes flipped, cut, inserted, moved, numbers replaced by
extreme ones, and often with checksums made right again, so that what lies behind them is reached), loads it
and touches everything loaded. Allowed are success, and ``ValueError`` or ``OSError`` with one line, in a few
seconds and a bounded amount of memory; no file may come into existence. Anything else ends the run with exit
code 1 and the command that repeats the case.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent / "weights"))
import tensorflow_writer as tfw

from glassgpt.json_file import read_json
from glassgpt.weights.containers.pickled import load_pickled
from glassgpt.weights.containers.safetensors_file import INDEX_NAME, SafetensorsWeights
from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint, _read_table

SECONDS_PER_CASE = 5
MEMORY_BYTES = 2**30  # of address space, beyond what the process has when it starts to fuzz
EXTREMES = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
]
Files = dict[str, bytes]


class CaseFailedError(Exception):
    """A reader did what it must not do."""


@dataclass
class Format:
    """What to change and how to load it; `change_inside` changes what checksums cover, and mends these."""

    samples: list[Files]
    load: Callable[[Path], None]
    change_inside: Callable[[Files, random.Random], Files] | None = None


# TensorFlow.


def tensorflow_format(folder: Path) -> Format:
    rng = np.random.default_rng(0)
    tensors = {f"model/h{i}/attn/c_attn/w": rng.normal(size=(1, 3, 4)).astype(np.float32) for i in range(4)}
    tensors |= {"model/wte": rng.normal(size=(5, 2)).astype(np.float16), "step": np.array(7)}
    tensors |= {"bf": np.arange(4, dtype=np.uint16), "flags": np.array([True, False])}
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    tfw.write_checkpoint(folder / "one" / "m", tensors)
    tfw.write_checkpoint(folder / "two" / "m", tensors, num_shards=2, alignment=16, pairs_per_block=3)
    (folder / "two" / "checkpoint").write_text('model_checkpoint_path: "m"\n', encoding="utf-8")
    return Format([read_files(folder / "one"), read_files(folder / "two")], load_tensorflow, change_index)


def load_tensorflow(folder: Path) -> None:
    checkpoint = TensorFlowCheckpoint(folder)
    for name in checkpoint:
        checkpoint[name].sum()


def change_index(files: Files, rng: random.Random) -> Files:
    pairs = _read_table(files["m.index"])
    spoil: Callable[[bytes], bytes] = bytes
    if rng.random() < 0.3:
        spoil = lambda block: change(block, rng) if rng.random() < 0.3 else block  # noqa: E731
    else:
        key = rng.choice(sorted(pairs))
        if rng.random() < 0.8:
            pairs[key] = change(pairs[key], rng)
        else:
            pairs[change(key, rng)] = pairs.pop(key)
    index = tfw.table(pairs, pairs_per_block=rng.choice([1, 3, 100]), spoil=spoil)
    return files | {"m.index": index}


# PyTorch's pickles.


class Touch:
    """A hostile sample: unpickled the ordinary way, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled_format(folder: Path) -> Format:
    weight = torch.arange(12.0).reshape(3, 4)
    checkpoint = {
        "model": torch.nn.Linear(2, 3).state_dict(),
        "views": [weight, weight.T, weight[1:, ::2]],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "others": (torch.ones(2, dtype=torch.uint16), torch.tensor([True, False]), torch.tensor(1)),
        "config": {"n_layer": 2, "dropout": 0.1, "bias": False, "none": None, "bytes": b"abc", "big": 2**70},
    }
    hostile = {"model": Touch(folder.parent / "marker")}
    for number, (value, protocol, zipped) in enumerate(
        [(checkpoint, 2, True), (checkpoint, 2, False), (checkpoint, 4, True), (checkpoint, 4, False)]
        + [(hostile, 2, True), (hostile, 4, False)]
    ):
        (folder / str(number)).mkdir()
        path = folder / str(number) / "x.pt"
        torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return Format([read_files(path) for path in sorted(folder.iterdir())], load_pickle, change_zip_entry)


def load_pickle(folder: Path) -> None:
    todo = [load_pickled(folder / "x.pt")]
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            value.clone()
        elif isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            todo += value
        elif not isinstance(value, str | bytes | int | float | torch.dtype | None):
            raise TypeError(f"{type(value)} is not plain data")


def change_zip_entry(files: Files, rng: random.Random) -> Files:
    if not zipfile.is_zipfile(BytesIO(files["x.pt"])):
        return {"x.pt": change(files["x.pt"], rng)}  # the older form has no checksums
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(files["x.pt"])) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl"):
                content = change(content, rng)
            new.writestr(info.filename, content)
    return {"x.pt": out.getvalue()}


# Safetensors and JSON.


def safetensors_format(folder: Path) -> Format:
    tensors = {"wte": torch.randn(4, 3), "h": torch.ones(2, dtype=torch.bfloat16), "m": torch.tensor([True])}
    for name in ("one", "two"):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    save_file({"wpe": torch.randn(5)}, folder / "two" / "other.safetensors")
    names = dict.fromkeys(tensors, "model.safetensors") | {"wpe": "other.safetensors"}
    index = json.dumps({"metadata": {"total_size": 73}, "weight_map": names})
    (folder / "two" / INDEX_NAME).write_text(index, encoding="utf-8")
    return Format([read_files(folder / "one"), read_files(folder / "two")], load_safetensors)


def load_safetensors(folder: Path) -> None:
    for tensor in SafetensorsWeights(folder).values():
        tensor.clone()


def json_format(folder: Path) -> Format:
    config = {"model_type": "gpt2", "n_embd": 768, "layer_norm_epsilon": 1e-05, "tags": ["é", None, True, {}]}
    texts = [
        json.dumps(config, indent=2),
        json.dumps(config, ensure_ascii=False),
        '{"a":' * 60 + "[]" + "}" * 60,
    ]
    return Format([{"config.json": text.encode()} for text in texts], load_json)


def load_json(folder: Path) -> None:
    repr(read_json(folder / "config.json"))


FORMATS = {
    "tensorflow": tensorflow_format,
    "pickled": pickled_format,
    "safetensors": safetensors_format,
    "json": json_format,
}


# The fuzzer.


def read_files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def change(data: bytes, rng: random.Random) -> bytes:
    """Change bytes in one to three ways."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        position = rng.randrange(len(out) + 1)
        length = rng.choice([1, 1, 2, 4, 8, rng.randrange(1, 64)])
        match rng.randrange(8):
            case 0 if position < len(out):
                out[position] ^= 1 << rng.randrange(8)
            case 1 if position < len(out):
                out[position] = rng.randrange(256)
            case 2:
                del out[position:]
            case 3:
                del out[position : position + length]
            case 4:
                out[position:position] = rng.randbytes(length)
            case 5:
                source = rng.randrange(len(out) + 1)
                out[position : position + rng.choice([0, length])] = out[source : source + length]
            case 6:
                size = rng.choice([1, 2, 4, 8])
                number = (rng.choice(EXTREMES) + rng.randrange(-2, 3)) % 2 ** (8 * size)
                out[position : position + size] = number.to_bytes(size, "little")
            case 7:
                out[position : position + length] = bytes([rng.choice(b'\0\xff[{"9}]')]) * length
    return bytes(out)


def run_case(format: Format, rng: random.Random, folder: Path) -> str:
    """Run one case in an empty ``folder``; return what came of it, or raise `CaseFailedError`."""
    files = rng.choice(format.samples)
    if format.change_inside and rng.random() < 0.5:
        files = format.change_inside(files, rng)
    else:
        name = rng.choice(sorted(files))
        files = files | {name: change(files[name], rng)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    # A hang in C code never comes back to the handler of the signal; then the whole run is stopped.
    faulthandler.dump_traceback_later(6 * SECONDS_PER_CASE, exit=True)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_CASE)
    try:
        format.load(folder)
        outcome = "loaded"
    except (ValueError, OSError) as error:
        outcome = type(error).__name__
        if len(str(error).splitlines()) != 1:
            raise CaseFailedError(f"the message is not one line: {error!r}") from error
    except BaseException as error:
        raise CaseFailedError(f"{type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    found = {path.name for path in folder.iterdir()}
    if found != files.keys() or (folder.parent / "marker").exists():
        raise CaseFailedError(f"a file came into existence beside {sorted(files)}")
    for path in folder.iterdir():
        path.unlink()
    return outcome


def stop_hung_case(*_: object) -> None:
    raise RuntimeError(f"more than {SECONDS_PER_CASE} seconds")


def limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0, help="go on for at least so long (default 0)")
    parser.add_argument("--cases", type=int, default=10_000, help="cases of each format, at least (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one (default 0)")
    parser.add_argument("--format", choices=[*FORMATS, "all"], default="all")
    options = parser.parse_args(arguments)
    names = list(FORMATS) if options.format == "all" else [options.format]
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, stop_hung_case)
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in names}
    slowest = dict.fromkeys(names, 0.0)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "case"
        folder.mkdir()
        formats = {}
        for name in names:
            (Path(directory) / name).mkdir()
            formats[name] = FORMATS[name](Path(directory) / name)
            run_case(formats[name], random.Random(0), folder)  # so that all is imported before memory is limited
        limit_memory()
        number = options.first
        while number < options.first + options.cases or time.monotonic() < start + options.seconds:
            for name in names:
                began = time.monotonic()
                try:
                    outcome = run_case(formats[name], random.Random(f"{options.seed} {name} {number}"), folder)
                except CaseFailedError as error:
                    print(f"FAILED {name}: {error}")
                    print(f"again: --format {name} --seed {options.seed} --first {number} --cases 1")
                    return 1
                outcomes[name][outcome] += 1
                slowest[name] = max(slowest[name], time.monotonic() - began)
            number += 1
    for name in names:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes[name].most_common())
        print(f"{name}: {outcomes[name].total()} cases ({counts}); slowest {slowest[name] * 1000:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
