"""Which decoder `generate` takes, and what it says where there is no choice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model
from glassgpt.cli import main
from glassgpt.cli import options as options_module


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
    monkeypatch.setattr(options_module.sys, "platform", "darwin")
    assert options_module._may_have_gpu()


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
