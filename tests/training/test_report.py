"""The page of a run: whole, alone, and right whatever is in the log."""

from __future__ import annotations

import html.parser
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTConfig, train
from glassgpt.training import writer
from glassgpt.training.log import RunLog, read_log, read_samples
from glassgpt.training.look import look
from glassgpt.training.peak import operations, remember_rate
from glassgpt.training.report import facts_of, page
from glassgpt.training.run_directory import REPORT, SAMPLES
from glassgpt.training.svg import Series, chart, nice_ticks

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)
SETTINGS: dict[str, Any] = dict(steps=12, batch_size=4, eval_every=3, eval_batches=1, dtype="float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    words = random.Random(0)
    (folder / "text.txt").write_text(" ".join(words.choice(["cat", "dog", "sat", "on"]) for _ in range(2000)))
    options = dict(sample_prompt="<b>&cat", sample_tokens=5, tokenizer="byte", shape=CONFIG)
    train([folder / "text.txt"], folder / "<my> run", **SETTINGS, **options)
    return folder / "<my> run"


def test_the_share_of_the_peak_is_told_where_that_was_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path))
    seen = look(run)
    facts = {what: (value, note) for what, value, note in facts_of(seen)}
    assert facts["share of the peak"] == ("-", "glassgpt plan measures it")
    rate = 4 * (seen.tokens_per_second or 0.0) * operations(seen.record.config)
    remember_rate(rate, "float32", "cpu", torch.get_num_threads())
    facts = {what: (value, note) for what, value, note in facts_of(seen)}
    assert facts["share of the peak"][0] == "25%"
    assert "GFLOPS in products, measured on 2" in facts["share of the peak"][1]


class Reader(html.parser.HTMLParser):
    """Counts elements, checks that each is closed, gathers text and attributes."""

    EMPTY = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] = self.found.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] = self.found.get(tag, 0) + 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_a_finished_run(run: Path) -> None:
    text = (run / REPORT).read_text(encoding="utf-8")
    found = Reader(text)
    assert found.found["svg"] == 8  # four charts, each with a clipped one inside
    evaluations = [r for r in read_log(run) if r["kind"] == "evaluation"]
    assert found.found["circle"] >= len([r for r in evaluations if r["step"] > 0])
    best = min(r["val_loss"] for r in evaluations)
    for part in ("<my> run", "finished", f"{best:.4f}", "learning_rate", "0.004", "peak memory", "byte", "bigram"):
        assert part in found.text, part
    assert found.text.count("<b>&cat") == len(evaluations) + 1  # samples, and the setting
    assert "prefers-color-scheme: dark" in text
    assert "refresh" not in text


def test_the_page_needs_nothing_else(run: Path) -> None:
    found = Reader((run / REPORT).read_text(encoding="utf-8"))
    assert not {"script", "link", "img", "iframe", "object"} & found.found.keys()
    assert not {"src", "href", "onload", "xlink:href"} & {name for name, _ in found.attributes}
    style = (run / REPORT).read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", style)


def test_a_run_that_goes_is_read_again(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    real = writer.write_report
    monkeypatch.setattr(
        writer, "write_report", lambda place, *seen: (real(place, *seen), pages.append((place / REPORT).read_text()))
    )
    train(out=tmp_path / "new", like=run)
    assert len(pages) == 5
    assert ['http-equiv="refresh"' in text for text in pages] == [True] * 4 + [False]
    assert "step 3 of 12" in pages[1]
    assert all("<title>new: " in text for text in pages)  # the first one, too, which is written elsewhere


def test_what_is_not_there_yet_is_no_error(tmp_path: Path, run: Path) -> None:
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    found = Reader(page(look(tmp_path), [], "x"))
    assert "nothing yet" in found.text and "no samples" in found.text
    log = RunLog(tmp_path)
    log.step(0, math.nan, math.inf, 0.5, 0.0)
    log.evaluation(0, math.nan, math.nan, 0.0)
    Reader(page(look(tmp_path), [], "x"))
    log.step(1, 1e300, 1e300, 0.5, 1e300)
    log.evaluation(2, -1e300, 1.0, 0.0)
    Reader(page(look(tmp_path), [], "x"))


def test_a_long_run_has_a_small_page(tmp_path: Path, run: Path) -> None:
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    record = {"kind": "step", "loss": 5.0, "gradient_norm": 1.0, "rate": 0.5, "tokens_per_second": 1e4}
    lines = (json.dumps(record | {"step": step}) for step in range(20_000))
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(page(look(tmp_path), [], "x")) < 100_000


@given(st.text(max_size=30))
def test_a_sample_is_text_and_nothing_else(run: Path, text: str) -> None:
    found = Reader(page(look(run), [{"step": 1, "text": f"({text})"}], text))
    assert found.found["dd"] == 1
    assert not {"script", "b2"} & found.found.keys()


# ---- samples ----------------------------------------


def test_samples_are_kept_and_those_of_lost_steps_dropped(tmp_path: Path, run: Path) -> None:
    assert [sample["step"] for sample in read_samples(run)] == [0, 3, 6, 9, 12]
    log = RunLog(tmp_path)
    log.evaluation(0, 5.0, 2.0, 0.0)
    log.sample(0, "a\nb")
    log.step(0, 5.0, 1.0, 0.5, 1.0)
    log.evaluation(1, 5.0, 2.0, 0.0)
    log.sample(1, "c")
    log.rewind(1, 0)
    assert [(sample["step"], sample["text"]) for sample in read_samples(tmp_path)] == [(0, "a\nb")]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"step": 1, "text": "a"}), '{"step": 2, "te', "7", '{"step": "x", "text": "b"}', '{"step": 3}']
    (tmp_path / SAMPLES).write_text("\n".join([*lines, json.dumps({"step": 4, "text": "d"})]), encoding="utf-8")
    assert [sample["step"] for sample in read_samples(tmp_path)] == [1, 4]
    assert read_samples(tmp_path / "nowhere") == []


# ---- charts ----------------------------------------

NUMBERS = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1e-300, 1e300, -1e300, math.nan, math.inf])


@given(st.lists(st.tuples(st.integers(0, 10**7).map(float), NUMBERS), max_size=20), st.booleans())
def test_any_numbers_give_a_chart_or_none(points: list[tuple[float, float]], logarithmic: bool) -> None:
    text = chart([Series("x", points, "a", dots=True)], logarithmic=logarithmic, levels=[("level", 1.0)])
    finite = [point for point in points if all(map(math.isfinite, point))]
    assert bool(text) == bool(finite)
    if text:
        found = Reader(text)
        assert found.found["svg"] == 2
    for number in re.findall(r' (?:cx|cy|x1|x2|y1|y2|x|y)="([^"]*)"', text):
        assert math.isfinite(float(number))


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    high = low + width
    ticks = nice_ticks(low, high)
    assert len(ticks) <= 8
    slack = 1e-6 * (abs(low) + width)
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_a_chart_is_logarithmic_where_values_are_far_apart() -> None:
    points = [(0.0, 0.01), (1.0, 100.0)]
    assert ">0.1<" in chart([Series("x", points, "a")], logarithmic=True)
    assert ">0.1<" not in chart([Series("x", points, "a")])
