"""The book's `model.pth`, in and out, against the book's module, written once more here."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from glassgpt import GPTModel, Tokenizer, load_model, save_model
from glassgpt.cli import main
from glassgpt.weights.families.book import book_dict, matches, write_book
from glassgpt.weights.formats import Found
from glassgpt.weights.read import read_model

Make = Callable[..., GPTModel]


# ---- the book's module: its names, its masks, its arithmetic --------------------------------------------------------


class Norm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.scale * centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) + self.shift


class Bend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Attention(nn.Module):
    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        d, context = cfg["emb_dim"], cfg["context_length"]
        self.heads = cfg["n_heads"]
        self.W_query = nn.Linear(d, d, bias=cfg["qkv_bias"])
        self.W_key = nn.Linear(d, d, bias=cfg["qkv_bias"])
        self.W_value = nn.Linear(d, d, bias=cfg["qkv_bias"])
        self.out_proj = nn.Linear(d, d)
        self.register_buffer("mask", torch.triu(torch.ones(context, context), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.W_query, self.W_key, self.W_value)
        )
        scores = q @ k.transpose(2, 3)
        scores = scores.masked_fill(self.mask.bool()[: x.shape[1], : x.shape[1]], -torch.inf)
        return self.out_proj(((scores / k.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Feed(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d, 4 * d), Bend(), nn.Linear(4 * d, d))


class Block(nn.Module):
    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.att, self.ff = Attention(cfg), Feed(cfg["emb_dim"])
        self.norm1, self.norm2 = Norm(cfg["emb_dim"]), Norm(cfg["emb_dim"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff.layers(self.norm2(x))


class TheBooksGPT(nn.Module):
    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.trf_blocks = nn.Sequential(*[Block(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = Norm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


CFG = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}


def the_books(seed: int = 0, **changes: Any) -> TheBooksGPT:
    torch.manual_seed(seed)
    model = TheBooksGPT({**CFG, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@torch.no_grad()
def worst(ours: nn.Module, theirs: nn.Module, cfg: dict[str, Any]) -> float:
    ids = torch.arange(2 * cfg["context_length"]).view(2, -1) * 7 % cfg["vocab_size"]
    return float((ours(ids) - theirs(ids)).abs().max())


def saved(directory: Path, value: object) -> Path:
    torch.save(value, directory / "model.pth")
    return directory / "model.pth"


# ---- in ------------------------------------------------------------------------------------------------------------


@given(
    bias=st.booleans(),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    layers=st.integers(1, 3),
    context=st.integers(1, 16),
)
def test_the_scores_are_the_books(
    tmp_path_factory: pytest.TempPathFactory, bias: bool, heads: int, head_dim: int, layers: int, context: int
) -> None:
    shape = {"n_heads": heads, "emb_dim": heads * head_dim, "n_layers": layers, "context_length": context}
    cfg = {**CFG, **shape, "qkv_bias": bias}
    theirs = the_books(**cfg)
    ours = read_model(saved(tmp_path_factory.mktemp("book"), theirs.state_dict()), n_heads=heads)
    assert worst(ours, theirs, cfg) < 1e-4
    assert book_dict(ours.config) == cfg
    assert not ours.config.tie_embeddings


@pytest.mark.parametrize("mistake", ["erf", "matrix", "bias", "heads", "mask"])
def test_the_comparison_above_can_fail(tmp_path: Path, mistake: str) -> None:
    theirs = the_books()
    ours = read_model(saved(tmp_path, theirs.state_dict()), n_heads=2 if mistake == "heads" else 3)
    block = ours.trf_blocks[1]
    with torch.no_grad():
        if mistake == "erf":
            block.ff.layers[1].approximate = "none"
        elif mistake == "matrix":
            block.att.out_proj.weight.copy_(block.att.out_proj.weight.T.clone())
        elif mistake == "bias":
            block.att.W_value.bias.zero_()
        elif mistake == "mask":
            block.att.window = 3
    assert worst(ours, theirs, CFG) > 1e-4


def test_a_checkpoint_with_its_optimizer(tmp_path: Path) -> None:
    """Chapter 5: `{"model_state_dict": ..., "optimizer_state_dict": ...}`."""
    theirs = the_books()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-4, weight_decay=0.1)
    theirs(torch.arange(16)[None]).sum().backward()
    optimizer.step()
    value = {"model_state_dict": theirs.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    assert worst(read_model(saved(tmp_path, value), n_heads=3), theirs, CFG) < 1e-4


def test_an_equal_head_and_embedding_become_one(tmp_path: Path) -> None:
    """The book copies GPT-2's embedding into the head; as one parameter they stay equal, and half as large."""
    theirs = the_books()
    with torch.no_grad():
        theirs.out_head.weight.copy_(theirs.tok_emb.weight)
    state = theirs.state_dict()
    for value in (state, {name: state[name] for name in reversed(state)}):  # in whatever order they come
        ours = read_model(saved(tmp_path, value), n_heads=3)
        assert ours.config.tie_embeddings
        assert ours.out_head.weight is ours.tok_emb.weight
        assert worst(ours, theirs, CFG) < 1e-4
    theirs.out_head.weight.data[60, 11] += 1e-3
    assert not read_model(saved(tmp_path, theirs.state_dict()), n_heads=3).config.tie_embeddings


def test_the_number_of_heads_is_asked_for_unless_the_width_is_gpt2s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves no trace in the tensors: a wrong guess would load and compute something else."""
    path = saved(tmp_path, the_books(emb_dim=128, n_heads=2, n_layers=1).state_dict())
    with pytest.raises(
        ValueError,
        match=r"model\.pth: the number of heads is not in the file: give n_heads, or import the file with it once$",
    ):
        read_model(path)
    with pytest.raises(ValueError, match=r"model\.pth: emb_dim 128 is not divisible by n_heads 5: use n_heads 4"):
        read_model(path, n_heads=5)
    assert read_model(path, n_heads=8).config.n_heads == 8
    for emb_dim, n_heads in ((768, 12), (1024, 16), (1280, 20), (1600, 25)):
        wide = {"emb_dim": emb_dim, "vocab_size": 2, "context_length": 2}
        shape = read_state(tmp_path, lambda state, wide=wide: state, n_layers=1, **wide)
        assert shape == (emb_dim, n_heads)
        assert f"model.pth does not say its number of heads: {n_heads} are assumed" in caplog.messages[-1]


def read_state(directory: Path, edit: Callable[[Any], Any], **shape: Any) -> tuple[int, int]:
    with torch.device("meta"):
        empty = TheBooksGPT({**CFG, "n_heads": 1, **shape}).state_dict()
    config = read_model(saved(directory, edit({name: torch.zeros(t.shape) for name, t in empty.items()}))).config
    return config.emb_dim, config.n_heads


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("pos_emb.weight"), "has no two-dimensional tok_emb.weight and pos_emb.weight"),
        (lambda s: s.update({"tok_emb.weight": torch.zeros(12)}), "has no two-dimensional tok_emb.weight"),
        (lambda s: s.update({"tok_emb.weight": torch.zeros(0, 12)}), "vocab_size 0 must be a whole number, at least 1"),
        (lambda s: s.update({"tok_emb.weight": torch.zeros(9, 12)}), "out_head.weight is [61, 12] instead of [9, 12]"),
        (lambda s: s.update({"tok_emb.weight": torch.zeros(61, 15)}), "pos_emb.weight is [16, 12] instead of [16, 15]"),
        (lambda s: s.update({"pos_emb.weight": torch.zeros(16, 15)}), "pos_emb.weight is [16, 15] instead of [16, 12]"),
        (lambda s: s.pop("trf_blocks.0.att.W_query.bias"), "missing trf_blocks.0.att.W_query.bias [12]"),
        (lambda s: s.pop("trf_blocks.1.norm2.shift"), "missing trf_blocks.1.norm2.shift [12]"),
        (lambda s: s.update({"trf_blocks.7.x": torch.zeros(1)}), "missing trf_blocks.2.att.W_query.weight [12, 12]"),
        (lambda s: s.update({"final_norm.bias": torch.zeros(12)}), "unexpected final_norm.bias"),
        (lambda s: s.update({"step": 3}), "'step' is a int, not a named tensor"),
        (lambda s: s.update({5: torch.zeros(3)}), "'5' is a Tensor, not a named tensor"),
        (lambda s: s["out_head.weight"].fill_(torch.inf), "out_head.weight holds NaN or infinite values"),
        (lambda s: s.update({"pos_emb.weight": torch.ones(16, 12).bool()}), "pos_emb.weight is torch.bool, not a"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, edit: Edit, message: str) -> None:
    state = the_books().state_dict()
    edit(state)
    with pytest.raises(ValueError) as caught:
        read_model(saved(tmp_path, state), n_heads=3)
    text = str(caught.value)
    assert message in text and str(tmp_path) in text
    assert "\n" not in text and len(text) < 2000


def test_a_file_that_claims_thousands_of_layers_is_refused_before_they_are_made(tmp_path: Path) -> None:
    state = the_books().state_dict() | {f"trf_blocks.{i}.x": torch.zeros(()) for i in range(2, 5000)}
    path, started = saved(tmp_path, state), time.monotonic()
    with pytest.raises(ValueError, match=r"missing trf_blocks\.2\.att\.W_query\.weight \[12, 12\]"):
        read_model(path, n_heads=3)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("value", [None, [], {}, "tok_emb.weight", {"model_state_dict": 3}, {"model": {}}])
def test_what_is_no_state_dict_of_the_books(value: object) -> None:
    assert not matches(Found(Path("x"), value))
    assert matches(Found(Path("x"), the_books().state_dict()))


# ---- out -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_loads_strictly_into_the_books_module(
    tmp_path: Path, tiny_model: Make, bias: bool, tied: bool
) -> None:
    ours = tiny_model(qkv_bias=bias, tie_embeddings=tied)
    write_book(ours, tmp_path / "model.pth")
    cfg = book_dict(ours.config)
    theirs = TheBooksGPT(cfg)
    masks = [block.att.mask.clone() for block in theirs.trf_blocks]
    theirs.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    assert worst(ours, theirs, cfg) < 1e-4
    assert all(torch.equal(block.att.mask, mask) for block, mask in zip(theirs.trf_blocks, masks, strict=True))
    again = read_model(tmp_path / "model.pth", n_heads=3)
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


def test_the_same_model_gives_the_same_file(tmp_path: Path, tiny_model: Make) -> None:
    for name in ("a.pth", "b.pth"):
        write_book(tiny_model(), tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sliding_window": 4}, "no place for a sliding window"), ({"gelu": "erf"}, "no place for the erf form of GELU")],
)
def test_what_the_books_model_cannot_be(
    tmp_path: Path, tiny_model: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_book(tiny_model(**changes), tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_the_command_line_goes_there_and_back(
    tmp_path: Path, tiny_model: Make, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(vocab_size=257, qkv_bias=True)
    save_model(model, tiny_tokenizer, tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--to", "book", "--out"]
    assert main([*arguments, str(tmp_path / "model.pth")]) == 0
    out = capsys.readouterr().out
    assert f"cfg = {book_dict(model.config)}" in out
    assert "proof: identical: largest difference of scores 0, same best token 100.0%" in out
    assert main([*arguments, str(tmp_path / "other.pth"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)  # and nothing else
    assert (found["largest_difference"], found["same_choice"]) == (0, 1)
    assert found["config"] == model.config.to_dict()
    back = ["import", str(tmp_path / "model.pth"), "--out", str(tmp_path / "back"), "--tokenizer"]
    assert main([*back, str(tmp_path / "model"), "--n-heads", "3"]) == 0
    assert "proof: identical: largest difference of scores 0" in capsys.readouterr().out
    again, tokenizer = load_model(tmp_path / "back")
    assert again.config == model.config
    assert tokenizer.fingerprint == tiny_tokenizer.fingerprint
    assert worst(again, model, book_dict(model.config)) == 0
