"""On trained weights every way to decode gives the oracle's greedy tokens in float32, within and past the context."""

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_text import shift

from glassgpt import GPTModel, complete
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.decoder import Decoder, Speculative
from glassgpt.generation.graphs import GraphDecoder
from glassgpt.generation.options import Generation
from glassgpt.generation.row import Row
from glassgpt.generation.scheduler import Scheduler
from glassgpt.generation.torch_decoder import CachedDecoder, NaiveDecoder
from glassgpt.model import generate_text_simple

SHAPES: list[dict[str, Any]] = [
    dict(emb_dim=12, n_heads=1),
    dict(emb_dim=21, n_heads=3, qkv_bias=True),  # nothing fits a vector
    dict(emb_dim=40, n_heads=5, tie_embeddings=True, gelu="erf"),
    dict(emb_dim=66, n_heads=2, n_layers=1),  # past two groups of columns, and a panel of rows
    dict(emb_dim=96, n_heads=12, context_length=70),  # past a panel of tokens
    dict(emb_dim=36, n_heads=4, sliding_window=5),
    dict(emb_dim=24, n_heads=2, context_length=1),
    dict(emb_dim=18, n_heads=3, n_layers=1, vocab_size=50257),
    dict(emb_dim=9, n_heads=1, n_layers=1, vocab_size=50257, context_length=1),
]
DECODERS: dict[str, Callable[[GPTModel], Speculative]] = {
    "naive": NaiveDecoder,
    "cached": CachedDecoder,
    "graphs": lambda model: GraphDecoder(model, span=10),
    "compiled": lambda model: CPUDecoder(pack_model(model)),
}
N_NEW = 40


def oracle(model: GPTModel, ids: Sequence[int], overflow: str, eot: int | None) -> list[int]:
    """By `generate_text_simple` alone, which reads the last tokens that fit for each new one."""
    if overflow == "shift":
        return shift(model, ids, N_NEW, model.context_length, eot)
    new = generate_text_simple(model, torch.tensor([ids]), N_NEW, model.context_length)[0, len(ids) :].tolist()
    return list(itertools.takewhile(lambda token: token != eot, new))


def in_chunks(decoder: Decoder, tokenizer: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[Any]:
    """Prompts that take turns, three tokens at a time, beside live rows."""
    scheduler = Scheduler(decoder, chunk=3)
    rows = [Row(prompt, tokenizer, Generation(**options)) for prompt in prompts]
    for row in rows:
        scheduler.submit(row)
    for _ in scheduler.run():
        pass
    return [row.completion() for row in rows]


@pytest.fixture(scope="module")
def expected(trained_model: Callable[..., Any]) -> Callable[..., Any]:
    """Prompts before, at and past the end of the context, and what the oracle writes after them."""

    @functools.cache
    def for_shape(n: int, overflow: str) -> tuple[list[list[int]], list[list[int]]]:
        model, tokenizer, ids = trained_model(**SHAPES[n])
        lengths = sorted({1, 2, model.context_length // 2 + 1, model.context_length, model.context_length + 5})
        prompts = [ids[1000 * i :][:length] for i, length in enumerate(lengths)]
        return prompts, [oracle(model, prompt, overflow, tokenizer.eot_id) for prompt in prompts]

    return for_shape


@pytest.mark.parametrize("overflow", ["slide", "shift"])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("n", range(len(SHAPES)), ids=lambda n: "-".join(f"{k}={v}" for k, v in SHAPES[n].items()))
def test_greedy_tokens_are_the_oracles(
    trained_model: Callable[..., Any], expected: Callable[..., Any], n: int, name: str, overflow: str
) -> None:
    model, tokenizer, _ = trained_model(**SHAPES[n])
    prompts, wanted = expected(n, overflow)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": N_NEW, "overflow": overflow}
    decoder = DECODERS[name]
    ways = {
        "alone": [complete(decoder(model), tokenizer, [prompt], **options)[0] for prompt in prompts],
        "batch": complete(decoder(model), tokenizer, prompts, **options),
        "chunks": in_chunks(decoder(model), tokenizer, prompts, **options),
    }
    if decoder(model).can_cut:
        draft = copy.deepcopy(model)
        with torch.no_grad():  # right and wrong by turns
            draft.out_head.weight.add_(torch.randn_like(draft.out_head.weight), alpha=0.05)
        ways["lookup"] = complete(decoder(model), tokenizer, prompts, speculate="lookup", **options)
        ways["draft"] = complete(decoder(model), tokenizer, prompts, draft=NaiveDecoder(draft), **options)
    for way, rows in ways.items():
        assert [row.ids for row in rows] == wanted, way
