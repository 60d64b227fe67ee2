import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from glassgpt import GPTModel, Tokenizer, checkpoint, load_model, save_model
from glassgpt.model import generate_text_simple

Make = Callable[..., GPTModel]
FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours
    )


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 5))
    return {
        "vocab_size": draw(st.integers(257, 300)),
        "context_length": draw(st.integers(1, 20)),
        "n_heads": heads,
        # LayerNorm over a few numbers magnifies rounding: over two to 2.4e-4, whatever the scores
        "emb_dim": heads * draw(st.integers(8, 12)),
        "n_layers": draw(st.integers(1, 3)),
        "qkv_bias": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "drop_rate": draw(st.sampled_from([0.0, 0.25])),
        "gelu": draw(st.sampled_from(["tanh", "erf"])),
    }


# ---- out and in ----------------------------------------


@given(
    shape=shapes(),
    window=st.none() | st.integers(1, 9),
    attention=st.sampled_from(["sdpa", "explicit"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Make,
    tiny_tokenizer: Tokenizer,
    shape: dict[str, Any],
    window: int | None,
    attention: str,
    dtype: torch.dtype,
) -> None:
    directory = tmp_path_factory.mktemp("model")
    model = tiny_model(dtype=dtype, sliding_window=window, attention=attention, **shape).train()
    save_model(model, tiny_tokenizer, directory)
    loaded, tokenizer = load_model(directory, dtype=None)
    assert loaded.config == model.config
    assert same(loaded, model)
    assert not loaded.training
    assert model.training  # saving changes nothing about the model
    assert (loaded.out_head.weight is loaded.tok_emb.weight) == shape["tie_embeddings"]
    assert tokenizer.fingerprint == tiny_tokenizer.fingerprint
    assert sorted(contents(directory)) == FILES


def test_weights_are_loaded_in_float32_unless_asked_otherwise(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    model = tiny_model(dtype=torch.bfloat16, vocab_size=257)
    save_model(model, tiny_tokenizer, tmp_path)
    assert same(load_model(tmp_path)[0], model.float())
    assert {p.dtype for p in load_model(str(tmp_path), dtype=torch.float64)[0].parameters()} == {torch.float64}


def test_a_loaded_model_trains(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    save_model(tiny_model(vocab_size=257, tie_embeddings=True), tiny_tokenizer, tmp_path)
    model, _ = load_model(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.tok_emb.weight.detach().clone()
    model.train()(torch.arange(8)[None]).sum().backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert model.out_head.weight is model.tok_emb.weight
    assert not torch.equal(model.tok_emb.weight, before)
    save_model(model, tiny_tokenizer, tmp_path)
    assert same(load_model(tmp_path)[0], model)


@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_model_is_saved_as_if_it_were_not(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, inside: bool
) -> None:
    plain, wrapped = tiny_model(vocab_size=257), tiny_model(vocab_size=257)
    if inside:
        wrapped.trf_blocks[1] = torch.compile(wrapped.trf_blocks[1], backend="eager")
    else:
        wrapped = torch.compile(wrapped, backend="eager")  # type: ignore[assignment]
    save_model(plain, tiny_tokenizer, tmp_path / "plain")
    save_model(wrapped, tiny_tokenizer, tmp_path / "wrapped")
    assert contents(tmp_path / "plain") == contents(tmp_path / "wrapped")


# ---- transformers ----------------------------------------


@given(shape=shapes())
def test_transformers_opens_it_with_the_same_scores(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Make,
    tiny_tokenizer: Tokenizer,
    shape: dict[str, Any],
) -> None:
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("model")
    model = tiny_model(**shape)
    save_model(model, tiny_tokenizer, directory)
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    ids = torch.randint(shape["vocab_size"], (2, shape["context_length"]))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) == shape["tie_embeddings"]
    # and back: what it writes is read here
    theirs.save_pretrained(directory / "theirs")
    tiny_tokenizer.save(directory / "theirs")
    again, _ = load_model(directory / "theirs")
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids)) or shape["qkv_bias"] is False
        torch.testing.assert_close(again(ids), model(ids), atol=1e-5, rtol=0)


def test_transformers_generates_what_we_do(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_model(vocab_size=257, context_length=32)
    with torch.no_grad():
        model.out_head.weight[256] = -1  # no early end
    save_model(model, tiny_tokenizer, tmp_path)
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert theirs.generation_config.eos_token_id == tiny_tokenizer.eot_id == tokenizer.eos_token_id
    ids = tokenizer("Every effort", return_tensors="pt")
    assert ids.input_ids.tolist() == [tiny_tokenizer.encode("Every effort")]
    found = theirs.generate(**ids, max_new_tokens=15, do_sample=False, eos_token_id=None, pad_token_id=256)
    assert torch.equal(found, generate_text_simple(model, ids.input_ids, 15, 32))


def test_a_sliding_window_is_refused_by_transformers(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    """GPT-2 has none: a tool that ignored the window would answer wrongly, and say nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = tiny_model(vocab_size=257, sliding_window=3)
    save_model(model, tiny_tokenizer, tmp_path)
    for factory in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="model type `glassgpt`"):
            factory.from_pretrained(tmp_path)
    assert same(load_model(tmp_path)[0], model)


# ---- errors ----------------------------------------


def test_a_path_without_a_model(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_bytes(b"x" * 99)
    (tmp_path / "empty").mkdir()
    for name, error, words in (
        ("missing", ValueError, "no model at '.*missing', though '.*' is a directory here"),
        ("file", ValueError, "file is in no known format"),
        ("empty", FileNotFoundError, "empty holds no model: neither config.json nor"),
    ):
        with pytest.raises(error, match=words) as caught:
            load_model(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_takes_one(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=257)
    save_model(model, tiny_tokenizer, tmp_path)
    tiny_tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="comes without a tokenizer: give the directory of one"):
        load_model(tmp_path)
    for source in (tiny_tokenizer, tmp_path / "tokenizer", str(tmp_path / "tokenizer")):
        loaded, tokenizer = load_model(tmp_path, tokenizer=source)
        assert same(loaded, model)
        assert tokenizer.fingerprint == tiny_tokenizer.fingerprint


@pytest.mark.parametrize("vocab_size", [50257, 50304])
def test_a_vocabulary_of_gpt2s_size_is_gpt2s(
    tmp_path: Path, tiny_model: Make, tokenizers_by_kind: dict[str, Tokenizer], vocab_size: int
) -> None:
    """nanoGPT pads GPT-2's vocabulary to 50304, and writes no tokenizer."""
    gpt2 = tokenizers_by_kind["gpt2"]
    save_model(tiny_model(vocab_size=vocab_size, emb_dim=2, n_heads=1, n_layers=1), gpt2, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert load_model(tmp_path)[1].fingerprint == gpt2.fingerprint


def test_a_tokenizer_with_more_tokens_than_the_model(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, tokenizers_by_kind: dict[str, Tokenizer]
) -> None:
    with pytest.raises(ValueError, match="^the tokenizer has 257 tokens, the model 256: they do not fit$"):
        save_model(tiny_model(vocab_size=256), tiny_tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path)
    tokenizers_by_kind["bpe"].save(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens, the model 257; they do not belong together"):
        load_model(tmp_path)
    save_model(tiny_model(vocab_size=300), tiny_tokenizer, tmp_path)  # more rows than tokens are padding
    assert load_model(tmp_path)[1].n_vocab == 257


# ---- a save that fails ----------------------------------------


def test_a_full_disk_leaves_the_old_model_as_it_was(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path)
    before = contents(tmp_path)

    real = checkpoint.whole_weights

    def full(*arguments: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield next(real(*arguments))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "whole_weights", full)
    with pytest.raises(OSError, match="No space left"):  # a model of another shape, another tokenizer
        save_model(tiny_model(vocab_size=400, n_layers=1), Tokenizer.characters(["abc"]), tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(OSError, match="No space left"):
        save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here is always full")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        checkpoint.write_tensors({"a": torch.ones(2**20)}, Path("/dev/full"))


def test_tensors_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    """Byte for byte, in whatever order they come."""
    tensors = {"b/é": torch.randn(3, 4).T, "a": torch.randn(5), "scalar": torch.tensor(2.0), "empty": torch.empty(0, 3)}
    mixed = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.arange(5, dtype=torch.int8), "c": torch.ones(2)}
    for n, some in enumerate((tensors, mixed)):
        metadata = {"format": "pt"} if n else None
        safetensors.torch.save_file(
            {k: t.contiguous() for k, t in some.items()}, tmp_path / "theirs", metadata=metadata
        )
        layout = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in some.items()}
        checkpoint.write_tensors(layout, tmp_path / "ours", metadata, values=reversed(some.items()))
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_save_that_stops_anywhere_leaves_the_old_model(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rename fails, the old weights are there with their own tokenizer, and nothing else."""
    old, new = tiny_model(seed=1, vocab_size=257), tiny_model(seed=2, vocab_size=257)
    other_tokenizer = Tokenizer.characters(["abc"])
    save_model(old, tiny_tokenizer, tmp_path)
    before = contents(tmp_path)
    real, calls, fails_at = Path.replace, 0, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    while True:
        calls, fails_at = 0, fails_at + 1
        try:
            save_model(new, other_tokenizer, tmp_path)
        except OSError:
            assert contents(tmp_path) == before
        else:
            break
    assert fails_at > 2 * len(FILES)
    assert same(load_model(tmp_path)[0], new)
    assert sorted(contents(tmp_path)) == FILES


def test_a_kill_while_saving_never_leaves_weights_with_another_models_tokenizer(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves no time to roll back: after any rename the directory holds one model or none that loads."""
    old, new = tiny_model(seed=1, vocab_size=257), tiny_model(seed=2, vocab_size=257)
    others = {old: tiny_tokenizer, new: Tokenizer.characters(["abc"])}
    real, seen = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        moved = real(self, target)
        copy = tmp_path / f"killed-{len(seen)}"
        copy.mkdir()
        for path in (tmp_path / "model").iterdir():
            if path.is_file():
                (copy / path.name).write_bytes(path.read_bytes())
        seen.append(copy)
        return moved

    save_model(old, tiny_tokenizer, tmp_path / "model")
    monkeypatch.setattr(Path, "replace", replace)
    save_model(new, others[new], tmp_path / "model")
    monkeypatch.undo()
    loads = 0
    for copy in seen:
        if not {"config.json", "model.safetensors"} <= set(contents(copy)):
            continue
        loads += 1
        model, tokenizer = load_model(copy)
        expected = next(candidate for candidate in others if same(model, candidate))
        assert tokenizer.fingerprint == others[expected].fingerprint
    assert loads >= 2


def test_a_models_own_ends_of_text_come_back(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    """Generation stops where `config.json` says, and saving writes the same ids, not those of <|endoftext|>."""
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path / "theirs")
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "theirs" / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"eos_token_id": [7, 9]}), encoding="utf-8")
    model, tokenizer = load_model(tmp_path / "theirs")
    assert tokenizer.stop_ids == {7, 9}
    save_model(model, tokenizer, tmp_path / "ours")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "ours" / name).read_text("utf-8"))["eos_token_id"] == [7, 9]


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_every_file_may_be_read_by_who_may_read_the_others(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    """A server under another user opens them; safetensors 0.8 makes its files readable by the owner alone."""
    mask = os.umask(0o022)
    try:
        save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path)
    finally:
        os.umask(mask)
    assert {name: oct((tmp_path / name).stat().st_mode & 0o777) for name in FILES} == dict.fromkeys(FILES, "0o644")


def test_saving_over_another_model_leaves_nothing_of_it(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    save_model(tiny_model(vocab_size=300, n_layers=3, tie_embeddings=True), Tokenizer.characters(["abc"]), tmp_path)
    model = tiny_model(vocab_size=257)
    save_model(model, tiny_tokenizer, tmp_path)
    loaded, tokenizer = load_model(tmp_path)
    assert same(loaded, model)
    assert tokenizer.n_vocab == 257


def test_saving_over_a_sharded_model_is_not_overruled_by_its_index(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=257, n_positions=16, n_embd=12, n_head=3, n_layer=2, tie_word_embeddings=False)
    GPT2LMHeadModel(config).save_pretrained(tmp_path, max_shard_size="6KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = tiny_model(vocab_size=257, qkv_bias=True)
    save_model(model, tiny_tokenizer, tmp_path)
    assert same(load_model(tmp_path)[0], model)


def test_the_files_say_what_they_are(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    save_model(tiny_model(vocab_size=257), tiny_tokenizer, tmp_path)
    read = {name: json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in FILES if "json" in name}
    assert read["config.json"]["architectures"] == ["GPT2LMHeadModel"]
    assert read["generation_config.json"] == {"bos_token_id": 256, "eos_token_id": 256}
    assert (read["config.json"]["bos_token_id"], read["config.json"]["eos_token_id"]) == (256, 256)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # without it older releases of transformers refuse the file
    assert b"\r" not in b"".join(contents(tmp_path)[name] for name in read)
