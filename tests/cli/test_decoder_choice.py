"""Which decoder `generate` takes, and what it says where there is no choice."""

import argparse
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model
from glassgpt.cli import main
from glassgpt.cli import options as options_module
from glassgpt.cores import may_have_gpu
from glassgpt.generation.auto import remember_decoders
from glassgpt.generation.row import Row


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("saved")
    config = GPTConfig(vocab_size=257, context_length=32, emb_dim=24, n_heads=3, n_layers=2, drop_rate=0.0)
    save_model(GPTModel(config).eval(), Tokenizer.bytes_(), directory)
    return directory


def generated(capsys: pytest.CaptureFixture[str], saved: Path, *extra: str) -> tuple[str, str]:
    command = ["generate", str(saved), "ab", "--max-new-tokens", "12", "--temperature", "0", "--device", "cpu", *extra]
    assert main(command) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_both_decoders_write_the_same(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled, said = generated(capsys, saved, "--decoder", "compiled")
    assert said in ("", "glassgpt: compiling for this machine, once: about 10 seconds\n")
    assert generated(capsys, saved, "--decoder", "cached") == (compiled, "")
    assert generated(capsys, saved)[0] == compiled


def test_fewer_bits_are_for_who_asks(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = generated(capsys, saved, "--precision", "int8")
    assert out.startswith("ab")
    command = ["generate", str(saved), "ab", "--precision", "int8", "--decoder", "cached"]
    assert main(command) == 2
    assert (
        "the compiled decoder, with its precision 'int8' and its KV cache in float32, is for the CPU"
        in capsys.readouterr().err
    )


def test_without_numba_the_plain_decoder_serves(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = generated(capsys, saved, "--decoder", "cached")
    for name in [name for name in sys.modules if name.startswith("glassgpt.generation.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    out, said = generated(capsys, saved)
    assert out == expected
    assert said.count("\n") == 1 and "the plain decoder serves, which is slower" in said
    assert main(["generate", str(saved), "ab", "--decoder", "compiled"]) == 1
    assert "numba" in capsys.readouterr().err


def test_a_gpu_is_asked_for_only_where_there_may_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassgpt.cores.sys.platform", "darwin")
    assert may_have_gpu()


def test_generate_loads_no_torch(saved: Path) -> None:
    code = (
        "import sys; from glassgpt.cli import main; "
        f"main(['generate', {str(saved)!r}, 'ab', '--device', 'cpu', '--max-new-tokens', '2']); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("decoder", ["compiled", "cached"])
def test_speculation_writes_the_same_and_says_what_it_did(
    saved: Path, capsys: pytest.CaptureFixture[str], decoder: str
) -> None:
    plain, _ = generated(capsys, saved, "--decoder", decoder)
    for extra in (["--speculate", "lookup"], ["--draft", str(saved)]):
        out, said = generated(capsys, saved, "--decoder", decoder, *extra)
        assert out == plain
        assert re.search(r"^glassgpt: speculation: \d+ of \d+ proposed tokens accepted \(\d+ %\)", said, re.MULTILINE)
        assert ("is no smaller than" in said) == ("--draft" in extra)


def test_a_draft_must_have_the_models_tokenizer(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.characters([chr(i) for i in range(32, 300)])
    config = GPTConfig(vocab_size=tokenizer.n_vocab, context_length=32, emb_dim=8, n_heads=1, n_layers=1, drop_rate=0.0)
    save_model(GPTModel(config).eval(), tokenizer, tmp_path / "other")
    for extra, says in (
        (["--draft", str(tmp_path / "other")], "has another tokenizer than"),
        (["--draft", str(saved), "--speculate", "lookup"], "exclude each other"),
    ):
        assert main(["generate", str(saved), "ab", *extra]) == 2
        assert says in capsys.readouterr().err


# ---- what was chosen, and why ----------------------------------------


@pytest.fixture
def cpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, two cores, nothing remembered."""
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("glassgpt.cores.available_cores", lambda: 2)
    monkeypatch.setattr(options_module, "may_have_gpu", lambda: False)


@pytest.mark.usefixtures("cpu_alone")
def test_verbose_says_what_was_chosen_and_why(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = generated(capsys, saved)
    out, said = generated(capsys, saved, "--verbose")
    assert out == plain
    assert said == (
        "glassgpt: compiled decoder (the default on the CPU), 2 threads (one for each core; too few tokens so far to "
        "measure that)\n"
    )
    _, said = generated(capsys, saved, "--verbose", "--decoder", "compiled", "--threads", "1")
    assert said == "glassgpt: compiled decoder (as asked), 1 thread (as asked)\n"
    _, said = generated(capsys, saved, "--verbose", "--decoder", "cached", "--json")
    assert said == "glassgpt: cached decoder (as asked) on cpu\n"


@pytest.mark.usefixtures("cpu_alone")
def test_threads_are_measured_once(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, tuning = (importlib.import_module(f"glassgpt.generation.cpu.{name}") for name in ("decoder", "tuning"))
    monkeypatch.setattr(decoder, "ALONE", 0)
    monkeypatch.setattr(tuning, "_switches", lambda: 0)
    monkeypatch.setattr(tuning, "_is_busy", lambda: False)
    texts, words = zip(
        *(generated(capsys, saved, "--verbose", "--max-new-tokens", "90") for _ in range(2)), strict=True
    )
    assert texts[0] == texts[1]
    assert [re.search(r"\(measured (now|on)", said)[1] for said in words] == ["now", "on"]  # type: ignore[index]


@pytest.mark.usefixtures("cpu_alone")
def test_auto_takes_the_decoder_that_was_measured_to_be_faster(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, _ = generated(capsys, saved)
    remember_decoders(saved, {"compiled": 10.0, "cached": 20.0})
    out, said = generated(capsys, saved, "--verbose")
    assert out == plain
    assert re.fullmatch(
        r"glassgpt: cached decoder \(10 tokens/s, cached 20, measured on \d{4}-\d\d-\d\d\) on cpu\n", said
    )
    for more in (["--decoder", "compiled"], ["--precision", "int8"]):
        assert "compiled decoder (as asked)" in generated(capsys, saved, "--verbose", *more)[1]
    # records must be found again, whatever is measured between two starts of a batch
    (tmp_path / "prompts.txt").write_text("ab\n", encoding="utf-8")
    command = ["generate", str(saved), "--prompts", str(tmp_path / "prompts.txt"), "--verbose", "--max-new-tokens", "3"]
    assert main(command) == 0
    assert "compiled decoder (the default on the CPU)" in capsys.readouterr().err


def test_graphs_need_a_gpu(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(saved), "ab", "--decoder", "graphs"]) == 2
    assert capsys.readouterr().err == (
        "glassgpt: the decoder 'graphs' needs a CUDA device, and this model is on cpu: leave it out\n"
    )


@pytest.mark.usefixtures("cpu_alone")
def test_on_a_gpu_graphs_are_taken_where_they_were_measured_to_be_faster(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = SimpleNamespace(device="cuda:0")
    monkeypatch.setattr(options_module, "load_to_look", lambda arguments: (on_gpu, None))
    monkeypatch.setattr("glassgpt.generation.graphs.GraphDecoder", lambda model: ("graphs of", model))
    arguments = argparse.Namespace(model=str(saved), decoder="auto", device="auto", prompts=None)
    assert options_module.load_for_text(arguments)[0] is on_gpu
    assert arguments.decoder_why == "the default on a GPU"
    remember_decoders(saved, {"cached": 300.0, "graphs": 900.0}, "cuda:0")
    assert options_module.load_for_text(arguments)[0] == ("graphs of", on_gpu)
    assert arguments.decoder_why.startswith("300 tokens/s, graphs 900, measured on 2")
    arguments.decoder = "cached"
    assert options_module.load_for_text(arguments)[0] is on_gpu
    arguments.decoder = "graphs"
    assert options_module.load_for_text(arguments)[0] == ("graphs of", on_gpu)


# ---- chat and explain ----------------------------------------


def talk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, saved: Path, lines: str, *extra: str
) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    command = ["chat", str(saved), "--max-new-tokens", "12", "--temperature", "0", "--device", "cpu", *extra]
    assert main(command) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("decoder", ["compiled", "cached"])
def test_chat_speculates(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    plain, _ = talk(capsys, monkeypatch, saved, "hi\nho\n", "--decoder", decoder)
    for extra in (["--speculate", "lookup"], ["--draft", str(saved)]):
        out, said = talk(capsys, monkeypatch, saved, "hi\nho\n", "--decoder", decoder, *extra)
        assert out == plain
        assert len(re.findall(r"^glassgpt: speculation: \d+ of \d+ proposed", said, re.MULTILINE)) == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["chat", str(saved), "--draft", str(saved), "--speculate", "lookup"]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--draft"]], ids=["alone", "with a draft"])
@pytest.mark.parametrize("decoder", ["compiled", "cached"])
def test_an_answer_after_one_that_was_stopped(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, decoder: str, extra: list[str]
) -> None:
    """Ctrl-C ends an answer in the middle; the next one has the decoder for itself."""
    more = ["--decoder", decoder, *extra, *([str(saved)] if extra else [])]
    plain, _ = talk(capsys, monkeypatch, saved, "hi\n/reset\nhi\n", *more)
    real, stopped = Row.accept, []

    def accept(row: Row, token: int) -> str:
        if not stopped and row.n_drawn == 5:
            stopped.append(True)
            raise KeyboardInterrupt
        return real(row, token)

    monkeypatch.setattr(Row, "accept", accept)
    out, said = talk(capsys, monkeypatch, saved, "hi\n/reset\nhi\n", *more)
    assert stopped and "internal" not in said
    assert out.split("forgotten\n")[1] == plain.split("forgotten\n")[1]


def test_explain_takes_the_compiled_decoder_but_for_its_maps(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for decoder in ("auto", "compiled", "cached"):
        assert main(["explain", str(saved), "abc abc", "--device", "cpu", "--decoder", decoder]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert main(["explain", str(saved), "abc", "--precision", "int4"]) == 0
    capsys.readouterr()
    for asked in (["--precision", "int4"], ["--decoder", "compiled"], ["--kv-cache", "float16"]):
        assert main(["explain", str(saved), "abc", "--out", str(tmp_path / "maps.png"), *asked]) == 2
        assert "--out shows the readable model's attention" in capsys.readouterr().err
        assert main(["explain", str(saved), "abc", "--html", str(tmp_path / "look.html"), *asked]) == 2
        assert "--html shows the readable model's attention" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_explain_loads_no_torch(saved: Path) -> None:
    code = (
        "import sys; from glassgpt.cli import main; "
        f"main(['explain', {str(saved)!r}, 'ab', '--device', 'cpu']); "
        f"main(['explain', {str(saved)!r}, 'ab', '--device', 'cpu', '--json']); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
