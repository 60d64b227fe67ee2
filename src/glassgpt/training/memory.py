"""How much memory a training step takes, and for what: counted tensor by tensor while small steps are taken."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glassgpt.config import GPTConfig
from glassgpt.cores import available_memory, resident_memory
from glassgpt.device import DTYPES
from glassgpt.language_model import seeded
from glassgpt.training.build import Trainee, build
from glassgpt.training.heap import trim
from glassgpt.training.settings import Settings
from glassgpt.training.step import take_step

WEIGHTS, GRADIENTS, STATE = "weights", "gradients", "optimizer state"
ACTIVATIONS, LOSS, UPDATE = "activations", "loss", "update"
PARTS = (WEIGHTS, GRADIENTS, STATE, ACTIVATIONS, LOSS, UPDATE)
_FIRST_TOKENS = 8  # of the step that makes the optimizer's state


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a step takes."""

    parts: dict[str, int]
    """The most that is in use at any time for weights, gradients, optimizer state, activations (what the blocks keep
    or work with, both ways), loss (the output head and its gradient), update (what the optimizer works with)."""
    at_once: int
    """The most of all parts together, of which not all are there at one time; on a CPU with what is kept of freed
    memory."""
    process: int
    """Python, PyTorch and what was loaded before the model; 0 on a GPU, or where the system does not say."""

    @property
    def total(self) -> int:
        """All of it at the worst moment."""
        return self.process + self.at_once

    def __add__(self, other: Self) -> Self:
        """Both, number by number; `process` is there once."""
        parts = {name: size + other.parts[name] for name, size in self.parts.items()}
        return type(self)(parts, self.at_once + other.at_once, self.process)

    def __mul__(self, factor: float) -> Self:
        """So many times the memory, but for `process`."""
        parts = {name: round(factor * size) for name, size in self.parts.items()}
        return type(self)(parts, round(factor * self.at_once), self.process)


def available_on(device: torch.device) -> int | None:
    """Bytes that a run may take on a device, those that this process has already included; None where unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def least_memory(config: GPTConfig, settings: Settings) -> int:
    """Bytes without which no step can be taken: each weight, its gradient and at least one number of the optimizer."""
    return least_parts(config, settings).total


def least_parts(config: GPTConfig, settings: Settings) -> Memory:
    """Of what `least_memory` adds up."""
    trained = () if settings.freeze else (GRADIENTS, STATE)  # what is frozen has its weights only
    parts = {part: 4 * config.n_parameters() * (part in (WEIGHTS, *trained)) for part in PARTS}
    return Memory(parts, sum(parts.values()), process=0)


def extrapolated(counted: Mapping[int, Memory], rows: int) -> Memory:
    """The memory of a step that computes `rows` at once: as counted, or on the line through the last two before."""
    if rows in counted or len(counted) == 1:
        return counted[min(rows, max(counted))]
    first, last = sorted(counted)[-2:]
    return counted[last] + (counted[last] + counted[first] * -1) * ((rows - last) / (last - first))


def count_memory(
    config: GPTConfig, settings: Settings, device: torch.device, rows: int, seconds: float = 10.0
) -> dict[int, Memory]:
    """The memory of training steps of 1, 2, 4 ... rows up to `rows`, counted on a model that is thrown away.

    From two rows on it ends before a step that would take longer than `seconds`, or might not fit: see `extrapolated`.
    What kernels take for themselves while they run is not seen.
    """
    most = available_on(device)
    found: dict[int, Memory] = {}
    with seeded():
        counted, n = CountedSteps(config, settings, device), 1
        while True:
            began = time.perf_counter()
            found[n] = counted.step(n)
            if n == rows or (n > 1 and 2 * (time.perf_counter() - began) > seconds):
                return found
            n = min(2 * n, rows)
            if most is not None and extrapolated(found, n).total > most:
                return found


class CountedSteps:
    """A model that is trained on nothing, to see what memory that takes."""

    def __init__(self, config: GPTConfig, settings: Settings, device: torch.device) -> None:
        # compiled code is no sequence of operations that could be watched
        self._settings = dataclasses.replace(settings.resolved(1000), compile=False)
        self.trainee = build(config, self._settings, device)
        self._length = config.context_length
        self._tensors = _Tensors(self.trainee)
        self._take(1, 1, min(_FIRST_TOKENS, self._length))
        self._tensors.mark(STATE, self._states())
        trim()
        resident = 0 if device.type == "cuda" else resident_memory() or 0
        self._process = max(0, resident - self._tensors.now)  # with what the first step has loaded

    def step(self, rows: int) -> Memory:
        """The memory of a step that computes so many rows at once, and where they are not all of the batch, again."""
        trim()
        self._tensors.begin()
        self._take(min(2, self._settings.batch_size // rows), rows, self._length)
        at_once = self._tensors.at_once
        if self.trainee.model.device.type == "cpu":  # what was freed meanwhile is kept (see `heap`), with holes in it
            at_once = max(at_once, (resident_memory() or 0) - self._process)
        return Memory(self._tensors.most, at_once, self._process)

    def _take(self, passes: int, rows: int, tokens: int) -> None:
        ids = torch.zeros(passes * rows, tokens, dtype=torch.int64)  # which ids they are makes no difference
        settings = dataclasses.replace(self._settings, batch_size=passes * rows, micro_batch_size=rows)
        trainee = self.trainee
        with self._tensors:
            take_step(trainee.objective, trainee.optimizers, (ids, ids), 0, settings, DTYPES[settings.dtype])

    def _states(self) -> Iterator[Tensor]:
        for optimizer in self.trainee.optimizers:
            for state in optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))


class _Tensors(TorchDispatchMode):
    """Inside, each new tensor's memory is counted until it is freed, by what was going on when it came."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kinds: dict[int, tuple[str, int]] = {}  # of what is in use: what for, and its bytes
        self._now: Counter[str] = Counter()
        self._phase = ACTIVATIONS
        self.begin()
        self._watch(trainee)
        self.mark(WEIGHTS, [*trainee.model.parameters(), *trainee.model.buffers()])

    def _watch(self, trainee: Trainee) -> None:
        """Hear where in the step each tensor comes from."""
        hidden = trainee.model.hidden

        def watched(ids: Tensor) -> Tensor:
            result = hidden(ids)
            self._phase = LOSS  # what follows in the objective
            return result

        trainee.objective.compiled = watched
        trainee.objective.register_forward_hook(lambda *_: self._go_on(ACTIVATIONS))
        for parameter in trainee.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self.mark(GRADIENTS, [p.grad]))
        for optimizer in trainee.optimizers:
            optimizer.register_step_pre_hook(lambda *_: self._go_on(UPDATE))
            optimizer.register_step_post_hook(lambda *_: self._go_on(ACTIVATIONS))

    def _go_on(self, phase: str) -> None:
        self._phase = phase

    def begin(self) -> None:
        """Forget what was most so far."""
        self.most, self.at_once = dict.fromkeys(PARTS, 0), 0
        for kind in PARTS:
            self._note(kind)

    @property
    def now(self) -> int:
        """Bytes in use."""
        return sum(self._now.values())

    def mark(self, kind: str, tensors: Iterable[Tensor | None]) -> None:
        """These are of another kind than what was going on when they came."""
        for tensor in tensors:
            if tensor is not None:
                self._see(tensor)
                key = tensor.untyped_storage()._cdata
                before, size = self._kinds[key]
                self._now[before] -= size
                self._now[kind] += size
                self._kinds[key] = kind, size
                self._note(kind)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._kinds or not size:
            return
        self._kinds[key] = self._phase, size
        self._now[self._phase] += size
        weakref.finalize(storage, self._freed, key).atexit = False
        self._note(self._phase)

    def _freed(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self._now[kind] -= size

    def _note(self, kind: str) -> None:
        self.most[kind] = max(self.most[kind], self._now[kind])
        self.at_once = max(self.at_once, self.now)
