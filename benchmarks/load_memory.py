"""What loading a model costs: peak memory against the size of its file, and seconds.

    python benchmarks/load_memory.py [--preset gpt2-xl] [--form huggingface|pth|openai]

Makes a model of random numbers in a temporary directory (gpt2-xl: 6.2 GB), loads it in a fresh process, prints one line
of JSON, and deletes it. `ratio` is the growth of the peak resident memory since Python and PyTorch were there, to the
size of the weights on the disk; `total_ratio` counts Python and PyTorch in.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from glassgpt import GPTConfig, GPTModel, Tokenizer
from glassgpt.config import PRESETS
from glassgpt.weights.families.config_json import to_config_json
from glassgpt.weights.families.gpt2_names import to_gpt2_names

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "weights"))
import tensorflow_writer as tf

FORMS = ("huggingface", "pth", "openai")
SHARD_BYTES = 2**29
LOAD = """
import json, pathlib, re, resource, sys, time

def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage tells there counts in the process that started this one
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

import torch, glassgpt
path, tokenizer, n_heads = sys.argv[1:]
tokenizer = glassgpt.Tokenizer.load(tokenizer)
with torch.device("meta"):  # PyTorch loads more of itself for this
    glassgpt.GPTModel(glassgpt.PRESETS["nano"])
before, started = peak(), time.perf_counter()
model, _ = glassgpt.load_model(path, tokenizer=tokenizer, n_heads=int(n_heads))
print(json.dumps({"seconds": round(time.perf_counter() - started, 1), "before": before, "peak": peak(),
                  "parameters": sum(p.numel() for p in model.parameters())}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="gpt2-xl", help="default: %(default)s")
    parser.add_argument("--form", choices=FORMS, default="huggingface", help="default: %(default)s")
    parser.add_argument("--dir", type=Path, help="where to make the temporary directory")
    arguments = parser.parse_args()
    config = PRESETS[arguments.preset].replace(qkv_bias=True, tie_embeddings=True)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        free, needed = shutil.disk_usage(directory).free, 4 * config.n_parameters()
        if free < 1.1 * needed:
            print(f"{directory}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} needed", file=sys.stderr)
            return 1
        result = measure(config, arguments.form, Path(directory))
    print(json.dumps({"preset": arguments.preset, "form": arguments.form, **result}))
    return 0


def measure(config: GPTConfig, form: str, directory: Path) -> dict[str, float]:
    """Write a model of random numbers into `directory`, and load it in a fresh process."""
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir()
    Tokenizer.bytes_().save(tokenizer)
    model = directory / "model"
    model.mkdir()
    path = {"huggingface": write_huggingface, "pth": write_pth, "openai": write_openai}[form](config, model)
    size = sum(file.stat().st_size for file in model.iterdir() if file.stat().st_size > 2**20)
    command = [sys.executable, "-c", LOAD, str(path), str(tokenizer), str(config.n_heads)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    found = json.loads(answer.splitlines()[-1])
    assert found["parameters"] == config.n_parameters()
    return {
        "file_bytes": size,
        "peak_bytes": found["peak"],
        "ratio": round((found["peak"] - found["before"]) / size, 3),
        "total_ratio": round(found["peak"] / size, 3),
        "seconds": found["seconds"],
    }


def write_huggingface(config: GPTConfig, directory: Path) -> Path:
    """A sharded Hugging Face directory; never more than one shard in memory."""
    (directory / "config.json").write_text(json.dumps(to_config_json(config)), encoding="utf-8")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, shape in tensors_of(config):
        if sum(4 * math.prod(s) for _, s in [*shards[-1], (name, shape)]) > SHARD_BYTES and shards[-1]:
            shards.append([])
        shards[-1].append((name, shape))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: random(shape) for name, shape in shard}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys((name for name, _ in shard), file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def write_pth(config: GPTConfig, directory: Path) -> Path:
    """The book's state dict, its head tied; the weights are in memory once."""
    with torch.device("meta"):
        state = OrderedDict((name, t.shape) for name, t in GPTModel(config).state_dict().items())
    tensors = OrderedDict((name, random(shape)) for name, shape in state.items() if name != "out_head.weight")
    tensors["out_head.weight"] = tensors["tok_emb.weight"]
    torch.save(tensors, directory / "model.pth")
    return directory / "model.pth"


def write_openai(config: GPTConfig, directory: Path) -> Path:
    """OpenAI's TensorFlow checkpoint, written tensor by tensor."""
    pairs = {b"": tf.header()}
    end = 0
    with (directory / "model.ckpt.data-00000-of-00001").open("wb") as file:
        for name, shape in tensors_of(config):
            data = random(shape).numpy().tobytes()
            *place, last = name.removeprefix("transformer.").replace("h.", "h", 1).split(".")
            if place[0] not in ("wte", "wpe"):
                place.append("b" if last == "bias" else "g" if len(shape) == 1 else "w")
                shape = (1, *shape) if len(shape) == 2 else shape  # a convolution over one place
            variable = "/".join(["model", *place])
            pairs[variable.encode()] = tf.entry(data, shape=shape, offset=end)
            end += file.write(data)
    (directory / "model.ckpt.index").write_bytes(tf.table(pairs, pairs_per_block=20))
    values = {"n_vocab": config.vocab_size, "n_ctx": config.context_length, "n_embd": config.emb_dim}
    values |= {"n_head": config.n_heads, "n_layer": config.n_layers}
    (directory / "hparams.json").write_text(json.dumps(values), encoding="utf-8")
    return directory


def tensors_of(config: GPTConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes as on Hugging Face."""
    with torch.device("meta"):
        tensors = to_gpt2_names(GPTModel(config).state_dict(), config)
    return [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]


def random(shape: tuple[int, ...]) -> Tensor:
    """Small numbers, a block of a million of them again and again: only their count matters here."""
    n = math.prod(shape)
    block = torch.randn(min(n, 2**20)) * 0.02
    return block.repeat(-(-n // len(block)))[:n].reshape(shape).clone()


if __name__ == "__main__":
    sys.exit(main())
