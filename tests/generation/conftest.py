"""Models with trained weights, which random ones do not stand for: their scores have near ties, and large columns."""

from __future__ import annotations

import collections
import functools
import pydoc_data.topics
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer

N_CHARACTERS = 60_000


class Trained(NamedTuple):
    """A model, its tokenizer, and the tokens that it was trained on."""

    model: GPTModel
    tokenizer: Tokenizer
    ids: list[int]


@pytest.fixture(scope="session")
def trained_model() -> Callable[..., Trained]:
    """Trains a small model on Python's manual for a moment: `trained_model(**config)`, in `eval` mode, once for each.

    Its vocabulary is that of 64 characters and an end of text, or GPT-2's for `vocab_size=50257`.
    """
    topics = pydoc_data.topics.topics
    text = "".join(topics[name] for name in sorted(topics))[:N_CHARACTERS]
    common = {character for character, _ in collections.Counter(text).most_common(64)}
    text = "".join(character for character in text if character in common)

    @functools.cache
    def make(**changes: Any) -> Trained:
        shape = {"vocab_size": 65, "context_length": 24, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0}
        config = GPTConfig.of({**shape, **changes})
        tokenizer = Tokenizer.gpt2() if config.vocab_size == 50257 else Tokenizer.characters([text])
        assert tokenizer.n_vocab == config.vocab_size
        ids, context = tokenizer.encode(text), config.context_length
        torch.manual_seed(0)
        model, every = GPTModel(config), torch.tensor(ids)
        steps, tokens = (250, 512) if config.vocab_size == 65 else (60, 192)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(steps):
            windows = every[torch.randint(len(ids) - context, (tokens // context, 1)) + torch.arange(context + 1)]
            scores = model(windows[:, :-1])
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return Trained(model.eval(), tokenizer, ids)

    return make
