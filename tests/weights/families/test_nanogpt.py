"""nanoGPT's checkpoints against nanoGPT's forward pass, written once more here."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glassgpt import GPTModel, Tokenizer, load_model
from glassgpt.cli import main
from glassgpt.weights.convert import import_model
from glassgpt.weights.families.nanogpt import matches, read_meta
from glassgpt.weights.formats import Found
from glassgpt.weights.read import read_model

Edit = Callable[[dict[str, Any]], None]
ARGUMENTS = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 16, "vocab_size": 61, "dropout": 0.2}


def checkpoint(bias: bool = True, prefix: str = "", seed: int = 0, **arguments: int) -> dict[str, Any]:
    """What nanoGPT's `train.py` saves, with random weights; the head is the embedding itself."""
    args = {**ARGUMENTS, "bias": bias, **arguments}
    d, random = args["n_embd"], torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) / math.sqrt(shape[-1])

    state = {"transformer.wte.weight": normal(args["vocab_size"], d) * 3}
    state["transformer.wpe.weight"] = normal(args["block_size"], d) * 3
    norms = [f"h.{i}.ln_{k}" for i in range(args["n_layer"]) for k in (1, 2)] + ["ln_f"]
    for name in norms:
        state[f"transformer.{name}.weight"] = 1 + normal(d)
    for i in range(args["n_layer"]):
        for name, n_in, n_out in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d),
            ("mlp.c_proj", 4 * d, d),
        ):
            state[f"transformer.h.{i}.{name}.weight"] = normal(n_out, n_in)
    if bias:
        for name in [name for name in state if name.count(".") > 2 or ".ln_f." in name]:
            state[name.replace(".weight", ".bias")] = normal(len(state[name]))
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model = {prefix + name: tensor for name, tensor in state.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(61, 12)}}, "param_groups": []}
    return {
        "model": model,
        "optimizer": optimizer,
        "model_args": args,
        "iter_num": 3,
        "best_val_loss": torch.tensor(2.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True},
    }


def reference(value: dict[str, Any], ids: Tensor) -> Tensor:
    """nanoGPT's forward pass: (out, in) matrices, optional biases, the exact GELU, a tied head without bias."""
    w = {name.removeprefix("_orig_mod.").removeprefix("transformer."): t for name, t in value["model"].items()}
    heads, d = value["model_args"]["n_head"], value["model_args"]["n_embd"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros(()))

    def attention(x: Tensor, name: str) -> Tensor:
        rows, n, _ = x.shape
        q, k, v = (
            part.reshape(rows, n, heads, d // heads).permute(0, 2, 1, 3)
            for part in linear(x, f"{name}.c_attn").split(d, dim=2)
        )
        scores = q @ k.permute(0, 1, 3, 2) / math.sqrt(d // heads)
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
        return linear((scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(rows, n, d), f"{name}.c_proj")

    def mlp(x: Tensor, name: str) -> Tensor:
        x = linear(x, f"{name}.c_fc")
        return linear(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), f"{name}.c_proj")

    x = w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]]
    for i in range(value["model_args"]["n_layer"]):
        x = x + attention(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
        x = x + mlp(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp")
    return norm(x, "ln_f") @ w["lm_head.weight"].T


def saved(directory: Path, value: dict[str, Any]) -> Path:
    torch.save(value, directory / "ckpt.pt")
    return directory / "ckpt.pt"


@torch.no_grad()
def worst(model: GPTModel, value: dict[str, Any]) -> float:
    ids = torch.arange(2 * model.config.context_length).view(2, -1) * 7 % model.config.vocab_size
    return float((model(ids) - reference(value, ids)).abs().max())


@given(
    bias=st.booleans(),
    compiled=st.booleans(),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    layers=st.integers(1, 3),
    context=st.integers(1, 16),
)
def test_the_scores_are_nanogpts(
    tmp_path_factory: pytest.TempPathFactory,
    bias: bool,
    compiled: bool,
    heads: int,
    head_dim: int,
    layers: int,
    context: int,
) -> None:
    shape = {"n_head": heads, "n_embd": heads * head_dim, "n_layer": layers, "block_size": context}
    value = checkpoint(bias, "_orig_mod." if compiled else "", **shape)
    model = read_model(saved(tmp_path_factory.mktemp("nanogpt"), value))
    assert worst(model, value) < 1e-4
    assert model.config.to_dict().items() >= {"qkv_bias": bias, "gelu": "erf", "tie_embeddings": True}.items()
    assert (model.config.drop_rate, model.training) == (0.2, False)
    assert model.out_head.weight is model.tok_emb.weight


@pytest.mark.parametrize("mistake", ["tanh", "matrix", "bias", "norm"])
def test_the_comparison_above_can_fail(tmp_path: Path, mistake: str) -> None:
    value = checkpoint()
    model = read_model(saved(tmp_path, value))
    block = model.trf_blocks[1]
    with torch.no_grad():
        if mistake == "tanh":
            block.ff.layers[1].approximate = "tanh"
        elif mistake == "matrix":
            block.att.out_proj.weight.copy_(block.att.out_proj.weight.T.clone())
        elif mistake == "bias":
            block.att.W_value.bias.zero_()
        else:
            block.norm2.shift.zero_()
    assert worst(model, value) > 1e-4


def test_an_old_checkpoint_without_the_word_bias_has_them(tmp_path: Path) -> None:
    value = checkpoint()
    del value["model_args"]["bias"]
    assert worst(read_model(saved(tmp_path, value)), value) < 1e-4


def test_the_masks_of_its_slow_attention_are_left_out(tmp_path: Path) -> None:
    value = checkpoint(bias=False)
    for i in range(2):
        value["model"][f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    assert worst(read_model(saved(tmp_path, value)), value) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zeros_for_missing_biases_are_of_the_files_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    value = checkpoint(bias=False)
    value["model"] = {name: tensor.to(dtype) for name, tensor in value["model"].items()}
    path = saved(tmp_path, value)
    assert {p.dtype for p in read_model(path, dtype=None).parameters()} == {dtype}
    model = read_model(path, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith((".bias", ".shift")))


def test_a_padded_vocabulary_keeps_its_rows_and_gets_gpt2s_tokenizer(tmp_path: Path) -> None:
    value = checkpoint(vocab_size=50304, n_embd=3, n_layer=1)
    model, tokenizer = load_model(saved(tmp_path, value))
    assert tokenizer.fingerprint == Tokenizer.gpt2().fingerprint
    assert torch.equal(model.tok_emb.weight, value["model"]["transformer.wte.weight"])
    assert worst(model, value) < 1e-4


# ---- what is wrong is named -----------------------------------------------------------------------------------------


def without(key: str) -> Edit:
    return lambda value: value["model_args"].pop(key)


def argument(key: str, to: object) -> Edit:
    return lambda value: value["model_args"].update({key: to})


def tensor(name: str, to: object) -> Edit:
    return lambda value: value["model"].update({name: to})


@pytest.mark.parametrize(
    ("bias", "edit", "message"),
    [
        *((True, without(key), f"model_args lacks '{key}': it is not a checkpoint of nanoGPT's") for key in ARGUMENTS),
        (True, lambda value: value.update(model_args=[1]), "model_args is a list, not a dict"),
        (True, lambda value: value.update(model=[1]), "holds a list, not a dict of tensors"),
        (True, lambda value: value.update(model={}), "holds a dict, not a dict of tensors"),
        (True, tensor("transformer.wte.weight", 3), "'transformer.wte.weight' is a int, not a named tensor"),
        (True, argument("n_embd", "12"), "emb_dim '12' must be a whole number, at least 1"),
        (True, argument("n_layer", -1), "n_layers -1 must be a whole number, at least 1"),
        (True, argument("n_head", 5), "emb_dim 12 is not divisible by n_heads 5"),
        (True, argument("n_layer", 10**12), "1000000000000 layers in the config, 29 tensors in all"),
        (True, argument("n_layer", 3), "missing h.2.ln_1.weight [12]"),
        (False, argument("n_embd", 3 * 10**12), "parameters is not possible"),
        (True, argument("block_size", 8), "wpe.weight is [16, 12] instead of [8, 12]"),
        (True, argument("bias", False), "h.0.attn.c_attn.bias is not zero though the config says qkv_bias false"),
        (False, argument("bias", True), "missing ln_f.bias [12]"),
        # a bias that is there although the arguments say there is none is not silently dropped
        (False, tensor("transformer.ln_f.bias", torch.ones(12)), "unexpected ln_f.bias"),
        (False, tensor("transformer.h.1.mlp.c_fc.bias", torch.ones(48)), "unexpected h.1.mlp.c_fc.bias"),
        (True, tensor("lm_head.weight", torch.zeros(61, 12)), "lm_head.weight differs from wte.weight"),
        (True, tensor("transformer.wte.weight", torch.zeros(0, 12)), "lm_head.weight differs from wte.weight"),
        (
            True,
            lambda value: value["model"].update(
                {
                    "transformer.wte.weight": torch.ones(61, 12).to(torch.uint32),
                    "lm_head.weight": torch.ones(61, 12).long(),
                }
            ),
            "wte.weight is torch.uint32, not a floating type",
        ),
        (True, tensor("transformer.ln_f.weight", torch.zeros(())), "ln_f.weight is [] instead of [12]"),
        (False, tensor("x.weight", torch.zeros(())), "unexpected x.weight"),
        (False, tensor("x.weight", torch.zeros(2**40, 0)), "unexpected x.weight"),
        (True, tensor("_orig_mod.transformer.ln_f.bias", torch.zeros(12)), "two tensors are called ln_f.bias"),
    ],
)
def test_a_checkpoint_that_is_wrong_is_refused(tmp_path: Path, bias: bool, edit: Edit, message: str) -> None:
    value = checkpoint(bias)
    edit(value)
    with pytest.raises(ValueError) as caught:
        read_model(saved(tmp_path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], {}, {"model": {}}, {"model_args": {}}, ["model", "model_args"], "model"])
def test_what_is_no_checkpoint_of_nanogpts(value: object) -> None:
    assert not matches(Found(Path("x"), value))
    assert matches(Found(Path("x"), checkpoint()))


# ---- meta.pkl: the characters ---------------------------------------------------------------------------------------

CHARACTERS = "\n !&abc…日😀"


def meta(characters: str = CHARACTERS, **changes: Any) -> dict[str, Any]:
    """What nanoGPT's `prepare.py` pickles."""
    stoi = {character: i for i, character in enumerate(characters)}
    return {"vocab_size": len(stoi), "itos": {i: c for c, i in stoi.items()}, "stoi": stoi, **changes}


def character_model(directory: Path, dataset: object = "shakespeare_char", vocab_size: int = len(CHARACTERS)) -> Path:
    directory.mkdir(exist_ok=True)
    value = checkpoint(bias=False, vocab_size=vocab_size)
    value["config"]["dataset"] = dataset
    return saved(directory, value)


def write_meta(path: Path, value: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_characters_keep_their_ids(tmp_path: Path, protocol: int) -> None:
    """Beside the checkpoint, and at any other place by its own name or its directory's."""
    path = character_model(tmp_path / "out")
    shuffled = meta(CHARACTERS[::-1])  # not in the order of code points: the file decides
    named = write_meta(tmp_path / "data" / "meta.pkl", shuffled, protocol)
    ways: list[Path | None] = [named, named.parent, None]
    for way in ways:
        if way is None:
            write_meta(path.with_name("meta.pkl"), shuffled, protocol)
        model, tokenizer = load_model(path, tokenizer=way)
        assert [tokenizer.encode(c) for c in CHARACTERS] == [[shuffled["stoi"][c]] for c in CHARACTERS]
        assert tokenizer.decode(range(len(CHARACTERS))) == CHARACTERS[::-1]
        assert (tokenizer.n_vocab, tokenizer.eot_id, tokenizer.stop_ids) == (model.vocab_size, None, frozenset())
        with pytest.raises(ValueError, match="characters not in the vocabulary"):
            tokenizer.encode("z")


def test_an_imported_character_model_opens_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    path = character_model(tmp_path)
    write_meta(tmp_path / "meta.pkl", meta())
    result = import_model(path, tmp_path / "imported")
    assert result.proof.holds() and result.config.vocab_size == len(CHARACTERS)
    ours, theirs = Tokenizer.load(tmp_path / "imported"), transformers.AutoTokenizer.from_pretrained(result.path)
    assert ours.encode(CHARACTERS) == theirs(CHARACTERS)["input_ids"] == list(range(len(CHARACTERS)))
    assert theirs.decode(theirs(CHARACTERS)["input_ids"]) == CHARACTERS
    assert len(theirs) == len(CHARACTERS)
    said = []
    for model in (path, result.path):
        assert main(["generate", str(model), "abc", "--max-new-tokens", "5", "--seed", "1"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith("abc") and len(said[0]) == len("abc") + 5 + 1


@pytest.mark.parametrize(
    ("dataset", "where"),
    [
        ("shakespeare_char", "data/shakespeare_char/meta.pkl"),
        ("../../etc", "data/DATASET/meta.pkl"),
        ("a\nb", "data/DATASET/meta.pkl"),
        (None, "data/DATASET/meta.pkl"),
    ],
)
def test_a_missing_meta_is_said_with_its_place(tmp_path: Path, dataset: object, where: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_model(character_model(tmp_path, dataset))
    assert str(caught.value) == (
        f"{tmp_path / 'ckpt.pt'} comes without a tokenizer: nanoGPT keeps one in {where}: copy that beside it, or "
        "import it with that as its tokenizer"
    )


def test_a_tokenizer_of_our_own_comes_before_a_meta(tmp_path: Path) -> None:
    path = character_model(tmp_path, vocab_size=300)
    write_meta(tmp_path / "meta.pkl", meta())
    Tokenizer.bytes_().save(tmp_path)
    for way in (None, tmp_path, tmp_path / "tokenizer.json"):
        assert load_model(path, tokenizer=way)[1].n_vocab == 257


class Touch:
    """Unpickled the ordinary way, this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value, value]  # pickled as references: a short file, and a value of 2**depth parts
    return value


HOSTILE: list[tuple[Any, str]] = [
    (b"", "not a pickle of protocol 2 or later"),
    (b"hello", "not a pickle of protocol 2 or later"),
    (pickle.dumps(meta(), 0), "not a pickle of protocol 2 or later"),
    (pickle.dumps(meta())[:-20], "not enough data in stream"),
    (pickle.dumps(meta()) + b"more", "something follows the pickle"),
    (bytes([0x80, 2]) + bytes(2**24), "larger than the 16777216 bytes"),
    (b"\x80\x02" + b"N0" * 300_000 + b"N.", "instruction POP"),
    (b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.", "expected 1099511627776 bytes"),
    (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "refused: the pickle asks for 'os.system'"),
    ([1, 2], "it has no vocab_size, stoi and itos"),
    ({"stoi": {}, "itos": {}}, "it has no vocab_size, stoi and itos"),
    (meta(stoi=[1]), "stoi and itos must be dicts"),
    (meta(itos=list(CHARACTERS)), "stoi and itos must be dicts"),
    (meta(stoi=nested(25)), "more than 500000 values"),
    (meta(stoi=nested(40)), "more than 500000 values, or nested deeper than 32 levels"),
    (meta(""), "there are no characters"),
    (meta(stoi={"a": 0, "b": 2}, itos={0: "a", 2: "b"}), "the id of 'b' is 2, not one of 0..1"),
    (meta(stoi={"a": 0, "b": 0}, itos={0: "a"}), "two characters have one id"),
    (meta(stoi={"a": 0, "b": -1}), "the id of 'b' is -1"),
    (meta(stoi={"a": 0, "b": 1.0}), "the id of 'b' is 1.0"),
    (meta(stoi={"a": 0, "b": True}), "the id of 'b' is True"),
    (meta(stoi={"a": 0, "b": "1"}), "the id of 'b' is '1'"),
    (meta(stoi={"a": 0, "b": 10**300}), "the id of 'b' is 1000"),
    (meta(stoi={"a": 0, "bc": 1}), "'bc' is not one character"),
    (meta(stoi={"a": 0, "": 1}), "'' is not one character"),
    (meta(stoi={"a": 0, "\ud800": 1}), "'\\ud800' is not one character"),
    (meta(stoi={"a": 0, 1: 1}), "1 is not one character"),
    (meta(itos=dict.fromkeys(range(len(CHARACTERS)), "a")), "stoi and itos disagree"),
    (meta(itos={}), "stoi and itos disagree"),
    (meta(vocab_size=3), f"vocab_size is 3, but stoi has {len(CHARACTERS)} characters"),
    (meta(vocab_size="10"), "vocab_size is '10'"),
    (meta("abc"), f"has 3 characters, the model {len(CHARACTERS)} ids; they do not belong together"),
]


@pytest.mark.parametrize(("value", "message"), HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
def test_a_hostile_meta_is_refused_in_one_line(tmp_path: Path, value: Any, message: str) -> None:
    path = character_model(tmp_path)
    named = write_meta(tmp_path / "meta.pkl", value)
    with pytest.raises(ValueError) as caught:
        load_model(path)
    said = str(caught.value)
    assert said.startswith(str(named)) and any(part in said for part in message.split("|"))
    assert "\n" not in said and len(said) < 300


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_in_a_meta_is_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    for value in (
        Touch(marker),
        meta(vocab_size=Touch(marker)),
        meta(stoi={"a": Touch(marker)}),
        meta(more=[Touch(marker)]),
    ):
        named = write_meta(tmp_path / "meta.pkl", value, protocol)
        pickle.loads(named.read_bytes())
        assert marker.exists()  # the attack works on the one who unpickles
        marker.unlink()
        with pytest.raises(ValueError, match="refused: "):
            read_meta(named, len(CHARACTERS))
        assert not marker.exists()
