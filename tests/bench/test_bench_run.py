"""Who takes which turn in what order, what a failure and Ctrl-C leave, and a whole benchmark of a small model."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glassgpt import GPTModel, Tokenizer, save_model
from glassgpt.bench import prepare, turn
from glassgpt.bench import run as module
from glassgpt.bench.plan import ROW_COUNTS, Sizes
from glassgpt.bench.results import Bench
from glassgpt.bench.run import TurnError, _places, bench, machine
from glassgpt.generation.auto import choose_decoder

CONTEXT = 16


@pytest.fixture(scope="module")
def saved(tiny_model: Callable[..., GPTModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    save_model(tiny_model(vocab_size=257, context_length=CONTEXT), Tokenizer.bytes_(), directory)
    return directory


class Children:
    """In place of processes: each request is kept, and answered at once."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.fail: Callable[[Any], BaseException | None] = lambda _: None
        self.rates: dict[tuple[str, int], float] = {}

    def __call__(self, module: Any, request: Any, directory: str, threads: int) -> dict[str, Any]:
        self.asked.append(request)
        error = self.fail(request)
        if error is not None:
            raise error
        if not isinstance(request, turn.Request):
            return {}
        rate = self.rates.get((request.contender, request.threads), 10.0)
        if request.work == "decode":
            return {"rate": rate, "cold_rate": rate, "tokens": [1, 2], "peak_bytes": 1}
        if request.work == "rows":
            return {"rates": dict.fromkeys(map(str, ROW_COUNTS), rate)}
        return {"rate": rate} if request.work == "prompt" else {"seconds": {"1": 1.0, "2": 1.0, "3": 1.0}}

    def turns(self) -> list[tuple[str, str, int]]:
        return [(r.work, r.contender, r.threads) for r in self.asked if isinstance(r, turn.Request)]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[Children]:
    result = Children()
    monkeypatch.setattr(module, "_child", result)
    monkeypatch.setattr(module, "_load_before", lambda: None)
    yield result


def test_contenders_take_turns_work_by_work_and_round_by_round(children: Children, saved: Path) -> None:
    result = bench(saved, rounds=2, works=["prompt", "decode"], only=["cached", "compiled"], threads=1)
    names = ["compiled float32", "cached", "compiled bfloat16", "compiled int8", "compiled int4"]
    assert children.turns() == [(work, name, 1) for _ in range(2) for work in ("decode", "prompt") for name in names]
    assert result.finished and len(result.turns) == 20
    # the choices on the float32 text are counted once
    counted = [request.contender for request in children.asked if request.reference == [1, 2]]
    assert counted == names[2:]


def test_a_peer_keeps_its_fastest_number_of_threads(
    children: Children, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed_peers", lambda: (["transformers"], ["not installed: others; pip"]))
    monkeypatch.setattr(module, "wanted_threads", lambda threads: threads or 4)
    children.rates = {("transformers", 2): 20.0}
    result = bench(saved, rounds=3, works=["decode"], only=["transformers"], peers=True)
    assert children.turns() == [("decode", "transformers", n) for n in (4, 2, 2, 2)]
    assert result.median("transformers", "decode", "rate") == 20
    assert result.notes == ["not installed: others; pip"]
    children.asked.clear()
    bench(saved, rounds=1, works=["decode"], only=["transformers"], peers=True, threads=4)
    assert children.turns() == [("decode", "transformers", 4)]


def test_what_fails_is_left_out_and_named(children: Children, saved: Path) -> None:
    def fail(request: Any) -> BaseException | None:
        broken = isinstance(request, turn.Request) and request.contender == "compiled int4"
        return TurnError("no such instruction") if broken else None

    children.fail = fail
    result = bench(saved, rounds=2, works=["decode"], only=["compiled"])
    assert [name for _, name, _ in children.turns()].count("compiled int4") == 1
    assert result.notes == ["compiled int4 was left out: no such instruction"]
    assert result.finished and "compiled int4" not in result.contenders()


def test_a_peer_whose_files_cannot_be_written_takes_no_turn(
    children: Children, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed_peers", lambda: (["transformers"], []))
    children.fail = lambda r: TurnError("no window") if r.contender == "transformers" else None
    result = bench(saved, rounds=1, works=["decode"], peers=True)
    assert result.notes == ["transformers was left out: no window"]
    assert "transformers" not in [name for _, name, _ in children.turns()]


def test_where_nothing_can_be_measured_the_reason_is_the_error(children: Children, saved: Path) -> None:
    children.fail = lambda r: TurnError("too large") if isinstance(r, turn.Request) else None
    with pytest.raises(TurnError, match="cached was left out: too large"):
        bench(saved, rounds=1, works=["decode"], only=["cached"])


def test_ctrl_c_ends_it_with_what_was_measured(children: Children, saved: Path) -> None:
    children.fail = lambda _: KeyboardInterrupt() if len(children.asked) == 3 else None
    result = bench(saved, rounds=2, works=["decode"], only=["compiled"])
    assert not result.finished
    assert [turn.contender for turn in result.turns] == ["compiled float32", "compiled bfloat16"]
    children.asked.clear()
    children.fail = lambda _: KeyboardInterrupt() if len(children.asked) == 1 else None
    with pytest.raises(KeyboardInterrupt):  # nothing was measured
        bench(saved, rounds=2, works=["decode"])


def test_the_time_left_is_that_of_the_turns_left(
    children: Children, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def slow(request: Any) -> None:
        nonlocal now
        if isinstance(request, turn.Request):
            now += 30.0 if request.contender == "cached" else 10.0

    children.fail = slow
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    seen: list[tuple[str, int, int, float | None]] = []
    bench(
        saved, rounds=2, works=["decode"], only=["cached", "compiled float32"], progress=lambda *now: seen.append(now)
    )
    assert seen == [
        ("reading the model", 0, 0, None),
        ("compiled float32: decode", 0, 4, None),
        ("cached: decode", 1, 4, 30.0),  # all as long as the only one known
        ("compiled float32: decode", 2, 4, 40.0),
        ("cached: decode", 3, 4, 30.0),
        ("", 4, 4, 0.0),
    ]


def test_errors_name_the_value_and_the_way_out(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rounds 0 must be a whole number, at least 1"):
        bench(saved, rounds=0)
    with pytest.raises(ValueError, match="unknown work 'decod': did you mean 'decode'"):
        bench(saved, works=["decod"])
    with pytest.raises(ValueError, match="no contender's name begins with gpu: they are naive, cached, compiled"):
        bench(saved, only=["gpu"])
    with pytest.raises(ValueError, match="threads 0 must be from 1 to 1024"):
        bench(saved, threads=0)
    with pytest.raises(ValueError, match="no model"):
        bench(tmp_path / "none")


def test_a_busy_machine_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(module.os, "getloadavg", lambda: (1.5, 0, 0), raising=False)
    assert "a load of 1.5 on 2 cores" in str(module._load_before())
    monkeypatch.setattr(module.os, "getloadavg", lambda: (0.5, 9, 9), raising=False)
    assert module._load_before() is None


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, True), ({"threads": 1}, False), ({"only": ["compiled"]}, False), ({"works": ["rows"]}, False)],
)
def test_the_faster_decoder_is_remembered(
    children: Children,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    kept: bool,
) -> None:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("glassgpt.cores.available_cores", lambda: 1)
    children.rates[("cached", 1)] = 30.0
    bench(saved, rounds=1, **{"works": ["decode"], "only": ["cached", "compiled"], **options})
    name, why = choose_decoder(saved)
    assert name == ("cached" if kept else "compiled")
    assert why.startswith("10 tokens/s, cached 30, measured on ") == kept


def test_what_a_busy_machine_shows_is_not_remembered(
    children: Children, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_load_before", lambda: "busy")
    bench(saved, rounds=1, works=["decode"], only=["cached", "compiled"])
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_described() -> None:
    facts = machine(2)
    assert facts["processor"] and facts["threads"] == 2 and facts["cores"] >= 1
    assert {"torch", "numba"} <= facts["versions"].keys()


def test_the_text_that_others_are_held_to_comes_first() -> None:
    places = list(_places(1, ["decode"], ["naive", "compiled int8", "compiled float32"], Sizes.of(16), 2, (2,)))
    assert [place.contender for place in places] == ["compiled float32", "naive", "compiled int8"]


def test_a_process_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    code = "import sys; print('a\\nValueError: no\\x1b[0m good', file=sys.stderr); sys.exit(3)"
    with pytest.raises(TurnError, match="^ValueError: no␛\\[0m good$"):
        module._finished([sys.executable, "-c", code], "", 1)
    with pytest.raises(TurnError, match="the process ended with code 3"):
        module._finished([sys.executable, "-c", "raise SystemExit(3)"], "", 1)


def test_a_peer_runs_as_it_comes(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What our command line sets for its own threads is not handed on to others."""
    seen = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        seen.append(options["env"].get("GOMP_SPINCOUNT"))
        Path(command[-1]).write_text("{}", encoding="utf-8")
        return SimpleNamespace(returncode=0)

    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")
    monkeypatch.setattr(module.subprocess, "run", run)
    for contender in ("cached", "transformers"):
        module._child(prepare, prepare.Request(str(saved), contender, str(tmp_path)), str(tmp_path), 1)
    assert seen == ["3000", None]


@pytest.mark.slow
def test_a_whole_benchmark(saved: Path) -> None:
    result = bench(
        saved,
        rounds=1,
        only=["cached", "compiled float32", "compiled int8"],
        first_token=lambda model, contender, threads: [
            *(sys.executable, "-m", "glassgpt", "generate", model, "-", "--max-new-tokens", "1", "--device", "cpu")
        ],
    )
    assert result.finished and len(result.turns) == 15
    assert Bench.from_dict(result.to_dict()) == result
    for name in ("cached", "compiled float32"):
        assert result.first_difference(name) is None
        assert result.series(name, "rows", "rates").keys() == set(ROW_COUNTS)
        assert (result.median(name, "first", "seconds") or 0) > 0
        assert (result.memory(name)[1] or 0) > 0
        assert (result.share_of_read(name) or 0) > 0
    assert 0 <= (result.median("compiled int8", "decode", "agreement") or -1) <= 1
