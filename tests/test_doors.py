"""The book's doors in `src/`: its names, its parameters, its numbers, and both ways of starting them."""

import functools
import importlib
import inspect
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from glassgpt import GPTModel, Tokenizer, save_model

ROOT = Path(__file__).parents[1]

GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TINY = GPT_CONFIG_124M | {"context_length": 12, "emb_dim": 32, "n_heads": 4, "n_layers": 2}
SETTINGS = {"learning_rate": 5e-4, "num_epochs": 1, "batch_size": 2, "weight_decay": 0.1}

# The names of each door with the parameters the book gives them.
MODEL_NAMES = {
    "GPTDatasetV1": "txt, tokenizer, max_length, stride",
    "create_dataloader_v1": (
        "txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0"
    ),
    "MultiHeadAttention": "d_in, d_out, context_length, dropout, num_heads, qkv_bias=False",
    "LayerNorm": "emb_dim",
    "GELU": "",
    "FeedForward": "cfg",
    "TransformerBlock": "cfg",
    "GPTModel": "cfg",
    "generate_text_simple": "model, idx, max_new_tokens, context_size",
}
CACHE_NAMES = MODEL_NAMES | {
    "generate_text_simple_cached": "model, idx, max_new_tokens, context_size=None, use_cache=True",
    "GPTModel.forward": "in_idx, use_cache=False",
    "GPTModel.reset_kv_cache": "",
}
TRAINING_NAMES = {
    "text_to_token_ids": "text, tokenizer",
    "token_ids_to_text": "token_ids, tokenizer",
    "calc_loss_batch": "input_batch, target_batch, model, device",
    "calc_loss_loader": "data_loader, model, device, num_batches=None",
    "evaluate_model": "model, train_loader, val_loader, device, eval_iter",
    "generate_and_print_sample": "model, tokenizer, device, start_context",
    "train_model_simple": (
        "model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer"
    ),
    "plot_losses": "epochs_seen, tokens_seen, train_losses, val_losses",
}
NAMES = {
    "gpt_model_from_reference": MODEL_NAMES,
    "gpt_with_kv_cache": CACHE_NAMES,
    "gpt_with_kv_cache_optimized": CACHE_NAMES,
    "training_components": MODEL_NAMES | TRAINING_NAMES,
    "gpt_train": TRAINING_NAMES | {"main": "gpt_config, settings"},
    "gpt_generate": {
        "load_weights_into_gpt": "gpt, params",
        "assign": "left, right",
        "generate": "model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None",
    },
    "gpt_download": {
        "download_and_load_gpt2": "model_size, models_dir",
        "download_file": "url, destination, backup_url=None",
        "load_gpt2_params_from_tf_ckpt": "ckpt_path, settings",
    },
    "demo": {"main": ""},
}


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def door(name: str) -> ModuleType:
    return importlib.import_module(f"src.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_book_with_its_parameters(name: str) -> None:
    for path, parameters in NAMES[name].items():
        found = functools.reduce(getattr, path.split("."), door(name))
        assert callable(found)
        given = [
            parameter.replace(annotation=parameter.empty)
            for parameter in inspect.signature(found).parameters.values()
            if parameter.name != "self" and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        n_book = len(parameters.split(", ")) if parameters else 0
        assert ", ".join(map(str, given[:n_book])) == parameters, path
        assert all(more.default is not more.empty for more in given[n_book:]), path


# ---- the book's numbers ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt_model_from_reference", "gpt_with_kv_cache", "gpt_with_kv_cache_optimized"])
def test_ten_golden_tokens(name: str) -> None:
    module = door(name)
    torch.manual_seed(123)
    model = module.GPTModel(GPT_CONFIG_124M).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 163_009_536
    write = getattr(module, "generate_text_simple_cached", module.generate_text_simple)
    out = write(model, torch.tensor([[15496, 11, 314, 716]]), max_new_tokens=10, context_size=1024)
    assert out[0, 4:].tolist() == [27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]


def train_on_the_cpu(monkeypatch: pytest.MonkeyPatch, **replaced: Any) -> ModuleType:
    """The training door; the book's numbers were printed by a CPU."""
    module = door("gpt_train")
    monkeypatch.setattr(module, "pick_device", lambda: torch.device("cpu"))
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_the_tiny_training_run(
    monkeypatch: pytest.MonkeyPatch, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = train_on_the_cpu(monkeypatch)
    train_losses, val_losses, tokens_seen, model = module.main(TINY, SETTINGS)
    assert [len(values) for values in (train_losses, val_losses, tokens_seen)] == [39, 39, 39]
    assert train_losses[:3] == pytest.approx([10.8787, 10.98149, 10.88086], abs=5e-5)
    assert val_losses[:3] == pytest.approx([11.00604, 10.98673, 10.96676], abs=5e-5)
    assert tokens_seen == [24 * (step + 1) for step in range(0, 195, 5)]
    assert isinstance(model, GPTModel) and model.config.attention == "explicit"
    assert (train_losses[-1], val_losses[-1]) == pytest.approx((7.661, 8.304), abs=5e-3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40 and lines[39].startswith("Every effort moves you the")


@pytest.mark.slow
def test_the_first_two_evaluations_of_the_124m_run(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    class EnoughSeenError(Exception):
        pass

    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise EnoughSeenError

    module = door("gpt_train")
    train = functools.partial(module.train_model_simple, report=report)
    train_on_the_cpu(monkeypatch, train_model_simple=train)
    with pytest.raises(EnoughSeenError):
        module.main(module.GPT_CONFIG, module.OTHER_SETTINGS)
    assert said == [
        "Ep 1 (Step 000000): Train loss 9.812, Val loss 9.846",
        "Ep 1 (Step 000005): Train loss 7.588, Val loss 8.044",
    ]


def test_the_defaults_are_the_books() -> None:
    module = door("gpt_train")
    assert module.GPT_CONFIG == GPT_CONFIG_124M | {"context_length": 256}
    assert module.OTHER_SETTINGS == SETTINGS | {"num_epochs": 10}
    assert module.GPT_CONFIG_TINY == TINY


# ---- both ways of starting ---------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of `src/`: what is found in it is not what may be installed here."""
    skipped = shutil.ignore_patterns("__pycache__", "*.ipynb", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "checkout" / "src", ignore=skipped)
    return tmp_path / "checkout"


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUTF8": "1",
            "MPLBACKEND": "agg",
            "GLASSGPT_OFFLINE": "1",
        },
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def test_imported_as_a_package_of_the_checkout(checkout: Path) -> None:
    code = (
        "from src.gpt_model_from_reference import GPTModel, generate_text_simple\n"
        "import glassgpt, torch\n"
        f"model = GPTModel({TINY})\n"
        "print(glassgpt.__file__, generate_text_simple(model, torch.tensor([[1, 2]]), 3, 12).shape)\n"
    )
    done = run(checkout, "-c", code)
    assert (done.stdout, done.stderr) == (
        f"{checkout / 'src' / 'glassgpt' / '__init__.py'} torch.Size([1, 5])\n",
        "",
    )


@pytest.mark.slow
def test_training_as_a_script(checkout: Path, sample_text: str) -> None:
    (checkout / "the-verdict.txt").write_text(sample_text[:800], encoding="utf-8")
    done = run(checkout, "src/gpt_train.py", "--tiny")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Ep 1 (Step 000000): Train loss 1")
    assert lines[-1] == "Wrote loss.pdf and model.pth"
    assert (checkout / "loss.pdf").read_bytes().startswith(b"%PDF")
    state = torch.load(checkout / "model.pth", weights_only=True)
    door("gpt_with_kv_cache").GPTModel(TINY).load_state_dict(state)
    left = {path.name for path in checkout.iterdir()}
    assert left == {"src", "the-verdict.txt", "loss.pdf", "model.pth"}


@pytest.mark.parametrize("name", ["loss.pdf", "model.pth"])
def test_training_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, tmp_path, "gpt_train.py", "--tiny")
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err == f"gpt_train.py: {name} exists: move it away, or run in another directory\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


@pytest.fixture
def model_directory(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    torch.manual_seed(0)
    shape = {"vocab_size": 257, "context_length": 24, "emb_dim": 16, "n_heads": 2, "n_layers": 1}
    save_model(GPTModel(shape), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *arguments: str | Path) -> None:
    """Start a door as a script, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "src" / name), run_name="__main__")


def test_generating_from_a_local_model(
    checkout: Path,
    model_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--prompt", "To be", "--device", "cpu", "--model", model_directory)
    done = run(checkout, "src/gpt_generate.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Output text:\n To be")
    start(monkeypatch, checkout, "gpt_generate.py", *arguments)
    assert capsys.readouterr().out.replace("\r", "\n") == done.stdout
    texts = []
    for more in ((), ("--max-new-tokens", 3), ("--temperature", 0), ("--top-k", 1), ("--seed", 5)):
        start(monkeypatch, checkout, "gpt_generate.py", *arguments, *more)
        texts.append(capsys.readouterr().out)
    assert len(texts[1]) < len(texts[0])
    assert texts[2] == texts[3] != texts[0] != texts[4]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "training_components"])
def test_every_script_answers_help(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, tmp_path, f"{name}.py", "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}.py [-h]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt_generate.py", "--model", "nowhere"], "nowhere"),
        (["gpt_generate.py", "--device", "abacus"], "device 'abacus' is unknown"),
        (["gpt_generate.py"], "gpt2/124M/checkpoint is not here"),
        (["gpt_download.py", "355M"], "gpt2/355M/checkpoint is not here"),
        (["gpt_train.py"], "the text has 2 tokens"),
    ],
)
def test_scripts_fail_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "the-verdict.txt").write_text("Too short.", encoding="utf-8")
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, tmp_path, *arguments)
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{arguments[0]}: ") and err.count("\n") == 1 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["the-verdict.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["demo", "gpt_model_from_reference", "gpt_with_kv_cache", "gpt_with_kv_cache_optimized"]
)
def test_the_124m_scripts(checkout: Path, name: str) -> None:
    done = run(checkout, f"src/{name}.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Encoded input text: [15496, 11, 314, 716]" in done.stdout
    assert "Output: [15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267, 49706" in done.stdout
    if name == "demo":
        assert "Parameters: 163,009,536\n" in done.stdout
        assert "124,412,160\n" in done.stdout
    if "cache" in name:
        assert "Output length: 204\n" in done.stdout
