"""The command line. Each command imports what it needs when it runs, so that `glassgpt --help` loads no torch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from glassgpt.config import PRESETS
from glassgpt.training.settings import Settings

if TYPE_CHECKING:
    from glassgpt.model import GPTModel
    from glassgpt.tokenizer import Tokenizer

DONE, FAILED, MISUSED = 0, 1, 2
"""Exit codes: it worked; it could not be done; it was asked wrongly."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors that a user can cause are one line on standard error."""
    arguments = _parser().parse_args(argv)
    warnings.showwarning = _show_warning
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _say("interrupted", FAILED)
    except BrokenPipeError:  # the reader of our output has left, `| head` for one: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
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
        print(f'next: glassgpt generate {result.directory} "Once upon a time"', file=sys.stderr)
    return DONE if result.finished else FAILED


def _demo(arguments: argparse.Namespace) -> int:
    from glassgpt.demo import demo
    from glassgpt.device import set_threads

    set_threads(arguments.threads)
    with _shown(arguments) as progress:
        demo(arguments.out, arguments.seconds, progress, sys.stdout)
    return DONE


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
    print("A base model continues the text of this talk. /reset forgets it, /quit or Ctrl-D ends.")
    text = ""
    while True:
        try:
            line = input("You: ")
        except EOFError:
            print()
            return DONE
        if line.strip() in ("/quit", "/exit"):
            return DONE
        if line.strip() == "/reset":
            text = ""
            continue
        text += f"You: {line}\nGPT:"
        text += _write_stream("GPT:", model, tokenizer, text, options) + "\n"


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
        with replacing(arguments.out) as temporary:
            plot_attention(maps, [place.text for place in places]).savefig(temporary, format="png")
        print(f"attention maps: {arguments.out}", file=sys.stderr)
    return DONE


def _download(arguments: argparse.Namespace) -> int:
    from pathlib import Path

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
    from glassgpt.checkpoint import load_model, save_model
    from glassgpt.weights.proof import prove

    out = arguments.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists: choose a new name")
    model, tokenizer = load_model(arguments.model)
    if arguments.to == "huggingface":
        save_model(model, tokenizer, out)
        proof = prove(model, load_model(out)[0])
    elif arguments.to == "gguf":
        from glassgpt.weights.gguf import read_gguf, write_gguf

        write_gguf(model, tokenizer, out, arguments.type, arguments.name or out.stem)
        proof = prove(model, read_gguf(out)[0])
        if model.config.gelu == "erf":
            print("note: this model computes the erf form of GELU, llama.cpp the tanh form", file=sys.stderr)
    elif arguments.to == "book":
        from glassgpt.weights.book import book_dict, write_book

        write_book(model, out)
        proof = prove(model, load_model(out, tokenizer=tokenizer, n_heads=model.config.n_heads)[0])
        print(f"cfg = {book_dict(model.config)}")
    else:
        from glassgpt.weights.onnx import write_onnx

        proof = write_onnx(model, out)
    return _say_proof(arguments, model, proof)


def _say_proof(arguments: argparse.Namespace, model: GPTModel, proof: Any) -> int:
    if arguments.json:
        _print_json(dataclasses.asdict(proof) | {"out": arguments.out, "config": model.config.to_dict()})
    else:
        print(f"{arguments.out}: {model.config.n_parameters():,} parameters")
        print(f"proof: {proof}")
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

    pieces = stream(model, tokenizer, prompt, **options)
    sys.stdout.write(shown)
    text = ""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        text += piece
    sys.stdout.write("\n")
    return text


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
    print(json.dumps(value, default=str))


def _one_line(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename}: no such file or directory"
    return " ".join(str(error).split()) or type(error).__name__


def _say(text: str, code: int) -> int:
    print(f"glassgpt: {text}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"glassgpt: warning: {' '.join(str(message).split())}", file=sys.stderr)


# ---- the parser ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        with contextlib.suppress(BrokenPipeError):
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="glassgpt", description="A GPT you can see through: train, generate, look inside.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", _demo, "train a small GPT on Python's own manual for a minute, and watch it write"
    )
    demo.add_argument("--out", default="runs/demo", help="directory of the run (default: %(default)s)")
    demo.add_argument("--seconds", type=float, default=60.0, help="time to train, in seconds (default: %(default)g)")
    _machine_options(demo, device=False)
    demo.set_defaults(json=False)

    train = _command(commands, "train", _train, "train a GPT on your own text")
    train.add_argument("text", nargs="*", metavar="TEXT", help="text files or folders (none: Python's own manual)")
    train.add_argument("--out", default="runs/model", help="directory of the run (default: %(default)s)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--overwrite", action="store_true", help="begin anew in a directory that holds an older run")
    train.add_argument("--model", metavar="PRESET", choices=PRESETS, help=f"shape: {', '.join(PRESETS)}; none: picked")
    train.add_argument("--tokenizer", choices=("bpe", "gpt2", "char", "byte"), help="none: a BPE trained on the text")
    train.add_argument("--minutes", type=float, help="train for about this long, instead of --steps (default: 5)")
    for field in dataclasses.fields(Settings):
        _setting_option(train, field)
    _machine_options(train)
    _json_option(train)

    generate = _command(commands, "generate", _generate, "continue a prompt")
    _model_argument(generate)
    generate.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads standard input")
    generate.add_argument("--n", type=_positive, default=1, help="number of continuations (default: 1)")
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
    explain.add_argument("--top", type=_positive, default=5, help="likeliest tokens shown (default: 5)")
    explain.add_argument("--out", type=_path, help="PNG file for the attention maps")
    _machine_options(explain)
    _json_option(explain)

    download = _command(commands, "download", _download, "fetch GPT-2's weights, checked before they count")
    download.add_argument(
        "name", metavar="NAME", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, 124M ..., owner/name, URL"
    )
    download.add_argument("--openai", action="store_true", help="OpenAI's original files instead of Hugging Face's")
    download.add_argument("--weights-dir", type=_path, metavar="DIR", help="where they go (default: the usual cache)")
    download.add_argument("--print-urls", action="store_true", help="only show what to fetch by hand, and its sha256")
    _json_option(download)

    imports = _command(commands, "import", _import, "turn weights of any known format into a model directory")
    imports.add_argument("path", metavar="PATH", help="the directory or file; its format is found by looking")
    imports.add_argument("--out", type=_path, required=True, help="the new model directory")
    imports.add_argument("--tokenizer", type=_path, metavar="DIR", help="for files that come without one")
    imports.add_argument("--n-heads", type=_positive, metavar="N", help="for the book's files, which do not tell it")
    _json_option(imports)

    export = _command(commands, "export", _export, "write a model for other tools, and prove that it is the same")
    _model_argument(export)
    export.add_argument("--to", required=True, choices=("huggingface", "gguf", "book", "onnx"), help="the format")
    export.add_argument("--out", type=_path, required=True, help="the new file, or directory for huggingface")
    export.add_argument("--type", choices=("f32", "f16", "q8_0"), default="f32", help="GGUF only (default: f32)")
    export.add_argument("--name", help="GGUF only: the model's name in the file (default: the file's)")
    _json_option(export)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _setting_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    unit, text = field.metadata["unit"], field.metadata["help"]
    kind = {"int": int, "int | None": int, "float": float}.get(str(field.type), str)
    default = "none" if field.default is None else repr(field.default) if field.default == "" else field.default
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
        help="length (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy, below 1 is bolder, above 1 wilder (default: 1)",
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
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    add("--seed", type=int, help="the same seed gives the same text (default: a new one)")
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
    value = int(text) if text.lstrip("+-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 up")
    return value


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
