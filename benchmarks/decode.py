"""Times decoding on a CPU: the decoders of glassgpt in each precision, and peers where they are installed.

    python benchmarks/decode.py [--rounds 5] [--threads N] [--work decode prefill batch first] [--only NAME ...]

One GPT-2 of 124M parameters with random weights (speed does not depend on them), in every contender's own format. All
take turns, each in a fresh process: medians of `--rounds`. Works: `decode`, 4 + 200 tokens of one row; `prefill`, 512
tokens; `batch`, 8 rows of 16 + 64 tokens; `first`, seconds that `glassgpt generate` takes for one token, its code and
files cached. Peers: transformers, ctranslate2 and llama_cpp.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

PROMPT, NEW = [15496, 11, 314, 716], 200
LONG = np.random.default_rng(0).integers(0, 50000, 512).tolist()
ROWS = [LONG[16 * i : 16 * i + 16] for i in range(8)]
OURS = ("cached", *(f"cpu {precision}" for precision in ("float32", "bfloat16", "int8", "int4")))
PEERS = {
    "transformers": ("transformers",),
    "ctranslate2": ("ctranslate2 float32", "ctranslate2 int8"),
    "llama_cpp": ("llama.cpp f32", "llama.cpp f16", "llama.cpp q8_0"),
}
WORKS = {"decode": NEW, "prefill": len(LONG), "batch": 8 * 64}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--work", nargs="+", choices=(*WORKS, "first"), default=[*WORKS, "first"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders whose names begin so")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(*given.one, given.threads)
    peers = [name for package, names in PEERS.items() if importlib.util.find_spec(package) for name in names]
    contenders = [c for c in (*OURS, *peers) if not given.only or c.startswith(tuple(given.only))]
    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory), contenders)
        for work in given.work:
            table(work, [c for c in contenders if possible(work, c)], directory, given)
    return 0


def possible(work: str, contender: str) -> bool:
    if work == "first":
        return contender.startswith("cpu") or contender == "cached"
    return not (work == "batch" and contender.startswith("llama"))


def table(work: str, contenders: list[str], directory: str, given: argparse.Namespace) -> None:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    command = [sys.executable, __file__, "--threads", str(given.threads), "--one"]
    for _ in range(given.rounds):
        for name in contenders:
            done = subprocess.run([*command, work, name, directory], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr}")
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    unit = "seconds" if work == "first" else "tokens/s"
    print(f"\n{work}; {given.threads} threads, medians of {given.rounds} turns\n")
    print(f"| {'contender':<20} | {unit:>8} |    best | peak memory | read of weights | of the rate of a plain read |")
    print(f"|{'-' * 22}|---------:|--------:|------------:|----------------:|----------------------------:|")
    for name, results in rows.items():
        rates = [r["rate"] for r in results]
        best = min(rates) if work == "first" else max(rates)
        read = share = ""
        if work == "decode" and "bytes" in results[0]:
            gigabytes = [r["rate"] * r["bytes"] / 1e9 for r in results]
            read = f"{statistics.median(gigabytes):.1f} GB/s"
            share = f"{statistics.median(g / r['read'] for g, r in zip(gigabytes, results, strict=True)):.0%}"
        memory = max(r["memory"] for r in results)
        print(
            f"| {name:<20} | {statistics.median(rates):>8.2f} | {best:>7.2f} | {memory:>8.2f} GB | {read:>15} "
            f"| {share:>27} |",
            flush=True,
        )


def make(root: Path, contenders: list[str]) -> None:
    import torch

    from glassgpt import Tokenizer, save_model
    from glassgpt.config import preset
    from glassgpt.training.build import initial_model
    from glassgpt.weights.convert import export_model

    torch.set_num_threads(1)
    save_model(initial_model(preset("gpt2").replace(drop_rate=0.0), 0).eval(), Tokenizer.gpt2(), root / "hf")
    for name in contenders:
        kind = name.split()[-1]
        if name.startswith("ctranslate2"):
            from ctranslate2.converters import TransformersConverter

            TransformersConverter(str(root / "hf")).convert(
                str(root / name), quantization=None if kind == "float32" else kind
            )
        elif name.startswith("llama.cpp"):
            export_model(root / "hf", root / f"{kind}.gguf", "gguf", number_type=kind)


def one(work: str, contender: str, directory: str, threads: int) -> int:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    root, extra = Path(directory), {}
    if work == "first":
        rate = first(contender, root, threads)
        usage = resource.RUSAGE_CHILDREN
    else:
        run, extra = runner(contender, root, threads)
        run(work)
        start = time.perf_counter()
        run(work)
        rate, usage = WORKS[work] / (time.perf_counter() - start), resource.RUSAGE_SELF
    print(json.dumps({"rate": rate, "memory": peak_memory(usage) / 1e9, **extra}))
    return 0


def peak_memory(usage: int) -> int:
    """Of this process in bytes, or of its children; what a parent held before it started this one does not count."""
    status = Path("/proc/self/status")
    if usage == resource.RUSAGE_SELF and status.exists():
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(usage).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def first(contender: str, root: Path, threads: int) -> float:
    command = [sys.executable, "-m", "glassgpt", "generate", str(root / "hf"), "Hello, I am", "--max-new-tokens", "1"]
    command += ["--threads", str(threads), "--temperature", "0"]
    command += ["--precision", contender.split()[1]] if contender.startswith("cpu") else ["--decoder", "cached"]
    subprocess.run(command, check=True, capture_output=True)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def runner(contender: str, root: Path, threads: int) -> tuple[Callable[[str], None], dict[str, float]]:
    """A function that does one of `WORKS`; for our own decoder also the bytes of its weights and the rate of a read."""
    if contender == "cached" or contender.startswith("cpu"):
        return our_runner(contender, root, threads)
    if contender == "transformers":
        return transformers_runner(root, threads), {}
    return peer_runner(contender, root, threads), {}


def our_runner(contender: str, root: Path, threads: int) -> tuple[Callable[[str], None], dict[str, float]]:
    from glassgpt import Tokenizer, complete

    extra: dict[str, float] = {}
    if contender == "cached":
        import torch

        from glassgpt import load_model

        torch.set_num_threads(threads)
        decoder, _ = load_model(root / "hf")
    else:
        from glassgpt import load_decoder
        from glassgpt.generation.cpu import kernels

        decoder, _ = load_decoder(root / "hf", precision=contender.split()[1], threads=threads)
        numbers, times = np.ones(10**8, np.float32), []
        for _ in range(5):
            start = time.perf_counter()
            kernels.total(numbers)
            times.append(time.perf_counter() - start)
        extra = {"bytes": decoder.weight_bytes, "read": numbers.nbytes / min(times) / 1e9}
    tokenizer = Tokenizer.gpt2()
    options = dict(temperature=0, ignore_eot=True)

    def run(work: str) -> None:
        if work == "decode":
            complete(decoder, tokenizer, [PROMPT], max_new_tokens=NEW, **options)
        elif work == "prefill":
            complete(decoder, tokenizer, [LONG], max_new_tokens=1, **options)
        else:
            complete(decoder, tokenizer, ROWS, max_new_tokens=64, **options)

    return run, extra


def transformers_runner(root: Path, threads: int) -> Callable[[str], None]:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    model = GPT2LMHeadModel.from_pretrained(root / "hf").eval()

    def generate(rows: list[list[int]], n: int) -> None:
        ids = torch.tensor(rows)
        options = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=50256)
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    def run(work: str) -> None:
        with torch.inference_mode():
            if work == "prefill":
                model(torch.tensor([LONG]), logits_to_keep=1)
            else:
                generate([PROMPT] if work == "decode" else ROWS, NEW if work == "decode" else 64)

    return run


def peer_runner(contender: str, root: Path, threads: int) -> Callable[[str], None]:
    if contender.startswith("ctranslate2"):
        import ctranslate2

        from glassgpt import Tokenizer

        vocabulary, _ = Tokenizer.gpt2().byte_level_vocabulary()
        words = {i: word for word, i in vocabulary.items()}
        generator = ctranslate2.Generator(str(root / contender), device="cpu", inter_threads=1, intra_threads=threads)

        def generate(rows: list[list[int]], n: int) -> None:
            prompts = [[words[i] for i in row] for row in rows]
            options = dict(max_length=n, min_length=n, sampling_topk=1, include_prompt_in_result=False)
            generator.generate_batch(prompts, **options)

        return lambda work: generate(
            {"decode": [PROMPT], "prefill": [LONG], "batch": ROWS}[work],
            {"decode": NEW, "prefill": 1, "batch": 64}[work],
        )
    from llama_cpp import Llama

    path = root / f"{contender.split()[1]}.gguf"
    sizes = dict(n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads)
    llama = Llama(str(path), verbose=False, **sizes)

    def run(work: str) -> None:
        llama.reset()
        if work == "decode":
            list(islice(llama.generate(PROMPT, top_k=1, temp=0.0), NEW))
        else:
            llama.eval(LONG)

    return run


if __name__ == "__main__":
    sys.exit(main())
