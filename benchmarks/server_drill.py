"""What a server must live through, on a server of its own: does it answer right, and is nothing left behind?

    python benchmarks/server_drill.py [--quick] [--model MODEL] [--seed 1]

A `glassgpt serve` is started and asked for some texts. Then clients vanish in each phase of a request, send half
requests, read too slowly; there are 200 kinds of bad body (2,000 without `--quick`), schemathesis over the server's
own OpenAPI document, a letter a million times, and three times as many requests at once as may
wait. In the end it is asked for the same texts again.

Prints a line for each trial: no status of 500 or more, each refusal in OpenAI's form, the texts of a client that left
ended within 200 ms (in the median with `--quick`, which may run beside other tests), memory and live rows back where
they were. Exit code 1 where one of these does not hold. All traffic is to 127.0.0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import random
import re
import signal
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from glassgpt.server.engine import REST_SECONDS

MAX_ROWS, MAX_QUEUE = 8, 16
CANCEL_SECONDS = 0.2
MEMORY_MIB = 128
"""More than the server's memory may grow from one time of rest to the next: buffers of any size were made by then, or
nearly, but the allocator keeps some of them and gives others back.
"""

REFERENCES: list[dict[str, Any]] = [
    {"prompt": "To be, or not to be", "temperature": 0, "max_tokens": 40},
    {"prompt": "a b c", "seed": 3, "max_tokens": 40, "logprobs": 2},
    {"prompt": ["x", "y z"], "n": 2, "seed": 5, "temperature": 0.7, "max_tokens": 10},
]


def make_model(path: Path) -> None:
    """Random weights of a size at which a token takes a moment, and a character for a token."""
    import torch

    from glassgpt import GPTModel, Tokenizer, save_model

    torch.manual_seed(0)
    tokenizer = Tokenizer.characters([string.printable[:95] + "\n"])
    shape = dict(context_length=512, emb_dim=256, n_heads=4, n_layers=4, drop_rate=0.0)
    save_model(GPTModel({"vocab_size": tokenizer.n_vocab, **shape}), tokenizer, path)


class Drilled:
    """A server in a process, and what can be seen of it from outside."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "glassgpt", "serve", f"m={model}", "--port", "0", "--receive-seconds", "1"]
        command += ["--max-rows", str(MAX_ROWS), "--max-queue", str(MAX_QUEUE), "--max-connections", "200"]
        command += ["--prefix-cache", "1"]  # else what is remembered would count as memory that is not given back
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        self.address = ""
        for line in self.process.stdout:
            if found := re.search(r"serving at (http://127\.0\.0\.1:(\d+))/v1", line):
                self.address, self.port = found[1], int(found[2])
            if line.startswith("try:"):
                break
        if not self.address:
            self.log.seek(0)
            raise RuntimeError(f"the server did not start: {self.log.read()}")
        self.http = httpx.Client(base_url=self.address, timeout=120, trust_env=False)

    def texts(self) -> float:
        """Texts that wait, are read or are written."""
        found = re.search(r'^glassgpt_texts\{model="m"\} ([0-9.]+)', self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else -1.0

    def seconds_to_rest(self, limit: float = 30.0) -> float:
        """Until there are no texts any more."""
        began = time.monotonic()
        while self.texts():
            if time.monotonic() - began > limit:
                return limit
            time.sleep(0.002)
        return time.monotonic() - began

    def memory(self) -> float:
        """Of the process, in MiB, once it has given back what it does not need at rest."""
        time.sleep(2 * REST_SECONDS)
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return 0.0
        return int(status.read_text(encoding="ascii").split("VmRSS:")[1].split()[0]) / 1024

    def ask(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        return self.http.post(path, json={"model": "m", **fields})

    def references(self) -> list[Any]:
        """Texts that must be the same at any time."""
        return [self.ask(**fields).json()["choices"] for fields in REFERENCES]

    def raw(self, data: bytes) -> socket.socket:
        """A connection on which this was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def stop(self) -> int:
        """As systemd does it; the exit code."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def request(fields: dict[str, Any], path: str = "/v1/completions") -> bytes:
    """A request as it goes over the wire."""
    body = json.dumps({"model": "m", **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


LONG: dict[str, Any] = {"prompt": "once", "max_tokens": 500, "ignore_eos": True, "logprobs": 0}
PREFILL: dict[str, Any] = {"prompt": "p" * 500, "max_tokens": 2, "ignore_eos": True}


def vanishing(server: Drilled, rounds: int, rng: random.Random, median_only: bool) -> Iterator[str]:
    """Clients that leave in each phase; how long what they wanted went on, if it had begun."""
    for phase in ("head", "body", "queued", "prefill", "waiting", "streaming"):
        seconds = []
        for _ in range(rounds):
            others: list[socket.socket] = []
            whole = request(LONG | {"stream": phase == "streaming"})
            if phase == "head":
                connection = server.raw(whole[: rng.randrange(1, 60)])
            elif phase == "body":
                connection = server.raw(whole[: rng.randrange(len(whole) - 60, len(whole))])
            elif phase == "queued":
                others = [server.raw(request(LONG)) for _ in range(MAX_ROWS)]
                wait_for(lambda: server.texts() == MAX_ROWS)
                connection = server.raw(whole)
                wait_for(lambda: server.texts() == MAX_ROWS + 1)
            elif phase == "prefill":
                connection = server.raw(request(PREFILL | {"prompt": rng.choice("qrs") * rng.randrange(300, 500)}))
                time.sleep(rng.random() * 0.02)
            else:
                connection = server.raw(whole)
                wait_for(lambda: server.texts() == 1)
                if phase == "streaming":
                    connection.recv(200)
                time.sleep(rng.random() * 0.05)
            began = time.monotonic()
            connection.close()
            if phase == "queued":
                wait_for(lambda: server.texts() <= MAX_ROWS)
                seconds.append(time.monotonic() - began)
                for other in others:
                    other.close()
                seconds.append(server.seconds_to_rest())
            else:
                seconds.append(server.seconds_to_rest())
        worst, median = max(seconds), statistics.median(seconds)
        line = f"vanish, {phase}: ended after {1000 * median:.0f} ms in the median, {1000 * worst:.0f} at most"
        yield line if (median if median_only else worst) <= CANCEL_SECONDS else f"WRONG {line}"


def wait_for(fulfilled: Callable[[], bool], limit: float = 20.0) -> None:
    end = time.monotonic() + limit
    while not fulfilled() and time.monotonic() < end:
        time.sleep(0.002)


def slow_readers(server: Drilled, n: int) -> Iterator[str]:
    """They take a stream and read nothing of it, while others are answered."""
    slow = []
    for _ in range(n):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request(LONG | {"stream": True, "logprobs": 5, "max_tokens": 300}))
        slow.append(connection)
    wait_for(lambda: server.texts() == n)
    wait_for(lambda: server.texts() == 0, 60)
    began = time.monotonic()
    answer = server.ask(prompt="x", max_tokens=5)
    line = f"slow readers: {n} read nothing, another was answered after {1000 * (time.monotonic() - began):.0f} ms"
    yield line if answer.status_code == 200 else f"WRONG {line}: {answer.status_code}"
    for connection in slow:
        connection.close()


def bad_bodies(n: int, rng: random.Random) -> list[tuple[str, bytes]]:
    """(path, body): what is no JSON, no object, misses a field, has a wrong one, or one of a wrong type or size."""
    paths = {
        "/v1/completions": {"model": "m", "prompt": "x", "max_tokens": 1},
        "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [1]},
        "/inspect": {"prompt": [1, 2], "position": 1},
    }
    raw = [
        b"", b"{", b"null", b"[]", b"3", b'"x"', b"\xff\xfe", b"{}", b'{"model": }', b"{" * 100_000, b"[" * 100_000,
        b'{"model": "m", "prompt": "\\ud800", "max_tokens": 1}', b'{"model": "\\ud800"}', b"9" * 10_000,
        b'{"model": "m", "prompt": "x", "temperature": NaN}', b'{"model": "m", "prompt": "x", "temperature": 1e999}',
        b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", b'{"model": "m"} {"model": "m"}',
        b'{"model": "m", "prompt": "\x00"}', b"\xef\xbb\xbf{",
        b'{"model": "m", "prompt": "x", "logit_bias": {"99999": 1}}',
    ]  # fmt: skip
    values: list[Any] = [
        None, True, -1, 0, 1.5, 10**30, -(10**30), "", "x" * 5000, "\u0000", "\ud800", [], [[]], [None], {}, {"a": 1},
        [[1], ["a"]], [10**9], ["a", 1], {"type": "json_object"}, ["\u20ac"], "\u20ac",
    ]  # fmt: skip
    fields = [
        "model", "prompt", "messages", "tokens", "max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "stop",
        "seed", "logit_bias", "logprobs", "top_logprobs", "stream", "stream_options", "echo", "best_of", "suffix",
        "presence_penalty", "frequency_penalty", "repetition_penalty", "tools", "response_format", "unknown", "",
        "max_completion_tokens", "ignore_eos", "return_token_ids", "user", "metadata",
    ]  # fmt: skip
    bodies = [(path, body) for path in paths for body in raw]
    for path, good in paths.items():
        for name in fields:
            for value in values:
                bodies.append((path, json.dumps({**good, name: value}).encode()))
        for name in good:
            bodies.append((path, json.dumps({k: v for k, v in good.items() if k != name}).encode()))
    for path in ("/v1/completions", "/inspect"):
        for penalty in (1e-300, 1e-37, 0.01, 100):
            extreme = {"logit_bias": {"1": 100}, "repetition_penalty": penalty, "temperature": 1e-30, "min_p": 1e-300}
            bodies.append((path, json.dumps({**paths[path], "prompt": [1, 1], **extreme}).encode()))
    picture = {"role": "user", "content": [{"type": "image"}]}
    for message in ({}, {"role": "user"}, {"role": "wizard", "content": "x"}, picture):
        talk = copy.deepcopy(paths["/v1/chat/completions"])
        talk["messages"].append(message)
        bodies.append(("/v1/chat/completions", json.dumps(talk).encode()))
    first, rest = bodies[: len(paths) * len(raw)], bodies[len(paths) * len(raw) :]
    rng.shuffle(rest)
    return (first + rest)[: max(n, len(first) + 4)]


def refusals(server: Drilled, n: int, rng: random.Random) -> Iterator[str]:
    """Each is told what is wrong with it, or was not wrong after all."""
    statuses: Counter[int] = Counter()
    for path, body in bad_bodies(n, rng):
        answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
        statuses[answer.status_code] += 1
        if answer.status_code == 200 and '"error"' not in answer.text:
            continue
        error = answer.json().get("error", {})
        if not 400 <= answer.status_code < 500 or error.keys() != {"message", "type", "param", "code"}:
            yield f"WRONG bad body for {path}: {answer.status_code} {answer.text[:200]!r} for {body[:200]!r}"
    shown = ", ".join(f"{count} of status {status}" for status, count in sorted(statuses.items()))
    yield f"bad bodies: {sum(statuses.values())}: {shown}"


def schema(server: Drilled, phases: Sequence[str], examples: int, seed: int) -> Iterator[str]:
    """schemathesis, over all that the OpenAPI document allows, and what it does not."""
    if importlib.util.find_spec("schemathesis") is None:
        yield "schemathesis: not installed, left out"
        return
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [
        program, "run", f"{server.address}/openapi.json", "--checks", checks,
        "--phases", ",".join(phases), "--max-examples", str(examples), "--seed", str(seed), "--no-color",
        "--warnings", "off", "--request-timeout", "60", "--suppress-health-check", "all",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    found = re.search(r"(\d+) generated, (.*)", done.stdout)
    line = f"schemathesis: {found[0] if found else done.stdout[-300:]!r}"
    yield line if done.returncode == 0 else f"WRONG {line}\n{done.stdout[-4000:]}{done.stderr[-500:]}"


def million(server: Drilled) -> Iterator[str]:
    """A letter a million times, in each place that takes a text, and a token."""
    text = "a" * 1_000_000
    began, statuses = time.monotonic(), []
    for path, fields in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/completions", {"prompt": [text, text]}),
        ("/v1/completions", {"prompt": [5] * 1_000_000}),
        ("/v1/completions", {"prompt": "x", "stop": text}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ("/tokenize", {"prompt": text}),
        ("/detokenize", {"tokens": [5] * 1_000_000}),
    ):
        statuses.append(server.ask(path, **fields).status_code)
    line = f"a million letters: statuses {statuses} after {time.monotonic() - began:.1f} s"
    yield line if statuses == [400] * 6 + [200] else f"WRONG {line}"


def overload(server: Drilled, times: int) -> Iterator[str]:
    """So many times more at once than may wait: some are answered, the others are told to come later."""
    n = times * (MAX_ROWS + MAX_QUEUE)

    def one(number: int) -> tuple[int, Any]:
        with httpx.Client(base_url=server.address, timeout=120, trust_env=False) as http:
            fields = REFERENCES[0] | {"model": "m", "max_tokens": 40}
            answer = http.post("/v1/completions", json=fields)
            return answer.status_code, answer.json()["choices"][0]["text"] if answer.status_code == 200 else None

    with ThreadPoolExecutor(n) as pool:
        found = list(pool.map(one, range(n)))
    statuses, texts = Counter(status for status, _ in found), {text for _, text in found if text is not None}
    line = f"overload: of {n} at once {statuses[200]} were answered, {statuses[429]} refused, {len(texts)} text"
    right = statuses.keys() <= {200, 429} and len(texts) == 1 and statuses[200] >= MAX_ROWS
    yield line if right else f"WRONG {line}: {statuses}"


def drill(server: Drilled, quick: bool, seed: int) -> Iterator[str]:
    """All of it, a line each; those that begin with WRONG are."""
    rng = random.Random(seed)
    before = server.references()
    yield from overload(server, 1)  # what a full batch needs is there from now on
    server.ask("/inspect", prompt="look inside", position=3)  # loads PyTorch, and stays
    server.http.get("/runs/m")
    if not quick:
        yield from slow_readers(server, 16)
        yield from million(server)
    server.seconds_to_rest()
    memory = server.memory()
    yield f"at rest: {memory:.0f} MiB"
    yield from vanishing(server, 3 if quick else 20, rng, median_only=quick)
    yield from slow_readers(server, 4 if quick else 16)
    yield from refusals(server, 200 if quick else 2000, rng)
    yield from million(server)
    yield from overload(server, 3)
    yield from schema(server, ["fuzzing"] if quick else ["coverage", "fuzzing"], 10 if quick else 100, seed)
    if not quick:
        for _ in range(3):
            yield from overload(server, 3)
    rest = server.seconds_to_rest()
    grown = server.memory() - memory
    line = f"after it: {server.texts():.0f} texts left, memory grown by {grown:.0f} MiB"
    yield line if rest < 5 and grown < MEMORY_MIB else f"WRONG {line}"
    yield "the same texts as before" if server.references() == before else "WRONG: other texts than before"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short form, which the tests run")
    parser.add_argument("--model", help="a model with a context of at least 512 tokens (default: random weights)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("GLASSGPT_CACHE", os.devnull)
    n_wrong = 0
    with contextlib.ExitStack() as stack:
        model = arguments.model
        if model is None:
            model = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model")
            make_model(Path(model))
        server = Drilled(model)
        try:
            for line in drill(server, arguments.quick, arguments.seed):
                print(line, flush=True)
                n_wrong += line.startswith("WRONG")
        finally:
            code = server.stop()
            server.log.seek(0)
            log = server.log.read()
            server.log.close()
        if code != 0 or '"level": "ERROR"' in log or "Traceback" in log:
            print(f"WRONG: exit code {code}, and its log says:\n{log[-3000:]}")
            n_wrong += 1
    print("all as it should be" if not n_wrong else f"{n_wrong} are wrong")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
