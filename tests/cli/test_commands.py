"""The command line: every command does its work, and fed with nonsense it says so in one line and touches nothing."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import glassgpt
from glassgpt import GPTConfig, GPTModel, Tokenizer, load_model, save_model, train
from glassgpt.cli import main
from glassgpt.cli import parser as _parser

COMMANDS = (
    "demo", "train", "plan", "prepare", "compare", "sweep", "generate", "chat", "serve", "evaluate", "explain",
    "bench", "download", "import", "export", "quantize",
)  # fmt: skip
SOURCE = Path(glassgpt.__file__).parents[1]
SHAPE: dict[str, Any] = dict(vocab_size=257, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.0)
SENTENCE = "The cat sat on the mat, and the dog sat on the cat.\n"

GENERATE = "glassgpt.generation.text"

Answer = tuple[int, str, str]  # exit code, standard output, standard error


@pytest.fixture
def glass(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process."""

    def run(*argv: object) -> Answer:
        try:
            code: Any = main([str(argument) for argument in argv])
        except SystemExit as leaving:  # how argparse ends
            code = leaving.code
        return (code, *capsys.readouterr())

    return run


def shell(*argv: object, **options: Any) -> subprocess.Popen[bytes]:
    """Starts a command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    pipes: dict[str, Any] = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command = [sys.executable, "-m", "glassgpt", *map(str, argv)]
    return subprocess.Popen(command, env=environment, **{**pipes, **options})


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their content, folders with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# ---- a place full of good and bad things ----------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    write = lambda name, data: (root / name).write_bytes(data)  # noqa: E731
    write("text.txt", SENTENCE.encode() * 40)
    write("tiny.txt", b"a few")
    write("short.txt", b"a few words and some more of them")
    write("latin1.txt", b"a caf\xe9")
    write("empty.txt", b"")
    write("blank.txt", b" \n\t\n")
    write("binary.bin", bytes(range(256)))
    write("zip.pth", b"PK\x03\x04" + bytes(100))
    write("pickle.pth", b"\x80\x02garbage")
    write("header.safetensors", (100).to_bytes(8, "little") + b"{" + bytes(99))
    write("wrong.toml", b"[training]\nstepps = 5\n")
    for name in ("nothing", "foreign"):
        (root / name).mkdir()
    write("foreign/thesis.doc", b"years of work")

    model, tokenizer = GPTModel(GPTConfig(**SHAPE)), Tokenizer.bytes_()
    save_model(model, tokenizer, root / "model")
    weights = (root / "model" / "model.safetensors").read_bytes()
    config = json.loads((root / "model" / "config.json").read_text(encoding="utf-8"))
    damaged: dict[str, tuple[str, bytes | None]] = {
        "cut": ("model.safetensors", weights[: len(weights) // 2]),
        "zero": ("model.safetensors", b""),
        "weightless": ("model.safetensors", None),
        "wider": ("config.json", json.dumps(config | {"n_embd": 32}).encode()),
        "deeper": ("config.json", json.dumps(config | {"n_layer": 3}).encode()),
        "absurd": ("config.json", json.dumps(config | {"n_embd": "many"}).encode()),
        "llama": ("config.json", json.dumps(config | {"model_type": "llama"}).encode()),
        "nojson": ("config.json", b"no, thank you"),
        "nested": ("config.json", b"[" * 100_000),
        "tokens": ("tokenizer.json", b'{"garbage": 1}'),
        "tokenless": ("tokenizer.json", None),
    }
    for name, (file, data) in damaged.items():
        shutil.copytree(root / "model", root / name)
        (root / name / file).unlink()
        if data is not None:
            (root / name / file).write_bytes(data)
    shutil.copytree(root / "model", root / "folded")
    (root / "folded" / "config.json").unlink()
    (root / "folded" / "config.json").mkdir()

    settings = dict(tokenizer="byte", steps=2, batch_size=2, eval_batches=1, sample_tokens=0, dtype="float32")
    train([root / "text.txt"], root / "run", shape=GPTConfig(**SHAPE), **settings)
    for name in ("unstarted", "garbled"):
        shutil.copytree(root / "run", root / name)
    shutil.rmtree(root / "unstarted" / "checkpoints")
    (root / "garbled" / "run.json").write_text('{"settings": {"steps": []}}', encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths, and what a command leaves in the folder for temporary files, are seen by `tree`."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HOME", str(place / "nothing"))


# ---- nonsense ----------------------------------------

TRAIN = "train text.txt --shape nano --tokenizer byte --out new --steps 1"

# the arguments, where "·" is an empty one, and a part of the answer; the code is 2 unless the answer begins with "1:"
NONSENSE = [
    ("frobnicate", "invalid choice: 'frobnicate'"),
    ("--version-of-what", "COMMAND"),
    *((f"{command} --frobnicate", "--frobnicate|required") for command in COMMANDS),
    # demo
    *((f"demo --seconds {value}", f"'{value}' must be a number, above 0") for value in ("nan", "-1", "0", "inf", "x")),
    ("demo --out text.txt", "text.txt is a file"),
    ("demo --out foreign", "'thesis.doc' that no run here wrote"),
    ("demo --out model", "'config.json' that no run here wrote"),
    ("demo --threads 0", "'0' must be a whole number, at least 1"),
    ("demo --threads 99999999", "threads 99999999"),
    # train
    ("train missing.txt --out new", "missing.txt: no such file"),
    ("train nothing --out new", "nothing"),
    ("train binary.bin --out new", "binary.bin: looks binary"),
    ("train latin1.txt --out new", "latin1.txt: not UTF-8 (byte 0xe9 at offset 5)"),
    ("train empty.txt --out new", "empty.txt: the file is empty"),
    ("train blank.txt --out new", "blank.txt: only white space"),
    ("train text.txt missing.txt --out new", "missing.txt: no such file"),
    ("train tiny.txt --out new", "your text is 5 bytes, too short"),
    ("train short.txt --context-length 64 --tokenizer byte --steps 1 --out new/er", "context length of 64"),
    ("train short.txt --context-length 64 --tokenizer byte --steps 1 --out run --overwrite", "context length of 64"),
    ("train text.txt --steps 0 --out new", "steps 0 must be a whole number, at least 1"),
    ("train text.txt --steps x --out new", "invalid int value: 'x'"),
    ("train text.txt --steps 5 --minutes 1 --out new", "exclude each other"),
    *((f"train text.txt --out new --minutes {v}", f"'{v}' must be a number, above 0") for v in ("-1", "nan", "inf")),
    *((f"{TRAIN} --learning-rate {v}", f"learning_rate {v} must be") for v in ("nan", "inf", "-1.0", "0.0")),
    (f"{TRAIN} --final-rate 2", "final_rate 2.0 must be a number, at least 0 and at most 1"),
    (f"{TRAIN} --grad-clip nan", "grad_clip nan must be"),
    (f"{TRAIN} --batch-size 0", "batch_size 0 must be a whole number, at least 1"),
    (f"{TRAIN} --batch-size 4 --micro-batch-size 3", "micro_batch_size 3 does not divide batch_size 4"),
    (f"{TRAIN} --seed -1", "seed -1 must be a whole number, at least 0 and at most 2**63 - 1"),
    (f"{TRAIN} --seed {2**63}", f"seed {2**63} must be a whole number, at least 0 and at most 2**63 - 1"),
    (f"{TRAIN} --optimizer sgd", "invalid choice: 'sgd'"),
    (f"{TRAIN} --dtype float7", "invalid choice: 'float7'"),
    (f"{TRAIN} --device abacus", "device 'abacus' is unknown"),
    (f"{TRAIN} --shape enormous", "invalid choice: 'enormous'"),
    (f"{TRAIN} --tokenizer runes", "tokenizer 'runes' must be one of bpe, gpt2, char, byte, or a directory"),
    (f"{TRAIN} --tokenizer nothing", "no tokenizer in nothing"),
    (f"{TRAIN} --n-layers 0", "n_layers 0 must be a whole number, at least 1"),
    (f"{TRAIN} --dropout 1", "drop_rate 1.0 must be a number, at least 0 and below 1"),
    (f"{TRAIN} --emb-dim 10 --n-heads 3", "emb_dim 10 is not divisible by n_heads 3"),
    (f"{TRAIN} --vocab-size 100", "vocab_size 100 is less than the 257 tokens of the tokenizer"),
    (f"{TRAIN} --freeze norms", "freeze 'norms' is not a role of parameters"),
    (f"{TRAIN} --from model", "shape and model exclude each other"),
    ("train text.txt --from model --n-layers 3 --out new", "n_layers 3: the weights that the run begins with"),
    ("train text.txt --from model --tokenizer bpe --out new", "tokenizer 'bpe': a model keeps the tokenizer"),
    ("train text.txt --from model --context-length 9999 --out new", "context_length 9999 is more than the"),
    ("train text.txt --from missing --out new", "no model 'missing'"),
    ("train text.txt --from cut --out new", "cut"),
    ("train text.txt --from nothing --out new", "nothing holds no model"),
    ("train --config missing.toml --out new", "missing.toml: no such file"),
    ("train --config nothing --out new", "nothing: is a directory"),
    ("train --config text.txt --out new", "text.txt: not valid TOML"),
    ("train --config wrong.toml --out new", "wrong.toml, line 2, [training]: unknown setting 'stepps': did you mean"),
    ("train --resume --out run --from model", "what it began with was nothing, from scratch, now model"),
    ("train --resume --out run --n-layers 5", "n_layers was"),
    (f"{TRAIN} --tokenizer char --sample-prompt §", "'\\xa7'"),
    (f"{TRAIN} --out text.txt", "text.txt is a file"),
    (f"{TRAIN} --out text.txt/below", "text.txt/below: not a directory"),
    (f"{TRAIN} --out foreign", "'thesis.doc' that no run here wrote"),
    (f"{TRAIN} --out model", "'config.json' that no run here wrote"),
    (f"{TRAIN} --out run", "already holds a run"),
    ("train --resume --out missing", "holds no run to resume"),
    ("train --resume --out nothing", "holds no run to resume"),
    ("train --resume --out text.txt", "text.txt"),
    ("train --resume --out unstarted", "no checkpoint yet"),
    ("train --resume --out garbled", "run.json is damaged|steps"),
    ("train --resume --out run --learning-rate 0.5", "learning_rate was 0.004, now 0.5"),
    ("train --resume --out run --tokenizer gpt2", "the tokenizer was one of 257 tokens, now gpt2"),
    ("train --resume --out run --optimizer adamw --change", "optimizer was 'muon', now 'adamw': leave it out"),
    ("train --like missing --out new", "missing holds no run: run.json is missing"),
    ("train --like garbled --out new", "garbled/run.json is damaged"),
    ("train --like run --resume --out run", "resume excludes overwrite and like"),
    ("train text.txt --like run --out new", "texts: a run like run has its text"),
    ("train --like run --tokenizer byte --out new", "tokenizer: a run like run has its text"),
    ("train --like run --out run", "already holds a run"),
    ("train --resume --out run --steps 1", "steps 1 is below the 2"),
    ("train short.txt --resume --out run", "the text was"),
    ("train --resume --overwrite --out run", "resume excludes overwrite and like"),
    # plan
    ("plan missing.txt", "missing.txt: no such file"),
    ("plan --resume --out run", "--resume is not for a plan, which is of a new run"),
    ("plan text.txt --tokens 0", "'0' must be a number, above 0"),
    ("plan text.txt --steps 5 --minutes 1", "exclude each other"),
    ("plan text.txt --batch-size auto --micro-batch-size 2 --steps 1", "batch_size 'auto' picks micro_batch_size"),
    ("plan text.txt --batch-size much", "argument --batch-size: invalid int value: 'much'"),
    # compare
    ("compare", "the following arguments are required: RUN"),
    ("compare missing nothing", "no run to compare: missing: holds no run: run.json is missing; nothing: holds"),
    ("compare garbled", "no run to compare: garbled: garbled/run.json is damaged"),
    ("compare run run", "run is named twice"),
    ("compare run --out foreign", "foreign must end in .png or .svg"),
    ("compare run --out text.txt/curves.png", "text.txt"),
    # sweep
    ("sweep", "one of the arguments --over --find is required"),
    ("sweep --over lerning_rate=1 -- text.txt", "unknown setting 'lerning_rate'"),
    ("sweep --over learning_rate=1 --out foreign -- text.txt --steps 1", "holds 'thesis.doc' and no sweep"),
    ("sweep --over learning_rate=1 --out text.txt -- text.txt --steps 1", "text.txt is a file"),
    ("sweep --over learning_rate=1 --out new -- --steps 5 --minutes 1", "exclude each other"),
    ("sweep --find learning_rate --out new -- missing.txt", "missing.txt: no such file"),
    ("sweep --find weight_decay -- text.txt", "invalid choice: 'weight_decay'"),
    # the model of generate, chat, evaluate, explain, export: tried by one of them each
    ("generate missing x", "no model 'missing'"),
    ("generate · x", "no model ''"),
    ("generate missing/deep x", "1:no directory missing/deep here"),
    ("generate nothing x", "nothing holds no model"),
    ("generate text.txt x", "text.txt is in no known format"),
    ("generate binary.bin x", "binary.bin is in no known format"),
    ("generate empty.txt x", "empty.txt is in no known format"),
    ("chat cut", "cut"),
    ("evaluate zero text.txt", "zero"),
    ("explain weightless x", "weightless"),
    ("generate wider x", "wider"),
    ("export deeper --to book --out new.pth", "deeper"),
    ("generate absurd x", "absurd/config.json: emb_dim 'many' must be a whole number, at least 1"),
    ("generate llama x", "model_type is 'llama'"),
    ("generate nojson x", "nojson/config.json: not valid JSON"),
    ("evaluate nested text.txt", "nested/config.json: JSON nested deeper"),
    ("generate folded x", "folded/config.json"),
    ("generate tokens x", "tokens/tokenizer.json is not a usable tokenizer"),
    ("generate tokenless x", "comes without a tokenizer"),
    # generate
    ("generate model", "PROMPT"),
    ("generate model x --temperature -1", "temperature -1.0 must be a number, at least 0"),
    ("generate model x --temperature nan", "temperature nan must be"),
    ("generate model x --temperature inf", "temperature inf must be"),
    ("generate model x --temperature hot", "invalid float value: 'hot'"),
    ("generate model x --top-k 0", "top_k 0 must be a whole number, at least 1"),
    ("generate model x --top-k 1.5", "invalid int value: '1.5'"),
    ("generate model x --top-p 0", "top_p 0.0 must be a number, above 0 and at most 1"),
    ("generate model x --top-p nan", "top_p nan"),
    ("generate model x --min-p 1.5", "min_p 1.5 must be a number, at least 0 and at most 1"),
    ("generate model x --repetition-penalty 0", "repetition_penalty 0.0 must be a number, above 0"),
    ("generate model x --n 0", "'0' must be a whole number, at least 1"),
    ("generate model x --n ²", "'²' must be a whole number, at least 1"),
    ("generate model x --max-new-tokens -5", "max_new_tokens -5 must be a whole number, at least 1"),
    ("generate model x --seed -1", "seed -1 must be a whole number, at least 0"),
    (f"generate model x --seed {2**64}", f"seed {2**64} must be a whole number, at least 0 and at most 2**64 - 1"),
    ("generate model x --stop ·", "stop '' must be a text, and not empty"),
    ("generate model x --overflow wrap", "invalid choice: 'wrap'"),
    ("generate model x --logprobs 2", "--logprobs is told in JSON: add --json, or --prompts"),
    ("chat model --logprobs 2", "--logprobs has no place in a talk on a terminal"),
    ("generate model x --logit-bias 5", "logit_bias '5' must be a token id and a number, such as 50256=-100"),
    ("generate model x --logit-bias 5=200", "logit_bias 5=200 must be a token id, and a number from -100 to 100"),
    ("generate model x --presence-penalty 3", "presence_penalty 3.0 must be a number, at least -2 and at most 2"),
    ("generate model x --overflow error", "exceed the context length of 16"),
    ("generate model x --overflow error --json", "exceed the context length of 16"),
    ("generate model x --device cuda:x", "device 'cuda:x' is unknown"),
    ("generate model x --threads 0", "'0' must be a whole number"),
    ("generate model x --threads 100000", "threads 100000 must be from 1 to 1024"),
    ("generate model x y", "unrecognized arguments: y"),
    ("generate model \udcff", "the prompt is not valid UTF-8: its character 1 stands for no text"),
    # chat
    ("chat model --temperature -1", "temperature -1.0"),
    ("chat missing", "no model 'missing'"),
    # evaluate
    ("evaluate model", "model is not a run with a validation part of its own: name a text to measure on"),
    ("evaluate model missing.txt", "missing.txt: no such file"),
    ("evaluate model latin1.txt", "at offset 5"),
    ("evaluate model empty.txt", "the file is empty"),
    ("evaluate model nothing", "nothing"),
    ("evaluate model binary.bin", "looks binary"),
    ("evaluate model text.txt model/model.safetensors", "model/model.safetensors: looks binary"),
    # explain
    ("explain model ·", "the text is empty"),
    (f"explain model {'x' * 17}", "17 tokens exceed the context length of 16"),
    (f"explain model {'x' * 17} --out maps.png", "17 tokens exceed the context length of 16"),
    ("explain model x --top 0", "'0' must be a whole number"),
    ("explain model x --out foreign", "foreign must end in .png or .svg"),
    ("explain model x --out text.txt/maps.png", "text.txt"),
    ("explain model x --html text.txt", "text.txt exists: choose a new name"),
    (f"explain model {'x' * 17} --html look.html", "17 tokens exceed the context length of 16"),
    ("explain model x --attention", "--attention is for --json"),
    ("explain model x --json --top-p 2", "top_p 2.0 must be"),
    # download
    ("download frobnicate", "no model 'frobnicate'"),
    ("download gpt2", "1:HF_HUB_OFFLINE=1 switches the network off"),
    ("download 124M --openai --weights-dir new", "1:HF_HUB_OFFLINE=1 switches the network off"),
    ("download gpt5 --openai", "gpt5"),
    ("download gpt5 --print-urls", "gpt5"),
    # import
    ("import model", "--out"),
    ("import missing --out new", "no model 'missing'"),
    ("import binary.bin --out new", "binary.bin is in no known format"),
    ("import zip.pth --out new", "zip.pth"),
    ("import pickle.pth --out new", "pickle.pth"),
    ("import header.safetensors --out new", "header.safetensors"),
    ("import nothing --out new", "nothing holds no model"),
    ("import cut --out new", "cut"),
    ("import model --out foreign", "foreign is not empty"),
    ("import model --out text.txt", "text.txt is not empty"),
    ("import model --out text.txt/below", "text.txt"),
    ("import model --n-heads 0 --out new", "'0' must be a whole number"),
    ("import tokenless --tokenizer nothing --out new", "no tokenizer in nothing"),
    # export
    ("export model --to book", "--out"),
    ("export model --out new", "--to"),
    ("export model --to paper --out new", "invalid choice: 'paper'"),
    *((f"export model --to {to} --out text.txt", "text.txt exists") for to in ("book", "gguf", "onnx")),
    ("export model --to huggingface --out text.txt", "text.txt is not empty"),
    ("export model --to huggingface --out foreign", "foreign is not empty"),
    ("export model --to gguf --out nothing", "nothing exists"),
    ("export model --to huggingface --out text.txt/below", "text.txt"),
    ("export model --to book --type f16 --out new", "a number type and a name are for gguf"),
    ("export missing --to book --out new", "no model 'missing'"),
]


@pytest.mark.parametrize(("asked", "says"), NONSENSE, ids=[asked or "nothing" for asked, _ in NONSENSE])
def test_nonsense_is_answered_in_one_line_and_touches_nothing(
    glass: Callable[..., Answer], place: Path, asked: str, says: str
) -> None:
    before = tree(place)
    code, _, errors = glass(*("" if argument == "·" else argument for argument in asked.split(" ") if argument))
    errors = re.sub("glassgpt: compiling for this machine, once.*\n", "", errors)  # where it has not been used before
    expected = 1 if says.startswith("1:") else 2
    assert (code, errors.count("\n")) == (expected, 1), errors
    assert errors.startswith("glassgpt")
    assert any(part in errors for part in says.removeprefix("1:").split("|")), errors
    after = tree(place)
    assert sorted(before.keys() ^ after.keys()) == []
    assert before == after


@pytest.mark.parametrize("argument", ["a\nb", "--a\nb"])
def test_a_line_end_in_an_argument_stays_out_of_the_answer(glass: Callable[..., Answer], argument: str) -> None:
    for argv in (["generate", "model", "x", argument], ["generate", argument, "x"], ["train", argument]):
        code, _, errors = glass(*argv)
        assert (code, errors.count("\n")) == (2, 1)


@pytest.mark.slow
def test_nonsense_in_a_process_of_its_own() -> None:
    """What only a real process shows: nothing on the way out of the interpreter."""
    for argv in (["generate", "cut", "x"], ["evaluate", "model", "latin1.txt"], ["frobnicate"]):
        process = shell(*argv)
        printed, errors = process.communicate(timeout=60)
        assert (process.returncode, printed, errors.count(b"\n")) == (2, b"", 1), errors
        assert errors.startswith(b"glassgpt")


@pytest.mark.slow
def test_a_file_that_is_left_out_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(SENTENCE, encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(b"\0\1\2")
    process = shell("evaluate", "model", tmp_path, "--json")
    printed, errors = process.communicate(timeout=60)
    assert json.loads(printed)["n_bytes"] == len(SENTENCE)
    assert (errors.count(b"\n"), errors.startswith(b"glassgpt: warning: ")) == (1, True)


# ---- things that go wrong on the way ----------------------------------------


@contextlib.contextmanager
def small_files(n_bytes: int) -> Iterator[None]:
    """Lets no file of this process grow above so many bytes: to a program the same as a full disk.

    Only around the command itself: the test runner's own output may go to a file, too.
    """
    resource = pytest.importorskip("resource", reason="the operating system has no limit for the size of a file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_older_run_as_it_was(glass: Callable[..., Answer], place: Path) -> None:
    before = tree(place)
    with small_files(1000):
        code, _, errors = glass(*TRAIN.split(), "--overwrite", "--out", "run")
    assert (code, errors.count("\n")) == (1, 1), errors
    assert "too large" in errors.lower()
    assert tree(place) == before


def test_a_full_disk_during_a_checkpoint(glass: Callable[..., Answer], tmp_path: Path) -> None:
    with small_files(100_000):  # enough for the tokens of the text, too little for the weights
        code, _, errors = glass(*TRAIN.split(), "--out", tmp_path / "run")
    assert (code, errors.count("\n")) == (1, 1), errors
    assert "too large" in errors.lower()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["import model --out {}", "export model --to huggingface --out {}"])
def test_a_full_disk_leaves_no_half_a_model(glass: Callable[..., Answer], tmp_path: Path, command: str) -> None:
    with small_files(2000):
        code, _, errors = glass(*command.format(tmp_path / "new").split())
    assert (code, errors.count("\n")) == (1, 1), errors
    assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []


def test_ctrl_c_while_it_writes(glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[tuple[int, str]]:
        yield 0, "so far"
        signal.raise_signal(signal.SIGINT)
        yield 0, "never"

    monkeypatch.setattr(f"{GENERATE}.stream_rows", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert glass("generate", "model", "x") == (1, "xso far\n", "glassgpt: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error() -> None:
    process = shell("generate", "model", "x", "--max-new-tokens", "100000", "--ignore-eot")
    assert process.stdout is not None
    assert len(process.stdout.read(5)) == 5
    process.stdout.close()
    assert process.stderr is not None
    # one call of the decoder may go past the context, which is said, before the reader has left
    lines = process.stderr.read().splitlines()
    assert all(b"--overflow shift" in line for line in lines) and len(lines) <= 1
    process.stderr.close()
    assert process.wait(timeout=60) == 0


def test_closed_streams_and_narrow_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, seen in ((True, b"\\xe9\\U0001f600"), (False, "é😀".encode())):
        narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", narrow)
            patch.setattr(narrow, "isatty", lambda answer=terminal: answer)
            assert main(["generate", "model", "é😀", "--max-new-tokens", "1", "--temperature", "0"]) == 0
        assert narrow.buffer.getvalue().startswith(seen)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        assert main(["generate", "model", "x", "--max-new-tokens", "1"]) == 0
        assert main(["generate", "missing", "x"]) == 2
        sys.stdout.close()
        sys.stderr.close()


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(glass: Callable[..., Answer], place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (newest / "config.json").write_text("{}", encoding="utf-8")
    code, _, errors = glass("train", "--resume", "--out", tmp_path / "run", "--json")
    shown = [line for line in errors.splitlines() if line.startswith("glassgpt: ")]
    assert code == 0
    assert shown == [
        f"glassgpt: warning: checkpoint {newest.name} (config.json) is damaged: resuming from an older one"
    ]


# ---- help ----------------------------------------


def parsers() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert isinstance(choices, dict)
    return choices


def test_the_commands_are_those_that_are_tested() -> None:
    assert tuple(parsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_units_and_defaults(glass: Callable[..., Answer], command: str) -> None:
    code, printed, errors = glass(command, "--help")
    assert (code, errors) == (0, "")
    assert printed.startswith(f"usage: glassgpt {command} ")
    for action in parsers()[command]._actions:
        assert action.help, action
        if action.option_strings and action.nargs != 0 and not action.required:
            assert "default: " in action.help, f"{action.option_strings} does not tell its default"
        if action.type in (int, float):
            assert action.metavar, f"{action.option_strings} does not tell its unit"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from glassgpt.cli import main\n"
        f"for argv in [['--help'], ['frobnicate'], *([c, '--help'] for c in {COMMANDS!r})]:\n"
        "    try: main(argv)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'rich', 'matplotlib', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'{sorted(heavy)} loaded' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_is_the_same_command() -> None:
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"glassgpt": "glassgpt.__main__:run"}
    script = "import sys; from glassgpt.__main__ import run; sys.exit(run())"  # what pip writes
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for argv in (["train", "--help"], ["frobnicate"]):
        ways = [
            subprocess.run([sys.executable, *way, *argv], capture_output=True, env=environment, check=False)
            for way in (["-m", "glassgpt"], ["-c", script])
        ]
        assert len({(done.returncode, done.stdout, done.stderr) for done in ways}) == 1


# ---- the work itself ----------------------------------------


@pytest.mark.slow
def test_from_a_text_to_a_model_and_on(glass: Callable[..., Answer], place: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    argv = ["train", "text.txt", "--out", out, "--steps", 10, "--shape", "nano", "--tokenizer", "byte"]
    options = ["--eval-every", 5, "--batch-size", 4, "--sample-tokens", 8, "--threads", 1, "--sample-prompt", "The"]
    process = shell(*argv, *options)
    printed, errors = (part.decode() for part in process.communicate(timeout=120))
    assert process.returncode == 0, errors
    assert errors == f"next: glassgpt generate '{out}' \"Once upon a time\"\n"
    assert re.search(r"^step +5  epoch +\d+\.\d  validation \d\.\d+  \d\.\d+ bits per byte", printed, re.MULTILINE)
    assert re.search(r"^    The", printed, re.MULTILINE)
    assert f"{out} holds the best model" in printed.splitlines()[-1]

    code, printed, _ = glass("generate", out, "The cat", "--max-new-tokens", 5, "--seed", 1)
    assert (code, printed[:7]) == (0, "The cat")
    code, printed, _ = glass("evaluate", out, "text.txt")
    assert code == 0
    assert re.search(r"^bits per byte +\d\.\d{4}$", printed, re.MULTILINE)
    code, printed, _ = glass("explain", out, "The cat", "--out", tmp_path / "maps.png")
    assert code == 0
    assert "'T'" in printed
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    code, printed, _ = glass("train", "--resume", "--out", out, "--steps", 12, "--json")
    assert (code, json.loads(printed)["steps"], json.loads(printed)["finished"]) == (0, 12, True)
    assert glass("train", "--resume", "--out", out)[0] == 0  # it remembers its 12 steps


def test_generate(glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--max-new-tokens", 4, "--seed", 7, "--ignore-eot"]
    code, printed, errors = glass("generate", "model", "The cat", *options)
    assert (code, errors) == (0, "")
    assert printed.startswith("The cat")
    monkeypatch.setattr(sys, "stdin", io.StringIO("The cat"))
    assert glass("generate", "model", "-", *options) == (0, printed, "")
    code, as_json, _ = glass("generate", "model", "The cat", *options, "--n", 2, "--json")
    result = json.loads(as_json)
    first, second = result["completions"]
    assert (code, result["prompt"], first["finish_reason"], len(first["ids"])) == (0, "The cat", "length", 4)
    assert printed == f"The cat{first['text']}\n"
    both = f"--- 1 of 2\n{printed}--- 2 of 2\nThe cat{second['text']}\n"
    assert glass("generate", "model", "The cat", *options, "--n", 2)[1] == both
    assert glass("generate", "model", "The cat", "--n", 2, "--json")[0] == 0  # no seed: a new one for each


PAST_THE_CONTEXT = (
    "glassgpt: the text is longer than the model's context of 16 tokens: from here on it sees only the last {}"
)
SHIFTS = PAST_THE_CONTEXT.format("9 to 16, and reads 9 again for every 8 new ones (--overflow shift)\n")
SLIDES = PAST_THE_CONTEXT.format("16, and reads them all again for every new one (--overflow slide)\n")


@pytest.mark.parametrize(("options", "said"), [((), SHIFTS), (("--overflow", "slide"), SLIDES)])
def test_what_happens_past_the_context_is_said_once(
    glass: Callable[..., Answer], options: Sequence[object], said: str
) -> None:
    options = ("generate", "model", "The cat", "--seed", 1, "--ignore-eot", *options)
    assert glass(*options, "--max-new-tokens", 5)[2] == ""
    for more in ((), ("--n", 3), ("--json",)):
        assert glass(*options, "--max-new-tokens", 60, *more)[2] == said


def test_on_a_terminal_what_is_said_begins_a_line(
    glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = ("generate", "model", "ab", "--seed", 1, "--ignore-eot", "--max-new-tokens", 60)
    plain = glass(*longer)[1]
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}.isatty", lambda: True)
    options = ("generate", "model", "·" * 40, "--seed", 1, "--ignore-eot", "--max-new-tokens", 1)
    code, printed, errors = glass(*options)
    assert (code, errors) == (0, SHIFTS)
    assert printed.startswith("·" * 40), "it is said before the text, which begins a line then"
    code, printed, errors = glass(*longer)
    assert (code, errors) == (0, SHIFTS)
    assert printed.count("\n") == plain.count("\n") + 1, "the line that was being written is ended first"


def test_what_goes_to_a_terminal_cannot_command_it(
    glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model writes whatever bytes it likes, and some of them rename windows; a file gets them as they are."""
    argv = ["generate", "model", "\x1b]0;owned\x07", "--max-new-tokens", 300, "--seed", 1, "--ignore-eot"]
    plain = glass(*argv)[1]
    assert {"\x1b", "\x07"} < set(plain)
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda self: True, raising=False)
    shown = glass(*argv)[1]
    assert {c for c in shown if unicodedata.category(c) == "Cc"} <= {"\n", "\t"}
    assert shown.startswith("␛]0;owned␇")


def test_a_run_is_evaluated_on_its_own_validation_part(glass: Callable[..., Answer]) -> None:
    code, printed, errors = glass("evaluate", "run", "--json")
    assert (code, errors) == (0, "")
    meta = json.loads(Path("run/data/validation.npy.json").read_text(encoding="utf-8"))
    assert {key: json.loads(printed)[key] for key in ("n_tokens", "n_bytes")} == {
        "n_tokens": meta["count"],
        "n_bytes": meta["n_bytes"],
    }


def test_evaluate_in_fewer_bits(glass: Callable[..., Answer]) -> None:
    def loss(*options: str) -> float:
        code, printed, errors = glass("evaluate", "run", "--json", *options)
        assert code == 0, errors
        return float(json.loads(printed)["loss"])

    plain = loss()
    assert loss("--decoder", "compiled") == pytest.approx(plain, abs=1e-5)
    for cache in ("float16", "int8"):
        assert loss("--kv-cache", cache) == pytest.approx(plain, abs=1e-2)
    rounded = loss("--precision", "int4")
    assert rounded != plain
    assert rounded == pytest.approx(plain, abs=0.3)


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        *((f"{command} gpt2 {more}", "gpt2") for command, more in (("generate", "x"), ("evaluate", "text.txt"))),
        ("download 355M", "355M"),
        ("download 355M --openai --weights-dir new", "355M --openai"),
        ("import gpt2-large --out new", "gpt2-large"),
    ],
)
def test_without_a_network_the_way_out_is_one_short_line(
    glass: Callable[..., Answer], asked: str, command: str
) -> None:
    code, printed, errors = glass(*asked.split())
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert "HF_HUB_OFFLINE=1 switches the network off; " in errors
    assert errors.endswith(f"; `glassgpt download {command} --print-urls` lists what to fetch by hand\n")
    assert len(errors) - len(str(Path.cwd())) < 200  # the cache lies in the test's own folder
    assert glass("download", *command.split(), "--print-urls")[0] == 0


def test_a_mistyped_path_is_not_answered_with_a_list_of_files(glass: Callable[..., Answer]) -> None:
    code, _, errors = glass("generate", "runs/nope", "x")
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith("glassgpt: no directory runs/nope here, and as a name on Hugging Face: ")
    assert "print-urls" not in errors and "sha256" not in errors
    assert len(errors) - len(str(Path.cwd())) < 200


def test_evaluate_and_explain_as_json(glass: Callable[..., Answer], tmp_path: Path) -> None:
    code, printed, _ = glass("evaluate", "model", "text.txt", "--json")
    assert (code, json.loads(printed).keys()) == (0, {"loss", "perplexity", "bits_per_byte", "n_tokens", "n_bytes"})
    code, printed, _ = glass("explain", "model", "a$$b", "--json", "--top", 3, "--out", tmp_path / "deep" / "maps.png")
    places = json.loads(printed)
    assert (code, [p["text"] for p in places]) == (0, list("a$$b"))
    assert places[0]["probability"] is None
    assert len(places[0]["likeliest"]) == 3
    assert (tmp_path / "deep" / "maps.png").exists()


def test_explain_tells_programs_what_could_have_come(glass: Callable[..., Answer]) -> None:
    """By the compiled decoder, and with attention by the readable model."""
    options = ("--json", "--top", 4, "--top-k", 3, "--temperature", 0.5)
    found = [json.loads(glass("explain", "model", "abc", *options, *more)[1]) for more in ([], ["--attention"])]
    for places in found:
        assert [place["id"] for place in places] == [ord(c) for c in "abc"]
        assert [place["next"]["token"] for place in places] == [ord("b"), ord("c"), None]
        for place in places:
            told = place["next"]
            kept = [c for c in told["candidates"] if c["removed_by"] is None]
            assert len(kept) == 3 and sum(c["final"] for c in kept) == pytest.approx(1, abs=1e-5)
            assert told["removed"][0]["filter"] == "top_k"
            assert {c["text"]: c["probability"] for c in told["candidates"][:4]} == pytest.approx(
                dict(place["likeliest"]), rel=1e-3
            )
    assert "attention" not in found[0][0]["next"]
    assert [len(row) for row in found[1][1]["next"]["attention"][0]] == [2, 2]  # heads of the only layer, two tokens


def test_explain_writes_a_page_of_its_own(glass: Callable[..., Answer], tmp_path: Path) -> None:
    code, printed, said = glass("explain", "model", "a</b", "--html", tmp_path / "deep" / "look.html")
    page = (tmp_path / "deep" / "look.html").read_text(encoding="utf-8")
    assert (code, said) == (0, f"page: {tmp_path / 'deep' / 'look.html'}\n")
    assert "probability" in printed
    assert page.startswith("<!DOCTYPE html>") and "a</b" not in page
    code, _, said = glass("explain", "model", "b", "--html", tmp_path / "deep" / "look.html")
    assert code == 2 and "exists" in said
    assert (tmp_path / "deep" / "look.html").read_text(encoding="utf-8") == page


def test_a_token_of_dollars_is_no_formula(glass: Callable[..., Answer], tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_bpe(["$$^ $$_{" * 50], 265)
    save_model(GPTModel(GPTConfig(**SHAPE | {"vocab_size": 265})), tokenizer, tmp_path / "model")
    code, printed, errors = glass("explain", tmp_path / "model", "$$^ $$_{ 日", "--out", tmp_path / "maps.png")
    assert (code, errors) == (0, f"attention maps: {tmp_path / 'maps.png'}\n")
    assert "'$$" in printed


def test_a_letter_of_the_validation_part_alone_is_in_the_alphabet(glass: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "han.txt").write_text("".join(chr(0x4E00 + n) for n in range(999)), encoding="utf-8")
    argv = ["train", tmp_path / "han.txt", "--out", tmp_path / "run", "--tokenizer", "char", "--shape", "nano"]
    code, _, errors = glass(*argv, "--steps", 1, "--batch-size", 1, "--sample-tokens", 0)
    assert code == 0, errors


def test_records_are_trained_on_and_measured(glass: Callable[..., Answer], tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("id,body\n" + "".join(f"{n},{SENTENCE.strip()!r}\n".replace("'", '"') for n in range(60)), "utf-8")
    small = ["--shape", "nano", "--tokenizer", "byte", "--steps", 1, "--batch-size", 1, "--sample-tokens", 0]
    code, printed, errors = glass("train", path, "--text-field", "body", "--out", tmp_path / "run", *small)
    assert (code, errors.count("\n")) == (0, 1), errors
    assert f"{path}: 60 documents from the column 'body'\n" in printed
    code, printed, errors = glass("evaluate", "model", path, "--text-field", "body", "--json")
    assert (code, json.loads(printed)["n_bytes"]) == (0, 60 * len(SENTENCE.strip()))
    assert errors == f"{path}: 60 documents from the column 'body'\n"
    code, _, errors = glass("evaluate", "model", path)
    assert (code, errors.count("\n")) == (2, 1)
    assert f"{path}:2: no column 'text' or 'messages'; the columns are 'id', 'body': choose one as text field" in errors


def test_json_has_no_word_for_infinity(glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassgpt.training.evaluate.evaluate_loss", lambda *_, **__: float("nan"))
    assert json.loads(glass("evaluate", "model", "text.txt", "--json")[1])["loss"] is None


@pytest.mark.parametrize("to", ["huggingface", "book", "gguf"])
def test_out_and_in_again(glass: Callable[..., Answer], tmp_path: Path, to: str) -> None:
    if to == "gguf":
        pytest.importorskip("gguf", reason="GGUF needs its library")
    out = tmp_path / "out"
    code, printed, errors = glass("export", "model", "--to", to, "--out", out, "--json")
    assert code == 0, errors
    assert json.loads(printed)["largest_difference"] < 1e-4
    assert json.loads(printed)["out"] == str(out)
    if to == "huggingface":
        code, printed, errors = glass("import", out, "--out", tmp_path / "in")
        assert code == 0, errors
        assert printed.splitlines()[1].startswith("proof: ")
        first, second = load_model("model")[0], load_model(tmp_path / "in")[0]
        assert first.config == second.config


def test_print_urls(glass: Callable[..., Answer]) -> None:
    code, printed, _ = glass("download", "gpt2", "--print-urls", "--json")
    assert code == 0
    assert {"url", "size", "sha256", "path"} == json.loads(printed)[0].keys()
    code, printed, _ = glass("download", "124M", "--openai", "--print-urls")
    assert code == 0
    assert "497,759,232 bytes, sha256 2060c885" in printed


# ---- chat ----------------------------------------


def talk(glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, lines: str, *options: object) -> Answer:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return glass("chat", "model", "--max-new-tokens", 3, "--seed", 1, "--ignore-eot", *options)


@pytest.mark.parametrize("end", ["", "/quit\n", "/exit\n", " /quit \nnot read\n"])
def test_chat_ends(glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    code, printed, errors = talk(glass, monkeypatch, f"hello\n\nand 😀\n{end}")
    assert (code, errors) == (0, SHIFTS)  # once, though both answers are past the context
    assert printed.count("You: ") == 4
    assert printed.count("GPT:") == 2  # an empty line asks again


def test_chat_remembers_until_reset(glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def stream(model: object, tokenizer: object, prompt: str, **options: object) -> Iterator[str]:
        asked.append(prompt)
        assert options["stop"] == ["\nYou:"]
        yield " ha"

    monkeypatch.setattr(f"{GENERATE}.stream", stream)
    code, printed, _ = talk(glass, monkeypatch, "one\ntwo\n/reset\nthree\n")
    assert (code, printed.count("the talk so far is forgotten\n")) == (0, 1)
    assert asked == ["You: one\nGPT:", "You: one\nGPT: ha\nYou: two\nGPT:", "You: three\nGPT:"]


def test_a_command_of_chat_never_reaches_the_model(
    glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stream(model: object, tokenizer: object, prompt: str, **_: object) -> Iterator[str]:
        asked.append(prompt)
        yield " ha"

    monkeypatch.setattr(f"{GENERATE}.stream", stream)
    code, printed, errors = talk(glass, monkeypatch, "/help\n /rest \n/\n   \n/usr/bin is a folder\n")
    assert (code, errors) == (0, "")
    answers = printed.split("You: ")
    assert answers[1] in answers[0]  # the greeting ends with the same help
    assert {"/reset", "/help", "/quit"} <= set(answers[1].split())
    assert answers[2:4] == [f"unknown command {it}: /help shows those that there are\n" for it in ("/rest", "/")]
    assert answers[4:] == ["", "GPT: ha\n", "\n"]
    assert asked == ["You: /usr/bin is a folder\nGPT:"]


def test_chat_goes_on_after_a_line_it_cannot_read(
    glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed, errors = talk(glass, monkeypatch, f"hi\n{'x' * 50}\n/reset\na\n", "--overflow", "error")
    assert (code, printed.count("GPT:")) == (0, 2)
    assert re.fullmatch(r"glassgpt: a prompt of .* exceed the context length of 16: .*\n", errors)


def test_ctrl_c_stops_an_answer_and_what_was_shown_stays(
    glass: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stream(model: object, tokenizer: object, prompt: str, **_: object) -> Iterator[str]:
        asked.append(prompt)
        yield " well"
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{GENERATE}.stream", stream)
    code, printed, errors = talk(glass, monkeypatch, "one\ntwo\n")
    assert (code, printed.count("GPT: well\n"), errors) == (0, 2, "")
    assert asked == ["You: one\nGPT:", "You: one\nGPT: well\nYou: two\nGPT:"]


@pytest.mark.slow
def test_chat_on_a_terminal() -> None:
    pty = pytest.importorskip("pty", reason="the operating system has no pseudo terminals")
    mine, theirs = pty.openpty()
    process = shell("chat", "model", "--max-new-tokens", 20, "--ignore-eot", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)

    def read_until(end: str) -> str:
        seen = ""
        while end not in seen:
            seen += os.read(mine, 1024).decode(errors="replace")
        return seen

    greeting = read_until("You: ")
    assert "/reset" in greeting
    os.write(mine, "hello 😀\n".encode())
    answer = read_until("You: ").partition("GPT:")[2].rpartition("You: ")[0]
    answer = re.sub(r"\x1b\[\?2004[hl]", "", answer)  # readline's own: bracketed paste on and off
    assert {c for c in answer if unicodedata.category(c) == "Cc"} <= {"\r", "\n", "\t"}
    os.write(mine, b"\x04")
    assert process.wait(timeout=30) == 0
    os.close(mine)
