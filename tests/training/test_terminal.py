"""The view of a run: what people read, at every width, and that no number and no text can break it."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from glassgpt.data.baselines import Baselines
from glassgpt.training import terminal
from glassgpt.training.terminal import Lines, LiveView, progress_for, visible
from glassgpt.training.train import TrainResult

BASELINES = Baselines(uniform=6.238, unigram=5.199, bigram=3.944)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def screen(width: int = 80, height: int = 24) -> Console:
    """A terminal that keeps what is written to it."""
    return Console(file=StringIO(), width=width, height=height, force_terminal=True, color_system=None)


def paper(width: int = 80) -> Console:
    """A file."""
    return Console(file=StringIO(), width=width, soft_wrap=True)


def printed(view: Lines) -> str:
    assert isinstance(view.console.file, StringIO)
    return view.console.file.getvalue()


def prepared(steps: int = 100, choices: tuple[str, ...] = ("model: small",), baselines: Baselines = BASELINES) -> Any:
    return SimpleNamespace(
        choices=list(choices), baselines=baselines, settings=SimpleNamespace(steps=steps, keep="best")
    )


def record(step: int, loss: float, rate: float = 1234.5) -> dict[str, Any]:
    return {"kind": "step", "step": step, "loss": loss, "tokens_per_second": rate}


def evaluation(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "val_loss": loss, "bits_per_byte": loss / 2, "epoch": step / 8}


def result(finished: bool = True, directory: str = "runs/mine") -> TrainResult:
    return TrainResult(Path(directory), 100, finished, 12.5, "best", 90, 3.2, 3.3, 1.5, 3.944)


def whole_run(view: Lines, losses: list[float], first_step: int = 0, steps: int = 100) -> str:
    view.message("reading the text")
    view.start(prepared(steps), first_step)
    for n, loss in enumerate(losses):
        view.step(record(first_step + n, loss))
    view.evaluation(evaluation(first_step + len(losses), losses[-1]), best=True)
    view.sample("Once upon a\ntime")
    view.finish(result())
    return printed(view)


LOSSES = {
    "falling": [6.0 / (1 + 0.1 * n) for n in range(90)],
    "constant": [5.0] * 70,
    "one step": [6.2],
    "two steps": [6.2, 6.1],
    "rising": [6.0 + n for n in range(30)],
    "huge": [1e300, 1e-300, 1e300],
    "zero": [0.0] * 5,
    "never a number": [math.nan] * 5,
    "infinite first": [math.inf, 5.0, 4.0],
    "broken in between": [6.0, math.nan, 5.0, math.inf, 4.0, -math.inf],
}


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("first_step", [0, 40])
@pytest.mark.parametrize("size", [(80, 24), (200, 50), (40, 24), (20, 8), (80, 5)])
def test_any_run_can_be_shown(losses: list[float], first_step: int, size: tuple[int, int]) -> None:
    for view in (LiveView(screen(*size)), Lines(paper(size[0]))):
        text = whole_run(view, losses, first_step)
        assert "reading the text" in text
        assert "Once upon a time" in re.sub(r"\s+", " ", text)


@given(st.lists(st.floats(), min_size=1, max_size=90), st.floats(0, 20), st.floats(0, 20), st.floats(0, 20))
def test_any_numbers_make_a_chart(losses: list[float], uniform: float, unigram: float, bigram: float) -> None:
    view = LiveView(screen())
    view.start(prepared(baselines=Baselines(uniform, unigram, bigram)), 0)
    view.close()
    for n, loss in enumerate(losses):
        view.step(record(n, loss))
        view.evaluation(evaluation(n, loss), best=True)
    lines = view.console.render_lines(view._view(), pad=False)
    assert len(lines) in (1, 12)  # the bar, and the chart where there are two losses
    assert all(sum(cell_len(segment.text) for segment in line) < 80 for line in lines)


# ---- what is at the bottom ----------------------------------------


def bottom(view: LiveView) -> list[str]:
    """The lines of the chart and the bar."""
    return ["".join(s.text for s in line) for line in view.console.render_lines(view._view(), pad=False)]


def trained(size: tuple[int, int], steps: int = 1000, of: int = 2000) -> LiveView:
    """A view after a run of usual losses."""
    view = LiveView(screen(*size))
    view.start(prepared(of), 0)
    view.close()
    for n in range(steps):
        if n % 250 == 0:
            view.evaluation(evaluation(n, 3.3 + 3 / (1 + n / 20)), best=True)
        view.step(record(n, 3.2 + 3 / (1 + n / 20)))
    return view


@pytest.mark.parametrize("size", [(60, 24), (80, 24), (140, 40)])
def test_nothing_is_cut_on_usual_screens(size: tuple[int, int]) -> None:
    view = trained(size)
    view.saved(980)
    lines = bottom(view)
    assert len(lines) == size[1] // 2
    assert max(map(len, lines)) < size[0]
    together = "\n".join(lines)
    for whole in ("↑ unigram 5.20", "bigram 3.94", "499", "999", "⠒⠒ training", "●  validation"):
        assert whole in together
    assert re.fullmatch(r"  ━+─+  1,000 of 2,000  loss 3\.2\d\d  0:\d\d:\d\d left.*", lines[-1])
    assert lines[-1].endswith(
        {60: " left", 80: "1,234 tokens/s", 140: "1,234 tokens/s  saved at 980"}[size[0]],
    )


def test_the_bar_is_as_long_as_the_run_is_far() -> None:
    for steps, filled in ((20, 0), (1000, 0.5), (2000, 1)):
        bar = bottom(trained((80, 24), steps))[-1]
        assert abs(bar.count("━") - filled * (bar.count("━") + bar.count("─"))) <= 1


def test_a_resumed_run_shows_all_of_it() -> None:
    whole, resumed = trained((80, 24)), LiveView(screen())
    records: list[dict[str, Any]] = []
    for n in range(1000):
        if n % 250 == 0:
            records.append(evaluation(n, 3.3 + 3 / (1 + n / 20)))
        records.append(record(n, 3.2 + 3 / (1 + n / 20)))
    resumed.history(records[:602])
    resumed.start(prepared(2000), 600)
    resumed.close()
    for r in records[603:]:
        resumed.step(r) if r["kind"] == "step" else resumed.evaluation(r, best=True)
    assert bottom(resumed)[:-1] == bottom(whole)[:-1]


def test_a_log_with_losses_that_were_no_numbers_is_shown(clock: Clock) -> None:
    view = Lines(paper())
    view.history([record(0, 4.0), {**record(1, 0.0), "loss": None}, {**evaluation(2, 0.0), "val_loss": None}])
    view.start(prepared(), 2)
    clock.now += 10
    view.step(record(2, 4.0))
    assert "loss 4.000" in printed(view).splitlines()[-1]


def test_a_checkpoint_between_evaluations_is_a_line_of_a_file_only() -> None:
    lines, live = Lines(paper()), trained((140, 40), 3)
    lines.saved(1234)
    assert printed(lines) == "step  1,234  saved\n"
    before = printed(live)
    live.saved(1234)
    assert printed(live) == before
    assert bottom(live)[-1].endswith("saved at 1,234")


@pytest.mark.parametrize("size", [(80, 11), (25, 24), (12, 3)])
def test_a_small_screen_shows_how_far_the_run_is_and_no_chart(size: tuple[int, int]) -> None:
    lines = bottom(trained(size))
    assert len(lines) == 1
    assert "1,000 of" in lines[0] or size[0] == 12


# ---- what is said ----------------------------------------


def test_a_step_that_was_no_number_does_not_hide_the_others() -> None:
    view = Lines(paper())
    view.start(prepared(), 0)
    for n, loss in enumerate([4.0, math.nan, math.inf, 4.0]):
        view.step(record(n, loss))
    assert view._curve.last == (3, 4.0)


def test_lines_come_every_ten_seconds_with_rate_and_time_left(clock: Clock) -> None:
    view = Lines(paper(40))
    view.start(prepared(steps=1040), first_step=40)
    for n in range(100):
        clock.now += 1.0
        view.step(record(40 + n, 5.0))
    steps = [line for line in printed(view).splitlines() if line.startswith("step")]
    assert len(steps) == 10
    assert steps[0] == "step 50 of 1,040  loss 5.000  1,234 tokens/s  0:16:30 left"
    assert steps[-1] == "step 140 of 1,040  loss 5.000  1,234 tokens/s  0:15:00 left"


def test_a_run_of_a_thousand_years_has_a_time_left(clock: Clock) -> None:
    view = Lines(paper())
    view.start(prepared(steps=10**17), 0)
    clock.now += 20
    view.step(record(0, math.nan))
    assert re.search(r"loss -  .* \d+:\d\d:\d\d left", printed(view))


@pytest.mark.parametrize(
    ("loss", "below"), [(7.0, ""), (6.0, "  below ln V"), (5.0, "  below unigram"), (3.0, "  below bigram")]
)
def test_an_evaluation_is_compared_with_the_text_itself(loss: float, below: str) -> None:
    view = Lines(paper())
    view.start(prepared(), 0)
    view.evaluation(evaluation(50, loss), best=True)
    assert (
        printed(view).splitlines()[-1]
        == f"step     50  epoch  6.2  validation {loss:.3f}  {loss / 2:.3f} bits per byte{below}"
    )
    view.evaluation(evaluation(60, loss), best=False)
    assert printed(view).splitlines()[-1].endswith(f"{below}  (an earlier one was better)")


def test_the_end_says_how_to_go_on() -> None:
    view = Lines(paper(40))
    view.finish(result())
    ended = "done after 100 steps, 12.5 epochs: best validation loss 3.200 at step 90; runs/mine holds the best model\n"
    assert printed(view) == ended
    view.finish(dataclasses.replace(result(), best_step=0))
    assert "the best model is the one that training began with, so that is what runs/mine holds" in printed(view)
    view.finish(result(finished=False, directory="my runs/$x"))
    assert printed(view).splitlines()[-1] == "resume with: glassgpt train --resume --out 'my runs/$x'"


def test_text_is_never_taken_for_markup() -> None:
    for view in (Lines(paper(200)), LiveView(screen(200))):
        view.message("[bold]b[/bold] :smile:")
        view.sample("[/x] [red]")
        assert "[bold]b[/bold] :smile:" in printed(view)
        assert "[/x] [red]" in printed(view)


# ---- samples ----------------------------------------


def test_a_sample_is_one_line_of_a_file_and_a_paragraph_on_a_terminal() -> None:
    text = "once\n\n  upon\ta " + "time " * 40
    view = progress_for(StringIO())
    assert type(view) is Lines
    view.sample(text)
    assert printed(view) == f"    once upon a {' '.join(['time'] * 40)}\n"
    live = LiveView(screen(80))
    live.sample(text)
    lines = printed(live).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("    ") and cell_len(line.rstrip()) <= 80 for line in lines)
    assert " ".join(printed(live).split()) == " ".join(text.split())


@given(st.text(max_size=300))
def test_no_sample_commands_the_terminal(text: str) -> None:
    view = LiveView(screen(40))
    view.sample(text)
    assert {c for c in printed(view) if unicodedata.category(c) == "Cc"} <= {"\n"}
    assert all(cell_len(line.rstrip()) <= 40 for line in printed(view).splitlines())


def test_wide_characters_keep_within_the_screen() -> None:
    view = LiveView(screen(40))
    view.sample("日本語のテキスト" * 20 + "😀" * 40)
    assert {cell_len(line) for line in printed(view).splitlines()} == {40}


@given(st.text())
def test_visible_changes_control_characters_only(text: str) -> None:
    shown = visible(text)
    assert {c for c in shown if unicodedata.category(c) == "Cc"} <= {"\n", "\t"}
    assert visible(shown) == shown
    kept = [c for c in text if unicodedata.category(c) != "Cc" or c in "\n\t"]
    assert [c for c in shown if c in set(kept)] == kept or any(c in "␛�" or "␀" <= c <= "␡" for c in text)


def test_visible() -> None:
    assert visible("a\x1b[31mb\x07\r\nc\td\x7f\x9b") == "a␛[31mb␇\nc\td␡�"
    assert visible("naïve 日本 👩‍💻") == "naïve 日本 👩‍💻"


# ---- encoding ----------------------------------------


def encode(view: Lines, clock: Clock, seconds: float, total: int = 50_000_000) -> None:
    """Fifty pieces of training text, then one of validation text."""
    for done in range(total // 50, total + 1, total // 50):
        view.work("encoding", done, total)
        clock.now += seconds / 50
    view.work("encoding", 1000, 1000)


def test_a_quick_encoding_is_not_worth_a_word(clock: Clock) -> None:
    for view in (Lines(paper()), LiveView(screen())):
        encode(view, clock, 1.9)
        assert printed(view) == ""


def test_a_long_encoding_is_shown_line_by_line(clock: Clock) -> None:
    view = Lines(paper(200))
    encode(view, clock, 50)
    lines = printed(view).splitlines()
    assert len(lines) == 5
    assert lines[0] == "encoding 3.0 of 50.0 MB  1.0 MB/s  0:00:47 left"
    assert lines[-1] == "encoding 43.0 of 50.0 MB  1.0 MB/s  0:00:07 left"


def test_a_long_encoding_has_a_bar_that_goes_again(clock: Clock) -> None:
    view = LiveView(screen())
    encode(view, clock, 50)
    assert view._live is None
    shown = printed(view)
    assert re.search(r"encoding .*━.* 50\.0 of 50\.0 MB", shown)
    assert shown.rstrip().endswith("\x1b[2K")  # the bar's line is erased
    view.start(prepared(), 0)
    view.finish(result())
    assert "  0 of 100" in printed(view)


def test_work_that_is_not_counted_in_bytes(clock: Clock) -> None:
    view = Lines(paper(200))
    for done in range(0, 5001, 100):
        view.work("evaluating", done, 5000, "tokens")
        clock.now += 0.5
    lines = printed(view).splitlines()
    assert len(lines) == 3
    assert lines[0] == "evaluating 400 of 5,000 tokens  200 tokens/s  0:00:23 left"


def test_work_whose_end_is_unknown(clock: Clock) -> None:
    views = (Lines(paper(200)), LiveView(screen()))
    for view in views:
        view.work("counting words", 10, 10)
        for _ in range(15):
            view.work("merging pairs", 0, 0)
            clock.now += 1
        view.work("merging pairs", 1, 1)
    assert printed(views[0]).splitlines() == ["merging pairs 0:00:02 so far", "merging pairs 0:00:12 so far"]
    assert "merging pairs" in printed(views[1])
    assert views[1]._live is None


def test_a_bar_makes_room_for_the_next(clock: Clock) -> None:
    view = LiveView(screen())
    for name in ("reading", "encoding"):
        for done in (1, 2, 3):  # never to the end
            view.work(name, done * 1_000_000, 9_000_000)
            clock.now += 3
    assert view._live is not None
    view.close()
    assert re.search(r"reading .*3\.0 of 9\.0 MB.*encoding .*3\.0 of 9\.0 MB", printed(view), re.DOTALL)


# ---- which view ----------------------------------------


def test_which_view(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert type(progress_for(StringIO())) is Lines
    assert type(progress_for(Terminal())) is LiveView
    assert type(progress_for(Terminal(), live=False)) is Lines
    assert type(progress_for(StringIO(), live=True)) is LiveView
    monkeypatch.setenv("TERM", "dumb")  # it cannot move its cursor
    assert type(progress_for(Terminal())) is Lines


def test_a_view_that_was_never_started_can_be_closed_twice() -> None:
    view = LiveView(screen())
    view.close()
    view.start(prepared(), 0)
    view.close()
    view.close()
    assert "\x1b[?25h" in printed(view)  # the cursor is there again
    assert printed(view).endswith("\n")
