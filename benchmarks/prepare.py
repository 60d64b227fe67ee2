"""`glassgpt prepare` on synthetic text: bytes a second beside tiktoken's own batches, and memory of every process.

    python benchmarks/prepare.py [--mib 64] [--processes N] [--kill]

Writes JSON lines of documents made of shuffled lines of Python's own manual into a temporary directory, prepares them
with GPT-2's tokenizer, and lets `tiktoken.Encoding.encode_ordinary_batch` encode the same texts, already read, on as
many threads. Prints one line of JSON. With `--kill` it prepares once more, with 1 process, killed half-way and
continued, and compares the files byte for byte.
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from glassgpt.cores import available_cores
from glassgpt.data.corpus import default_corpus
from glassgpt.tokenizer import gpt2_tiktoken

BATCH_BYTES = 1 << 22


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=64, help="size of the text (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=available_cores(), help="default: one for each core")
    parser.add_argument("--dir", type=Path, help="where to make the temporary directory")
    parser.add_argument("--kill", action="store_true", help="kill one more run half-way, continue it and compare")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        folder = Path(name)
        size = write_texts(folder / "texts.jsonl", arguments.mib << 20)
        before = cpu_of_children()
        seconds, peaks = prepared(folder, "out", arguments.processes)
        cpu = cpu_of_children() - before
        theirs, their_cpu = tiktoken_seconds(folder / "texts.jsonl", arguments.processes)
        result = {
            "mib": arguments.mib,
            "processes": arguments.processes,
            "prepare_mb_per_s": round(size / 1e6 / seconds, 2),
            "tiktoken_mb_per_s": round(size / 1e6 / theirs, 2),
            "times_tiktoken": round(seconds / theirs, 3),
            "times_tiktoken_in_cpu_time": round(cpu / their_cpu, 3),  # on a machine that is busy with something else
            "peak_mib_of_each_process": [round(peak / 1024) for peak in peaks],
        }
        if arguments.kill:
            prepared(folder, "killed", 1, kill_after=seconds / 2)
            prepared(folder, "killed", arguments.processes)
            result["equal_after_kill"] = digests(folder / "out") == digests(folder / "killed")
    print(json.dumps(result))
    return 0


def write_texts(path: Path, n_bytes: int) -> int:
    """JSON lines of documents of about 3 kB each; returns the bytes of text."""
    source = random.Random(0)
    lines = [line for document in default_corpus() for line in "".join(document.pieces()).splitlines() if line.strip()]
    done = 0
    with path.open("w", encoding="utf-8") as file:
        while done < n_bytes:
            text = "\n".join(f"{source.choice(lines)} {source.randrange(1000)}" for _ in range(60))
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            done += len(text.encode())
    return done


def prepared(folder: Path, out: str, processes: int, kill_after: float | None = None) -> tuple[float, list[int]]:
    """Seconds, and the peak memory of each process in KiB."""
    command = [sys.executable, "-m", "glassgpt", "prepare", str(folder / "texts.jsonl"), "--out", str(folder / out)]
    command += ["--tokenizer", "gpt2", "--processes", str(processes)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    try:
        code = process.wait(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    watcher.join()
    if code and kill_after is None:
        raise SystemExit(f"prepare ended with code {code}")
    return time.perf_counter() - start, list(peaks.values())


def watch(process: subprocess.Popen[bytes], peaks: dict[int, int]) -> None:
    """Note the peak memory of a process and of those that it starts, as Linux tells it, until it ends."""
    while process.poll() is None:
        for pid in family(process.pid):
            try:
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
            except OSError:
                continue
            if found:
                peaks[pid] = max(peaks.get(pid, 0), int(found[1]))
        time.sleep(0.02)


def family(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for path in tasks for child in path.read_text(encoding="utf-8").split()]
    except OSError:
        children = []
    return [pid, *(each for child in children for each in family(child))]


def cpu_of_children() -> float:
    """Seconds of CPU of the processes that have ended, and of those that they started."""
    times = os.times()
    return times.children_user + times.children_system


def tiktoken_seconds(path: Path, threads: int) -> tuple[float, float]:
    """Seconds by the clock and of CPU that tiktoken takes for the texts; reading them is not counted."""
    encoding = gpt2_tiktoken()
    seconds = cpu = 0.0
    for batch in batches(path):
        start, cpu_start = time.perf_counter(), time.process_time()
        encoding.encode_ordinary_batch(batch, num_threads=threads)
        seconds, cpu = seconds + time.perf_counter() - start, cpu + time.process_time() - cpu_start
    return seconds, cpu


def batches(path: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            batch.append(json.loads(line)["text"])
            size += len(batch[-1])
            if size > BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    sys.exit(main())
