"""Every command and every piece of Python in the README and in docs/formats.md runs."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glassgpt import cli, load_model, train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What a minute-long or networked command gets in addition here, and what is run elsewhere (make runs these tests)
SHORTER = {
    "train": ["--steps", "8", "--eval-batches", "2"],
    "download": ["--print-urls"],
    "generate": ["--max-new-tokens", "5"],
}
ELSEWHERE = ("make ", "pip ", "python3 -m venv ", "source ", "python src/", "vllm ", "ollama ", "llama-cli ")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def commands() -> Iterator[list[str]]:
    for block in blocks("bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and not line.startswith(ELSEWHERE):
                yield words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README speaks of: a text, prompts, a trained model, a checkpoint of nanoGPT's."""
    folder = tmp_path_factory.mktemp("readme")
    text = "The function returns a list. Once upon a time it returned a tuple.\n" * 200
    (folder / "my.txt").write_text(text, encoding="utf-8")
    (folder / "prompts.txt").write_text("The function\nOnce upon\n", encoding="utf-8")
    sizes = dict(steps=5, eval_every=5, eval_batches=1, sample_tokens=0, dtype="float32")
    train([folder / "my.txt"], folder / "runs" / "demo", shape="nano", **sizes)
    model, _ = load_model(folder / "runs" / "demo")
    write_nanogpt(folder / "ckpt.pt", model.config.emb_dim)
    return folder


def write_nanogpt(path: Path, d: int) -> None:
    arguments = dict(n_layer=1, n_head=2, n_embd=d, block_size=16, bias=False, vocab_size=50304, dropout=0.0)
    shapes = {"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
    state = {f"transformer.h.0.{name}.weight": torch.randn(shape) / d for name, shape in shapes.items()}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        state[f"transformer.{name}.weight"] = torch.ones(d)
    state["transformer.wte.weight"] = state["lm_head.weight"] = torch.randn(50304, d) / d
    state["transformer.wpe.weight"] = torch.randn(16, d) / d
    torch.save({"model": state, "model_args": arguments, "iter_num": 1}, path)


def test_the_readme_shows_the_commands() -> None:
    shown = {words[1] for words in commands()}
    assert {"train", "generate", "download", "import", "export"} <= shown


@pytest.mark.slow
def test_every_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, so that each finds what those before it made."""
    monkeypatch.chdir(place)
    for words in commands():
        assert words[0] == "glassgpt"
        code = cli.main([*words[1:], *SHORTER.get(words[1], [])])
        assert code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"
    assert (place / "mine.gguf").exists()
    assert (place / "texts.jsonl").read_bytes().count(b"\n") == 2


def test_the_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_books_commands_run(tmp_path: Path) -> None:
    if not (ROOT.parent / "shared" / "data" / "the-verdict.txt").exists():
        pytest.skip("../shared/data/the-verdict.txt is missing: gpt_train.py would try the network")
    shutil.copy(ROOT.parent / "shared" / "data" / "the-verdict.txt", tmp_path)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python src/")]
    assert lines
    for line in lines:
        script, *options = shlex.split(line, comments=True)[1:]
        subprocess.run([sys.executable, str(ROOT / script), *options], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "model.pth").exists()


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    tree = blocks("", README)[0]
    for name in re.findall(r"([a-z_]+\.py)", tree):
        assert list((ROOT / "src" / "glassgpt").rglob(name)), name
