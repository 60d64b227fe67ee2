"""From options to arguments: one for each field of a class of `Options`, and the arguments that commands share."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import math
import sys
import typing
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from glassgpt.cli.console import say
from glassgpt.cores import may_have_gpu
from glassgpt.options import Options, Rule

if TYPE_CHECKING:
    from glassgpt.generation.cpu.decoder import CPUDecoder
    from glassgpt.generation.graphs import GraphDecoder
    from glassgpt.model import GPTModel
    from glassgpt.tokenizer import Tokenizer

DONE, FAILED, MISUSED = 0, 1, 2
"""Exit codes: it worked; it could not be done; it was used incorrectly."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        """See `argparse`."""
        self.exit(MISUSED, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """`error` for arguments that are left over, with the option that was perhaps meant."""
        name = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
        known = self._option_string_actions if name else ()
        near = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.75)
        self.error(f"unrecognized arguments: {' '.join(unknown)}{f'; did you mean {near[0]}?' if near else ''}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), map(str, action.choices), n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(map(str, action.choices))}"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}: {meant}")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        with contextlib.suppress(BrokenPipeError):
            super()._print_message(message, file)


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, *, json: bool = True
) -> argparse.ArgumentParser:
    """Add a command that `run` executes; `text` is its line of help."""
    result: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    result.set_defaults(run=run, parser=result, json=False)
    if json:
        result.add_argument("--json", action="store_true", help="print the result as JSON")
    result.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    return result


def add_fields(
    parser: argparse._ActionsContainer, options: type[Options], derived: str | None = None, **defaults: Any
) -> None:
    """An argument for each field; `defaults` are those that the command line has for itself.

    `derived` is in words where all the others come from when they are not given.
    """
    given = options()
    for name, (kind, rule) in options.rules().items():
        default = defaults.get(name, getattr(given, name))
        kinds = {kind, *typing.get_args(kind)}
        flags = [f"--{word.replace('_', '-')}" for word in (rule.short, name) if word]
        if bool in kinds:
            parser.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=rule.help)
            continue
        parser.add_argument(
            *flags,
            dest=name,
            action="append" if typing.get_origin(kind) is tuple else "store",
            type=_number(rule, int) if int in kinds else float if float in kinds else str,
            default=defaults.get(name),
            choices=None if int in kinds else rule.choices or None,
            metavar=None if rule.choices and int not in kinds else rule.unit.upper() or "TEXT",
            help=_help(rule, default if derived is None else None, derived),
        )


def _number(rule: Rule, kind: type[int]) -> Callable[[str], int | str]:
    """A whole number, or one of the words that the option takes instead."""

    def read(text: str) -> int | str:
        return text if text in rule.choices else kind(text)

    read.__name__ = kind.__name__  # as messages of argparse call it
    return read


def _help(rule: Rule, default: Any, derived: str | None = None) -> str:
    shown = default if default not in (None, "", ()) else derived or rule.derived or "none"
    return f"{rule.help} (default: {shown:g})" if isinstance(shown, float) else f"{rule.help} (default: {shown})"


def given(arguments: argparse.Namespace, options: type[Options]) -> dict[str, Any]:
    """The fields of `options` that were given on the command line, checked (`ValueError`)."""
    values = {name: getattr(arguments, name, None) for name in options.rules()}
    values = {name: value for name, value in values.items() if value is not None}
    options.check_fields(values)
    return values


def add_model(parser: argparse.ArgumentParser) -> None:
    """The argument that names a model."""
    parser.add_argument("model", metavar="MODEL", help="a model directory or file, or a name to download: gpt2")


def add_text_field(parser: argparse.ArgumentParser) -> None:
    """Where the text of a record is."""
    parser.add_argument(
        "--text-field",
        action="append",
        default=[],
        metavar="NAME",
        help="field or column that holds the text in JSON lines or CSV; several are joined (default: text or messages)",
    )


def add_machine(
    parser: argparse.ArgumentParser, device: bool = True, threads: str = "as many as there are cores to use"
) -> None:
    """Where to compute; `threads` says how many there are where nothing was asked for."""
    if device:
        parser.add_argument(
            "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default: auto)"
        )
    parser.add_argument("--threads", type=whole, metavar="N", help=f"CPU threads (default: {threads})")


def load(arguments: argparse.Namespace) -> tuple[GPTModel, Tokenizer]:
    """The model that was named, on the device that was asked for."""
    from glassgpt.checkpoint import load_model
    from glassgpt.device import pick_device, set_threads

    set_threads(arguments.threads)
    return load_model(arguments.model, device=pick_device(arguments.device))


def add_decoder(
    parser: argparse.ArgumentParser,
    auto: str = "compiled, or cached where there is a GPU, unless `glassgpt bench` found another faster",
    graphs: bool = True,
) -> None:
    """How the next token is computed; `auto` says what is taken where nothing was asked for."""
    parser.add_argument(
        "--decoder",
        choices=("auto", "compiled", "cached", *(["graphs"] if graphs else [])),
        default="auto",
        help="compiled: kernels for this CPU, without torch; cached: the readable model with its cache, on any device; "
        + ("graphs: the same with each step as one CUDA graph; " if graphs else "")
        + f"auto: {auto} (default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8", "int4"),
        help="number type of the compiled decoder's matrices: fewer bits are faster and not quite the model's own "
        "text (default: float32, or what `glassgpt quantize` made of it)",
    )
    parser.add_argument(
        "--kv-cache",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="number type of the compiled decoder's keys and values: float16 takes half the memory, int8 about a "
        "quarter (default: float32)",
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Whether to say what was chosen."""
    parser.add_argument(
        "--verbose", action="store_true", help="say in the end which decoder and how many threads were taken, and why"
    )


def say_choice(arguments: argparse.Namespace, model: Any) -> None:
    """With `--verbose`: what `load_for_text` took, and why."""
    if arguments.verbose:
        where = f", {model.tuner}" if hasattr(model, "tuner") else f" on {readable(model).device}"
        name = "compiled" if hasattr(model, "tuner") else "cached" if readable(model) is model else "graphs"
        say(f"{name} decoder ({arguments.decoder_why}){where}", DONE)


def readable(model: Any) -> Any:
    """The readable model that a decoder of `load_for_text` runs; of any other its own self."""
    return getattr(model, "model", model)


def add_draft(parser: argparse.ArgumentParser) -> None:
    """A model that guesses for another one."""
    parser.add_argument(
        "--draft",
        metavar="MODEL",
        help="a smaller model with the same tokenizer guesses the next tokens, and MODEL checks them all at once: the "
        "same text, faster where the guesses are good (default: none)",
    )


Loaded = TypeVar("Loaded")


def load_draft(
    arguments: argparse.Namespace,
    tokenizer: Tokenizer,
    model: Any,
    loading: Callable[[argparse.Namespace], tuple[Loaded, Tokenizer]],
) -> Loaded | None:
    """The draft model, if one was named, as `loading` gave `model`; `ValueError` where its tokenizer is another."""
    if arguments.draft is None:
        return None
    if arguments.speculate not in (None, "none"):
        raise ValueError("--draft and --speculate lookup exclude each other: leave one out")
    draft, of_draft = loading(argparse.Namespace(**{**vars(arguments), "model": arguments.draft}))
    if not of_draft.has_fingerprint(tokenizer.fingerprint):
        raise ValueError(
            f"the draft {arguments.draft} has another tokenizer than {arguments.model}: "
            "train one with --tokenizer and that model's directory"
        )
    if _n_bytes(draft) >= _n_bytes(model):
        logging.getLogger(__name__).warning(
            "the draft %s is no smaller than %s: guesses cost more than they save", arguments.draft, arguments.model
        )
    return draft


def _n_bytes(model: Any) -> int:
    """What the weights of a model or a decoder take."""
    if hasattr(model, "weight_bytes"):
        return int(model.weight_bytes)
    return sum(parameter.nbytes for parameter in readable(model).parameters())


def wants_compiled(arguments: argparse.Namespace) -> bool:
    """Whether something was asked for that only the compiled decoder has."""
    return (
        arguments.decoder == "compiled"
        or arguments.precision not in (None, "float32")
        or arguments.kv_cache != "float32"
    )


def load_for_text(arguments: argparse.Namespace) -> tuple[CPUDecoder | GraphDecoder | GPTModel, Tokenizer]:
    """The model that was named, as what `generation.text` takes: a decoder for the CPU or a GPU, or the readable model.

    `arguments.decoder_why` is set to the reason for the one or the other, for `say_choice`.
    """
    model, tokenizer = load_to_look(arguments)
    decoder = arguments.decoder
    device = str(getattr(model, "device", "cpu"))
    if device.startswith("cuda") and decoder == "auto":
        decoder, arguments.decoder_why = _measured(arguments, device)
    if decoder != "graphs":
        return model, tokenizer
    if not device.startswith("cuda"):
        raise ValueError(f"the decoder 'graphs' needs a CUDA device, and this model is on {device}: leave it out")
    from glassgpt.generation.graphs import GraphDecoder

    return GraphDecoder(model), tokenizer  # type: ignore[arg-type]  # what is on a GPU is readable


def load_to_look(arguments: argparse.Namespace) -> tuple[CPUDecoder | GPTModel, Tokenizer]:
    """As `load_for_text`, but whatever it gives has the scores of every token of a text."""
    asked = wants_compiled(arguments)
    if asked and (arguments.decoder in ("cached", "graphs") or arguments.device not in ("auto", "cpu")):
        raise ValueError(
            f"the compiled decoder, with its precision {arguments.precision or 'float32'!r} and its KV cache in "
            f"{arguments.kv_cache}, is for the CPU: leave them out"
        )
    decoder, arguments.decoder_why = _choose_decoder(arguments, asked)
    if decoder == "compiled":
        try:
            from glassgpt.generation.cpu.load import load_decoder

            return load_decoder(
                arguments.model,
                precision=arguments.precision,
                cache=arguments.kv_cache,
                threads=arguments.threads,
                message=lambda text: print(f"glassgpt: {text}", file=sys.stderr, flush=True),
            )
        except (ImportError, NotImplementedError) as error:
            if asked:
                raise
            logging.getLogger(__name__).warning("%s: the plain decoder serves, which is slower", error)
            arguments.decoder_why = "the compiled one cannot be had"
    return load(arguments)


def _choose_decoder(arguments: argparse.Namespace, asked: bool) -> tuple[str, str]:
    """The decoder's name for `--decoder`, and why that one, before any model is loaded."""
    if asked or arguments.decoder != "auto":
        return "compiled" if asked else arguments.decoder, "as asked"
    if arguments.device not in ("auto", "cpu"):
        return "cached", f"as --device {arguments.device} asks"
    if arguments.device == "auto" and may_have_gpu():
        return "cached", "there may be a GPU"
    return _measured(arguments)


def _measured(arguments: argparse.Namespace, device: str = "cpu") -> tuple[str, str]:
    """The decoder that was measured to be the fastest, and why it is."""
    from glassgpt.generation.auto import choose_decoder, default_decoder
    from glassgpt.weights.download.resolve import resolve_model

    # what was measured is one row, and a batch must find its records
    if getattr(arguments, "prompts", None) is not None:
        return default_decoder(device)
    return choose_decoder(resolve_model(arguments.model), device)


def whole(text: str) -> int:
    """An argument that is a whole number, at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def above_zero(text: str) -> float:
    """An argument that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, above 0")
    return value
