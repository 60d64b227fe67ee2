import hashlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

import glassgpt
from glassgpt import KVCache, Tokenizer, book
from glassgpt.book import CachedGPTModel, GPTDatasetV1, GPTModel
from glassgpt.book.appendix_d import learning_rate
from glassgpt.book.generation import next_token_probabilities
from glassgpt.data.corpus import Document
from glassgpt.explain import recorded_attention

CONFIG: dict[str, Any] = {
    "vocab_size": 97,
    "context_length": 16,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
WINDOWS = pytest.mark.parametrize("window", [None, 1, 3, 15, 16, 40])
END = 256  # <|endoftext|> in a vocabulary of bytes

Make = Callable[..., CachedGPTModel]


@pytest.fixture
def make() -> Make:
    """A cached model whose weights are spread wider than PyTorch's, so that a mistake shows."""

    def make(**changes: Any) -> CachedGPTModel:
        torch.manual_seed(0)
        model = CachedGPTModel(CONFIG | changes)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.5 if "emb" in name else 0.2)
        return model.eval()

    return make


def windowed(window: int | None) -> dict[str, Any]:
    return {} if window is None else {"kv_window_size": window}


def prompt(n_tokens: int, batch_size: int = 1) -> Tensor:
    return torch.randint(97, (batch_size, n_tokens), generator=torch.Generator().manual_seed(n_tokens))


# ---- text and data -----------------------------------------------------------------------------------------


@given(n=st.integers(0, 40), max_length=st.integers(1, 12), stride=st.integers(1, 15))
def test_windows_of_the_dataset_start_where_the_books_do(n: int, max_length: int, stride: int) -> None:
    ids = list(range(100, 100 + n))

    class Numbers:
        def encode(self, text: str, *, allowed_special: set[str]) -> list[int]:
            assert allowed_special == {"<|endoftext|>"}
            return ids

        def decode(self, tokens: list[int], /) -> str:
            raise AssertionError("a dataset only encodes")

    dataset = GPTDatasetV1("any", Numbers(), max_length, stride)
    starts = range(0, n - max_length, stride)
    assert len(dataset) == len(starts)
    for i, start in enumerate(starts):
        inputs, targets = dataset[i]
        assert inputs.tolist() == ids[start : start + max_length]
        assert targets.tolist() == ids[start + 1 : start + max_length + 1]


def test_overlapping_windows_share_one_copy_of_the_tokens(tiny_tokenizer: Tokenizer) -> None:
    dataset = GPTDatasetV1("x" * 1000, tiny_tokenizer, 500, 1)
    assert len(dataset) == 500
    assert dataset.input_ids.untyped_storage().nbytes() <= 1000 * 8


@pytest.mark.parametrize("sizes", [(0, 1), (4, 0), (-1, 1)])
def test_a_size_below_one_is_refused(sizes: tuple[int, int], tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^(max_length|stride) (0|-1) is below 1$"):
        GPTDatasetV1("text", tiny_tokenizer, *sizes)


def test_end_of_text_is_one_token_in_the_dataset() -> None:
    loader = book.create_dataloader_v1("a<|endoftext|>b c d", batch_size=1, max_length=3, stride=3, shuffle=False)
    inputs, targets = next(iter(loader))
    assert inputs.tolist() == [[64, 50256, 65]]
    assert targets.tolist() == [[50256, 65, 269]]


def test_the_dataloader_has_the_books_defaults(sample_text: str) -> None:
    loader = book.create_dataloader_v1(sample_text * 4)
    assert (loader.batch_size, loader.drop_last, loader.num_workers) == (4, True, 0)
    inputs, targets = next(iter(loader))
    assert inputs.shape == targets.shape == (4, 256) and inputs.dtype == torch.int64
    starts = loader.dataset.input_ids.storage_offset()
    assert loader.dataset[1][0].storage_offset() - starts == 128

    def order(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return [int(inputs[0, 0]) for inputs, _ in book.create_dataloader_v1(sample_text * 4, 1, 16, 16)]

    assert order(1) == order(1) != order(2)


def test_batches_in_order_with_the_last_incomplete_one(sample_text: str) -> None:
    loader = book.create_dataloader_v1(sample_text, 5, 16, 16, shuffle=False, drop_last=False)
    ids = book.gpt2_tokenizer().encode(sample_text)
    inputs = torch.cat([inputs for inputs, _ in loader])
    assert inputs.flatten().tolist() == ids[: len(inputs) * 16]
    assert len(inputs) == (len(ids) - 1) // 16 and len(inputs) % 5


def test_a_text_too_short_for_a_window() -> None:
    with pytest.raises(ValueError, match=r"has 2 tokens, but a window of 8 needs 9: use a smaller max_length"):
        book.create_dataloader_v1("Hello there", max_length=8)
    assert len(book.create_dataloader_v1("Hello there", max_length=8, shuffle=False, drop_last=False)) == 0


def test_text_to_ids_and_back() -> None:
    tokenizer = book.gpt2_tokenizer()
    ids = book.text_to_token_ids("Hello, I am", tokenizer)
    assert ids.tolist() == [[15496, 11, 314, 716]]
    assert book.token_ids_to_text(ids, tokenizer) == book.token_ids_to_text(ids[0], tokenizer) == "Hello, I am"
    assert book.text_to_token_ids("", tokenizer).shape == (1, 0)
    assert book.text_to_token_ids("", tokenizer).dtype == torch.int64
    with pytest.raises(ValueError, match=r"^2 rows of ids are 2 texts"):
        book.token_ids_to_text(ids.repeat(2, 1), tokenizer)


def test_a_tokenizer_of_tiktoken_does_as_well() -> None:
    encoding = tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": END},
    )
    ids = book.text_to_token_ids("hé<|endoftext|>", encoding)
    assert ids.tolist() == [[*"hé".encode(), END]]
    assert book.token_ids_to_text(ids, encoding) == "hé<|endoftext|>"
    assert GPTDatasetV1("a<|endoftext|>b", encoding, 2, 1).target_ids.tolist() == [[END, ord("b")]]


def test_the_training_text_is_the_first_one_found(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder in folders[1:]:
        folder.mkdir()
        (folder / "the-verdict.txt").write_text(f"This is {folder.name}.\n", encoding="utf-8")
    assert book.training_text(folders, report=pytest.fail) == "This is b.\n"


def test_without_text_and_network_it_says_so_and_takes_the_manual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    manual = [Document.from_text(name, f"{name} " * 5000) for name in ("verse", "chapter", "word")]
    monkeypatch.setattr(book.data, "default_corpus", lambda: manual)
    said: list[str] = []
    assert book.training_text([tmp_path], said.append) == ("chapter " * 5000)[:20_479]
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("No the-verdict.txt here, and none from https://raw.githubusercontent.com/rasbt/")
    assert not list(tmp_path.iterdir())


def test_the_fetched_text_is_checked_and_kept(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = shared_data / "the-verdict.txt"

    def fetch(url: str, destination: Path, *, sha256: str, **_: Any) -> Path:
        assert url.endswith("/ch02/01_main-chapter-code/the-verdict.txt")
        assert sha256 == hashlib.sha256(verdict.read_bytes()).hexdigest()
        destination.write_bytes(verdict.read_bytes())
        return destination

    monkeypatch.setattr(book.data, "download_file", fetch)
    text = book.training_text([tmp_path], report=pytest.fail)
    assert text == verdict.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["the-verdict.txt"]
    assert (tmp_path / "the-verdict.txt").read_bytes() == verdict.read_bytes()


# ---- the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GPTModel, CachedGPTModel])
def test_a_seed_gives_the_cores_model_with_explicit_attention(kind: type[GPTModel]) -> None:
    torch.manual_seed(3)
    core = glassgpt.GPTModel(CONFIG)
    torch.manual_seed(3)
    model = kind(CONFIG)
    assert model.config == core.config.replace(attention="explicit")
    assert model.state_dict().keys() == core.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), core.parameters(), strict=True))


@pytest.mark.parametrize("kind", [GPTModel, CachedGPTModel])
def test_the_books_checkpoints_load_strictly(kind: type[GPTModel]) -> None:
    source = glassgpt.GPTModel(CONFIG)
    masks = {f"trf_blocks.{i}.att.mask": torch.ones(16, 16).triu(diagonal=1) for i in range(CONFIG["n_layers"])}
    model = kind(CONFIG)
    model.load_state_dict(source.state_dict() | masks)
    assert torch.allclose(model.eval()(prompt(5)), source.eval()(prompt(5)), atol=1e-6)


def test_what_the_books_dict_may_say() -> None:
    assert GPTModel(CONFIG | {"attention": "sdpa"}).config.attention == "sdpa"
    assert GPTModel(glassgpt.GPTConfig.of(CONFIG)).config.attention == "sdpa"
    assert GPTModel(CONFIG | {"kv_window_size": 15}).config.sliding_window == 15
    assert GPTModel(CONFIG | {"kv_window_size": 16}).config.sliding_window is None
    assert GPTModel(CONFIG).config.sliding_window is None
    with pytest.raises(ValueError, match="kv_windw_size"):
        GPTModel(CONFIG | {"kv_windw_size": 4})
    with pytest.raises(
        ValueError, match=r"^sliding_window 0 must be a whole number, at least 1 and at most 2147483648, or None$"
    ):
        GPTModel(CONFIG | {"kv_window_size": 0})


def test_a_block_from_the_books_dict_draws_the_books_dropout() -> None:
    block = book.TransformerBlock(CONFIG | {"drop_rate": 0.5})
    assert block.att.attention == "explicit"
    x = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    got = block(x)
    torch.manual_seed(5)
    with recorded_attention(block.att.eval()) as maps:
        block.att(block.norm1(x))
    weights = maps[0]
    keep = torch.empty_like(weights).bernoulli_(0.5)
    values = block.att.W_value(block.norm1(x)).view(2, 4, 3, 4).transpose(1, 2)
    context = ((weights * keep / 0.5) @ values).transpose(1, 2).reshape(2, 4, 12)
    x = x + F.dropout(block.att.out_proj(context), 0.5)
    assert torch.allclose(got, x + F.dropout(block.ff(block.norm2(x)), 0.5), atol=1e-6)


# ---- the cache inside the model ----------------------------------------------------------------------------


@WINDOWS
@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
def test_cached_calls_give_the_uncached_scores(make: Make, window: int | None, attention: str) -> None:
    model = make(**windowed(window), attention=attention)
    ids = prompt(16, batch_size=3)
    whole = model(ids)
    for cuts in ([], [1], [7], [15], [3, 4, 11], list(range(1, 16))):
        model.reset_kv_cache()
        edges = [0, *cuts, 16]
        parts = [model(ids[:, a:b], use_cache=True) for a, b in pairwise(edges)]
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)


def test_use_cache_may_be_given_by_place(make: Make) -> None:
    model = make()
    ids = prompt(6)
    model(ids[:, :5], True)
    assert torch.allclose(model(ids[:, 5:], True), model(ids, False)[:, 5:], atol=1e-4)


@WINDOWS
def test_an_uncached_call_in_between_changes_nothing(make: Make, window: int | None) -> None:
    model = make(**windowed(window))
    ids = prompt(9)
    whole = model(ids)
    model(ids[:, :4], use_cache=True)
    assert torch.equal(model(ids), whole)
    model(prompt(16, batch_size=2))
    got = model(ids[:, 4:], use_cache=True)
    assert torch.allclose(got, whole[:, 4:], atol=1e-4)


@WINDOWS
def test_a_call_that_fails_half_way_is_as_if_it_had_not_been(make: Make, window: int | None) -> None:
    model = make(**windowed(window))
    ids = prompt(9)
    whole = model(ids)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    for fed in (0, 4):
        model.reset_kv_cache()
        if fed:
            model(ids[:, :fed], use_cache=True)
        hook = model.trf_blocks[1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(prompt(3, batch_size=1 if fed else 2), use_cache=True)
        hook.remove()
        with pytest.raises(ValueError, match="exceed"):
            model(prompt(16 if fed else 17), use_cache=True)
        with pytest.raises(IndexError):
            model(torch.tensor([[97]]), use_cache=True)
        assert torch.allclose(model(ids[:, fed:], use_cache=True), whole[:, fed:], atol=1e-4)


def test_the_position_table_ends_with_a_clear_error(make: Make) -> None:
    model = make()
    model(prompt(16), use_cache=True)
    message = r"^16 cached and 1 new tokens exceed the cache's capacity of 16: shorten the prompt or ask for fewer"
    with pytest.raises(ValueError, match=message):
        model(prompt(1), use_cache=True)
    model.reset_kv_cache()
    assert torch.allclose(model(prompt(1), use_cache=True), model(prompt(1)), atol=1e-4)


def test_another_batch_or_dtype_needs_a_reset(make: Make) -> None:
    model = make()
    model(prompt(3, batch_size=2), use_cache=True)
    with pytest.raises(ValueError, match=r"batch size 2, .* this call has batch size 1, .*reset_kv_cache\(\)"):
        model(prompt(1), use_cache=True)
    with pytest.raises(ValueError, match=r"torch.float32 on cpu, .* torch.float64 on cpu: call reset"):
        model.double()(prompt(1, batch_size=2), use_cache=True)
    model.reset_kv_cache()
    assert model(prompt(1), use_cache=True).dtype == torch.float64


def test_the_cache_keeps_no_gradients_and_stays_out_of_checkpoints(make: Make) -> None:
    model = make()
    assert model(prompt(2)).requires_grad
    assert not model(prompt(2), use_cache=True).requires_grad
    model.load_state_dict(glassgpt.GPTModel(CONFIG).state_dict())


def test_the_cores_own_cache_and_generation_work_on_it(make: Make, tiny_tokenizer: Tokenizer) -> None:
    model = make(vocab_size=tiny_tokenizer.n_vocab, context_length=32)
    core = glassgpt.GPTModel(model.config)
    core.load_state_dict(model.state_dict())
    cache = model.new_cache()
    assert isinstance(cache, KVCache)
    model(prompt(4), cache)
    assert cache.lengths.tolist() == [4]
    options: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0}
    written = [glassgpt.generate(m, tiny_tokenizer, "Every effort", **options) for m in (model, core)]
    assert written[0] == written[1]


# ---- greedy generation with it -----------------------------------------------------------------------------


@WINDOWS
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 20])
def test_cached_generation_is_the_plain_one(make: Make, window: int | None, use_cache: bool, n: int) -> None:
    model = make(**windowed(window))
    for batch_size, n_new in ((1, 12), (3, 1), (2, 0), (1, 12)):
        ids = prompt(n, batch_size)
        expected = book.generate_text_simple(model, ids, n_new, 16)
        got = book.generate_text_simple_cached(model, ids, n_new, use_cache=use_cache)
        assert torch.equal(got, expected)
        got = book.generate_within_context(model, ids, n_new, use_cache=use_cache)
        assert torch.equal(got, expected[:, : max(16, n)])


@pytest.mark.parametrize("context_size", [1, 5, 16, 100])
def test_a_context_size_of_ones_own(make: Make, context_size: int) -> None:
    model, ids = make(), prompt(3)
    expected = book.generate_text_simple(model, ids, 20, min(context_size, 16))
    assert torch.equal(book.generate_text_simple_cached(model, ids, 20, context_size), expected)
    stopped = book.generate_within_context(model, ids, 20, context_size)
    assert torch.equal(stopped, expected[:, : max(3, min(context_size, 16))])


def test_each_token_is_read_once_and_a_long_prompt_in_pieces_of_the_window(make: Make) -> None:
    model = make(kv_window_size=4)
    read: list[int] = []
    model.tok_emb.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    book.generate_within_context(model, prompt(10), 4)
    assert read == [4, 4, 2, 1, 1, 1]
    read.clear()
    book.generate_text_simple_cached(model, prompt(10), 7)
    assert read == [4, 4, 2, *[1] * 6]
    assert model._kv_cache is not None and model._kv_cache.keys.shape[3] == 4


def test_generation_ends_as_it_began(make: Make) -> None:
    model = make().train()
    book.generate_text_simple_cached(model, prompt(3), 2)
    assert model.training
    hook = model.final_norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        book.generate_text_simple_cached(model, prompt(3), 2)
    assert model.training
    hook.remove()
    got = book.generate_text_simple_cached(model, prompt(3, batch_size=2), 9)
    assert torch.equal(got, book.generate_text_simple(model.eval(), prompt(3, batch_size=2), 9, 16))


@pytest.mark.parametrize("write", [book.generate_text_simple_cached, book.generate_within_context])
def test_arguments_of_cached_generation_that_cannot_be_meant(make: Make, write: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        write(make(), prompt(0), 3)
    with pytest.raises(ValueError, match="context_size 0 is below 1"):
        write(make(), prompt(3), 3, 0)


def test_what_the_books_scripts_show(make: Make, tiny_tokenizer: Tokenizer) -> None:
    model = make(vocab_size=257, context_length=32).train()
    said: list[str] = []
    book.show_generation(model, book.generate_within_context, tiny_tokenizer, max_new_tokens=3, report=said.append)
    ids = book.text_to_token_ids("Hello, I am", tiny_tokenizer)
    out = book.generate_text_simple(model.eval(), ids, 3, 32)
    shown = "\n".join(said)
    assert f"Encoded input text: {list(b'Hello, I am')}" in shown
    assert f"Output: {out[0].tolist()}\nOutput length: 14" in shown
    assert f"Output text: {tiny_tokenizer.decode(out[0].tolist())}" in shown
    assert "for 3 tokens" in shown


# ---- generate: temperature, top-k, end of text -------------------------------------------------------------


class Scripted(nn.Module):
    """Scores that depend on the row and the number of tokens alone: (rows, steps, vocab_size)."""

    def __init__(self, scores: Any, n_prompt: int = 1) -> None:
        super().__init__()
        self.scores, self.n_prompt = torch.as_tensor(scores, dtype=torch.float32), n_prompt

    def forward(self, ids: Tensor) -> Tensor:
        step = min(ids.shape[1] - self.n_prompt, self.scores.shape[1] - 1)
        return self.scores[: len(ids), None, step].expand(-1, ids.shape[1], -1)


def likes(*rows: list[int]) -> Scripted:
    """Row r prefers token rows[r][step]."""
    return Scripted(F.one_hot(torch.tensor(rows), 10) * 9.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [76, 80, 75, 83, 43, 89, 8, 53, 46, 59, 11, 95, 14, 83, 43, 49, 83, 43, 49, 83]),
        ({"temperature": 1.0}, [66, 61, 57, 1, 30, 71, 70, 11, 13, 17, 87, 41, 84, 54, 4, 78, 54, 78, 8, 52]),
        (
            {"temperature": 0.7, "top_k": 5},
            [66, 60, 14, 74, 2, 92, 29, 43, 45, 17, 82, 41, 51, 82, 46, 43, 49, 8, 69, 83],
        ),
        ({"temperature": 0.1, "top_k": 5, "eos_id": 41}, [66, 17, 71, 70, 72, 53, 6, 54, 46, 82]),
    ],
)
def test_the_books_seeds_give_the_books_tokens(options: dict[str, Any], expected: list[int]) -> None:
    # Written by the book's own generate on the same model (package llms-from-scratch 1.0.19, torch 2.13.0).
    torch.manual_seed(7)
    model = GPTModel(CONFIG).eval()
    torch.manual_seed(123)
    out = book.generate(model, torch.tensor([[5, 60, 3]]), 20, context_size=16, **options)
    assert out[0, 3:].tolist() == expected


def test_greedy_is_generate_text_simple(make: Make) -> None:
    model, ids = make(), prompt(5, batch_size=3)
    expected = book.generate_text_simple(model, ids, 20, 16)
    assert torch.equal(book.generate(model, ids, 20, 16), expected)
    assert torch.equal(book.generate(model, ids, 20, 16, top_k=3), expected)
    assert torch.equal(book.generate(model, ids, 20, 16, top_k=1, temperature=2.0), expected)


def test_top_k_is_chosen_in_each_row_by_itself() -> None:
    low, high = torch.arange(10.0), torch.arange(10.0).flip(0) + 100
    model = Scripted(torch.stack([low, high])[:, None])
    torch.manual_seed(0)
    out = book.generate(model, torch.zeros(2, 1, dtype=torch.int64), 300, 1, temperature=10.0, top_k=3)
    assert [set(row.tolist()) for row in out[:, 1:]] == [{7, 8, 9}, {0, 1, 2}]


def test_top_k_keeps_ties_and_may_pass_the_vocabulary() -> None:
    model = Scripted([[[1.0, 5.0, 5.0, 5.0, 0.0]]])
    start = torch.zeros(1, 1, dtype=torch.int64)
    torch.manual_seed(0)
    out = book.generate(model, start, 200, 1, temperature=1.0, top_k=2)
    assert set(out[0, 1:].tolist()) == {1, 2, 3}
    out = book.generate(model, start, 300, 1, temperature=50.0, top_k=1000)
    assert set(out[0].tolist()) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_fewest_that_reach_it_in_each_row() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.4, 0.0], [0.97, 0.01, 0.01, 0.01]]).log()
    for top_p, kept in ((0.05, [{1}, {0}]), (0.45, [{1}, {0}]), (0.6, [{1, 2}, {0}]), (0.95, [{0, 1, 2}, {0}])):
        got = next_token_probabilities(scores, top_p=top_p)
        assert [{i for i, p in enumerate(row) if p > 0} for row in got.tolist()] == kept
        assert torch.allclose(got.sum(dim=-1), torch.ones(2))
    assert torch.equal(next_token_probabilities(scores, top_p=1.0), next_token_probabilities(scores))
    assert torch.allclose(next_token_probabilities(scores, top_p=0.6)[0], torch.tensor([0, 5 / 9, 4 / 9, 0]))
    # after the temperature, and after top-k
    assert (next_token_probabilities(scores, 9.0, top_p=0.8)[0] > 0).sum() == 3
    assert (next_token_probabilities(scores, 9.0, top_k=2, top_p=0.8)[0] > 0).sum() == 2


def test_generate_draws_from_these_probabilities() -> None:
    model = Scripted(torch.tensor([[[0.1, 0.5, 0.4, 0.0]]]).log())
    start = torch.zeros(1, 1, dtype=torch.int64)
    torch.manual_seed(0)
    assert set(book.generate(model, start, 200, 1, temperature=1.0, top_p=0.6)[0, 1:].tolist()) == {1, 2}
    assert book.generate(model, start, 3, 1, top_p=0.6)[0, 1:].tolist() == [1, 1, 1]


def test_temperature_scales_the_scores() -> None:
    model = Scripted([[[math.log(8.0), 0.0]]])
    torch.manual_seed(0)
    start = torch.zeros(1000, 1, dtype=torch.int64)
    model.scores = model.scores.expand(1000, 1, 2)
    for temperature, odds in ((1.0, 8.0), (3.0, 2.0)):
        drawn = book.generate(model, start, 1, 1, temperature=temperature)[:, 1]
        assert abs(float(drawn.float().mean()) - 1 / (1 + odds)) < 0.05


def test_each_row_ends_by_itself() -> None:
    model = likes([1, 7, 2, 3, 4], [5, 6, 1, 7, 4], [7, 1, 1, 1, 1])
    start = torch.zeros(3, 1, dtype=torch.int64)
    out = book.generate(model, start, 5, 9, eos_id=7)
    assert out.tolist() == [[0, 1, 7, 7], [0, 5, 6, 1], [0, 7, 7, 7]]
    assert book.generate(model, start, 5, 9)[0].tolist() == [0, 1, 7, 2, 3, 4]
    assert book.generate(model, start, 2, 9, eos_id=7).tolist() == [[0, 1, 7], [0, 5, 6], [0, 7, 7]]


def test_one_row_ends_as_in_the_book_without_its_end() -> None:
    start = torch.zeros(1, 1, dtype=torch.int64)
    assert book.generate(likes([1, 2, 7, 3]), start, 4, 9, eos_id=7).tolist() == [[0, 1, 2]]
    assert book.generate(likes([0, 0]), start, 4, 9, eos_id=0).tolist() == [[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"^temperature -1.0 must be 0 \(greedy\) or above$"),
        ({"temperature": math.nan}, r"^temperature nan must be"),
        ({"top_k": 0}, r"^top_k 0 is below 1"),
        ({"top_p": 0.0}, r"^top_p 0.0 must be above 0 and at most 1$"),
        ({"top_p": 1.5}, r"^top_p 1.5 must be"),
    ],
)
def test_values_of_generate_out_of_range(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        book.generate(make(), prompt(3), 2, 16, **options)
    with pytest.raises(ValueError, match="the prompt is empty"):
        book.generate(make(), prompt(0), 2, 16)


# ---- training ----------------------------------------------------------------------------------------------


def loader(n_tokens: int, batch_size: int = 2) -> DataLoader[tuple[Tensor, Tensor]]:
    ids = prompt(n_tokens + 1)[0]
    rows = [(ids[i : i + 8], ids[i + 1 : i + 9]) for i in range(0, n_tokens - 7, 8)]
    return DataLoader(rows, batch_size)  # type: ignore[arg-type]


def test_the_loss_is_the_mean_of_minus_log_probabilities(make: Make) -> None:
    model, ids = make(), prompt(9, batch_size=2)
    loss = book.calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu")
    logs = model(ids[:, :-1]).log_softmax(dim=-1)
    picked = [logs[row, place, ids[row, place + 1]] for row in range(2) for place in range(8)]
    assert loss.item() == pytest.approx(-torch.stack(picked).mean().item(), abs=1e-5)
    assert loss.requires_grad and loss.shape == ()


def test_the_loss_of_a_loader(make: Make) -> None:
    model = make()
    batches = [book.calc_loss_batch(x, y, model, "cpu").item() for x, y in loader(48)]
    assert len(batches) == 3
    assert book.calc_loss_loader(loader(48), model, "cpu") == pytest.approx(sum(batches) / 3)
    assert book.calc_loss_loader(loader(48), model, "cpu", num_batches=2) == pytest.approx(sum(batches[:2]) / 2)
    assert book.calc_loss_loader(loader(48), model, "cpu", num_batches=99) == pytest.approx(sum(batches) / 3)
    assert math.isnan(book.calc_loss_loader(loader(0), model, "cpu"))
    assert math.isnan(book.calc_loss_loader(loader(48), model, "cpu", num_batches=0))


def test_evaluation_is_without_dropout_and_leaves_the_mode(make: Make) -> None:
    model = make(drop_rate=0.5).train()
    first = book.evaluate_model(model, loader(48), loader(24), "cpu", eval_iter=1)
    assert first == book.evaluate_model(model, loader(48), loader(24), "cpu", eval_iter=1)
    assert model.training
    expected = book.calc_loss_loader(loader(24), model.eval(), "cpu", 1)
    assert first[1] == pytest.approx(expected) and first[0] != first[1]
    book.evaluate_model(model, loader(48), loader(24), "cpu", eval_iter=1)
    assert not model.training


def test_training_learns_evaluates_and_reports(
    make: Make, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(vocab_size=257, drop_rate=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train, val = loader(48), loader(24)
    losses, val_losses, tokens_seen = book.train_model_simple(
        model, train, val, optimizer, "cpu", 8, 4, 9, "Every effort", tiny_tokenizer
    )
    assert len(losses) == len(val_losses) == 6  # steps 0, 4, … 20 of 24
    assert tokens_seen == [16 * (step + 1) for step in range(0, 24, 4)]
    assert losses[-1] < losses[0] - 1
    assert model.training
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 6 + 8 + 1
    assert lines[0] == f"Ep 1 (Step 000000): Train loss {losses[0]:.3f}, Val loss {val_losses[0]:.3f}"
    assert lines[1].startswith("Every effort")
    assert lines[2].startswith("Ep 2 (Step 000004): ")


def test_a_step_is_one_gradient_of_one_batch(make: Make, tiny_tokenizer: Tokenizer) -> None:
    trained, model = make(vocab_size=257, drop_rate=0.0), make(vocab_size=257, drop_rate=0.0)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    book.train_model_simple(trained, loader(48), loader(8), optimizer, "cpu", 2, 99, 1, "x", tiny_tokenizer)
    for inputs, targets in [*loader(48), *loader(48)]:
        gradients = torch.autograd.grad(book.calc_loss_batch(inputs, targets, model, "cpu"), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    for got, expected in zip(trained.parameters(), model.parameters(), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_the_sample_is_greedy_and_one_line(make: Make, tiny_tokenizer: Tokenizer) -> None:
    model = make(vocab_size=257).train()
    with torch.no_grad():
        model.tok_emb.weight[ord("\n")] *= 9
    said: list[str] = []
    book.generate_and_print_sample(model, tiny_tokenizer, "cpu", "To be\nor not", report=said.append)
    assert model.training
    ids = book.text_to_token_ids("To be\nor not", tiny_tokenizer)
    out = book.generate_text_simple(model.eval(), ids, 50, 16)
    assert said == [tiny_tokenizer.decode(out[0].tolist()).replace("\n", " ")]


def test_training_without_a_batch_is_refused(make: Make, tiny_tokenizer: Tokenizer) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the training loader has no batch: use a smaller batch_size"):
        book.train_model_simple(model, loader(0), loader(8), optimizer, "cpu", 1, 1, 1, "x", tiny_tokenizer)


# ---- appendix D ------------------------------------------------------------------------------------------------------


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    shape: dict[str, Any] = {"peak_lr": 1.0, "warmup_steps": 4, "initial_lr": 0.2, "min_lr": 0.1}
    rates = [learning_rate(step, 14, **shape) for step in range(14)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[9] == pytest.approx(0.55)  # half-way down
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[13] == pytest.approx(0.1 + 0.9 * 0.02447, abs=1e-4)
    assert learning_rate(0, 14, **shape | {"warmup_steps": 0}) == 1.0


def test_training_with_a_schedule_clips_and_says_its_rates(
    make: Make, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(vocab_size=257, drop_rate=0.0)
    with torch.no_grad():
        model.out_head.weight *= 20  # gradients far above a norm of 1
    norms: list[float] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
    )
    losses, val_losses, tokens_seen, rates = book.train_model(
        model, loader(48), loader(24), optimizer, "cpu", 3, 4, 9, "Every effort", tiny_tokenizer, warmup_steps=3
    )
    assert len(losses) == len(val_losses) == 3 and tokens_seen == [16, 16 * 5, 16 * 9]
    assert rates == pytest.approx(
        [learning_rate(i, 9, peak_lr=0.01, warmup_steps=3, initial_lr=3e-5, min_lr=1e-6) for i in range(9)]
    )
    assert optimizer.param_groups[0]["lr"] == rates[-1]
    assert min(norms[:3]) > 1.5 and norms[3:] == pytest.approx([1.0] * 6, abs=1e-3)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3 + 3 + 1
    assert lines[0] == f"Ep 1 (Iter 000000): Train loss {losses[0]:.3f}, Val loss {val_losses[0]:.3f}"


def test_what_cannot_be_trained_with_a_schedule(make: Make, tiny_tokenizer: Tokenizer) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for train, warmup_steps, message in ((loader(0), 1, "has no batch"), (loader(8), -1, "warmup_steps -1 must be at")):
        with pytest.raises(ValueError, match=message):
            book.train_model(model, train, loader(8), optimizer, "cpu", 1, 1, 1, "x", tiny_tokenizer, warmup_steps)


def test_the_highest_gradient_is_the_largest_entry_with_its_sign(make: Make) -> None:
    model = make()
    assert book.find_highest_gradient(model) is None
    model.pos_emb.weight.grad = torch.full_like(model.pos_emb.weight, -5.0)
    assert book.find_highest_gradient(model) == -5.0
    model.final_norm.scale.grad = torch.arange(12.0)
    assert book.find_highest_gradient(model) == 11.0


# ---- the loss curve --------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MPLBACKEND", "agg")
    plt = pytest.importorskip("matplotlib.pyplot", reason="the loss curve is drawn by matplotlib")
    yield plt
    plt.close("all")


def test_the_loss_curve(pyplot: Any, tmp_path: Path) -> None:
    figure = book.plot_losses(torch.linspace(0, 2, 3), [10, 20, 30], [3.0, 2.0, 1.0], [3.5, 3.0, 2.5])
    assert figure is pyplot.gcf()
    losses, top = figure.axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[3.0, 2.0, 1.0], [3.5, 3.0, 2.5]]
    assert [text.get_text() for text in losses.get_legend().get_texts()] == [
        "Training loss",
        "Validation loss",
    ]
    assert (losses.get_xlabel(), losses.get_ylabel(), top.get_xlabel()) == ("Epochs", "Loss", "Tokens seen")
    assert top.lines[0].get_xdata().tolist() == [10, 20, 30]
    figure.savefig(tmp_path / "loss.pdf")
    assert (tmp_path / "loss.pdf").read_bytes().startswith(b"%PDF")
