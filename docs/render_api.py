"""Prints docs/api.md, what Python callers use: `python docs/render_api.py > docs/api.md` (`make docs`).

Signatures, docstrings and options are taken from the source; only the examples are written here, and a test runs them.
"""

import ast
import importlib
import inspect
import itertools
import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from glassgpt.options import Options

WIDTH = 100  # of a signature on one line


class Group(NamedTuple):
    """One section of the page."""

    title: str
    names: tuple[str, ...]  # "module:Name" below glassgpt
    example: str


GROUPS = (
    Group(
        "Train",
        (
            "training.train:train",
            "training.train_file:read_train_file",
            "training.settings:Settings",
            "training.records:TrainResult",
            "training.progress:Progress",
            "training.records:Prepared",
            "training.records:TrainingFailedError",
        ),
        """
        from pathlib import Path

        from glassgpt import train
        from glassgpt.training.progress import Progress


        class Losses(Progress):
            def evaluation(self, record, best):
                print(record["step"], record["val_loss"], "the best so far" if best else "")


        Path("my.txt").write_text("The function returns a list, and the list a tuple.\\n" * 200, encoding="utf-8")
        result = train(["my.txt"], "runs/mine", shape="nano", tokenizer="byte", steps=20, progress=Losses())
        print(result.best_val_loss, result.val_bits_per_byte)
        """,
    ),
    Group(
        "Prepare a text",
        (
            "data.prepare.run:prepare",
            "data.prepare.run:PrepareResult",
            "data.prepare.settings:PrepareSettings",
            "data.dataset:open_dataset",
            "data.dataset:Dataset",
        ),
        """
        from pathlib import Path

        from glassgpt import prepare, train
        from glassgpt.data.dataset import open_dataset

        lines = (f"The function returns the list number {n}.\\n" for n in range(2000))
        Path("many.txt").write_text("".join(lines), encoding="utf-8")
        result = prepare(["many.txt"], "data/many", tokenizer="byte", processes=1)
        print(result.train_tokens, result.duplicates["equal"])

        dataset = open_dataset("data/many")
        print(dataset.tokenizer.decode(dataset.validation.tokens[:40]))
        train(["data/many"], "runs/many", shape="nano", steps=2)
        """,
    ),
    Group(
        "Load and save",
        (
            "checkpoint:load_model",
            "checkpoint:save_model",
            "weights.download.resolve:resolve_model",
            "weights.download.resolve:files_to_fetch",
            "weights.download.errors:DownloadError",
        ),
        """
        from glassgpt import load_model, save_model

        model, tokenizer = load_model("runs/mine")
        print(model.config, model.n_parameters())
        save_model(model, tokenizer, "models/copy")
        """,
    ),
    Group(
        "Generate text",
        (
            "generation.text:generate",
            "generation.cpu.load:load_decoder",
            "generation.text:complete",
            "generation.text:stream",
            "generation.options:Generation",
            "generation.row:Completion",
        ),
        """
        from glassgpt import complete, generate, stream

        print(generate(model, tokenizer, "The list", max_new_tokens=20, temperature=0.8, seed=1))
        for completion in complete(model, tokenizer, ["The list", "A"], max_new_tokens=20, seeds=[1, 2]):
            print(completion.text, completion.finish_reason)
        for piece in stream(model, tokenizer, "The list", max_new_tokens=20, top_k=5):
            print(piece, end="")
        """,
    ),
    Group(
        "Measure and look inside",
        (
            "training.evaluate:evaluate",
            "training.evaluate:evaluate_run",
            "training.evaluate:Evaluation",
            "generation.trace:trace",
            "generation.trace:TokenTrace",
            "explain:attention_maps",
            "explain:plot_attention",
        ),
        """
        from glassgpt.explain import attention_maps, plot_attention
        from glassgpt.generation.trace import trace
        from glassgpt.training.evaluate import evaluate

        print(evaluate(model, tokenizer, ["my.txt"]).bits_per_byte)
        tokens = trace(model, tokenizer, "The list")
        print(tokens[1].probability, tokens[1].likeliest[0])
        maps = attention_maps(model, tokenizer.encode("The list"))  # (n_layers, n_heads, T, T)
        plot_attention(maps, [token.text for token in tokens]).savefig("maps.png")
        """,
    ),
    Group(
        "Tokenizers",
        ("tokenizer:Tokenizer", "tokenizer:StreamDecoder"),
        """
        from glassgpt import Tokenizer

        gpt2 = Tokenizer.gpt2()
        ids = gpt2.encode("Every effort moves you")
        print(ids, gpt2.decode(ids))
        """,
    ),
    Group(
        "From format to format",
        (
            "weights.convert:import_model",
            "weights.convert:export_model",
            "weights.convert:Conversion",
            "weights.proof:Proof",
            "weights.quality:Quality",
        ),
        """
        from glassgpt.weights.convert import export_model

        result = export_model("runs/mine", "mine.pth", "book")
        print(result.proof, result.proof.holds(), result.notes)
        """,
    ),
    Group(
        "The model",
        ("config:GPTConfig", "config:PRESETS", "model:GPTModel", "kv_cache:KVCache"),
        """
        import torch

        from glassgpt import GPTConfig, GPTModel

        config = GPTConfig(vocab_size=257, context_length=64, emb_dim=32, n_heads=4, n_layers=2)
        untrained = GPTModel(config).eval()
        cache = untrained.new_cache(batch_size=1)
        ids = torch.tensor([[1, 2, 3]])
        for _ in range(5):  # greedy, each token read once
            best = untrained(ids, cache, last_only=True)[:, -1].argmax(-1)
            ids = best[:, None]
            print(int(best))
        """,
    ),
    Group(
        "Rows that come and go",
        ("generation.scheduler:Scheduler", "generation.scheduler:Request"),
        """
        from glassgpt.generation.options import Generation
        from glassgpt.generation.row import Row
        from glassgpt.generation.scheduler import Scheduler
        from glassgpt.generation.torch_decoder import CachedDecoder

        scheduler = Scheduler(CachedDecoder(model), max_rows=8)
        first = scheduler.submit(Row(tokenizer.encode("The list"), tokenizer, Generation(max_new_tokens=9, seed=1)))
        for request, text in scheduler.step():
            print(request is first, text)
        second = scheduler.submit(Row(tokenizer.encode("The file"), tokenizer, Generation(max_new_tokens=9, seed=2)))
        scheduler.cancel(first)
        for request, text in scheduler.run():
            print(text, end="")
        print(first.row.finish_reason, second.row.completion())
        """,
    ),
    Group(
        "A decoder of your own",
        ("generation.decoder:Decoder", "generation.decoder:Prefix"),
        """
        from types import SimpleNamespace

        import numpy as np

        from glassgpt import Tokenizer, generate
        from glassgpt.generation.decoder import Decoder


        class NextLetter(Decoder):
            \"\"\"Finds the byte after the last one likeliest; a row is its last token.\"\"\"

            vocab_size, context_length = 257, 10**6

            def __init__(self):
                self.last = []

            def scores(self, tokens):
                return np.eye(self.vocab_size, dtype=np.float32)[[(token + 1) % 256 for token in tokens]] * 100

            def read(self, tokens, after=None):
                n_before = 0 if after is None else after.n_tokens
                scores = self.scores(tokens[-1:])[0]
                return SimpleNamespace(n_tokens=n_before + len(tokens), scores=scores, last=tokens[-1])

            def join(self, prefix):
                self.last.append(prefix.last)

            def step(self, tokens):
                self.last = list(tokens)
                return self.scores(tokens)

            def drop(self, row):
                self.last[row] = self.last[-1]
                self.last.pop()


        print(generate(NextLetter(), Tokenizer.bytes_(), "a", max_new_tokens=25))
        """,
    ),
)


def render() -> str:
    """The whole page."""
    parts = [
        "# The Python API\n\nMade from the source by `make docs`; a test compares them and runs the examples, in this "
        "order. Names that `import glassgpt` gives stand alone, others with their module. Errors that a caller can "
        "cause are a `ValueError` or an `OSError` of one line; the library prints nothing.\n"
    ]
    for group in GROUPS:
        parts.append(f"## {group.title}\n")
        parts.append(f"```python\n{textwrap.dedent(group.example).strip()}\n```\n")
        parts += [_entry(*name.split(":")) for name in group.names]
    return "\n".join(parts)


def _entry(module: str, name: str) -> str:
    home = importlib.import_module(f"glassgpt.{module}")
    value = getattr(home, name)
    shown = name if name in importlib.import_module("glassgpt").__all__ else f"glassgpt.{module}.{name}"
    parts = [f"### `{shown}`\n"]
    if inspect.isclass(value):
        parts += _class(value)
    elif inspect.isfunction(value):
        parts += [f"```python\n{_signature(value, name)}\n```\n", _doc(value)]
    else:
        parts += [f"{_docs_below(inspect.getsource(home))[name]}\n", f"{', '.join(f'`{key}`' for key in value)}.\n"]
    return "\n".join(parts)


def _class(cls: type) -> Iterator[str]:
    ours = [each for each in cls.__mro__ if each.__module__.startswith("glassgpt.") and each is not Options]
    fields = getattr(cls, "__dataclass_fields__", {})
    maker = vars(cls).get("__init__")
    ours_to_call = inspect.isfunction(maker) and maker.__module__.startswith("glassgpt.")  # a Protocol's is typing's
    if ours_to_call and not fields and not issubclass(cls, BaseException):
        yield f"```python\n{_signature(maker, cls.__name__)}\n```\n"
    yield _doc(cls)
    if issubclass(cls, Options):
        yield from _options(cls)
    elif fields:
        docs = {key: text for each in ours for key, text in _docs_below(inspect.getsource(each)).items()}
        lines = [f"- `{key}: {field.type}`{_after(docs.get(key))}" for key, field in fields.items()]
        yield "\n".join(lines) + "\n"
    lines = []
    if getattr(cls, "_is_protocol", False):
        lines += [f"- `{key}`{_after(text)}" for key, text in _docs_below(inspect.getsource(cls)).items()]
    for name in dict.fromkeys(name for each in ours for name in vars(each)):
        member = inspect.getattr_static(cls, name)
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        function = getattr(function, "func", function)  # of a cached property
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        if isinstance(member, classmethod):
            called = _signature(function, f"{cls.__name__}.{name}", 10**6)
        else:
            called = _signature(function, name, 10**6) if function is member else name  # a property has no arguments
        lines.append(f"- `{called}`{_after(inspect.getdoc(getattr(cls, name)) or inspect.getdoc(member))}")
    if lines:
        yield "\n".join(lines) + "\n"


def _options(cls: type[Options]) -> Iterator[str]:
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    default = cls()
    kinds = {field.name: field.type for field in cls.__dataclass_fields__.values()}  # type: ignore[attr-defined]
    for name, (_, rule) in cls.rules().items():
        value = getattr(default, name)
        shown = f"`{value!r}`" if value is not None or not rule.derived else rule.derived
        choices = "" if all(choice in rule.help for choice in rule.choices) else " or ".join(rule.choices)
        limits = f"; {rule.bounds() or choices}" if rule.bounds() or choices else ""
        kind = str(kinds[name]).replace("|", "\\|")
        yield f"| `{name}` | `{kind}` | {shown} | {rule.help}{limits} |"
    yield ""


def _signature(function: Any, name: str, width: int = WIDTH) -> str:
    """As it is written in the source, without `self`; on one line where it fits."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    arguments = list(_arguments(node.args))
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({', '.join(arguments)}){result}"
    if len(line) <= width:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){result}"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in zip(positional, [*defaults, *arguments.defaults], strict=True):
        if argument.arg not in ("self", "cls"):
            yield _argument(argument, default)
    if arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg is not None:
        yield f"**{arguments.kwarg.arg}"  # its Unpack of a TypedDict says less than the text, which names the options


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    shown = f"{argument.arg}: {ast.unparse(argument.annotation)}" if argument.annotation else argument.arg
    if default is None:
        return shown
    text = isinstance(default, ast.Constant) and isinstance(default.value, str)
    return f"{shown} = {json.dumps(default.value) if text else ast.unparse(default)}"  # type: ignore[attr-defined]


def _doc(value: Any) -> str:
    return f"{inspect.cleandoc(value.__doc__ or '')}\n"


def _after(text: str | None) -> str:
    """A text after a dash of a list, in one paragraph."""
    return f": {' '.join(text.split())}" if text else ""


def _docs_below(source: str) -> dict[str, str]:
    """The strings that stand below assignments, by name."""
    body = ast.parse(source).body
    if len(body) == 1 and isinstance(body[0], ast.ClassDef):
        body = body[0].body
    found = {}
    for node, below in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(node.target)] = inspect.cleandoc(str(below.value.value))
    return found


if __name__ == "__main__":
    sys.stdout.write(render())
