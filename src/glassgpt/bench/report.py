"""A benchmark as tables, in Markdown that a terminal shows as well, and as the files of a directory."""

from __future__ import annotations

import json
from pathlib import Path

from glassgpt.bench.plan import BATCH, FLOAT32, ROUNDED
from glassgpt.bench.plot import plot
from glassgpt.bench.results import Bench, threads_of
from glassgpt.files import creating, temporary
from glassgpt.terminal_text import table

FILES = ("bench.json", "bench.md", "bench.png")


def report(bench: Bench) -> str:
    """The whole result: what was timed, a table of all contenders, rows and context, and the notes."""
    parts = [_heading(bench), _main_table(bench), _rows_table(bench), _context_table(bench)]
    parts += [f"- {note}" for note in bench.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def check_new(directory: Path) -> None:
    """`FileExistsError` where one of `FILES` is there already, `NotADirectoryError` where `directory` is a file."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is not a directory: choose a new name")
    for name in FILES:
        if (directory / name).exists():
            raise FileExistsError(f"{directory / name} exists: choose a new directory")
    with temporary(directory / FILES[0]) as trial:  # before the work: a place where nothing can be written
        trial.touch()


def write_files(bench: Bench, directory: Path) -> None:
    """`FILES` in `directory`, which is made if need be; nothing is overwritten (errors as in `check_new`)."""
    check_new(directory)
    results, page, picture = (directory / name for name in FILES)
    with creating(results) as temporary:
        temporary.write_text(json.dumps(bench.to_dict()) + "\n", encoding="utf-8", newline="\n")
    with creating(page) as temporary:
        text = report(bench) + f"\n![Speed, rows, and cost over the context]({picture.name})\n"
        temporary.write_text(text, encoding="utf-8", newline="\n")
    with creating(picture) as temporary:
        plot(bench).savefig(temporary, format="png")


def _heading(bench: Bench) -> str:
    model = bench.model
    rounds = max((turn.round + 1 for turn in bench.turns), default=0)
    how = "one round" if rounds == 1 else f"medians of {rounds} rounds"
    if not bench.finished:
        how += f", stopped before all {bench.rounds} were done" if bench.rounds > 1 else ", stopped before it was done"
    return (
        f"{model['name']}: {model['n_parameters']:,} parameters, context {model['context_length']:,}, vocabulary "
        f"{model['vocab_size']:,}; {threads_of(bench)}; {how}"
    )


def _main_table(bench: Bench) -> str:
    every = bench.contenders()
    columns = {
        "decode": [_rate(bench.median(name, "decode", "rate")) for name in every],
        "cold": [_rate(bench.median(name, "decode", "cold_rate")) for name in every],
        "of a read": [_format(bench.share_of_read(name), "{:.0%}") for name in every],
        "prompt": [_rate(bench.median(name, "prompt", "rate")) for name in every],
        f"{BATCH} rows": [_rate(bench.series(name, "rows", "rates").get(BATCH)) for name in every],
        "first token": [_format(bench.median(name, "first", "seconds"), "{:.2f} s") for name in every],
        "memory": [_megabytes(bench.memory(name)[0]) for name in every],
        "beyond": [_megabytes(bench.memory(name)[1]) for name in every],
        "greedy tokens": [_tokens(bench, name) for name in every],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    rows = [[name, *cells] for name, *cells in zip(every, *shown.values(), strict=True)]
    legend = [f"- {title}: {meaning}" for title, meaning in _meanings(bench).items() if title in shown]
    return table(["contender", *shown], rows) + "\n\n" + "\n".join(legend)


def _meanings(bench: Bench) -> dict[str, str]:
    """What the columns of the main table say."""
    sizes = bench.sizes
    decode, naive, rows = (" + ".join(map(str, sizes[name])) for name in ("decode", "naive", "rows"))
    naive = f" (naive: {naive})" if "naive" in bench.contenders("decode") else ""
    return {
        "decode": f"tokens/s of one row, {decode} tokens{naive}",
        "cold": "the same for the first time in a process",
        "of a read": "bytes of weights in a second of decoding, as a part of what a plain sum over memory reads",
        "prompt": f"tokens/s of reading {sizes['prompt']} tokens",
        f"{BATCH} rows": f"tokens/s of {BATCH} rows together, {rows} tokens each",
        "first token": "the whole command `glassgpt generate`, files and compiled code in the system's cache",
        "memory": "peak of the process that decodes one row",
        "beyond": "what of it is neither weights nor cache",
        "greedy tokens": f"those of {bench.reference()}, or where they begin to differ; below float32, how many "
        "choices are the same after the same text",
    }


def _tokens(bench: Bench, name: str) -> str:
    if name in ROUNDED:
        return _format(bench.median(name, "decode", "agreement"), "{:.1%}")
    if name not in FLOAT32 or not bench.of(name, "decode"):
        return ""
    different = bench.first_difference(name)
    return "same" if different is None else f"differ from token {different + 1} on"


def _rows_table(bench: Bench) -> str:
    every = bench.contenders("rows")
    if not every:
        return ""
    series = [bench.series(name, "rows", "rates") for name in every]
    header = ["tokens/s by rows", *map(str, series[0])]
    return table(header, [[name, *map(_rate, rates.values())] for name, rates in zip(every, series, strict=True)])


def _context_table(bench: Bench) -> str:
    every = bench.contenders("context")
    if not every:
        return ""
    series = [bench.series(name, "context", "seconds") for name in every]
    header = ["ms per token after", *map(str, series[0]), "off a line"]
    return table(
        header,
        [
            [name, *(f"{1e3 * cost:.3g}" for cost in costs.values()), _format(bench.off_line(name), "{:.0%}")]
            for name, costs in zip(every, series, strict=True)
        ],
    )


def _rate(value: float | None) -> str:
    """Three digits, or all of those before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _format(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.0f} MB"
