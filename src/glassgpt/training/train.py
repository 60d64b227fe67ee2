"""`train`: from text files to a model directory, one visible loop.

Everything random in step s is seeded from (seed, s): the batch, the dropout. So a run that was killed and resumed
from its last checkpoint computes, bit for bit on the CPU, what the undisturbed run computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from glassgpt.config import GPTConfig, GPTConfigKeywords
from glassgpt.cores import available_cores
from glassgpt.data.loader import BatchLoader
from glassgpt.data.sources import open_run
from glassgpt.device import DTYPES, pick_device, set_threads
from glassgpt.language_model import seeded
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.training import repeat
from glassgpt.training.build import Trainee, build
from glassgpt.training.follow import follow, is_own, record_of, word_of
from glassgpt.training.guard import MAX_SKIPPED
from glassgpt.training.heap import heap_kept
from glassgpt.training.prepare import prepare
from glassgpt.training.progress import Progress
from glassgpt.training.ranks import Ranks, joined
from glassgpt.training.records import Prepared, RunState, TrainResult
from glassgpt.training.request import Request
from glassgpt.training.resume import record_changes, reopen, resume_report, with_more_minutes
from glassgpt.training.rollback import roll_back
from glassgpt.training.run_directory import NEXT, check_new, discard_next, locked, promote, recover
from glassgpt.training.settings import SettingsKeywords
from glassgpt.training.state import checkpoint_at, newest_checkpoint, restore
from glassgpt.training.step import schedule, take_step
from glassgpt.training.watchers import Watchers
from glassgpt.training.writer import RunWriter, publish, write_pictures

_log = logging.getLogger(__name__)


def train(
    texts: Sequence[str | Path] = (),
    out: str | Path = "runs/model",
    *,
    shape: GPTConfig | str | None = None,
    config: GPTConfigKeywords | None = None,
    model: GPTModel | str | Path | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    minutes: float | None = None,
    text_fields: str | Sequence[str] = (),
    like: str | Path | None = None,
    resume: bool = False,
    change: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    **settings: Unpack[SettingsKeywords],
) -> TrainResult:
    """Train a GPT on text files or folders (none: Python's own manual) and write it to the directory `out`.

    `texts` may also name datasets of `prepare`, or directories of nanoGPT's and llm.c's token files: they are read
    where they are, with their own tokenizer, and several of them by weight: `["web=0.7", "books=0.3"]`.

    Without `model` the model is new. Its `shape` is a `GPTConfig`, a preset's name, or None: picked from the text's
    size and the time; `config` has the fields of it that shall be otherwise, such as `{"n_layers": 3}`. `tokenizer` is
    one of "gpt2", "bpe", "char" and "byte", a directory, or a `Tokenizer`; None is a BPE trained on the text.

    With `model`, a `GPTModel` or what `load_model` takes, training goes on from its weights, which are copied, with its
    own tokenizer (give it for a `GPTModel`), a lower learning rate, and of `config` only `context_length`,
    which may be shorter, `drop_rate` and `attention`.

    `settings` are the fields of `Settings`; `minutes` sets `steps` from a short measurement instead. `text_fields` are
    the fields that hold the text in JSON lines or CSV (see `read_corpus`; none: `text`, or else `messages`).

    `like` is the directory of a run that is repeated: its settings, tokens, tokenizer, seed and threads are taken, but
    for what is given here. On the same machine its losses come out equal bit for bit.

    With `resume` the run in `out` continues from its last checkpoint, with the settings and the number of CPU `threads`
    that it began with; `minutes` then adds to the steps it has taken. Other settings than its own are refused, unless
    it may `change`: then those count that a checkpoint does not decide. `overwrite` puts a new run in the place of an
    older one, once its first checkpoint is saved.

    Under `torchrun` all its processes train one model (see docs/distributed.md): each calls this alike.

    `out` is a model directory at every moment: the best model so far, by validation loss. Raises `ValueError` and
    `FileNotFoundError` for what the user can fix, `OSError` where another process trains in `out`, and
    `TrainingFailedError` when too many steps had to be skipped (see `guard`).
    """
    out = Path(out)
    if resume and (overwrite or like is not None):
        raise ValueError("resume excludes overwrite and like: continue the run, or begin a new one")
    for path in (*texts, out):
        _check_name(path)
    given = (texts, shape, dict(config or {}), model, tokenizer, minutes, settings, text_fields)
    with _threads_restored(), joined() as ranks:
        where = ranks.device(pick_device(device))
        request = Request(*given, ranks.world_size, ranks.agents)
        if like is not None:
            request = repeat.like(request, Path(like), where)
        request.checked(where)
        if resume and not out.is_dir():
            raise FileNotFoundError(f"{out} holds no run to resume: there is no such directory")
        if ranks.world_size > 1:
            if threads is not None:
                set_threads(threads)
            ranks.compare(record_of(request, where, resume=resume, overwrite=overwrite, change=change))
        ready = functools.partial(_ready, out, request, resume, overwrite, change, threads, where)
        return _take_part(out, ranks, where, progress or Progress(), ready)


def _check_name(path: str | Path) -> None:
    """`ValueError` where a name is no text: a run writes it into files that are."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {str(path)!r} is not UTF-8, which a run's files are: rename it") from None


def _take_part(
    out: Path,
    ranks: Ranks,
    device: torch.device,
    progress: Progress,
    ready: Callable[[Progress], tuple[Prepared, Trainee | None, RunState]],
) -> TrainResult:
    """Rank 0 makes the run `ready`, and the others follow."""
    with seeded(), heap_kept():
        if not ranks.first:
            return _run(*follow(out, ranks, device), out, Progress(), ranks)
        with locked(out):
            seen = Watchers(progress, out)
            prepared, trainee, state = ready(seen)
            ranks.tell(word_of(out, state.step))
            if trainee is None:
                trainee = restore(checkpoint_at(out, state.step), prepared.settings, device, ranks)
            return _run(prepared, trainee, state, out, seen, ranks)


def _ready(
    out: Path,
    request: Request,
    resume: bool,
    overwrite: bool,
    change: bool,
    threads: int | None,
    device: torch.device,
    progress: Progress,
) -> tuple[Prepared, Trainee | None, RunState]:
    """A run that can take its next step, new or resumed; without a trainee where that is to be read from it."""
    recover(out)
    if is_own(out, request.agents):  # torchrun has restarted the command that began or resumed it: it goes on
        resume, request = True, Request(world_size=request.world_size, agents=request.agents)
    if resume:
        prepared, state = _reopen(out, request, change, threads, device, progress)
        return prepared, None, state
    check_new(out, overwrite)
    if request.like is not None and request.like.record.ranks in (None, request.world_size):
        _use_threads(threads, request.like.record.threads)
    elif threads is not None:
        set_threads(threads)
    prepared, trainee, state = _begin(out, request, device, progress)
    # of a model to be sharded no rank keeps all
    return prepared, None if prepared.settings.fsdp and request.world_size > 1 else trainee, state


def _begin(out: Path, request: Request, device: torch.device, progress: Progress) -> tuple[Prepared, Trainee, RunState]:
    """A new run, up to its first checkpoint: only then does it take its place in `out`."""
    try:
        start = request.start()
        prepared = prepare(request, start, out, out / NEXT, device, progress)
        trainee = build(prepared.config, prepared.settings, device, start.model if start else None)
        progress.start(prepared, 0)
        state = RunWriter(out / NEXT, prepared, progress).measure_and_save(trainee, RunState(), epoch=0)
        for part in (prepared.train, prepared.validation):
            part.close()  # Windows renames no file that is mapped
        promote(out)
    except BaseException:
        discard_next(out)
        raise
    return _with_data_in(out, prepared), trainee, state


def _with_data_in(out: Path, prepared: Prepared) -> Prepared:
    train, validation = open_run(out, prepared.tokenizer)
    return dataclasses.replace(prepared, train=train, validation=validation)


def _reopen(
    out: Path, request: Request, change: bool, threads: int | None, device: torch.device, progress: Progress
) -> tuple[Prepared, RunState]:
    """A run as its newest good checkpoint has it."""
    prepared, before, record = reopen(out, request, change)
    if record.ranks in (None, request.world_size):
        _use_threads(threads, record.threads)
    else:
        if threads is not None:
            set_threads(threads)
        if prepared.config.drop_rate:
            now = request.world_size
            _log.warning("this run began with %d ranks: with %d, dropout draws other masks", record.ranks, now)
    path, state = newest_checkpoint(out)
    if request.minutes is not None:
        patience = request.settings.get("patience")
        prepared, line = with_more_minutes(prepared, request.minutes, patience, state.step, device, request.world_size)
        progress.message(line)
    if prepared.settings != before or request.agents:
        record_changes(out, prepared, request.agents)
    if (
        state.best_step == state.step or prepared.settings.keep == "last"
    ):  # a kill may have come between saving and publishing
        publish(path, out)
    RunWriter(out, prepared, progress).rewind(state)
    write_pictures(out)  # a kill may have come before
    for line in resume_report(out, prepared, before, state.step, state.guard.rate):
        progress.message(line)
    if prepared.settings.fsdp and request.world_size == 1:
        progress.message("fsdp: one process holds the whole model")
    progress.start(prepared, state.step)
    return prepared, state


def _run(
    prepared: Prepared, trainee: Trainee, state: RunState, out: Path, progress: Progress, ranks: Ranks
) -> TrainResult:
    """The loop: forward, backward and update until the last step, measured and saved every `eval_every` steps.

    In between it is saved every `save_minutes`, which changes nothing of what it computes. All `ranks` go through it
    alike: what decides is a sum over all of them, but for the clock, by which only rank 0 saves.
    """
    settings, dtype = prepared.settings, DTYPES[prepared.settings.dtype]
    assert settings.steps is not None and settings.eval_every is not None
    length = prepared.config.context_length
    loader = _loader(prepared, ranks)
    writer = RunWriter(out, prepared, progress, ranks=ranks)
    saved_step, saved_at = state.step, time.monotonic()
    with stop_requested() as stopping:
        while True:
            step, last = state.step, state.step == settings.steps
            late = step > saved_step and 0 < 60 * settings.save_minutes <= time.monotonic() - saved_at
            stop, late = ranks.any(stopping(), late and ranks.first)  # by its clock all save a sharded model
            if state.evaluated < step and (prepared.is_due(step) or last or stop):
                if stop:
                    writer.message("stopping: the model is measured and saved first; Ctrl-C again does not wait")
                state = writer.measure_and_save(trainee, state, prepared.epochs(step))
                saved_step, saved_at = step, time.monotonic()
                (stop,) = ranks.any(stopping())
            elif late:
                writer.save(trainee, state)
                saved_step, saved_at = step, time.monotonic()
            tired = state.evaluated == step and settings.tired(step - state.best_regular_step)
            if tired and not last:
                writer.message(
                    f"stopping: no better model since step {state.best_regular_step:,} (patience 0 would not stop, and "
                    "keep last would keep the last one)"
                )
            if last or tired or (stop and state.evaluated == step):  # never with steps that are not saved
                break

            start = time.perf_counter()
            guard = state.guard
            loss, norm, refusal = take_step(
                trainee.objective, trainee.optimizers, loader.batch(step), step, settings, dtype, ranks, guard
            )
            seconds = time.perf_counter() - start
            if refusal is not None:
                writer.message(f"step {step}: loss {loss:.6g}, gradient norm {norm:.6g}: skipped, {refusal}")
            writer.step(step, loss, norm, schedule(step, settings) * guard.rate, settings.batch_size * length / seconds)
            state = state.after_step(guard.after(loss, norm, refusal, settings))
            if state.guard.skipped == MAX_SKIPPED:
                trainee, state = roll_back(prepared, state, out, trainee.model.device, writer, ranks)
                saved_step = state.step
    result = _result(out, prepared, state, last or tired)
    progress.finish(result)
    return result


def _loader(prepared: Prepared, ranks: Ranks) -> BatchLoader:
    """This rank's rows of every batch."""
    return BatchLoader(
        prepared.train.tokens,
        batch_size=prepared.settings.batch_size,
        context_length=prepared.config.context_length,
        seed=prepared.settings.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def _result(out: Path, prepared: Prepared, state: RunState, finished: bool) -> TrainResult:
    return TrainResult(
        directory=out,
        steps=state.step,
        finished=finished,
        epochs=prepared.epochs(state.step),
        keep=prepared.settings.keep,
        best_step=state.best_step,
        best_val_loss=state.best_val_loss,
        val_loss=state.val_loss,
        val_bits_per_byte=prepared.bits_per_byte(state.val_loss),
        bigram_loss=prepared.baselines.bigram,
    )


def _use_threads(asked: int | None, begun_with: int | None) -> None:
    """Compute with the threads a run began with: another number adds up in another order, so the last bits differ."""
    if begun_with is None:
        _log.warning("this run does not say how many threads it began with: with another number the last bits differ")
    elif asked not in (None, begun_with):
        _log.warning("this run began with %d threads: with %d the last bits differ", begun_with, asked)
    elif begun_with > available_cores():
        _log.warning("this run began with %d threads, more than the cores here: equal bits, but slow", begun_with)
    if asked or begun_with:
        set_threads(asked or begun_with)


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C, or SIGTERM, into a stop request that the loop checks between steps.

    A second Ctrl-C interrupts. A second SIGTERM does not: `torchrun` hands on what the system has sent to all already.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield asked.is_set
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(s) for s in signals]

    def restore_handlers() -> None:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)

    def ask(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before[0])

    for s in signals:
        signal.signal(s, ask)
    try:
        yield asked.is_set
    finally:
        restore_handlers()
