import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTConfig, GPTModel, Tokenizer, load_model, save_model
from glassgpt.weights.containers.source import InMemory
from glassgpt.weights.families.config_json import from_config_json, to_config_json
from glassgpt.weights.families.gpt2_names import from_gpt2_names

Make = Callable[..., GPTModel]
SMALL = {"vocab_size": 257, "n_positions": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}


def random_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A GPT-2 made by `transformers`, its weights spread so that a mistake anywhere shows in the scores."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.to(dtype).eval()


def theirs_on_disk(directory: Path, tokenizer: Tokenizer, model: Any, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    tokenizer.save(directory)
    return directory


def worst(ours: GPTModel, theirs: Any) -> float:
    """The largest difference between the scores of both, over a whole context."""
    ids = torch.arange(3 * ours.config.context_length).view(3, -1) * 7 % ours.config.vocab_size
    with torch.no_grad():
        return float((ours(ids) - theirs(ids).logits).abs().max())


def edit(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}), encoding="utf-8")


# ---- models that transformers made ----------------------------------------


@given(
    heads=st.integers(1, 5),
    head_dim=st.integers(1, 6),
    layers=st.integers(1, 3),
    context=st.integers(1, 20),
    tied=st.booleans(),
    gelu=st.sampled_from(["gelu_new", "gelu_pytorch_tanh", "gelu"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_a_random_gpt2_of_transformers_gives_the_same_scores_here(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Tokenizer,
    heads: int,
    head_dim: int,
    layers: int,
    context: int,
    tied: bool,
    gelu: str,
    dtype: torch.dtype,
) -> None:
    theirs = random_gpt2(
        dtype=dtype,
        activation_function=gelu,
        n_head=heads,
        n_embd=heads * head_dim,
        n_layer=layers,
        n_positions=context,
        tie_word_embeddings=tied,
    )
    directory = theirs_on_disk(tmp_path_factory.mktemp("theirs"), tiny_tokenizer, theirs)
    ours, tokenizer = load_model(directory)
    assert tokenizer.n_vocab == 257
    assert not ours.training
    assert ours.config == GPTConfig(
        vocab_size=257,
        context_length=context,
        emb_dim=heads * head_dim,
        n_heads=heads,
        n_layers=layers,
        qkv_bias=True,
        tie_embeddings=tied,
        gelu="erf" if gelu == "gelu" else "tanh",
    )
    assert (ours.out_head.weight is ours.tok_emb.weight) == tied
    assert worst(ours, theirs.float()) < 1e-4
    kept, _ = load_model(directory, dtype=None)
    assert {p.dtype for p in kept.parameters()} == {dtype}


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_gpt2(tmp_path: Path, tiny_tokenizer: Tokenizer, tied: bool) -> None:
    theirs = random_gpt2(tie_word_embeddings=tied)
    theirs_on_disk(tmp_path, tiny_tokenizer, theirs, max_shard_size="6KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert worst(load_model(tmp_path)[0], theirs) < 1e-4


def test_the_bare_model_without_a_head(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    theirs = random_gpt2()
    theirs_on_disk(tmp_path, tiny_tokenizer, theirs.transformer)
    assert worst(load_model(tmp_path)[0], theirs) < 1e-4


# ---- the comparison above can fail ----------------------------------------


@pytest.mark.parametrize(
    "mistake",
    [
        "square matrix not transposed",
        "query and key swapped",
        "no bias",
        "eps",
        "gelu",
        "scale",
        "untied",
        "tied",
    ],
)
def test_every_classical_mistake_shows_in_the_scores(tmp_path: Path, tiny_tokenizer: Tokenizer, mistake: str) -> None:
    """Each mistake that loads without an error moves the scores by more than the tolerance of 1e-4."""
    changes = {
        "eps": {"layer_norm_epsilon": 1e-2},
        "gelu": {"activation_function": "gelu"},
        "scale": {"scale_attn_weights": False},
        "tied": {"tie_word_embeddings": False},
    }
    theirs = random_gpt2(**changes.get(mistake, {}))
    theirs_on_disk(tmp_path, tiny_tokenizer, theirs)
    edit(tmp_path, layer_norm_epsilon=1e-5, activation_function="gelu_new", scale_attn_weights=True)
    ours, _ = load_model(tmp_path)
    attention = ours.trf_blocks[0].att
    with torch.no_grad():
        if mistake == "square matrix not transposed":
            attention.out_proj.weight.copy_(attention.out_proj.weight.T.clone())
        elif mistake == "query and key swapped":
            attention.W_query, attention.W_key = attention.W_key, attention.W_query
        elif mistake == "no bias":
            attention.W_query.bias.zero_()
        elif mistake == "untied":
            ours.out_head.weight = torch.nn.Parameter(torch.randn_like(ours.out_head.weight))
        elif mistake == "tied":
            ours.out_head.weight = ours.tok_emb.weight
    assert worst(ours, theirs) > 3e-4


# ---- config.json ----------------------------------------


@given(
    heads=st.integers(1, 6),
    head_dim=st.integers(1, 6),
    drop_rate=st.sampled_from([0.0, 0.1, 0.5]),
    bias=st.booleans(),
    tied=st.booleans(),
    window=st.none() | st.integers(1, 9),
    attention=st.sampled_from(["sdpa", "explicit"]),
    gelu=st.sampled_from(["tanh", "erf"]),
    eot=st.none() | st.integers(0, 50),
)
def test_a_config_goes_through_config_json_without_loss(
    heads: int,
    head_dim: int,
    drop_rate: float,
    bias: bool,
    tied: bool,
    window: int | None,
    attention: str,
    gelu: str,
    eot: int | None,
) -> None:
    config = GPTConfig(
        vocab_size=51,
        context_length=9,
        emb_dim=heads * head_dim,
        n_heads=heads,
        n_layers=3,
        drop_rate=drop_rate,
        qkv_bias=bias,
        tie_embeddings=tied,
        sliding_window=window,
        attention=attention,
        gelu=gelu,
    )
    values = json.loads(json.dumps(to_config_json(config, eot)))
    assert from_config_json(values) == config
    assert (values["bos_token_id"], values["eos_token_id"]) == (eot, eot)
    assert values["model_type"] == ("gpt2" if window is None else "glassgpt")


def test_the_config_is_a_gpt2_config(tiny_model: Make) -> None:
    from transformers import GPT2Config

    config = GPTConfig(vocab_size=51, context_length=9, emb_dim=15, n_heads=5, n_layers=3, drop_rate=0.2)
    theirs = GPT2Config(**to_config_json(config, 50))
    assert (theirs.vocab_size, theirs.n_positions, theirs.n_embd, theirs.n_head) == (51, 9, 15, 5)
    assert (theirs.n_layer, theirs.resid_pdrop, theirs.embd_pdrop, theirs.attn_pdrop) == (3, 0.2, 0.2, 0.2)
    assert (theirs.activation_function, theirs.layer_norm_epsilon) == ("gelu_new", 1e-5)
    assert (theirs.tie_word_embeddings, theirs.eos_token_id, theirs.n_inner) == (False, 50, None)


def test_gpt2s_own_config() -> None:
    """The keys that OpenAI's GPT-2 has on the Hub, without those that say nothing of the shape."""
    values = {"n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}
    wanted = GPTConfig(qkv_bias=True, tie_embeddings=True)
    assert from_config_json({**values, "n_positions": 1024, "activation_function": "gelu_new"}) == wanted
    assert from_config_json(values) == wanted
    assert from_config_json({**values, "n_inner": 3072, "activation_function": "gelu_pytorch_tanh"}) == wanted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("activation_function", "quick_gelu"),
        ("layer_norm_epsilon", 1e-6),
        ("layer_norm_epsilon", 1e-12),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("n_inner", 24),
    ],
)
def test_what_this_model_does_not_do_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^FILE: {key} is {value!r}; this model") as caught:
        from_config_json({**SMALL, key: value}, "FILE")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "n_embd", "n_head", "n_layer"])
@pytest.mark.parametrize("value", [None, "12", -1, 0, 1.5, [], {}, True])
def test_a_shape_that_is_none(key: str, value: object) -> None:
    for inner in ({}, {"n_inner": 48}):
        with pytest.raises(ValueError, match="^FILE: ") as caught:
            from_config_json({**SMALL, **inner, key: value}, "FILE")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^FILE has no '{key}': it is not a GPT-2's"):
        from_config_json({k: v for k, v in SMALL.items() if k != key}, "FILE")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"n_positions": None}, "context_length None must be a whole number, at least 1"),
        ({"n_head": 5}, "emb_dim 12 is not divisible by n_heads 5"),
        ({"resid_pdrop": "x"}, "drop_rate 'x' must be a number"),
        ({"tie_word_embeddings": "yes"}, "tie_embeddings 'yes' must be true or false"),
        ({"glassgpt": 3}, "'glassgpt' is 3, not an object"),
        ({"glassgpt": {"qkv_bia": True}}, "unknown config key 'qkv_bia': did you mean 'qkv_bias'"),
        ({"glassgpt": {"sliding_window": 0}}, "sliding_window 0 must be a whole number, at least 1"),
    ],
)
def test_other_values_that_cannot_work(values: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=f"^FILE: {error}"):
        from_config_json({**SMALL, **values}, "FILE")


# ---- damaged directories ----------------------------------------


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer) -> Path:
    save_model(tiny_model(vocab_size=257, qkv_bias=True), tiny_tokenizer, tmp_path)
    return tmp_path


def assert_refused(directory: Path, *parts: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_model(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in (str(directory), *parts)), text


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"n_layer": 3}, ["missing h.2.ln_1.weight [12]"]),
        ({"n_layer": 1}, ["unexpected h.1.ln_1.weight"]),
        ({"n_embd": 24}, ["wte.weight is [257, 12] instead of [257, 24]"]),
        ({"n_positions": 17}, ["wpe.weight is [16, 12] instead of [17, 12]"]),
        ({"vocab_size": 300}, ["wte.weight is [257, 12]", "lm_head.weight is [257, 12]"]),
        ({"n_head": 7}, ["emb_dim 12 is not divisible by n_heads 7"]),
        ({"tie_word_embeddings": True}, ["lm_head.weight differs from wte.weight"]),
        ({"glassgpt": {"qkv_bias": False}}, ["h.0.attn.c_attn.bias is not zero"]),
        ({"n_layer": 10**15}, ["1000000000000000 layers"]),
        ({"n_embd": 10**15}, ["emb_dim 1000000000000000 is not divisible by n_heads 3"]),
        ({"model_type": "bert"}, ["model_type is 'bert'"]),
        ({"n_embd": ...}, ["has no 'n_embd'"]),
    ],
)
def test_a_config_of_another_shape(saved: Path, values: dict[str, Any], parts: list[str]) -> None:
    edit(saved, **values)
    assert_refused(saved, *parts)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b'{"n_embd": NaN}'])
def test_a_damaged_config(saved: Path, content: bytes) -> None:
    (saved / "config.json").write_bytes(content)
    assert_refused(saved, "config.json")


@pytest.mark.parametrize("size", [0, 4, 8, 20, 500, -1000, -1])
def test_a_file_of_weights_that_was_cut_off(saved: Path, size: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(saved, "model.safetensors")


@pytest.mark.parametrize("content", [b"\xff" * 64, b"PK\x03\x04" + b"\0" * 99, b"<!DOCTYPE html><html></html>"])
def test_a_file_of_weights_that_is_none(saved: Path, content: bytes) -> None:
    (saved / "model.safetensors").write_bytes(content)
    assert_refused(saved, "model.safetensors")


def test_no_file_of_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_model(saved)


def test_the_file_may_be_replaced_while_the_model_lives(saved: Path) -> None:
    model, _ = load_model(saved)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = saved / "model.safetensors"
    with path.open("r+b") as file:  # in place, as a careless program would
        file.seek(-400, 2)
        file.write(b"\x41" * 400)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_readers_table_is_complete(tiny_model: Make) -> None:
    """`from_gpt2_names` fills every parameter the model has, in its dtype and shape."""
    from glassgpt.weights.families.gpt2_names import to_gpt2_names

    model = tiny_model()
    state = from_gpt2_names(InMemory(to_gpt2_names(model.state_dict(), model.config)), model.config)
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in model.state_dict().items()}
