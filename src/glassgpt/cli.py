"""The command line. Each command imports what it needs when it runs, so that `glassgpt --help` loads no torch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from glassgpt.config import PRESETS
from glassgpt.training.settings import Settings

if TYPE_CHECKING:
    from glassgpt.model import GPTModel
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.weights.proof import Proof

DONE, FAILED, MISUSED = 0, 1, 2
"""Exit codes: it worked; it could not be done; it was asked wrongly."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors that a user can cause are one line on standard error."""
    _mend_streams()
    if logging.lastResort is not None:  # what prints where nobody has set up logging
        logging.lastResort.setFormatter(logging.Formatter("glassgpt: warning: %(message)s"))
    # Read by OpenMP when torch is loaded: how long a thread spins before it sleeps while it waits for work. With the
    # default, 300,000 turns, one other busy process on two cores made a training step take 14 times as long, and more.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _say("interrupted", FAILED)
    except BrokenPipeError:  # the reader of our output has left, `| head` for one: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        return _say(_one_line(error), MISUSED)
    except (OSError, RuntimeError, MemoryError, ImportError) as error:
        return _say(_one_line(error), FAILED)


# ---- commands ------------------------------------------------------------------------------------------------------


def _train(arguments: argparse.Namespace) -> int:
    from glassgpt.device import set_threads
    from glassgpt.training.train import train

    given = _given(arguments, Settings)
    set_threads(arguments.threads)
    with _shown(arguments) as progress:
        result = train(
            arguments.text,
            arguments.out,
            model=arguments.model,
            tokenizer=arguments.tokenizer,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            minutes=arguments.minutes,
            device=arguments.device,
            progress=progress,
            **given,
        )
    if arguments.json:
        _print_json(dataclasses.asdict(result))
    elif result.finished:
        print(f'next: glassgpt generate {shlex.quote(str(result.directory))} "Once upon a time"', file=sys.stderr)
    return DONE if result.finished else FAILED


def _demo(arguments: argparse.Namespace) -> int:
    from glassgpt.demo import demo
    from glassgpt.device import set_threads

    set_threads(arguments.threads)
    with _shown(arguments) as progress:
        result = demo(arguments.out, arguments.seconds, progress, sys.stdout)
    return DONE if result.finished else FAILED


def _generate(arguments: argparse.Namespace) -> int:
    model, tokenizer = _load(arguments)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    options = _sampling_options(arguments)
    if arguments.json:
        from glassgpt.generation.generate import complete

        seed = options.pop("seed")
        seeds = None if seed is None else [seed + n for n in range(arguments.n)]
        made = complete(model, tokenizer, [prompt] * arguments.n, seed=seeds, **options)
        _print_json({"prompt": prompt, "completions": [dataclasses.asdict(completion) for completion in made]})
        return DONE
    for number in range(arguments.n):
        if options["seed"] is not None and number:
            options["seed"] += 1
        _write_stream(prompt, model, tokenizer, prompt, options)
    return DONE


def _chat(arguments: argparse.Namespace) -> int:
    model, tokenizer = _load(arguments)
    options = _sampling_options(arguments)
    options["stop"] = [*options["stop"], "\nYou:"]
    with contextlib.suppress(ImportError):  # line editing and history, where the platform has them
        __import__("readline")
    print("A base model continues the text of this talk.")
    print("/reset forgets it, Ctrl-C stops an answer, /quit or Ctrl-D ends.")
    text = ""
    while True:
        try:
            line = input("You: ")
        except (EOFError, KeyboardInterrupt):
            print()
            return DONE
        if line.strip() in ("/quit", "/exit"):
            return DONE
        if line.strip() == "/reset":
            text = ""
            continue
        asked = f"{text}You: {line}\nGPT:"
        try:
            text = asked + _write_stream("GPT:", model, tokenizer, asked, options) + "\n"
        except ValueError as error:  # a character that the vocabulary lacks, or too long a talk: the line is forgotten
            _say(_one_line(error), FAILED)
        except KeyboardInterrupt:
            continue


def _evaluate(arguments: argparse.Namespace) -> int:
    from glassgpt.training.evaluate import evaluate

    model, tokenizer = _load(arguments)
    result = evaluate(model, tokenizer, arguments.text)
    if arguments.json:
        _print_json(dataclasses.asdict(result))
    else:
        print(f"loss           {result.loss:.4f} nats per token")
        print(f"perplexity     {result.perplexity:.2f}")
        print(f"bits per byte  {result.bits_per_byte:.4f}")
        print(f"text           {result.n_bytes:,} bytes, {result.n_tokens:,} tokens")
    return DONE


def _explain(arguments: argparse.Namespace) -> int:
    from glassgpt.explain import attention_maps, plot_attention, trace

    model, tokenizer = _load(arguments)
    places = trace(model, tokenizer, arguments.prompt, arguments.top)
    if arguments.json:
        _print_json([dataclasses.asdict(place) for place in places])
    else:
        print(f"{'token':>16}  probability   likeliest next")
        for place in places:
            probability = "" if place.probability is None else f"{place.probability:.3f}"
            best = "  ".join(f"{text!r} {p:.2f}" for text, p in place.likeliest)
            print(f"{place.text!r:>16}  {probability:>11}   {best}")
    if arguments.out:
        from glassgpt.files import replacing

        maps = attention_maps(model, tokenizer.encode(arguments.prompt))
        with replacing(arguments.out) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box in the picture
            plot_attention(maps, [place.text for place in places]).savefig(temporary, format="png")
        print(f"attention maps: {arguments.out}", file=sys.stderr)
    return DONE


def _download(arguments: argparse.Namespace) -> int:
    from glassgpt.weights.download import download_openai_gpt2, files_to_fetch, resolve_model

    if arguments.print_urls:
        files = files_to_fetch(arguments.name, "openai" if arguments.openai else "huggingface")
        if arguments.json:
            _print_json([file._asdict() for file in files])
        else:
            for file in files:
                size = "size unknown" if file.size is None else f"{file.size:,} bytes"
                print(f"{file.url}\n    {size}, sha256 {file.sha256 or 'unknown'}, as {file.path}")
        return DONE
    with _download_bar() as progress:
        if arguments.openai:
            where = download_openai_gpt2(arguments.name, arguments.weights_dir or Path("gpt2"), progress=progress)
        else:
            where = resolve_model(arguments.name, weights_dir=arguments.weights_dir, progress=progress)
    if arguments.json:
        _print_json({"path": where})
    else:
        print(where)
    return DONE


def _import(arguments: argparse.Namespace) -> int:
    from glassgpt.checkpoint import load_model, save_model
    from glassgpt.weights.proof import prove

    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise ValueError(f"{arguments.out} is not empty: choose a new directory")
    options = {"tokenizer": arguments.tokenizer, "n_heads": arguments.n_heads, "dtype": None}
    with _download_bar() as progress:
        model, tokenizer = load_model(arguments.path, progress=progress, **options)
    save_model(model, tokenizer, arguments.out)
    result, _ = load_model(arguments.out, dtype=None)
    return _say_proof(arguments, model, prove(model.float(), result.float()))


def _export(arguments: argparse.Namespace) -> int:
    import torch

    from glassgpt.checkpoint import load_model, save_model
    from glassgpt.weights.proof import prove

    out = arguments.out
    if arguments.to != "gguf" and (arguments.type or arguments.name):
        raise ValueError(f"--type and --name are for --to gguf, not for {arguments.to}: leave them out")
    if out.exists() and (arguments.to != "huggingface" or not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists: choose a new name")
    rounded = False
    with _download_bar() as progress:
        keep = arguments.to == "huggingface"  # the file's own dtype; the others are made from float32
        model, tokenizer = load_model(arguments.model, dtype=None if keep else torch.float32, progress=progress)
    if arguments.to == "huggingface":
        save_model(model, tokenizer, out)
        proof = prove(model.float(), load_model(out)[0])
    elif arguments.to == "gguf":
        from glassgpt.weights.gguf import read_gguf, write_gguf

        write_gguf(model, tokenizer, out, arguments.type or "f32", arguments.name or out.stem)
        proof = prove(model, read_gguf(out))
        rounded = arguments.type in ("f16", "q8_0") or model.config.gelu == "erf"
        if model.config.gelu == "erf":
            print("note: this model computes the erf form of GELU, llama.cpp the tanh form", file=sys.stderr)
    elif arguments.to == "book":
        from glassgpt.weights.book import book_dict, write_book

        write_book(model, out)
        proof = prove(model, load_model(out, tokenizer=tokenizer, n_heads=model.config.n_heads)[0])
        print(f"cfg = {book_dict(model.config)}", file=sys.stderr if arguments.json else sys.stdout)
    else:
        from glassgpt.weights.onnx import write_onnx

        proof = write_onnx(model, out)
    return _say_proof(arguments, model, proof, rounded)


def _say_proof(arguments: argparse.Namespace, model: GPTModel, proof: Proof, rounded: bool = False) -> int:
    if arguments.json:
        _print_json(dataclasses.asdict(proof) | {"out": arguments.out, "config": model.config.to_dict()})
    else:
        print(f"{arguments.out}: {model.config.n_parameters():,} parameters")
        print(f"proof: {proof}")
    if not proof.holds(rounded=rounded):
        return _say(f"{arguments.out} does not compute what its source computes: do not use it", FAILED)
    return DONE


# ---- what the commands share ---------------------------------------------------------------------------------------


def _load(arguments: argparse.Namespace) -> tuple[GPTModel, Tokenizer]:
    from glassgpt.checkpoint import load_model
    from glassgpt.device import pick_device, set_threads

    set_threads(arguments.threads)
    with _download_bar() as progress:
        return load_model(arguments.model, device=pick_device(arguments.device), progress=progress)


@contextlib.contextmanager
def _download_bar() -> Iterator[Callable[[int, int | None], None]]:
    """A callback for downloads that draws a bar with rate and time left, from its first call on."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=None)

    def progress(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        if bar.live.is_started:  # one that never was would still end with an empty line
            bar.stop()


def _sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    from glassgpt.generation.sampling import Sampling

    options = _given(arguments, Sampling)
    Sampling(**options)  # complains before anything is written
    return options | {
        "max_new_tokens": arguments.max_new_tokens,
        "stop": arguments.stop,
        "seed": arguments.seed,
        "overflow": arguments.overflow,
        "ignore_eot": arguments.ignore_eot,
    }


def _write_stream(shown: str, model: GPTModel, tokenizer: Tokenizer, prompt: str, options: dict[str, Any]) -> str:
    """Print what follows `prompt` after the text `shown`, piece by piece; returns it."""
    from glassgpt.generation.generate import stream

    from glassgpt.training.terminal import visible

    pieces = stream(model, tokenizer, prompt, **options)
    # a file gets the text as it is; a terminal would obey the control characters in it
    show = visible if sys.stdout.isatty() else str
    text = ""
    try:
        for piece in itertools.chain((shown,), pieces):
            sys.stdout.write(show(piece))
            sys.stdout.flush()
            text += piece
    finally:
        sys.stdout.write("\n")  # after Ctrl-C, too: what comes next begins a line
    return text.removeprefix(shown)


@contextlib.contextmanager
def _shown(arguments: argparse.Namespace) -> Any:
    """The progress view for a command; the terminal is left in order whatever happens."""
    from glassgpt.training.terminal import LiveView, progress_for

    progress = progress_for(sys.stderr if arguments.json else sys.stdout)
    try:
        yield progress
    finally:
        if isinstance(progress, LiveView):
            progress.close()


_T = TypeVar("_T")


def _given(arguments: argparse.Namespace, fields_of: type[Any]) -> dict[str, Any]:
    """The options that were given on the command line, of those that are fields of a dataclass."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(fields_of)}
    return {name: value for name, value in values.items() if value is not None}


def _print_json(value: Any) -> None:
    text = json.dumps(value, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None)))  # JSON knows neither NaN nor infinity: null


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename2 or error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split()) or type(error).__name__


def _say(text: str, code: int) -> int:
    print(f"glassgpt: {text}", file=sys.stderr)
    return code


def _mend_streams() -> None:
    """Printing never fails for want of a letter in the terminal's encoding, or of a stream (`>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"glassgpt: warning: {' '.join(str(message).split())}", file=sys.stderr)


# ---- the parser ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        with contextlib.suppress(BrokenPipeError):
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="glassgpt", description="A GPT you can see through: train, generate, look inside.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", _demo, "train a small GPT on Python's own manual for a minute, and watch it write"
    )
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="directory of the run (default: %(default)s)")
    demo.add_argument("--seconds", type=_above_zero, default=60.0, help="time to train (default: %(default)g)")
    _machine_options(demo, device=False)
    demo.set_defaults(json=False)

    train = _command(commands, "train", _train, "train a GPT on your own text")
    train.add_argument("text", nargs="*", metavar="TEXT", help="text files or folders (none: Python's own manual)")
    train.add_argument("--out", default="runs/model", metavar="DIR", help="directory of the run (default: %(default)s)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--overwrite", action="store_true", help="begin anew in a directory that holds an older run")
    train.add_argument(
        "--model", metavar="PRESET", choices=PRESETS, help=f"{', '.join(PRESETS)} (default: by the size of the text)"
    )
    train.add_argument(
        "--tokenizer",
        choices=("bpe", "gpt2", "char", "byte"),
        help="how text becomes tokens (default: bpe, trained on the text)",
    )
    train.add_argument("--minutes", type=_above_zero, help="train about this long, instead of --steps (default: 5)")
    for field in dataclasses.fields(Settings):
        _setting_option(train, field)
    _machine_options(train)
    _json_option(train)

    generate = _command(commands, "generate", _generate, "continue a prompt")
    _model_argument(generate)
    generate.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads standard input")
    generate.add_argument("--n", type=_positive, default=1, metavar="N", help="number of continuations (default: 1)")
    _sampling_arguments(generate)
    _machine_options(generate)
    _json_option(generate)

    chat = _command(commands, "chat", _chat, "talk with a model, line by line")
    _model_argument(chat)
    _sampling_arguments(chat)
    _machine_options(chat)

    evaluate = _command(commands, "evaluate", _evaluate, "measure a model on text: loss, perplexity, bits per byte")
    _model_argument(evaluate)
    evaluate.add_argument("text", nargs="+", metavar="TEXT", help="text files or folders")
    _machine_options(evaluate)
    _json_option(evaluate)

    explain = _command(commands, "explain", _explain, "show what a model expects at each token, and where it looks")
    _model_argument(explain)
    explain.add_argument("prompt", metavar="PROMPT", help="the text to look at")
    explain.add_argument("--top", type=_positive, default=5, metavar="N", help="likeliest tokens shown (default: 5)")
    explain.add_argument("--out", type=Path, metavar="FILE", help="PNG file for the attention maps (default: none)")
    _machine_options(explain)
    _json_option(explain)

    download = _command(commands, "download", _download, "fetch GPT-2's weights, checked before they count")
    download.add_argument(
        "name", metavar="NAME", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, 124M ..., owner/name, URL"
    )
    download.add_argument("--openai", action="store_true", help="OpenAI's original files instead of Hugging Face's")
    download.add_argument("--weights-dir", type=Path, metavar="DIR", help="where they go (default: the usual cache)")
    download.add_argument("--print-urls", action="store_true", help="only show what to fetch by hand, and its sha256")
    _json_option(download)

    imports = _command(commands, "import", _import, "turn weights of any known format into a model directory")
    imports.add_argument("path", metavar="PATH", help="the directory or file; its format is found by looking")
    imports.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new model directory")
    imports.add_argument("--tokenizer", type=Path, metavar="DIR", help="where one is (default: with the file)")
    imports.add_argument(
        "--n-heads", type=_positive, metavar="N", help="for the book's files (default: that of GPT-2 of its width)"
    )
    _json_option(imports)

    export = _command(commands, "export", _export, "write a model for other tools, and prove that it is the same")
    _model_argument(export)
    export.add_argument("--to", required=True, choices=("huggingface", "gguf", "book", "onnx"), help="the format")
    export.add_argument("--out", type=Path, required=True, metavar="PATH", help="the new file; huggingface: directory")
    export.add_argument("--type", choices=("f32", "f16", "q8_0"), help="GGUF only: of the numbers (default: f32)")
    export.add_argument("--name", help="GGUF only: the model's name in the file (default: the file's)")
    _json_option(export)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _setting_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    unit, text, default = (field.metadata[key] for key in ("unit", "help", "default"))
    kind = {"int": int, "int | None": int, "float": float}.get(str(field.type), str)
    parser.add_argument(
        f"--{field.name.replace('_', '-')}",
        type=kind,
        metavar=unit.upper() or "X",
        help=f"{text} (default: {default})",
    )


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model directory or file, or a name to download: gpt2")


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--max-new-tokens",
        type=_positive,
        default=100,
        metavar="TOKENS",
        help="how many to write at most (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy, below 1 safer, above 1 wilder (default: 1)",
    )
    add("--top-k", type=int, metavar="K", help="keep the K best tokens (default: all)")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="keep the best tokens that reach probability P (default: all)",
    )
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="keep tokens at least P times as likely as the best (default: all)",
    )
    add(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1 shuns tokens already there (default: 1)",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be repeated (default: none)",
    )
    add("--seed", type=_seed, metavar="N", help="the same seed gives the same text (default: a new one)")
    add("--ignore-eot", action="store_true", help="never end the text before its length")
    add(
        "--overflow",
        choices=("slide", "error"),
        default="slide",
        help="past the context length: read only the last tokens that fit, or refuse (default: %(default)s)",
    )


def _machine_options(parser: argparse.ArgumentParser, device: bool = True) -> None:
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: the cores it may use)")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 up")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 2**63 - 1")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
