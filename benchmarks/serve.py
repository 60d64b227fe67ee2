"""`glassgpt serve` under load, and `llama_cpp.server` on the same weights: tokens a second, time to the first one.

    python benchmarks/serve.py [--clients 16] [--bits f32 q8_0] [--model DIR]

A model of 124M parameters with random weights, unless `--model` names one. Clients ask for streams one after the other,
each time after another prompt; a load is what one client does alone, and what all do at once. The servers take turns,
each in a process of its own, on 127.0.0.1. llama.cpp takes part where llama-cpp-python is installed with its extra
`server`. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PRECISIONS = {"f32": "float32", "q8_0": "int8", "q4_0": "int4"}
"""Ours with as many bits, by llama.cpp's name."""
N_WORDS = 24
START_SECONDS = 120.0
_WORDS = ("river", "stone", "window", "letter", "garden", "winter", "engine", "harbour", "candle", "mirror", "forest")


@dataclasses.dataclass
class Stream:
    """One request as its client saw it, in seconds from its beginning."""

    arrivals: list[float]
    seconds: float


@dataclasses.dataclass
class Load:
    """What came of some clients."""

    streams: list[Stream]
    seconds: float
    n_new: int

    @property
    def rate(self) -> float:
        """Tokens a second of all clients together."""
        return self.n_new * len(self.streams) / self.seconds

    def firsts(self) -> list[float]:
        """Seconds to each stream's first text, the shortest first."""
        return sorted(stream.arrivals[0] for stream in self.streams)


def prompt_of(client: int, number: int) -> str:
    """Of `N_WORDS` words, another for each request, from its beginning on."""
    chosen = [(7 * client + 3 * number + i * (client + 2)) % len(_WORDS) for i in range(N_WORDS)]
    return f"{client}-{number}: " + " ".join(_WORDS[i] for i in chosen)


async def stream(session: httpx.AsyncClient, url: str, prompt: str, n_new: int) -> Stream:
    """Ask for a text; `RuntimeError` where it is cut short."""
    body = {"model": "m", "prompt": prompt, "max_tokens": n_new, "temperature": 0, "stream": True}
    start, arrivals, reason = time.perf_counter(), [], None
    async with session.stream("POST", f"{url}/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()[:200]}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                reason = choice["finish_reason"] or reason
                if choice["text"]:
                    arrivals.append(time.perf_counter() - start)
    if reason != "length":
        raise RuntimeError(f"a text ended by {reason!r}")
    return Stream(arrivals or [time.perf_counter() - start], time.perf_counter() - start)


async def load(url: str, n_clients: int, n_each: int, n_new: int) -> Load:
    """`n_clients` at once, each with `n_each` requests one after the other."""

    async def client(number: int, session: httpx.AsyncClient) -> list[Stream]:
        return [await stream(session, url, prompt_of(number, i), n_new) for i in range(n_each)]

    limits = httpx.Limits(max_connections=n_clients)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as session:
        start = time.perf_counter()
        found = await asyncio.gather(*(client(number, session) for number in range(n_clients)))
        return Load([one for each in found for one in each], time.perf_counter() - start, n_new)


@contextmanager
def serving(command: list[str], port: int) -> Iterator[str]:
    """The address of a server that answers; it is stopped afterwards."""
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + START_SECONDS
            while not answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not serve: {said.read().decode()[-500:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def answers(url: str) -> bool:
    """Whether there is a server."""
    try:
        return httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def commands(model: Path, directory: Path, bits: list[str], threads: int) -> dict[str, tuple[list[str], int]]:
    """How each server is started, and its port, by name."""
    found = {}
    has_llama = importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("sse_starlette")
    if not has_llama:
        print("llama.cpp is left out: pip install 'llama-cpp-python[server]'", file=sys.stderr)
    for name in bits:
        port = free_port()
        ours = ["serve", f"m={model}", "--port", str(port), "--precision", PRECISIONS[name], "--threads", str(threads)]
        found[f"glassgpt {PRECISIONS[name]}"] = [sys.executable, "-m", "glassgpt", *ours], port
        if has_llama:
            port = free_port()
            theirs = ["--model", str(gguf(model, directory, name)), "--port", str(port), "--n_ctx", "1024"]
            theirs += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "false"]
            found[f"llama.cpp {name}"] = [sys.executable, "-m", "llama_cpp.server", *theirs], port
    return found


def gguf(model: Path, directory: Path, bits: str) -> Path:
    """The model for llama.cpp."""
    from glassgpt.bench.prepare import Request, prepare

    prepare(Request(str(model), f"llama.cpp {bits}", str(directory)))
    return directory / f"{bits}.gguf"


def random_model(directory: Path) -> Path:
    """GPT-2's smallest shape."""
    from glassgpt import Tokenizer, save_model
    from glassgpt.config import preset
    from glassgpt.training.build import initial_model

    save_model(initial_model(preset("gpt2").replace(drop_rate=0.0), 0).eval(), Tokenizer.gpt2(), directory / "m")
    return directory / "m"


def table(loads: dict[str, dict[int, list[Load]]], clients: int) -> str:
    """Medians of the rounds."""
    lines = [
        f"| server | 1 client, tokens/s | {clients} clients | times as many | first token, median | slowest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, by_clients in loads.items():
        one, all_ = (statistics.median(load.rate for load in by_clients[n]) for n in (1, clients))
        firsts = sorted(first for load in by_clients[clients] for first in load.firsts())
        median = statistics.median(firsts)
        lines.append(f"| {name} | {one:,.1f} | {all_:,.1f} | {all_ / one:.2f} | {median:.2f} s | {firsts[-1]:.2f} s |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16, metavar="N")
    parser.add_argument("--each", type=int, default=2, metavar="N", help="requests of each client")
    parser.add_argument("--new", type=int, default=64, metavar="N", help="tokens of each text")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--bits", nargs="+", choices=list(PRECISIONS), default=["f32", "q8_0"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--model", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    loads: dict[str, dict[int, list[Load]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model or random_model(Path(directory))
        servers = commands(model, Path(directory), arguments.bits, arguments.threads)
        for number in range(arguments.rounds):
            for name, (command, port) in servers.items():
                with serving(command, port) as url:
                    asyncio.run(load(url, 1, 1, 8))  # what is compiled or read at the first request
                    for n in (1, arguments.clients):
                        found = asyncio.run(load(url, n, arguments.each, arguments.new))
                        loads.setdefault(name, {}).setdefault(n, []).append(found)
                        print(f"round {number + 1}: {name}, {n} at once: {found.rate:.1f} tokens/s", file=sys.stderr)
    print(table(loads, arguments.clients))


if __name__ == "__main__":
    main()
