"""`report.html`: a run on one page that needs nothing else, no script, no network; written anew at each evaluation."""

from __future__ import annotations

import datetime
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.files import write_text
from glassgpt.terminal_text import visible
from glassgpt.training import chart
from glassgpt.training.compare import clock, shown
from glassgpt.training.log import read_samples
from glassgpt.training.look import Look
from glassgpt.training.peak import known_rate, operations
from glassgpt.training.plot import means_of
from glassgpt.training.run_directory import NEXT, REPORT
from glassgpt.training.svg import Point, Series
from glassgpt.training.svg import chart as svg_chart

_REFRESH_SECONDS = 30
_MOST_POINTS = 320


def write_report(run: Path, seen: Look) -> None:
    """Write `report.html` of the run in the directory `run`, as it was `seen`, whole or not at all."""
    name = run.resolve().parent.name if run.name == NEXT else run.resolve().name
    write_text(run / REPORT, page(seen, read_samples(run), name))


def page(run: Look, samples: Sequence[dict[str, Any]], name: str) -> str:
    """The whole page. While the run goes, it tells the browser to read it again."""
    refresh = "" if run.finished else f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">'
    title = html.escape(name)
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    state = run.status if run.finished else f"step {run.taken:,} of {run.planned:,}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}
<title>{title}: {state}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{title}</h1><p>{state}, as of {written}</p>{_bar(run)}</header>
<section class="facts">{_facts(run)}</section>
<section class="charts">{_charts(run)}</section>
<section><h2>What it writes</h2>{_samples(samples)}</section>
<section><h2>Configuration</h2>{_configuration(run)}</section>
</body>
</html>
"""


def _bar(run: Look) -> str:
    part = min(1.0, run.taken / run.planned) if run.planned else 1.0
    return f'<div class="bar"><div style="width: {part:.1%}"></div></div>'


def facts_of(run: Look) -> list[tuple[str, str, str]]:
    """What a person wants to know of a run first: (what, value, note)."""
    best, last, known = run.best, run.last, run.record.baselines
    memory = max((r["memory_bytes"] for r in run.evaluations if r.get("memory_bytes")), default=None)
    facts = [
        (
            "best validation loss",
            f"{best['val_loss']:.4f}" if best else "-",
            f"at step {best['step']:,}" if best else "",
        ),
        ("bigram baseline", f"{known.bigram:.4f}", f"unigram {known.unigram:.2f}, ln V {known.uniform:.2f}"),
        ("bits per byte", f"{best['bits_per_byte']:.4f}" if best else "-", "of that model"),
        ("last validation loss", f"{last['val_loss']:.4f}" if last else "-", "nats per token"),
        ("tokens/s", f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else "-", "median of the steps"),
        ("share of the peak", *_share(run)),
        ("time at work", clock(run.seconds), "without pauses"),
        ("parameters", f"{run.record.config.n_parameters():,}", ""),
    ]
    if memory is not None:
        facts.append(("peak memory", f"{memory / 1e6:,.0f} MB", "of the process, or of the GPU"))
    return facts


def _share(run: Look) -> tuple[str, str]:
    """Of the rate that large products reach on this machine, where `plan` has measured it."""
    record = run.record
    known = known_rate(record.settings.dtype, record.device_name, record.threads)
    if known is None or run.tokens_per_second is None:
        return "-", "glassgpt plan measures it"
    rate, when = known
    share = run.tokens_per_second * operations(record.config) / rate / (record.ranks or 1)
    return f"{share:.0%}", f"of {rate / 1e9:,.0f} GFLOPS in products, measured on {when}"


def _facts(run: Look) -> str:
    return "".join(
        f"<div><span>{html.escape(label)}</span><b>{value}</b><small>{note}</small></div>"
        for label, value, note in facts_of(run)
    )


def loss_chart(run: Look) -> str:
    """The training and validation losses against the baselines as SVG; "" while there is none."""
    training, validation = (list(series.points) for series in _losses(run))
    baselines = list(run.record.baselines.labelled().items())
    bounds = None
    if training or validation:
        line = [(round(x), y) for x, y in training]
        view = chart.frame(line, [(round(x), y) for x, y in validation], [value for _, value in baselines])
        bounds = view.bottom, view.top
    return svg_chart(_losses(run), levels=baselines, bounds=bounds)


def _losses(run: Look) -> list[Series]:
    training = _means([(r["step"], r["loss"]) for r in run.steps if r["loss"] is not None])
    validation = [(float(r["step"]), float(r["val_loss"])) for r in run.evaluations]
    return [Series("training", training, "pale"), Series("validation", validation, "a", dots=True)]


def _charts(run: Look) -> str:
    steps = run.steps
    rates = [Series("part of its peak", _means(_each(steps, "rate")), "a")]
    figures = [
        ("Loss, nats per token", loss_chart(run), _losses(run)),
        ("Learning rate, part of its peak", svg_chart(rates), rates),
    ]
    for title, key, logarithmic in (
        ("Gradient norm", "gradient_norm", True),
        ("Tokens per second", "tokens_per_second", False),
    ):
        series = [Series(title.lower(), _means(_each(steps, key)), "a")]
        figures.append((title, svg_chart(series, logarithmic=logarithmic), series))
    return "".join(_figure(*figure) for figure in figures)


def _each(steps: Sequence[dict[str, Any]], key: str) -> list[Point]:
    """A figure of the steps that have it as a number."""
    values = [(r["step"], r.get(key)) for r in steps]
    return [(float(x), float(y)) for x, y in values if isinstance(y, int | float) and not isinstance(y, bool)]


def _means(points: Sequence[Point]) -> list[Point]:
    return means_of(points, _MOST_POINTS)


def _figure(title: str, svg: str, series: Sequence[Series]) -> str:
    legend = ""
    if len(series) > 1:
        legend = "".join(f'<i class="{each.style}"></i>{html.escape(each.name)} ' for each in series)
    empty = '<p class="empty">nothing yet</p>'
    return f"<figure><figcaption><h2>{title}</h2><span>{legend}</span></figcaption>{svg or empty}</figure>"


def _samples(samples: Sequence[dict[str, Any]]) -> str:
    if not samples:
        return "<p>no samples</p>"
    items = [
        f"<dt>step {sample['step']:,}</dt><dd>{html.escape(visible(sample['text']))}</dd>"
        for sample in reversed(samples)
    ]
    newest, older = "".join(items[:3]), "".join(items[3:])
    more = f"<details><summary>{len(items) - 3:,} older ones</summary><dl>{older}</dl></details>" if older else ""
    return f"<dl>{newest}</dl>{more}"


def _configuration(run: Look) -> str:
    choices = "".join(f"<li>{html.escape(visible(choice))}</li>" for choice in run.record.choices)
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(visible(shown(value)))}</td></tr>"
        for name, value in run.settings().items()
    )
    return f"<ul>{choices}</ul><table>{rows}</table>"


_STYLE = """
:root { --paper: #ffffff; --ink: #1c2430; --soft: #5d6878; --line: #e3e7ee; --card: #f6f8fb; --a: #1f5fae;
  --b: #c2562d; --pale: #a9bdd8; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e6eaf0; --soft: #98a4b5; --line: #2a323d;
  --card: #1a2028; --a: #6aa6f0; --b: #f0925f; --pale: #41597a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1120px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 15px; }
header p { margin: 2px 0 10px; color: var(--soft); }
section { margin-top: 24px; }
section > h2 { margin-bottom: 8px; font-size: 18px; }
.bar { height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; }
.bar div { height: 100%; background: var(--a); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; }
.facts div, figure { margin: 0; padding: 12px 14px; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); }
.facts span, .facts small { display: block; color: var(--soft); font-size: 13px; }
.facts b { font-size: 20px; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 12px; }
figcaption { display: flex; justify-content: space-between; margin-bottom: 4px; }
figcaption span { color: var(--soft); font-size: 13px; }
figcaption i { display: inline-block; width: 14px; height: 3px; margin: 0 4px 3px 8px; }
i.a { background: var(--a); } i.b { background: var(--b); } i.pale { background: var(--pale); }
figure > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
polyline.a { stroke: var(--a); } polyline.b { stroke: var(--b); } polyline.pale { stroke: var(--pale); }
circle.a { fill: var(--a); } circle.b { fill: var(--b); } circle.pale { fill: var(--pale); }
.grid { stroke: var(--line); } .level { stroke: var(--soft); stroke-dasharray: 4 4; opacity: 0.7; }
.empty { color: var(--soft); }
dl { margin: 0; } dt { color: var(--soft); font-size: 13px; }
dd { margin: 0 0 10px; white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-serif, Georgia, serif; }
summary { cursor: pointer; color: var(--soft); margin-bottom: 8px; }
ul { margin: 0 0 12px; padding-left: 20px; }
table { border-collapse: collapse; }
th, td { padding: 3px 16px 3px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: normal; color: var(--soft); }
"""
