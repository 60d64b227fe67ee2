"""The chart of a run: what part of the plane it shows, and where the numbers and names stand."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from glassgpt.training.chart import Curve, Frame, chart, frame

LEVELS = {"ln V": 6.24, "unigram": 5.2, "bigram": 3.94}


def curve(losses: list[float], every: int = 0) -> Curve:
    """Of losses that change so slowly that smoothing them is nothing, measured `every` so many steps."""
    made = Curve()
    for step, loss in enumerate(losses):
        if every and step % every == 0:
            made.evaluation(step, loss + 0.1)
        for _ in range(400):
            made.last = (step, loss)
        made.step(step, loss)
    return made


def falling(steps: int, end: float = 3.3) -> list[float]:
    return [end + (6.24 - end) * math.exp(-step / 40) for step in range(steps)]


def plain(made: Curve, width: int = 79, rows: int = 9) -> list[str]:
    return [line.plain for line in chart(made, LEVELS, width, rows)]


# ---- the frame ----------------------------------------


def shown(losses: list[float]) -> Frame:
    line = list(enumerate(losses))
    return frame(line, [], LEVELS.values())


def test_at_the_start_all_of_the_curve_is_shown() -> None:
    view = shown(falling(30))
    assert view.top > 6.24
    assert view.bottom < falling(30)[-1]


def test_later_the_fall_at_the_start_leaves_the_chart() -> None:
    view = shown(falling(1000))
    assert 3.3 < view.top < 4.5
    assert view.bottom < 3.3


@pytest.mark.parametrize("losses", [falling(30), falling(100), falling(400), [6 - n / 100 for n in range(270)]])
def test_the_curve_keeps_most_of_the_height(losses: list[float]) -> None:
    view = shown(losses)
    settled = losses[len(losses) // 5 :]
    assert max(settled) - min(settled) >= 0.5 * (view.top - view.bottom)


def test_a_baseline_that_is_near_is_in_view() -> None:
    view = shown([4.9 - 1.3 * step / 100 for step in range(100)])
    assert view.bottom < 3.94 < 5.2 < view.top < 6.24


def test_a_rising_curve_is_shown_to_its_end() -> None:
    view = shown([3.0 + step / 100 for step in range(300)])
    assert view.top > 5.99


def test_a_constant_curve_has_a_chart() -> None:
    view = shown([5.2] * 10)
    assert view.bottom < 5.2 < view.top
    assert plain(curve([5.2] * 10))


# ---- what is drawn ----------------------------------------


def test_the_line_falls_from_the_upper_left_to_the_lower_right() -> None:
    rows = plain(curve(falling(60)), 79, 9)
    line = [[n for n, c in enumerate(row) if (ord(c) & 0xFF00) == 0x2800 and c not in "⠁⠂⠄⡀"] for row in rows[:9]]
    columns = [(found[0], found[-1]) for found in line if found]
    assert columns[0][0] < 10
    assert columns[-1][1] > 55
    assert columns == sorted(columns)


def test_round_numbers_stand_at_their_height() -> None:
    made = curve(falling(300))
    view = frame(made.line(), [], LEVELS.values())
    rows = plain(made, 79, 9)
    numbers = {row: float(line.split("┤")[0]) for row, line in enumerate(rows) if "┤" in line}
    assert len(numbers) >= 3
    for row, number in numbers.items():
        height = (view.top - view.bottom) / 9
        assert view.top - (row + 1) * height <= number <= view.top - row * height


def test_steps_stand_below_first_middle_last() -> None:
    rows = plain(curve(falling(901)))
    assert rows[-1].split()[:3] == ["0", "450", "900"]
    marks = [n for n, c in enumerate(rows[-2]) if c == "┬"]
    assert rows[-1][marks[0]] == "0"
    assert "450" in rows[-1][marks[1] - 2 : marks[1] + 3]
    assert rows[-1][: marks[2] + 1].endswith("900")


def test_baselines_have_their_names_at_their_lines_and_others_at_the_edge() -> None:
    rows = plain(curve([3.2 + 3 / (1 + step / 20) for step in range(400)]))
    assert rows[0].endswith("↑ ln V 6.24")
    assert rows[1].endswith("↑ unigram 5.20")
    (bigram,) = [line for line in rows if line.endswith(" bigram 3.94")]
    assert re.search(r"(⠁|⠂|⠄|⡀)\1{40} bigram", bigram)
    early = plain(curve([6.24 - step / 1000 for step in range(20)]))
    assert early[7].endswith("↓ unigram 5.20")
    assert early[8].endswith("↓ bigram 3.94")


def test_baselines_that_meet_all_have_a_name() -> None:
    made = curve([5.0] * 20)
    rows = [line.plain for line in chart(made, dict.fromkeys(LEVELS, 5.0), 79, 9)]
    assert sum(" 5.00" in line for line in rows) == 3


def test_validation_is_shown_as_points() -> None:
    rows = plain(curve(falling(900), every=100))
    assert sum(line.count("●") for line in rows[:9]) >= 7
    assert "●" in rows[-1]  # and the legend says what they are


@pytest.mark.parametrize("width", range(5, 140, 5))
def test_a_chart_keeps_to_its_width(width: int) -> None:
    rows = plain(curve(falling(300), every=50), width)
    assert all(len(row) <= width for row in rows)
    assert len(rows) in (0, 11)
    assert bool(rows) == (width >= 30)


def test_one_loss_is_no_chart() -> None:
    assert plain(curve([6.0])) == plain(Curve()) == []


# ---- the curve ----------------------------------------


def test_a_long_run_is_remembered_in_less_detail() -> None:
    made = Curve()
    for step in range(50_000):
        made.step(step, 5.0)
    steps = [step for step, _ in made.line()]
    assert len(steps) <= 4097
    assert (steps[0], steps[-1]) == (0, 49_999)
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 16


def test_losses_are_smoothed_and_what_is_no_number_is_passed_over() -> None:
    made = Curve()
    for step, loss in enumerate([math.nan, 4.0, math.inf, None, 5.0]):
        made.step(step, loss)
    assert made.line() == [(1, 4.0), (2, 4.0), (3, 4.0), (4, pytest.approx(4.05))]
