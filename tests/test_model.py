import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glassgpt import GPTConfig, GPTModel
from glassgpt.config import ROLES
from glassgpt.explain import recorded_attention
from glassgpt.kv_cache import causal_mask
from glassgpt.model import (
    GELU,
    FeedForward,
    LayerNorm,
    MultiHeadAttention,
    TransformerBlock,
    generate_text_simple,
)

Make = Callable[..., GPTModel]
BOTH = pytest.mark.parametrize("attention", ["sdpa", "explicit"])
WINDOWS = pytest.mark.parametrize("window", [None, 1, 3, 16, 40])

BOOK_DICT = {
    "vocab_size": 50,
    "context_length": 8,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}


def book_block(i: int, qkv_bias: bool) -> Iterator[str]:
    for name in ("W_query", "W_key", "W_value"):
        yield f"trf_blocks.{i}.att.{name}.weight"
        if qkv_bias:
            yield f"trf_blocks.{i}.att.{name}.bias"
    yield from (f"trf_blocks.{i}.att.out_proj.{kind}" for kind in ("weight", "bias"))
    yield from (f"trf_blocks.{i}.ff.layers.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias"))
    yield from (f"trf_blocks.{i}.{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("scale", "shift"))


def reference(model: GPTModel, ids: list[int]) -> Tensor:
    """The formulas of GPT-2, one position and one head at a time, in float64: (T, vocab_size)."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    config = model.config

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return x * w[name + ".scale"] + w[name + ".shift"]

    def linear(x: Tensor, name: str) -> Tensor:
        return w[name + ".weight"] @ x + w.get(name + ".bias", 0)

    def gelu(x: Tensor) -> Tensor:
        if config.gelu == "erf":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    rows = [w["tok_emb.weight"][token] + w["pos_emb.weight"][t] for t, token in enumerate(ids)]
    for i in range(config.n_layers):
        at = f"trf_blocks.{i}"
        q, k, v = (
            [linear(norm(x, at + ".norm1"), f"{at}.att.{name}").split(config.head_dim) for x in rows]
            for name in ("W_query", "W_key", "W_value")
        )
        after = []
        for t, x in enumerate(rows):
            first = max(0, t + 1 - (config.sliding_window or len(rows)))
            heads = []
            for h in range(config.n_heads):
                scores = [float(q[t][h] @ k[j][h]) / math.sqrt(config.head_dim) for j in range(first, t + 1)]
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                seen = torch.stack([v[j][h] for j in range(first, t + 1)])
                heads.append((weights[:, None] * seen).sum(0))
            x = x + linear(torch.cat(heads), at + ".att.out_proj")
            after.append(x + linear(gelu(linear(norm(x, at + ".norm2"), at + ".ff.layers.0")), at + ".ff.layers.2"))
        rows = after
    head = w["tok_emb.weight"] if config.tie_embeddings else w["out_head.weight"]
    return torch.stack([head @ norm(x, "final_norm") for x in rows])


def scores_of(model: GPTModel, embedded: Tensor) -> Tensor:
    """The scores for a batch of embedded tokens, so that each token can be asked for its gradient."""
    for block in model.trf_blocks:
        embedded = block(embedded)
    out: Tensor = model.out_head(model.final_norm(embedded))
    return out


@BOTH
@WINDOWS
@pytest.mark.parametrize(
    "shape", [{"qkv_bias": True, "tie_embeddings": True}, {"emb_dim": 10, "n_heads": 5, "gelu": "erf"}]
)
def test_the_model_is_gpt2s_formulas(
    tiny_model: Make, attention: str, window: int | None, shape: dict[str, Any]
) -> None:
    model = tiny_model(attention=attention, sliding_window=window, **shape)
    ids = torch.randint(97, (16,)).tolist()
    with torch.no_grad():
        found = model(torch.tensor([ids]))[0]
    torch.testing.assert_close(found.double(), reference(model, ids), atol=2e-5, rtol=1e-5)


# ---- parts ----------------------------------------


def test_layer_norm_uses_the_biased_variance_and_eps_1e_5() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]]) * 1e-3  # small, so that eps counts
    wanted = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(LayerNorm(4)(x), wanted, atol=1e-6, rtol=1e-5)
    assert LayerNorm(4).eps == 1e-5


def test_gelu_is_the_tanh_form_unless_asked_for_the_exact_one() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    wanted = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(GELU()(x), wanted, atol=1e-12, rtol=0)
    assert (GELU()(x) - F.gelu(x)).abs().max() > 1e-4  # not the erf form
    torch.testing.assert_close(GELU("erf")(x), x * torch.special.ndtr(x), atol=1e-12, rtol=0)


@given(st.integers(1, 12), st.none() | st.integers(1, 15))
def test_the_mask_written_out(n_tokens: int, window: int | None) -> None:
    positions = torch.arange(n_tokens)
    mask = causal_mask(positions, positions, window)
    for i in range(n_tokens):
        for j in range(n_tokens):
            assert mask[i, j] == (j <= i and (window is None or j > i - window))


def test_parts_take_the_books_dict_and_shapes_are_kept() -> None:
    x = torch.randn(2, 5, 12)
    assert FeedForward(BOOK_DICT)(x).shape == x.shape
    assert TransformerBlock(BOOK_DICT)(x).shape == x.shape
    assert GPTModel(BOOK_DICT)(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 50)
    assert MultiHeadAttention(6, 12, 8, 0.0, 3)(torch.randn(2, 5, 6)).shape == (2, 5, 12)  # d_in may differ


def test_heads_that_do_not_fit_the_width() -> None:
    with pytest.raises(ValueError, match="d_out 10 is not divisible by num_heads 4"):
        MultiHeadAttention(10, 10, 8, 0.0, 4)


@pytest.mark.parametrize("value", [{"emb_dmi": 3}, 7, None])
def test_a_model_of_no_config(value: Any) -> None:
    with pytest.raises(ValueError, match="^(GPTConfig is made from a dict, not|unknown config key) "):
        GPTModel(value)


# ---- initialisation ----------------------------------------


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_names_and_their_order_are_the_books(qkv_bias: bool) -> None:
    blocks = [name for i in range(2) for name in book_block(i, qkv_bias)]
    wanted = [
        "tok_emb.weight",
        "pos_emb.weight",
        *blocks,
        "final_norm.scale",
        "final_norm.shift",
        "out_head.weight",
    ]
    model = GPTModel({**BOOK_DICT, "qkv_bias": qkv_bias})
    assert [name for name, _ in model.named_parameters()] == wanted
    assert list(model.state_dict()) == wanted  # no buffers: masks are made from the shapes


def test_modules_are_created_in_the_books_order() -> None:
    model = GPTModel(BOOK_DICT)
    names = [name for name, _ in model.named_children()]
    assert names == ["tok_emb", "pos_emb", "drop_emb", "trf_blocks", "final_norm", "out_head"]
    block = [name for name, _ in model.trf_blocks[0].named_children()]
    assert block == ["att", "ff", "norm1", "norm2", "drop_shortcut"]
    attention = [name for name, _ in model.trf_blocks[0].att.named_children()]
    assert attention == ["W_query", "W_key", "W_value", "out_proj", "dropout"]


def test_initialisation_draws_what_pytorch_draws_for_the_books_modules_in_the_books_order() -> None:
    torch.manual_seed(123)
    found = GPTModel(BOOK_DICT).state_dict()
    torch.manual_seed(123)
    wanted = [torch.nn.Embedding(50, 12), torch.nn.Embedding(8, 12)]
    for _ in range(2):
        wanted += [torch.nn.Linear(12, 12) for _ in range(4)]
        wanted += [torch.nn.Linear(12, 48), torch.nn.Linear(48, 12)]
    wanted += [torch.nn.Linear(12, 50, bias=False)]
    drawn = [parameter for module in wanted for parameter in module.parameters()]
    ours = [tensor for name, tensor in found.items() if "norm" not in name]
    assert len(ours) == len(drawn)
    assert all(torch.equal(a, b) for a, b in zip(ours, drawn, strict=True))
    norms = {name: tensor for name, tensor in found.items() if "norm" in name}
    assert all(torch.equal(t, torch.full_like(t, float(n.endswith("scale")))) for n, t in norms.items())


def test_a_seed_gives_the_same_weights_whatever_the_attention() -> None:
    states = []
    for changes in (
        {},
        {"attention": "explicit"},
        {"sliding_window": 3},
        {"drop_rate": 0.5},
        {"tie_embeddings": True},
    ):
        torch.manual_seed(123)
        states.append(GPTModel({**BOOK_DICT, **changes}).state_dict())
    for state in states[1:-1]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())
    assert all(torch.equal(states[-1][n], t) for n, t in states[0].items() if n != "out_head.weight")


def test_a_tied_head_is_the_embedding_itself_also_after_a_step(tiny_model: Make) -> None:
    model = tiny_model(tie_embeddings=True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.tok_emb.weight.clone()
    model(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
    optimizer.step()
    assert model.out_head.weight is model.tok_emb.weight
    assert not torch.equal(before, model.tok_emb.weight)
    assert len(list(model.parameters())) == len(model.state_dict()) - 1


def test_the_books_checkpoint_loads_with_its_masks(tiny_model: Make) -> None:
    model = tiny_model()
    state = model.state_dict()
    masks = {f"trf_blocks.{i}.att.mask": torch.ones(16, 16).triu(1) for i in range(2)}
    other = tiny_model(seed=1)
    other.load_state_dict({**state, **masks})
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in state.items())
    with pytest.raises(RuntimeError, match=r"trf_blocks\.7\.att\.mask"):  # and nothing else is let in
        other.load_state_dict({**state, "trf_blocks.7.att.mask": torch.ones(16, 16)})


# ---- two attentions, one result ----------------------------------------


@given(
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 6),
    batch=st.integers(1, 3),
    n_tokens=st.integers(1, 16),
    window=st.none() | st.integers(1, 18),
    bias=st.booleans(),
)
def test_explicit_equals_sdpa(
    tiny_model: Make, heads: int, head_dim: int, batch: int, n_tokens: int, window: int | None, bias: bool
) -> None:
    shape = {"emb_dim": heads * head_dim, "n_heads": heads, "sliding_window": window, "qkv_bias": bias}
    fused, explicit = tiny_model(attention="sdpa", **shape), tiny_model(attention="explicit", **shape)
    ids = torch.randint(97, (batch, n_tokens))
    torch.testing.assert_close(fused(ids), explicit(ids), atol=1e-5, rtol=1e-5)


@BOTH
@WINDOWS
def test_attention_weights_are_probabilities_and_the_future_has_exactly_none(
    tiny_model: Make, attention: str, window: int | None
) -> None:
    attend = tiny_model(attention=attention, sliding_window=window).trf_blocks[1].att
    x = torch.randn(2, 16, 12)
    with recorded_attention(attend) as maps:
        attend(x)
        attend(x * 1e4)
    assert attend.attention == attention
    weights = maps[0]
    assert weights.shape == (2, 3, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 16), atol=1e-6, rtol=0)
    positions = torch.arange(16)
    seen = causal_mask(positions, positions, window).expand_as(weights)
    assert (weights[~seen] == 0).all()
    assert (weights[seen] > 0).all()
    assert (maps[1][~seen] == 0).all()  # a finite mask value is outbid by scores this large
    values = attend.W_value(x).view(2, 16, 3, 4).transpose(1, 2)
    merged = attend.out_proj((weights @ values).transpose(1, 2).reshape(2, 16, 12))
    torch.testing.assert_close(merged, attend(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: GELU("foo"), lambda: MultiHeadAttention(4, 4, 4, 0.0, 2, attention="explict")]
)
def test_an_unknown_form_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="^(gelu 'foo'|attention 'explict') must be one of "):
        make()


def test_every_parameter_has_one_role_by_its_use(tiny_model: Make) -> None:
    roles = tiny_model(emb_dim=16, n_heads=2, vocab_size=16, qkv_bias=True).parameter_roles()  # shapes tell nothing
    assert set(roles.values()) == set(ROLES)
    assert [name for name, role in roles.items() if role == "embedding"] == ["tok_emb.weight", "pos_emb.weight"]
    assert [name for name, role in roles.items() if role == "head"] == ["out_head.weight"]
    residual = {name for name, role in roles.items() if role == "residual"}
    assert residual == {f"trf_blocks.{i}.{part}.weight" for i in range(2) for part in ("att.out_proj", "ff.layers.2")}
    hidden = ("att.W_query", "att.W_key", "att.W_value", "ff.layers.0")
    assert {n for n, role in roles.items() if role == "hidden"} == {
        f"trf_blocks.{i}.{part}.weight" for i in range(2) for part in hidden
    }
    assert all(name.endswith("scale") == (role == "scale") for name, role in roles.items())
    assert "head" not in tiny_model(tie_embeddings=True).parameter_roles().values()


# ---- causality ----------------------------------------


@BOTH
@WINDOWS
def test_no_gradient_reaches_the_future_nor_past_the_window(
    tiny_model: Make, attention: str, window: int | None
) -> None:
    T = 8
    model = tiny_model(attention=attention, sliding_window=window)
    layers = len(model.trf_blocks)
    reach = (T if window is None else window - 1) * layers  # each layer looks back by one window less itself
    for t in range(T):
        x = torch.randn(1, T, 12, requires_grad=True)
        (gradient,) = torch.autograd.grad(scores_of(model, x)[0, t].square().sum(), x)
        for j in range(T):
            if j > t or j < t - reach:
                assert (gradient[0, j] == 0).all(), f"scores after {t} depend on token {j}"
            else:
                assert (gradient[0, j] != 0).any(), f"scores after {t} do not depend on token {j}"


@BOTH
@WINDOWS
def test_a_changed_token_leaves_earlier_scores_bit_equal(tiny_model: Make, attention: str, window: int | None) -> None:
    model = tiny_model(attention=attention, sliding_window=window)
    ids = torch.randint(97, (2, 16))
    with torch.no_grad():
        before = model(ids)
        for j in range(16):
            changed = ids.clone()
            changed[:, j] = (changed[:, j] + 1) % 97
            after = model(changed)
            assert torch.equal(after[:, :j], before[:, :j])
            assert not torch.equal(after[:, j], before[:, j])


@BOTH
def test_random_tokens_cannot_be_learned(tiny_model: Make, attention: str) -> None:
    """A leak of the future is learned at once: the loss on text without any order must stay at ln(V)."""
    model = tiny_model(attention=attention, vocab_size=7, emb_dim=16, n_heads=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        ids = torch.randint(7, (16, 17))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 > math.log(7) - 0.03
    assert sum(losses[-20:]) / 20 < math.log(7) + 0.2  # and it did learn that there is nothing to learn


# ---- the whole model ----------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(tiny_model: Make, attention: str, dtype: torch.dtype) -> None:
    ids = torch.randint(97, (2, 9))
    logits = tiny_model(dtype=dtype, attention=attention)(ids)
    assert logits.dtype == dtype
    if dtype is torch.float64:
        torch.testing.assert_close(logits, tiny_model(attention=attention)(ids).double(), atol=1e-4, rtol=1e-4)


def test_last_only_is_the_last_of_all(tiny_model: Make) -> None:
    model, ids = tiny_model(), torch.randint(97, (3, 7))
    last = model(ids, last_only=True)
    assert last.shape == (3, 1, 97)
    torch.testing.assert_close(last, model(ids)[:, -1:], atol=1e-6, rtol=1e-5)


def test_more_tokens_than_positions(tiny_model: Make) -> None:
    with pytest.raises(ValueError, match="^17 tokens exceed the context length of 16$"):
        tiny_model()(torch.zeros(1, 17, dtype=torch.int64))


@BOTH
def test_dropout_acts_in_training_alone_and_everywhere_it_should(tiny_model: Make, attention: str) -> None:
    model, ids = tiny_model(attention=attention, drop_rate=0.5), torch.randint(97, (2, 9))
    assert torch.equal(model(ids), model(ids))
    model.train()
    acts: list[torch.nn.Module] = []
    hooks = [block.drop_shortcut.register_forward_hook(lambda m, *_: acts.append(m)) for block in model.trf_blocks]
    model(ids)
    assert acts == [block.drop_shortcut for block in model.trf_blocks for _ in range(2)]  # on both shortcuts
    for hook in hooks:
        hook.remove()
    dropouts = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert len(dropouts) == 1 + 2 * 2
    assert all(m.p == 0.5 for m in dropouts.values())
    for name in dropouts:  # each alone, the others off
        for other, module in dropouts.items():
            module.train(other == name)
        model.trf_blocks[0].att.train(name == "trf_blocks.0.att.dropout")
        model.trf_blocks[1].att.train(name == "trf_blocks.1.att.dropout")
        assert not torch.equal(model(ids), model(ids)), name


def test_the_simple_generation_is_argmax_over_a_cropped_context(tiny_model: Make) -> None:
    model, ids = tiny_model(), torch.randint(97, (2, 5))
    out = generate_text_simple(model, ids, 20, context_size=8)
    assert out.shape == (2, 25)
    assert torch.equal(out[:, :5], ids)
    for t in range(5, 25):
        scores = model(out[:, max(0, t - 8) : t])[:, -1]
        assert torch.equal(out[:, t], scores.argmax(-1))
    assert not out.requires_grad


def test_a_model_states_its_checked_config() -> None:
    assert GPTModel(BOOK_DICT).config == GPTConfig.of(BOOK_DICT)
