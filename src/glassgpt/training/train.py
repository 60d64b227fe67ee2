"""`train`: from text files to a model directory, one visible loop.

Everything random in step s is seeded from (seed, s): the batch, the dropout. So a run that was killed and resumed
from its last checkpoint computes, bit for bit on the CPU, what the undisturbed run computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import GPTConfig
from glassgpt.data.loader import BatchLoader
from glassgpt.device import DTYPES, pick_device
from glassgpt.generation.generate import generate
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.optimizer import build_optimizers
from glassgpt.training.prepare import Prepared, prepare, reopen
from glassgpt.training.progress import Progress
from glassgpt.training.run_files import RunLog, plot_losses, publish
from glassgpt.training.settings import Settings
from glassgpt.training.state import newest_checkpoint, restore, restore_optimizers, save_checkpoint
from glassgpt.training.step import evaluate_loss, initial_model, schedule, take_step

MAX_BAD_STEPS = 10
"""Steps in a row whose loss or gradient was no number, after which training gives up."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended. Losses are in nats per token; `finished` is False after Ctrl-C."""

    directory: Path
    steps: int
    finished: bool
    best_val_loss: float
    val_loss: float
    val_bits_per_byte: float
    bigram_loss: float


class TrainingFailedError(RuntimeError):
    """Training cannot go on; the last checkpoint is untouched."""


def train(
    texts: Sequence[str | Path] = (),
    out: str | Path = "runs/model",
    *,
    model: GPTConfig | str | None = None,
    tokenizer: Tokenizer | str | None = None,
    resume: bool = False,
    minutes: float | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a GPT on text files or folders (none: Python's own manual) and write it to the directory `out`.

    `model` is a config, a preset's name, or None: picked from the text's size and the machine; so is `tokenizer`, one
    of "gpt2", "bpe", "char", "byte" or a `Tokenizer`. `settings` are the fields of `Settings`; `minutes` sets `steps`
    from a short measurement instead. With `resume` the run in `out` goes on where its last checkpoint is, and only
    the settings it had are accepted. `overwrite` begins anew in a directory that holds an older run.

    `out` is a model directory at every moment: the best model so far, by validation loss. Raises `ValueError` and
    `FileNotFoundError` for what the user can mend, `TrainingFailedError` when the loss is no number for good.
    """
    progress = progress or Progress()
    out = Path(out)
    where = pick_device(device)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: go on with the run, or begin anew")
    if resume:
        prepared = reopen(out, texts, model, tokenizer, minutes, settings)
    else:
        prepared = prepare(texts, out, model, tokenizer, minutes, settings, where, progress, overwrite)
    return _run(prepared, out, where, resume, progress)


def _run(prepared: Prepared, out: Path, device: torch.device, resume: bool, progress: Progress) -> TrainResult:
    settings, tokenizer = prepared.settings, prepared.tokenizer
    dtype = DTYPES[settings.dtype]
    if resume:
        path, state = newest_checkpoint(out)
        model, tokenizer, tensors = restore(path, device)
        model.train()
        optimizers = build_optimizers(model, settings)
        restore_optimizers(model, optimizers, tensors)
        if state["val_loss"] == state["best_val_loss"]:  # a kill may have come between saving and publishing
            publish(path, out)
        progress.message(f"resuming {out} at step {state['step']:,}")
    else:
        state = {"step": 0, "best_val_loss": math.inf, "val_loss": math.inf}
        model = initial_model(prepared.config, settings.seed).to(device)
        optimizers = build_optimizers(model, settings)
    loader = BatchLoader(
        prepared.train.tokens,
        batch_size=settings.batch_size,
        context_length=prepared.config.context_length,
        seed=settings.seed,
    )
    log = RunLog(out, state["step"])
    progress.start(prepared, state["step"])
    bad_steps = 0
    tokens_per_step = settings.batch_size * prepared.config.context_length

    with stop_requested() as stopping:
        step: int = state["step"]
        while True:
            done = step == settings.steps
            if step > state.get("evaluated", -1) and (step % settings.eval_every == 0 or done or stopping()):
                if stopping():
                    progress.message("stopping: the model is measured and saved first; Ctrl-C again does not wait")
                val_loss = evaluate_loss(
                    model, prepared.validation.tokens, settings.batch_size, settings.eval_batches, dtype
                )
                best = val_loss < state["best_val_loss"]
                state |= {"step": step, "evaluated": step, "val_loss": val_loss}
                if best:
                    state["best_val_loss"] = val_loss
                # first the log, whose last lines a resume drops if the checkpoint was never written
                record = log.evaluation(step, val_loss, prepared.bits_per_byte(val_loss), loader.epoch(step))
                checkpoint = save_checkpoint(out, model, tokenizer, optimizers, state)
                if best:
                    publish(checkpoint, out)
                progress.evaluation(record, best)
                plot_losses(out, prepared.baselines)
                if settings.sample_tokens:
                    progress.sample(_sample(model, tokenizer, settings))
            if done or (stopping() and state["evaluated"] == step):  # never with steps that are not saved
                break

            start = time.perf_counter()
            loss, norm, good = take_step(model, optimizers, loader.batch(step), step, settings, dtype)
            bad_steps = 0 if good else bad_steps + 1
            if not good:
                progress.message(f"step {step}: loss {loss}, gradient norm {norm}: skipped")
            if bad_steps == MAX_BAD_STEPS:
                raise TrainingFailedError(
                    f"the loss was no number for {bad_steps} steps up to step {step}: lower the learning rate; "
                    f"the last checkpoint in {out} is untouched"
                )
            tokens_per_second = tokens_per_step / (time.perf_counter() - start)
            progress.step(log.step(step, loss, norm, schedule(step, settings), tokens_per_second))
            step += 1

    finished = step == settings.steps
    result = TrainResult(
        directory=out,
        steps=step,
        finished=finished,
        best_val_loss=state["best_val_loss"],
        val_loss=state["val_loss"],
        val_bits_per_byte=prepared.bits_per_byte(state["val_loss"]),
        bigram_loss=prepared.baselines.bigram,
    )
    progress.finish(result)
    return result


@contextlib.contextmanager
def stop_requested() -> Iterator[Any]:
    """Turns the first Ctrl-C, or SIGTERM, into a wish that the loop reads between steps; a second one interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield asked.is_set
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(s) for s in signals]

    def ask(*_: Any) -> None:
        asked.set()
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)

    for s in signals:
        signal.signal(s, ask)
    try:
        yield asked.is_set
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)


def _sample(model: GPTModel, tokenizer: Tokenizer, settings: Settings) -> str:
    text = generate(
        model,
        tokenizer,
        settings.sample_prompt,
        max_new_tokens=settings.sample_tokens,
        temperature=0.8,
        top_p=0.95,
        seed=settings.seed,
        overflow="slide",
    )
    return settings.sample_prompt + text
