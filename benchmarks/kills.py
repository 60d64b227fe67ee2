"""Kill -9 at random moments: does every run still end as the undisturbed one does?

    python benchmarks/kills.py [--kills 100] [--seed 1] [--recipe NAME]

Small runs are begun, killed with SIGKILL, resumed, in a third of the cases killed again, and brought to their end. That
end is compared with the undisturbed run's: weights, optimizer and state of the newest checkpoint, the model at the top,
the prepared data, all byte for byte (shards of a state: number for number, as their headers have no order), and each
record of the log but for what is measured. Half the kills come by the clock, at any time from the start to the end. The
others come right before one of the process's changes to the file system, where a kill could leave something half done.
Of two ranks that share a model one is killed before a change, and the other with it, as torchrun does it. Prints a line
for each recipe, and one for each end that differs, whose files then stay; exit code 1 if there is one. Needs a system
that forks.
"""

import argparse
import contextlib
import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from glassgpt.checkpoint import MODEL_FILES
from glassgpt.config import GPTConfig
from glassgpt.data.prepare.run import prepare
from glassgpt.files import is_leftover
from glassgpt.json_file import read_json
from glassgpt.training.log import read_log
from glassgpt.training.run_directory import holds_run, is_run
from glassgpt.training.state import newest_checkpoint
from glassgpt.training.train import train

# 30 steps cross the edges of epochs; checkpoints by the clock come after every step that takes longer than 30 ms
COMMON: dict[str, Any] = dict(
    shape=GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2),
    tokenizer="byte",
    batch_size=32,
    steps=30,
    eval_every=9,
    eval_batches=1,
    sample_tokens=0,
    save_minutes=5e-4,
    dtype="float32",
    threads=1,
)
RECIPES: dict[str, dict[str, Any]] = {
    "muon, accumulated": dict(optimizer="muon", micro_batch_size=8),
    "adamw": dict(optimizer="adamw"),
    "prepared by two processes": dict(optimizer="muon"),
    "two sharded ranks": dict(optimizer="muon", micro_batch_size=8, fsdp=True),
}
PREPARED, SHARDED = "prepared by two processes", "two sharded ranks"
RUN_SECONDS, TOO_LONG = 600.0, 99  # what no run takes, and how one ends that does
CHANGES = {f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "link", "chmod", "truncate")}
MEMORY = Path("/dev/shm")
MEASURED = ("tokens_per_second", "time", "seconds", "memory_bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="runs that are killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides the moments, but for what the clock adds")
    parser.add_argument("--recipe", choices=RECIPES, help="only this one (default: all in turn)")
    parser.add_argument(
        "--dir",
        type=Path,
        default=MEMORY if MEMORY.is_dir() else None,
        help="where to make a temporary directory (default: in memory, where a flush costs nothing)",
    )
    arguments = parser.parse_args()
    context = multiprocessing.get_context("forkserver")  # what is imported once need not be imported by each run
    # imported by a first step, a first picture and a model that is sharded
    late = ["torch._dynamo", "matplotlib.backends.backend_agg", "torch.distributed.fsdp"]
    context.set_forkserver_preload(["glassgpt.training.train", "glassgpt.data.prepare.run", *late])
    recipes = [arguments.recipe] if arguments.recipe else list(RECIPES)
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir=arguments.dir))
    write_text(folder / "text.txt")
    source, different = random.Random(arguments.seed), 0
    for n, name in enumerate(recipes):
        stress = Stress(context, name, folder, source)
        trials = arguments.kills // len(recipes) + (n < arguments.kills % len(recipes))
        for trial in range(trials):
            if differs := stress.trial(folder / f"{n}-{trial}"):
                different += 1
                print(f"{name}: {folder}/{n}-{trial} ends differently: {', '.join(differs)}", flush=True)
        where = ", ".join(f"{count} in {place}" for place, count in stress.kills.most_common())
        print(f"{name}: {trials} runs, {stress.kills.total()} kills ({where})", flush=True)
    print(f"{arguments.kills - different} of {arguments.kills} ends are equal bit for bit")
    if not different:
        shutil.rmtree(folder)
    return 1 if different else 0


def write_text(path: Path) -> None:
    words = random.Random(0)
    text = "\n".join(
        " ".join(words.choice(["cat", "dog", "sat", "on", "the", "mat"]) for _ in range(12)) for _ in range(120)
    )
    path.write_text(text, encoding="utf-8")


class Stress:
    """Runs of one recipe beside its undisturbed run; `kills` counts by the place they came at."""

    def __init__(self, context: Any, recipe: str, folder: Path, source: random.Random) -> None:
        self._context, self._recipe, self._source = context, recipe, source
        self.kills: Counter[str] = Counter()
        whole = folder / f"whole-{list(RECIPES).index(recipe)}"
        self._ranks = 2 if recipe == SHARDED else 1
        pipes = [context.Pipe(duplex=False) for _ in range(self._ranks)]
        if code := self._run(whole, senders=[sender for _, sender in pipes]):
            raise SystemExit(f"{recipe}: the undisturbed run ended with code {code}")
        seconds, self._changes = zip(*(receiver.recv() for receiver, _ in pipes), strict=True)
        self._seconds = max(seconds)
        self._wanted = end(whole)

    def trial(self, folder: Path) -> list[str]:
        """Kill a run in `folder`, resume it to its end, and say what of that differs."""
        for attempt in itertools.count():
            code, killed = -signal.SIGKILL, 0
            while code == -signal.SIGKILL:  # the last time it is left alone
                code = self._killed(folder) if not killed or self._source.random() < 1 / 3 else self._run(folder)
                if code == -signal.SIGKILL:
                    self.kills[place(folder)] += 1
                    killed += 1
            if code:
                return [f"exit code {code}"]
            if killed or attempt == 20:
                break
            shutil.rmtree(folder)  # it ended before its kill came
        found = end(folder)
        differs = [name for name in sorted(self._wanted | found) if self._wanted.get(name) != found.get(name)]
        if not differs:
            shutil.rmtree(folder)
        return differs if killed else ["no kill came in time"]

    def _killed(self, folder: Path) -> int:
        if self._source.random() < 0.5:
            return self._run(folder, seconds=self._source.uniform(0, self._seconds))
        rank = self._source.randrange(self._ranks)
        return self._run(folder, change=self._source.randint(1, self._changes[rank]), of=rank)

    def _run(
        self, folder: Path, seconds: float | None = None, change: int = 0, of: int = 0, senders: Sequence[Any] = ()
    ) -> int:
        """The exit code of the ranks of a run: that of a kill, where one of them was killed."""
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        processes = []
        for rank in range(self._ranks):
            sender = senders[rank] if senders else None
            seat = {"RANK": rank, "WORLD_SIZE": self._ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            arguments = (self._recipe, folder, change if rank == of else 0, sender, seat if self._ranks > 1 else {})
            processes.append(self._context.Process(target=work, args=arguments))
            processes[-1].start()
        # a rank that fails leaves the others waiting for as long as it takes them to notice
        until = time.monotonic() + (RUN_SECONDS if seconds is None else seconds)
        left = [process.sentinel for process in processes]
        while left and not any(process.exitcode for process in processes) and until > time.monotonic():
            for sentinel in wait(left, until - time.monotonic()):
                left.remove(sentinel)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if -signal.SIGKILL in codes:
            return -signal.SIGKILL
        if failed := [code for code in codes if code]:
            return failed[0]
        if None not in codes:
            return 0
        return TOO_LONG if seconds is None else -signal.SIGKILL


def work(recipe: str, folder: Path, kill_before: int, sender: Connection | None, seat: dict[str, Any]) -> None:
    """In a process of its own, a rank in `seat`: begin the run in `folder`, or resume it if there is one."""
    os.environ.update({name: str(value) for name, value in seat.items()})
    start, changes = time.perf_counter(), kill_before_change(kill_before)
    text, out = folder.parent / "text.txt", folder / "run"
    with contextlib.redirect_stderr(sys.stdout):
        if recipe == PREPARED:
            prepare([text], folder / "data", tokenizer="byte", processes=2, shard_tokens=3000)
            text = folder / "data"
        if holds_run(out):
            train(out=out, resume=True)
        else:
            train([text], out, **{**COMMON, **RECIPES[recipe]})
    if sender is not None:
        sender.send((time.perf_counter() - start, changes()))


def kill_before_change(n: int) -> Callable[[], int]:
    """This process dies right before its n-th change to the file system, if n is not 0; returns how to count them."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen


def place(folder: Path) -> str:
    """What a killed run was at, as its files tell."""
    run = folder / "run"
    if not is_run(run):
        return "the preparation"
    names = [path.name for part in (run, run / "checkpoints") for path in part.iterdir()]
    return "a save" if any(map(is_leftover, names)) else "the steps"


def end(folder: Path) -> dict[str, str]:
    """A digest of each file, and of the log, that a kill must not change."""
    run = folder / "run"
    checkpoint, _ = newest_checkpoint(run)
    files = [*checkpoint.rglob("*"), *(run / name for name in MODEL_FILES), *visible(folder / "data")]
    log = [{key: value for key, value in record.items() if key not in MEASURED} for record in read_log(run)]
    contents = {str(path.relative_to(folder)): content(path) for path in files if path.is_file()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in (contents | {"log": repr(log).encode()}).items()}


def content(path: Path) -> bytes:
    """The bytes of a file; of a shard, whose header has no order, its tensors, without the digests of such files."""
    if path.name.startswith("shard-"):
        return b"".join(name.encode() + tensor.tobytes() for name, tensor in sorted(load_file(path).items()))
    if path.name == "state.json":
        return repr({key: value for key, value in read_json(path).items() if key != "sha256"}).encode()
    return path.read_bytes()


def visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.relative_to(folder).parts[0].startswith("."))


if __name__ == "__main__":
    raise SystemExit(main())
