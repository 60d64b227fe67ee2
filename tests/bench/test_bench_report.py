"""Medians, tables, the picture and the files, from a recorded benchmark."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from glassgpt.bench.plot import colours_of, plot
from glassgpt.bench.report import FILES, check_new, report, table, write_files
from glassgpt.bench.results import Bench


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ") and line.endswith("|")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_shows_medians_by_contender(recorded: Bench) -> None:
    text = report(recorded)
    header = ["contender", "decode", "cold", "of a read", "prompt", "8 rows", "first token", "memory", "beyond"]
    assert cells(text, "contender") == [*header, "greedy tokens"]
    assert cells(text, "naive") == ["naive", "4", "2", "", "", "", "", "300 MB", "", "same"]
    # 200 tokens/s of 100 MB are 20 of 40 GB/s
    expected = ["compiled float32", "200", "100", "50%", "2,000", "566", "1.00 s", "300 MB", "150 MB", "same"]
    assert cells(text, "compiled float32") == expected
    assert cells(text, "compiled int8") == [
        "compiled int8",
        "400",
        "200",
        "100%",
        *[""] * 3,
        "300 MB",
        "150 MB",
        "98.4%",
    ]
    assert cells(text, "ctranslate2 float32")[-1] == "differ from token 4 on"
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| c") or line[:3] == "| n"][
        1:6
    ] == ["naive", "cached", "compiled float32", "compiled int8", "ctranslate2 float32"]
    assert "runs/mine: 124,439,808 parameters, context 64" in text
    assert "2 threads of A Processor; medians of 2 rounds\n" in text
    assert text.endswith("\n\n- not installed: llama-cpp-python; pip install llama-cpp-python\n")


def test_rows_and_context_have_tables_of_their_own(recorded: Bench) -> None:
    text = report(recorded)
    assert cells(text, "tokens/s by rows") == ["tokens/s by rows", "1", "2", "4", "8", "16"]
    _, after_rows = text.split("| tokens/s by rows")
    assert cells(after_rows, "cached") == ["cached", "50", "70.7", "100", "141", "200"]
    _, after_context = text.split("| ms per token after")
    costs = cells(after_context, "cached")
    assert (costs[1], costs[-1]) == ("40.4", "0%")
    assert float(costs[-2]) == pytest.approx(40 * 1.56)


def test_a_peer_is_shown_at_its_fastest_number_of_threads(recorded: Bench) -> None:
    assert recorded.best_threads("ctranslate2 float32", "decode") == 1
    assert recorded.median("ctranslate2 float32", "decode", "rate") == 120
    assert len(recorded.of("ctranslate2 float32", "decode")) == 2


def test_a_cost_that_is_no_line_is_seen(recorded: Bench) -> None:
    turns = [turn for turn in recorded.turns if turn.work == "context" and turn.contender == "cached"]
    for turn in turns:
        turn.figures["seconds"] = {n: 1 + (int(n) / 10) ** 2 for n in turn.figures["seconds"]}
    off = recorded.off_line("cached")
    assert off is not None and off > 0.5


def test_every_turn_counts_for_the_tokens(recorded: Bench) -> None:
    """A text that is another one in the second round is a race, and must not be hidden by the first."""
    assert recorded.first_difference("compiled float32") is None
    turns = [turn for turn in recorded.turns if (turn.contender, turn.work) == ("compiled float32", "decode")]
    turns[1].figures["tokens"] = [5, 0, 8, 8, 1]
    assert "differ from token 2 on" in cells(report(recorded), "compiled float32")


def test_without_the_compiled_decoder_the_cached_one_is_the_reference(recorded: Bench) -> None:
    left = [turn for turn in recorded.turns if not turn.contender.startswith("compiled")]
    bench = dataclasses.replace(recorded, turns=left)
    assert bench.reference() == "cached"
    assert "- greedy tokens: those of cached," in report(bench)


def test_a_stopped_benchmark_says_so_and_shows_what_there_is(recorded: Bench) -> None:
    bench = dataclasses.replace(recorded, finished=False, turns=recorded.turns[:1])
    text = report(bench)
    assert "one round, stopped before all 2 were done" in text
    assert cells(text, "contender") == ["contender", "decode", "cold", "memory", "greedy tokens"]
    assert "of a read" not in text and "by rows" not in text
    plot(bench)


def test_results_are_read_back(recorded: Bench) -> None:
    values = json.loads(json.dumps(recorded.to_dict()))
    again = Bench.from_dict(values)
    assert report(again) == report(recorded)
    with pytest.raises(ValueError, match="a benchmark of format 7, where 1 is known: measure again"):
        Bench.from_dict({**values, "format": 7})


def test_columns_are_aligned() -> None:
    assert table(["a", "bb"], [["long", "1"]]) == "| a    | bb |\n|------|---:|\n| long |  1 |"


def test_the_picture_has_a_bar_for_each_and_a_line_for_each(recorded: Bench) -> None:
    speed, rows, context = plot(recorded).axes
    assert [text.get_text() for text in speed.get_yticklabels()] == recorded.contenders("decode")
    assert [bar.get_width() for bar in speed.patches] == [4, 50, 200, 400, 120]
    lines = {line.get_label(): list(line.get_ydata()) for line in rows.lines}
    assert list(lines) == ["cached", "compiled float32", "ctranslate2 float32"]
    assert lines["cached"] == pytest.approx([50, 70.71, 100, 141.4, 200], rel=1e-3)
    assert [line.get_label() for line in context.lines] == ["cached", "compiled float32"]
    assert context.lines[0].get_ydata()[0] == pytest.approx(40.4)  # ms
    names = [*recorded.contenders(), "llama.cpp f32", "llama.cpp q4_0"]
    colours = colours_of(names)
    assert len({colours[name] for name in names}) == len(names)


@pytest.mark.parametrize(
    ("works", "titles"),
    [
        (("decode", "context"), ["one row", "one more token"]),
        (("rows", "prompt"), ["rows decoded together"]),
        (("prompt",), ["a long prompt"]),
        (("first",), ["first token"]),
    ],
)
def test_there_is_no_empty_panel(recorded: Bench, works: tuple[str, ...], titles: list[str]) -> None:
    bench = dataclasses.replace(recorded, turns=[turn for turn in recorded.turns if turn.work in works])
    figure = plot(bench)
    assert [axes.get_title() for axes in figure.axes] == titles
    assert all(axes.lines or axes.patches for axes in figure.axes)


def test_the_files_are_written_and_never_over_others(recorded: Bench, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench"
    write_files(recorded, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert Bench.from_dict(json.loads((out / "bench.json").read_text(encoding="utf-8"))) == recorded
    page = (out / "bench.md").read_text(encoding="utf-8")
    assert page.startswith("runs/mine: ") and "](bench.png)" in page
    picture = imread(out / "bench.png")
    assert picture.shape[1] > 1000 and np.ptp(picture) > 0.5
    for name in FILES:
        alone = tmp_path / name.replace(".", "-")
        alone.mkdir()
        (alone / name).write_text("mine", encoding="utf-8")
        with pytest.raises(FileExistsError, match=f"{name} exists: choose a new directory"):
            write_files(recorded, alone)
        assert [path.name for path in alone.iterdir()] == [name]
        assert (alone / name).read_text(encoding="utf-8") == "mine"
    with pytest.raises(NotADirectoryError, match="is not a directory: choose a new name"):
        check_new(tmp_path / "bench-md" / "bench.md")


def test_a_place_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        check_new(tmp_path / "file" / "bench")
    check_new(tmp_path / "deep" / "bench")
    assert not list((tmp_path / "deep" / "bench").iterdir())
