"""`glassgpt demo`: a GPT learns to write in a minute, on any machine, offline; then the speed ladder."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import torch

from glassgpt.checkpoint import load_model
from glassgpt.config import GPTConfig
from glassgpt.data.corpus import default_corpus
from glassgpt.data.tokens import TokenFile
from glassgpt.generation.decoder import Decoder
from glassgpt.generation.text import complete, generate
from glassgpt.generation.torch_decoder import CachedDecoder, NaiveDecoder
from glassgpt.language_model import seeded
from glassgpt.model import GPTModel
from glassgpt.terminal_text import visible
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.build import initial_model
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.progress import Progress
from glassgpt.training.records import TrainResult
from glassgpt.training.step import evaluate_loss
from glassgpt.training.train import train

CONFIG = GPTConfig(vocab_size=1024, context_length=64, emb_dim=128, n_heads=4, n_layers=2, drop_rate=0.0)
"""Small enough for several hundred steps in a minute on two cores; the tokenizer decides the vocabulary's size."""

DIRECTORY = Path("runs/demo")

PROMPT = "The function returns"
_LADDER_CONFIG = CONFIG.replace(context_length=512)
_LADDER_ROWS = 8


def demo(out: Path | None, seconds: float, progress: Progress, stream: IO[str]) -> TrainResult:
    """Train for `seconds` on Python's manual into `out`, and tell the story on `stream`. Errors as in `train`.

    Nothing is overwritten: where `out` is None it is `runs/demo`, or `runs/demo-2` and so on if that is taken.
    """

    def say(text: str = "") -> None:
        stream.write(text + "\n")
        stream.flush()

    say("glassgpt demo: a GPT that has never seen a word learns to write, from Python's own manual.")
    say()
    if out is None:
        out = _free(DIRECTORY)
        if out != DIRECTORY:
            say(f"{DIRECTORY} holds an earlier run, which stays as it is: this one goes to {out}.")
            say()
    result = train(
        (),
        out,
        shape=CONFIG,
        minutes=seconds / 60,
        progress=progress,
        sample_prompt=PROMPT,
        sample_tokens=40,
    )
    if not result.finished:
        return result
    model, tokenizer = load_model(out)
    validation = TokenFile.open(Path(out) / "data" / "validation.npy", tokenizer=tokenizer)
    loss = evaluate_loss(NextTokenLoss(model), validation.tokens, 64)
    validation.close()
    verdict = "below" if loss < result.bigram_loss else "not below"
    say()
    say(f"On all of the validation part: {loss:.3f} nats per token, {verdict} the bigram's {result.bigram_loss:.3f}.")
    say()
    before = initial_model(model.config, 0)
    for name, writer in (("before", before), ("after", model)):
        text = generate(
            writer,
            tokenizer,
            PROMPT,
            max_new_tokens=120,
            temperature=0.7,
            top_p=0.9,
            seed=3,
            overflow="slide",
            ignore_eot=True,
        )
        say(f"--- {name}: {share_of_known_words(text):.0%} of its words occur in the manual")
        say(visible(PROMPT + text))
        say()
    _speed_ladder(model, tokenizer, say)
    say()
    say("What to type next:")
    run, program = shlex.quote(str(out)), _program()
    say(f'  {program} generate {run} "{PROMPT}" --temperature 0.8   # more of it')
    say(f'  {program} explain {run} "{PROMPT}" --out maps.png       # where its heads look')
    say(f"  {program} train my.txt --out runs/mine                        # your own text")
    say(f"The curve of this run is {out}/loss.png.")
    return result


def _program() -> str:
    """How this program can be called from here: by its name where the shell finds it, else by its path."""
    here = Path(sys.executable).with_name("glassgpt")
    found = shutil.which("glassgpt")
    if not here.exists():
        return "glassgpt" if found else "python -m glassgpt"
    if found and Path(found).resolve() == here.resolve():
        return "glassgpt"
    return shlex.quote(os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here))


def _free(directory: Path) -> Path:
    """`directory`, or the first of `directory-2`, `directory-3` and so on in which there is nothing."""
    numbered = (directory.with_name(f"{directory.name}-{n}") for n in itertools.count(2))
    return next(
        path
        for path in itertools.chain([directory], numbered)
        if not path.exists() or (path.is_dir() and not any(path.iterdir()))
    )


def share_of_known_words(text: str) -> float:
    """The fraction of the words of `text`, first and last one cut off, that occur in the default corpus."""
    words = _words(text)[1:-1]
    return sum(word in _known_words() for word in words) / max(1, len(words))


@functools.cache  # reading the whole standard library takes seconds
def _known_words() -> frozenset[str]:
    return frozenset(word for document in default_corpus() for piece in document.pieces() for word in _words(piece))


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def _speed_ladder(model: GPTModel, tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
    """The same greedy tokens by each technique, on a model with room for a long text."""
    long, n_tokens = _stretched(model), _LADDER_CONFIG.context_length - 32
    say(f"The speed ladder, {n_tokens} tokens after the same prompt:")
    first = None
    for name, make, n_rows in _rungs(long, say):
        try:
            decoder = make()
        except ImportError:  # without Numba the ladder is shorter
            break
        start = time.perf_counter()
        texts = complete(decoder, tokenizer, [PROMPT] * n_rows, max_new_tokens=n_tokens, temperature=0, ignore_eot=True)
        rate = n_rows * n_tokens / (time.perf_counter() - start)
        ids = texts[0].ids
        first = first or (rate, ids)
        same = next((n for n, (a, b) in enumerate(zip(ids, first[1], strict=True)) if a != b), len(ids))
        tokens = "the same tokens" if same == len(ids) else f"the same {same:,} first tokens"
        say(f"  {rate:>8,.0f} tokens/s  {rate / first[0]:>6.1f} x  {name}: {tokens}")


def _rungs(model: GPTModel, say: Callable[[str], None]) -> Iterator[tuple[str, Callable[[], Decoder], int]]:
    """Name, decoder and number of rows of each technique, from plain to fast."""

    def compiled(precision: str) -> Callable[[], Decoder]:
        def make() -> Decoder:
            from glassgpt.generation.cpu.load import compiled_decoder

            return compiled_decoder(model, precision, lambda text: say(f"  {text}"))

        return make

    yield "naive, the whole text again for each token", lambda: NaiveDecoder(model), 1
    yield "cached, each token once", lambda: CachedDecoder(model), 1
    yield "compiled, in kernels for this CPU", compiled("float32"), 1
    yield "8-bit weights", compiled("int8"), 1
    yield "4-bit weights", compiled("int4"), 1
    yield f"batch, {_LADDER_ROWS} texts together", compiled("float32"), _LADDER_ROWS


def _stretched(model: GPTModel) -> GPTModel:
    """The trained model with more positions, the new ones untrained: for timing, a longer text than it learned."""
    config = model.config.replace(context_length=_LADDER_CONFIG.context_length)
    with seeded(0):
        long = GPTModel(config).eval()
    state = model.state_dict()
    trained = state["pos_emb.weight"]
    state["pos_emb.weight"] = trained[torch.arange(config.context_length) % len(trained)]
    long.load_state_dict(state)
    return long
