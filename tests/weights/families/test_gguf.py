"""GGUF files as the `gguf` package reads them, and as llama.cpp runs them where it is installed."""

import argparse
import ctypes
import json
import math
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glassgpt import GPTConfig, GPTModel, Tokenizer, load_model, save_model, train
from glassgpt.cli import main
from glassgpt.model import generate_text_simple
from glassgpt.weights.convert import export_model
from glassgpt.weights.families import gguf as ours
from glassgpt.weights.families.gguf import read_gguf, write_gguf
from glassgpt.weights.proof import prove

Make = Callable[..., GPTModel]
Read = dict[str, Any]
F32, F16, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0"))


def read(path: Path) -> tuple[dict[str, Any], Read]:
    """Metadata and tensors."""
    reader = gguf.GGUFReader(str(path))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(reader.tensors)
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


def values(tensor: Any) -> Tensor:
    return torch.tensor(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))


def expected_tensors(model: GPTModel) -> dict[str, Tensor]:
    """What llama.cpp's GPT-2 reads: matrices (out, in), query, key and value one above the other."""
    out = {
        "token_embd.weight": model.tok_emb.weight,
        "position_embd.weight": model.pos_emb.weight,
        "output_norm.weight": model.final_norm.scale,
        "output_norm.bias": model.final_norm.shift,
    }
    if not model.config.tie_embeddings:
        out["output.weight"] = model.out_head.weight
    for i, block in enumerate(model.trf_blocks):
        att, ff = block.att, block.ff.layers
        qkv = (att.W_query, att.W_key, att.W_value)
        zeros = torch.zeros(model.config.emb_dim)
        out |= {
            f"blk.{i}.attn_norm.weight": block.norm1.scale,
            f"blk.{i}.attn_norm.bias": block.norm1.shift,
            f"blk.{i}.attn_qkv.weight": torch.cat([layer.weight for layer in qkv]),
            f"blk.{i}.attn_qkv.bias": torch.cat([zeros if layer.bias is None else layer.bias for layer in qkv]),
            f"blk.{i}.attn_output.weight": att.out_proj.weight,
            f"blk.{i}.attn_output.bias": att.out_proj.bias,
            f"blk.{i}.ffn_norm.weight": block.norm2.scale,
            f"blk.{i}.ffn_norm.bias": block.norm2.shift,
            f"blk.{i}.ffn_up.weight": ff[0].weight,
            f"blk.{i}.ffn_up.bias": ff[0].bias,
            f"blk.{i}.ffn_down.weight": ff[2].weight,
            f"blk.{i}.ffn_down.bias": ff[2].bias,
        }
    return {name: tensor.detach().float() for name, tensor in out.items()}


# ---- what the file holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_names_shapes_and_numbers_in_f32(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, tied: bool, bias: bool
) -> None:
    model = tiny_model(vocab_size=257, tie_embeddings=tied, qkv_bias=bias)
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    wanted = expected_tensors(model)
    assert sorted(tensors) == sorted(wanted)
    for name, tensor in tensors.items():
        assert tensor.tensor_type == F32
        assert torch.equal(values(tensor), wanted[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_written_in_full(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    model = tiny_model(vocab_size=257, dtype=dtype)
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    assert all(torch.equal(values(tensors[name]), wanted) for name, wanted in expected_tensors(model).items())


def test_f16_rounds_the_matrices_and_nothing_else(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=257)
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", "f16")
    metadata, tensors = read(tmp_path / "m.gguf")
    assert metadata["general.file_type"] == 1
    for name, wanted in expected_tensors(model).items():
        whole = wanted.ndim == 1 or name == "position_embd.weight"
        assert tensors[name].tensor_type == (F32 if whole else F16)
        assert torch.equal(values(tensors[name]), wanted if whole else wanted.half().float())


def test_q8_0_rounds_each_32_numbers_to_their_own_grid(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    model = tiny_model(vocab_size=257, emb_dim=64, n_heads=2)
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", "q8_0")
    metadata, tensors = read(tmp_path / "m.gguf")
    assert metadata["general.file_type"] == 7
    for name, wanted in expected_tensors(model).items():
        whole = wanted.ndim == 1 or name == "position_embd.weight"
        assert tensors[name].tensor_type == (F32 if whole else Q8_0)
        found = values(tensors[name])
        if whole:
            assert torch.equal(found, wanted)
        else:
            largest = wanted.view(-1, 32).abs().amax(1, keepdim=True)
            # half a step of the grid, and the grid itself is kept in 16 bits
            assert ((found - wanted).view(-1, 32).abs() <= largest * (0.5 / 127 + 2**-10)).all()
            assert not torch.equal(found, wanted)


def test_rows_that_no_block_of_32_fits_are_kept_in_f16(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    model = tiny_model(vocab_size=257, emb_dim=24, n_heads=3)  # but 4 x 24 is three blocks
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", "q8_0")
    _, tensors = read(tmp_path / "m.gguf")
    types = {name.split(".", 2)[-1]: tensor.tensor_type for name, tensor in tensors.items() if "blk.0" in name}
    assert {name for name, kind in types.items() if kind == Q8_0} == {"ffn_down.weight"}
    assert {name for name, kind in types.items() if kind == F16} == {
        "attn_qkv.weight",
        "attn_output.weight",
        "ffn_up.weight",
    }
    assert tensors["token_embd.weight"].tensor_type == F16
    assert prove(model, read_gguf(tmp_path / "m.gguf")).same_choice > 0.9


def test_the_shape_is_told(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    write_gguf(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "m.gguf", name="a name")
    metadata, _ = read(tmp_path / "m.gguf")
    told = {key: value for key, value in metadata.items() if key.startswith(("general", "gpt2", "tokenizer.ggml.b"))}
    assert told == {
        "general.architecture": "gpt2",
        "general.name": "a name",
        "general.file_type": 0,
        "gpt2.context_length": 16,
        "gpt2.embedding_length": 12,
        "gpt2.feed_forward_length": 48,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 3,
        "gpt2.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.bos_token_id": 256,
    }
    assert metadata["tokenizer.ggml.eos_token_id"] == 256
    assert metadata["tokenizer.ggml.add_bos_token"] is False


# ---- the tokenizer in it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("bpe", 320), ("bytes", 257), ("bytes", 260)])
def test_tokens_types_and_merges(
    tmp_path: Path, tiny_model: Make, tokenizers_by_kind: dict[str, Tokenizer], kind: str, size: int
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    write_gguf(tiny_model(vocab_size=size), tokenizer, tmp_path / "m.gguf")
    metadata, _ = read(tmp_path / "m.gguf")
    tokenizer.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = saved["model"]["vocab"] | {token["content"]: token["id"] for token in saved["added_tokens"]}
    n = tokenizer.n_vocab
    assert {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"][:n])} == vocabulary
    assert metadata["tokenizer.ggml.tokens"][n:] == [f"[PAD{i}]" for i in range(n, size)]
    normal, control, unused = (int(gguf.TokenType[name]) for name in ("NORMAL", "CONTROL", "UNUSED"))
    types = [control if i == tokenizer.eot_id else normal if i < n else unused for i in range(size)]
    assert metadata["tokenizer.ggml.token_type"] == types
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]]
    if kind == "bpe":
        assert metadata["tokenizer.ggml.merges"] == merges
        assert len(merges) > 30
    else:  # llama.cpp refuses a file without merges; this one is of parts that are no tokens
        assert merges == []
        assert not set(" ".join(metadata["tokenizer.ggml.merges"]).split(" ")) & vocabulary.keys()


def test_gpt2s_own_vocabulary_padded_as_nanogpt_pads_it(
    tmp_path: Path, tiny_model: Make, tokenizers_by_kind: dict[str, Tokenizer]
) -> None:
    model = tiny_model(vocab_size=50304, emb_dim=3, n_layers=1, tie_embeddings=True)
    write_gguf(model, tokenizers_by_kind["gpt2"], tmp_path / "m.gguf")
    metadata, tensors = read(tmp_path / "m.gguf")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert (len(tokens), len(set(tokens)), len(types)) == (50304, 50304, 50304)
    assert (tokens[0], tokens[464], tokens[50256], tokens[50303]) == ("!", "The", "<|endoftext|>", "[PAD50303]")
    assert types[50255:50258] == [1, 3, 5]
    assert metadata["tokenizer.ggml.merges"][:2] == ["Ġ t", "Ġ a"]
    assert len(metadata["tokenizer.ggml.merges"]) == 50000
    assert list(tensors["token_embd.weight"].shape) == [3, 50304]  # the format counts from the last
    assert "output.weight" not in tensors


# ---- the proof -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "bound"), [("f32", 0), ("f16", 2e-2), ("q8_0", 0.3)])
def test_what_is_read_back_computes_the_same_within_its_rounding(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, kind: str, bound: float, tied: bool
) -> None:
    model = tiny_model(vocab_size=257, emb_dim=32, n_heads=2, qkv_bias=True, tie_embeddings=tied)
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf", kind)
    found = read_gguf(tmp_path / "m.gguf")
    assert found.config == model.config
    proof = prove(model, found)
    assert proof.largest_difference <= bound * proof.largest_score
    assert (proof.largest_difference > 0) == (kind != "f32")
    assert proof.same_choice >= 0.9
    if kind == "f32":
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


def test_what_is_no_gguf_of_a_gpt2(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"m\.gguf is a GGUF of 'llama', not of a GPT-2$"):
        read_gguf(tmp_path / "m.gguf")


# ---- what cannot be written ----------------------------------------------------------------------------------------


def test_what_the_format_cannot_say_is_refused(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, tokenizers_by_kind: dict[str, Tokenizer]
) -> None:
    for message, changes, tokenizer, kind in (
        ("this tokenizer cannot be in a GGUF: it must be byte-level", {}, tokenizers_by_kind["characters"], "f32"),
        ("llama.cpp's GPT-2 has no sliding window", {"sliding_window": 4}, tiny_tokenizer, "f32"),
        ("GGUF type 'q4_0' is unknown: use one of f32, f16, q8_0", {}, tiny_tokenizer, "q4_0"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            write_gguf(tiny_model(vocab_size=257, **changes), tokenizer, tmp_path / "m.gguf", kind)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    for use in (lambda path: write_gguf(tiny_model(vocab_size=257), tiny_tokenizer, path), read_gguf):
        with pytest.raises(ImportError, match=r"^GGUF needs the extra: pip install 'glassgpt\[gguf\]'$"):
            use(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_gguf(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


# ---- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_writes_and_proves(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(vocab_size=257, emb_dim=32, n_heads=2, gelu="erf")
    save_model(model, tiny_tokenizer, tmp_path / "model")
    export = ["export", str(tmp_path / "model"), "--to", "gguf", "--out"]
    assert main([*export, str(tmp_path / "m.gguf"), "--type", "q8_0", "--json"]) == 0
    said = capsys.readouterr()
    assert "erf form of GELU, llama.cpp the tanh form" in said.err
    found = json.loads(said.out)
    assert 0 < found["largest_difference"] < 1
    assert found["same_choice"] > 0.9
    assert read(tmp_path / "m.gguf")[0]["general.name"] == "m"
    assert main([*export, str(tmp_path / "m.gguf")]) == 2
    assert "m.gguf exists: choose a new name" in capsys.readouterr().err


def test_a_proof_that_does_not_hold_is_a_failure(
    tmp_path: Path,
    tiny_model: Make,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_model(vocab_size=257)
    save_model(model, tiny_tokenizer, tmp_path / "model")
    monkeypatch.setattr(ours, "read_gguf", lambda *_, **__: tiny_model(vocab_size=257, seed=1))
    assert main(["export", str(tmp_path / "model"), "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 1
    assert "does not compute what its source computes: do not use it" in capsys.readouterr().err


# ---- llama.cpp -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_cpp() -> ModuleType:
    """Compiles for minutes where there is no wheel."""
    reason = "llama-cpp-python is a test extra that compiles for minutes: pip install 'glassgpt[oracles]'"
    return pytest.importorskip("llama_cpp", reason=reason)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPTModel, Tokenizer, Tensor]:
    """A model whose choices are not ties, and text it has not seen, (4, 128) ids."""
    text = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (argparse, typing))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text[:-10_000], encoding="utf-8")
    config = GPTConfig(
        vocab_size=512, context_length=128, emb_dim=64, n_heads=2, n_layers=2, drop_rate=0.0, qkv_bias=True
    )
    out = path.parent / "run"
    train([path], out, shape=config, tokenizer="bpe", steps=100, batch_size=8, sample_tokens=0, eval_every=100)
    model, tokenizer = load_model(out)
    return model, tokenizer, torch.tensor(tokenizer.encode(text[-10_000:])[:512]).view(4, 128)


def test_the_trained_model_is_no_better_described_by_ties(trained: tuple[GPTModel, Tokenizer, Tensor]) -> None:
    model, _, ids = trained
    with torch.no_grad():
        best, second = model(ids).topk(2).values.unbind(-1)
    assert (best - second).median() > 0.2


@pytest.mark.parametrize(("kind", "at_least"), [("f32", 1.0), ("f16", 0.98), ("q8_0", 0.95)])
def test_teacher_forced_choices_survive_the_rounding(
    tmp_path: Path, trained: tuple[GPTModel, Tokenizer, Tensor], kind: str, at_least: float
) -> None:
    model, tokenizer, ids = trained
    write_gguf(model, tokenizer, tmp_path / "m.gguf", kind)
    with torch.no_grad():
        same = read_gguf(tmp_path / "m.gguf")(ids).argmax(-1) == model(ids).argmax(-1)
    assert same.float().mean() >= at_least


def opened(llama_cpp: ModuleType, path: Path) -> Any:
    """In float32 throughout, where llama.cpp's default keeps keys and values in 16 bits; token by token.

    On processors with AMX, builds of llama.cpp crash when they multiply several tokens with a Q8_0 matrix, its own too.
    """
    options = {"flash_attn": False, "type_k": 0, "type_v": 0, "n_ctx": 256, "n_batch": 1, "n_threads": 1}
    return llama_cpp.Llama(str(path), logits_all=True, verbose=False, **options)


def scores(llama: Any, ids: Tensor) -> Tensor:
    llama.reset()
    llama.eval(ids.tolist())
    return torch.tensor(np.array(llama.scores[: len(ids)]))


@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_gives_the_same_scores(
    llama_cpp: ModuleType, tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, tied: bool
) -> None:
    model = tiny_model(vocab_size=260, emb_dim=64, n_heads=4, tie_embeddings=tied)
    write_gguf(model, tiny_tokenizer, tmp_path / "m.gguf")
    llama = opened(llama_cpp, tmp_path / "m.gguf")
    ids = torch.arange(16) * 13 % 257
    with torch.no_grad():
        wanted = model(ids[None])[0]
    # it looks GELU up in a table of 16-bit numbers
    assert (scores(llama, ids) - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_llama_cpp_writes_the_same_100_tokens_in_f32(
    llama_cpp: ModuleType, tmp_path: Path, trained: tuple[GPTModel, Tokenizer, Tensor]
) -> None:
    model, tokenizer, ids = trained
    write_gguf(model, tokenizer, tmp_path / "m.gguf")
    llama = opened(llama_cpp, tmp_path / "m.gguf")
    wanted = generate_text_simple(model, ids[:1, :20], 100, 128)[0, 20:].tolist()
    llama.eval(ids[0, :20].tolist())
    found = []
    for _ in range(100):
        found.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        llama.eval([found[-1]])
    assert found == wanted
    assert len(set(found)) > 10


def test_llama_cpp_agrees_on_the_best_token_in_q8_0(
    llama_cpp: ModuleType, tmp_path: Path, trained: tuple[GPTModel, Tokenizer, Tensor]
) -> None:
    model, tokenizer, ids = trained
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "q8_0")
    llama = opened(llama_cpp, tmp_path / "m.gguf")
    with torch.no_grad():
        wanted = model(ids).argmax(-1)
    found = torch.stack([scores(llama, row).argmax(-1) for row in ids])
    assert (found == wanted).float().mean() >= 0.95


def test_q8_0_is_what_llama_cpp_itself_makes_of_the_f32_file(
    llama_cpp: ModuleType, tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    model = tiny_model(vocab_size=257, emb_dim=64, n_heads=2)
    for kind in ("f32", "q8_0"):
        write_gguf(model, tiny_tokenizer, tmp_path / f"{kind}.gguf", kind)
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 1
    source, target = (str(tmp_path / name).encode() for name in ("f32.gguf", "theirs.gguf"))
    assert llama_cpp.llama_model_quantize(source, target, ctypes.byref(wanted)) == 0
    metadata, theirs = read(tmp_path / "theirs.gguf")
    own_metadata, own = read(tmp_path / "q8_0.gguf")
    assert metadata["general.file_type"] == own_metadata["general.file_type"]
    assert sorted(theirs) == sorted(own)
    for name, tensor in own.items():
        assert tensor.tensor_type == theirs[name].tensor_type
        assert np.array_equal(tensor.data, theirs[name].data), name


@pytest.mark.parametrize("kind", ["bpe", "bytes", "gpt2"])
def test_llama_cpp_cuts_text_into_the_same_tokens(
    llama_cpp: ModuleType, tmp_path: Path, tiny_model: Make, tokenizers_by_kind: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    size = math.ceil(tokenizer.n_vocab / 64) * 64
    model = tiny_model(vocab_size=size, emb_dim=32, n_heads=2, n_layers=1, tie_embeddings=True)
    write_gguf(model, tokenizer, tmp_path / "m.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    assert (llama.n_vocab(), llama.token_eos()) == (size, tokenizer.eot_id)
    for text in ("Every effort moves you", "It's 1234  ünïcode\n\n\t…", "don't <|endoftext|> x", "日本 🙂"):
        ids = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text)
        assert llama.detokenize(ids).decode() == text
    allowed = llama.tokenize(b"a<|endoftext|>", add_bos=False, special=True)
    assert allowed == tokenizer.encode("a<|endoftext|>", allowed_special="all")


# ---- a proof that can fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("gelu", ["tanh", "erf"])
@pytest.mark.parametrize("name", ["trf_blocks.1.ff.layers.0.weight", "trf_blocks.0.norm1.scale", "pos_emb.weight"])
def test_one_corrupted_weight_is_found_whatever_the_number_type(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, number_type: str, gelu: str, name: str
) -> None:
    """An export of rounded weights, or of a model that llama.cpp computes otherwise, still proves something."""
    model = tiny_model(vocab_size=257, emb_dim=32, n_heads=2, gelu=gelu)
    save_model(model, tiny_tokenizer, tmp_path / "model")
    assert export_model(tmp_path / "model", tmp_path / "m.gguf", "gguf", number_type=number_type).proof.holds()
    result = ours.read_gguf(tmp_path / "m.gguf", gelu=gelu)
    with torch.no_grad():
        result.get_parameter(name).view(-1)[5] += 0.05
    errors = None if number_type == "f32" else ours.rounding(number_type)
    assert not prove(model.eval(), result, rounding=errors).holds()


@given(
    number_type=st.sampled_from(["f16", "q8_0"]),
    columns=st.sampled_from([32, 64, 24]),
    exponent=st.integers(-30, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_honest_rounding_is_within_its_bound(number_type: str, columns: int, exponent: int, seed: int) -> None:
    weights = torch.randn(4, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    if number_type == "q8_0" and columns % 32 == 0:
        blocks = gguf.quantize(weights.numpy(), Q8_0)
        rounded = torch.from_numpy(gguf.quants.dequantize(blocks, Q8_0).copy())
    else:
        rounded = weights.half().float()
    assert ((rounded - weights).abs() <= ours.rounding(number_type)("head.weight", weights)).all()
