"""Forks ranks of `glassgpt` from one process that has imported what they need: no test waits for an import.

Each line of its standard input is a job in JSON, which is answered with the exit codes of its ranks: the `arguments` of
each, `code` to be run before the command, a `folder` for what they print, and whether all are killed `together` where
one is.
"""

import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch.distributed

from glassgpt.cli import main

# also what a first step, a first picture and a sharded model import
for name in (
    "glassgpt.training.train",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "torch.distributed.checkpoint.hf_storage",
    "torch.distributed.fsdp",
):
    importlib.import_module(name)


SECONDS = 240.0
"""After them a rank that hangs ends, and says where it was."""


def serve() -> int:
    gc.freeze()  # a collection would touch, and so copy, all pages that the ranks share
    for line in sys.stdin:
        job = json.loads(line)
        listening = socket.create_server(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
        ranks: list[int] = []
        for rank in range(len(job["arguments"])):
            if (pid := os.fork()) == 0:
                listening.close()
                return work(job, rank, port)
            ranks.append(pid)
        # after the forks, since it has threads; it is here that torchrun has it
        store = torch.distributed.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )
        codes: dict[int, int] = {}
        while len(codes) < len(ranks):
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
            for other in ranks if codes[pid] == -signal.SIGKILL and job["together"] else ():
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
        del store
        print(json.dumps([codes[pid] for pid in ranks]), flush=True)
    return 0


def work(job: dict[str, Any], rank: int, port: int) -> int:
    for name, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        path = Path(job["folder"], f"{name}-{rank}")
        path.touch()
        os.dup2(os.open(path, os.O_RDWR), descriptor)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    n = str(len(job["arguments"]))
    os.environ.update(WORLD_SIZE=n, LOCAL_WORLD_SIZE=n, RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    exec(job["code"], {"rank": rank})
    return main(job["arguments"][rank])


if __name__ == "__main__":
    sys.exit(serve())
