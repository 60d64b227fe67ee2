"""The processes that train one model together, started by `torchrun`, and what they say to each other.

Each process, a rank, has the whole model and every `world_size`-th row of the batch. Gradients are added up after the
last micro-batch, so all ranks take the same step. The rest of `training` asks three things: whether it is the first
rank, which alone writes and shows; for sums over all ranks; and to wait for the first. With `fsdp` a rank has a part of
the model, which is `shards`'.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from glassgpt.training.rank_watch import ARRIVAL_SECONDS, OtherRankError, RankWatch, Seat, Store, assembled
from glassgpt.training.shards import is_sharded

_BUCKET = 2**23  # numbers in one reduction: 32 MB, large enough for the network, small beside the gradients
_TIMEOUT = datetime.timedelta(hours=1)  # of one reduction, in which rank 0 may save; the watch is far quicker
_CONNECT_SECONDS = 120.0  # until all ranks, which are here, are connected
_POLL = 0.1  # seconds
_RUNS = itertools.count()  # of this process
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """One process that trains alone: it is the first, and its sums are the sums."""

    rank = 0
    world_size = 1
    agents: Sequence[str] = ()
    """The processes of `torchrun` that started these ranks, this one's first: a restart is by the same ones."""

    @property
    def first(self) -> bool:
        """Whether this rank prepares, writes and shows: of all ranks one does."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Where this rank computes, if all are to compute on this kind of device."""
        return device

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag whether it is set on any rank."""
        return list(flags)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number, added up over all ranks in float64."""
        return list(values)

    def sum_gradients(self, parameters: Iterable[Tensor], values: Sequence[float]) -> list[float]:
        """Add up the gradients of all ranks, in place, and in the same go a few float32 numbers, which it returns.

        Those of sharded parameters have been added up in the backward pass.
        """
        return list(values)

    def compare(self, record: Mapping[str, object]) -> None:
        """On rank 0, a `ValueError` that names a rank whose record differs from its own, and where."""

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """What fails inside because another rank is not there any more becomes an `OtherRankError`."""
        return contextlib.nullcontext()

    def tell(self, word: str) -> None:
        """On rank 0: the others may go on, with this word."""

    def told(self) -> str:
        """On the others: wait for the next word of rank 0, however long it takes."""
        raise AssertionError("one process has nobody to wait for")


ALONE = Ranks()


class _Joined(Ranks):
    """A rank among others. What fails because another rank has failed or is lost is an `OtherRankError`."""

    def __init__(self, seat: Seat, watch: RankWatch, store: Store, agents: Sequence[str]) -> None:
        self.rank, self.world_size, self.agents = seat.rank, seat.world_size, agents
        self._seat, self._watch, self._store = seat, watch, store
        self._words = itertools.count()

    def device(self, device: torch.device) -> torch.device:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device {device.type!r} cannot be shared by several processes: use cpu")
        if device.type == "cpu":
            return device
        if self._seat.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{self._seat.local_size} processes on this machine, but {torch.cuda.device_count()} GPUs: "
                "start one process for each GPU"
            )
        return torch.device("cuda", self._seat.local_rank)

    def any(self, *flags: bool) -> list[bool]:
        return [count != 0 for count in self.sum([float(flag) for flag in flags])]

    def sum(self, values: Sequence[float]) -> list[float]:
        numbers = torch.tensor(values, dtype=torch.float64)
        with self._watch.summing():
            dist.all_reduce(numbers)
        return [float(number) for number in numbers.tolist()]

    def sum_gradients(self, parameters: Iterable[Tensor], values: Sequence[float]) -> list[float]:
        gradients = [p.grad for p in parameters if p.grad is not None]
        numbers = torch.tensor(values, dtype=torch.float32, device=gradients[0].device)
        buckets = _buckets([numbers, *(gradient for gradient in gradients if not is_sharded(gradient))])
        flats = [torch.cat([part.flatten() for part in bucket]) for bucket in buckets]
        with self._watch.summing():
            for work in [dist.all_reduce(flat, async_op=True) for flat in flats]:
                work.wait()
                self._watch.summed()
        for bucket, flat in zip(buckets, flats, strict=True):
            for part, summed in zip(bucket, flat.split([part.numel() for part in bucket]), strict=True):
                part.copy_(summed.view(part.shape))
        return [float(number) for number in numbers.tolist()]

    def compare(self, record: Mapping[str, object]) -> None:
        mine = {key: json.dumps(value, default=str, sort_keys=True) for key, value in record.items()}
        if not self.first:
            self._store.set(f"record/{self.rank}", json.dumps(mine))
            return
        for rank in range(1, self.world_size):
            theirs = json.loads(self._wait_for(f"record/{rank}"))
            for key, value in mine.items():
                if theirs.get(key) != value:
                    raise ValueError(
                        f"rank {rank} began with {key} {_short(theirs.get(key))}, rank 0 with {_short(value)}: "
                        "start all ranks with the same command and the same installation"
                    )

    def explained(self) -> contextlib.AbstractContextManager[None]:
        return self._watch.explained()

    def tell(self, word: str) -> None:
        self._store.set(f"word/{next(self._words)}", word)

    def told(self) -> str:
        return self._wait_for(f"word/{next(self._words)}")

    def _wait_for(self, key: str) -> str:
        """The value of a key, once it is there."""
        while True:
            with self._watch.explained():
                if self._store.check([key]):
                    return self._store.get(key).decode()
            self._watch.check()
            time.sleep(_POLL)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that `torchrun` started, this one among them; without it, one process that trains alone.

    An error inside ends all ranks. It is raised on the rank where it came up, with the number of the rank unless that
    is the first, and is an `OtherRankError` on the others.
    """
    if not _is_joined():
        yield ALONE
        return
    seat = Seat.from_environment()
    if seat.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(seat.local_rank)
    number, ours = next(_RUNS), not dist.is_initialized()
    hosts = ours and seat.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    of_group = _store(seat, hosts)
    name = assembled(seat, dist.PrefixStore("glassgpt", of_group))  # type: ignore[attr-defined]
    name = f"glassgpt/{name}"
    # a connection of its own: nobody waits while the group waits
    store = dist.PrefixStore(name, _store(seat))  # type: ignore[attr-defined]
    with RankWatch(seat, store) as watch:
        try:
            if ours:
                with watch.explained():
                    _connect(seat, dist.PrefixStore(f"{name}/group", of_group))  # type: ignore[attr-defined]
            store.set(f"agent/{seat.rank}", _agent(number))
            agents = [store.get(f"agent/{rank}").decode() for rank in range(seat.world_size)]
            yield _Joined(seat, watch, store, list(dict.fromkeys([_agent(number), *agents])))
            with watch.explained():
                watch.leave()
        except OtherRankError:
            raise
        except Exception as error:
            told = watch.failed(error)
            if told is error:
                raise
            raise told from error
    if ours:
        dist.destroy_process_group()


def _connect(seat: Seat, store: Store) -> None:
    """Connections between all ranks; `RuntimeError` where there is no way between some."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = datetime.timedelta(seconds=_CONNECT_SECONDS)
    try:
        dist.init_process_group(backend, store=store, rank=seat.rank, world_size=seat.world_size, timeout=limit)
    except RuntimeError as error:
        raise RuntimeError(
            f"the ranks are there, but could not connect to each other within {_CONNECT_SECONDS:g} s: "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use where a machine has several"
        ) from error
    dist.distributed_c10d._set_pg_timeout(_TIMEOUT)


def is_first() -> bool:
    """As `Ranks.first`, before and after the ranks are joined."""
    return not _is_joined() or os.environ["RANK"] == "0"


def _is_joined() -> bool:
    return all(name in os.environ for name in _ENVIRONMENT)


def _store(seat: Seat, host: bool = False) -> Store:
    """A connection to the store of `torchrun`, or of rank 0 where that is the `host`."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(  # type: ignore[attr-defined]
        address,
        port,
        seat.world_size,
        is_master=host,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=ARRIVAL_SECONDS),
    )


def _agent(number: int) -> str:
    """What tells run `number` of a `torchrun` from all others: it has a folder for errors; "" without `torchrun`."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return hashlib.sha256(f"{platform.node()} {Path(file).parents[2]} {number}".encode()).hexdigest() if file else ""


def code_digest() -> str:
    """Of every source file of this package."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _buckets(parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in order, about `_BUCKET` numbers together."""
    buckets: list[list[Tensor]] = []
    size = _BUCKET
    for part in parts:
        if size + part.numel() > _BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(part)
        size += part.numel()
    return buckets


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
