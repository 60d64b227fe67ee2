"""The book's own package beside ours: the same seed gives the same losses, rates, texts and gradients."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from glassgpt import Tokenizer, book

CONFIG: dict[str, Any] = {
    "vocab_size": 257,
    "context_length": 16,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """`llms_from_scratch`, chapters 3 to 5 and appendix D."""
    reason = "llms-from-scratch, the book's own package, is not installed: pip install -e '.[oracles]'"
    pytest.importorskip("llms_from_scratch", reason=reason)
    from llms_from_scratch import appendix_d, ch03, ch04, ch05

    return {**vars(ch03), **vars(ch04), **vars(ch05), **vars(appendix_d)}


def batches(seed: int, n: int) -> DataLoader[tuple[Tensor, Tensor]]:
    ids = torch.randint(257, (n, 9), generator=torch.Generator().manual_seed(seed))
    return DataLoader([(row[:-1], row[1:]) for row in ids], 2)  # type: ignore[arg-type]


def trained(
    make: Callable[..., Any], train: Callable[..., Any], tokenizer: Tokenizer, *arguments: Any, **options: Any
) -> tuple[Any, dict[str, Tensor], str]:
    """What `train` returns, the weights it leaves, and what it prints, all from one seed."""
    torch.manual_seed(7)
    model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.1)
    torch.manual_seed(8)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        returned = train(
            model, batches(1, 12), batches(2, 4), optimizer, "cpu", 3, 4, 2, "To be", tokenizer, *arguments, **options
        )
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".mask")}
    return returned, weights, said.getvalue()


class Strict:
    """The byte tokenizer as the book calls one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encode, self.decode = tokenizer.encode, tokenizer.decode


@pytest.mark.parametrize("warmup_steps", [1, 5, 18, 40])
def test_training_with_warmup_cosine_and_clipping(theirs: Any, tiny_tokenizer: Tokenizer, warmup_steps: int) -> None:
    rates = {"initial_lr": 1e-4, "min_lr": 1e-5}
    ours = trained(book.GPTModel, book.train_model, tiny_tokenizer, warmup_steps, **rates)
    expected = trained(theirs["GPTModel"], theirs["train_model"], Strict(tiny_tokenizer), warmup_steps, **rates)
    (train, val, seen, lrs), weights, said = ours
    (their_train, their_val, their_seen, their_lrs), their_weights, they_said = expected
    assert train == pytest.approx(their_train, abs=1e-5) and val == pytest.approx(their_val, abs=1e-5)
    assert (seen, lrs, said) == (their_seen, their_lrs, they_said)
    assert weights.keys() == their_weights.keys()
    assert all(torch.allclose(weights[name], their_weights[name], atol=1e-5) for name in weights)


def test_the_simple_training_loop(theirs: Any, tiny_tokenizer: Tokenizer) -> None:
    ours = trained(book.GPTModel, book.train_model_simple, tiny_tokenizer)
    expected = trained(theirs["GPTModel"], theirs["train_model_simple"], Strict(tiny_tokenizer))
    for numbers, their_numbers in zip(ours[0], expected[0], strict=True):
        assert numbers == pytest.approx(their_numbers, abs=1e-5)
    assert ours[2] == expected[2]


def test_the_highest_gradient(theirs: Any) -> None:
    torch.manual_seed(7)
    model = book.GPTModel(CONFIG)
    assert book.find_highest_gradient(model) is theirs["find_highest_gradient"](model) is None
    for inputs, targets in batches(1, 4):
        book.calc_loss_batch(inputs, targets, model, "cpu").backward()
    assert torch.equal(book.find_highest_gradient(model), theirs["find_highest_gradient"](model))  # type: ignore[arg-type]


ATTENTION = {
    "SelfAttention_v1": (6, 4),
    "SelfAttention_v2": (6, 4, True),
    "CausalAttention": (6, 4, 5, 0.5),
    "MultiHeadAttentionWrapper": (6, 4, 5, 0.5, 2),
    "MultiHeadAttention": (6, 4, 5, 0.5, 2, True),
    "PyTorchMultiHeadAttention": (6, 4, 2),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_chapter_3(theirs: Any, name: str) -> None:
    """A seed gives the same weights, the same dropout and the same result."""
    results = []
    for make in (getattr(book, name), theirs[name]):
        torch.manual_seed(3)
        module = make(*ATTENTION[name])
        x = torch.rand(5, 6) if name.startswith("SelfAttention") else torch.rand(2, 5, 6)
        results.append(module(x))
    assert torch.allclose(*results, atol=1e-6)


def test_generation(theirs: Any) -> None:
    torch.manual_seed(3)
    ours = book.GPTModel(CONFIG).eval()
    torch.manual_seed(3)
    model = theirs["GPTModel"](CONFIG).eval()
    ids = torch.tensor([[5, 60, 3]])
    for options in ({}, {"temperature": 1.3}, {"temperature": 0.7, "top_k": 5}):
        torch.manual_seed(4)
        expected = theirs["generate"](copy.deepcopy(model), ids, 20, 16, **options)
        torch.manual_seed(4)
        assert torch.equal(book.generate(ours, ids, 20, 16, **options), expected)
