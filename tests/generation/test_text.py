import dataclasses
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTModel, Tokenizer, complete, generate, stream
from glassgpt.generation.decoder import Decoder, Prefix, Scores
from glassgpt.generation.loop import window_start
from glassgpt.generation.options import Generation, GenerationKeywords
from glassgpt.generation.row import Completion, Row
from glassgpt.generation.torch_decoder import CachedDecoder, NaiveDecoder
from glassgpt.model import generate_text_simple
from glassgpt.options import Options
from glassgpt.tokenizer import StreamDecoder
from glassgpt.training.settings import Settings, SettingsKeywords

Make = Callable[..., GPTModel]
EOT = 256  # of the byte tokenizer
CONTEXT = 32
PROMPTS = ["T", "Hello, I am", "What is", "\n", "naïve 😀", "x" * 17]
OPTIONS = [
    {"temperature": 0},
    {"seed": 3},
    {"seed": 4, "temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2},
    {"seed": 5, "presence_penalty": 0.7, "frequency_penalty": 0.3, "logit_bias": {97: 2.5, 10: -100}},
]


@pytest.fixture(scope="module")
def model(tiny_model: Make) -> GPTModel:
    """A model of bytes with three ids more than its tokenizer, as padded vocabularies have."""
    return tiny_model(vocab_size=260, context_length=CONTEXT, qkv_bias=True)


@dataclasses.dataclass
class Script:
    """A prefix: what a row will write, and where it is."""

    n_tokens: int
    scores: np.ndarray
    left: Iterator[int]


class Scripted(Decoder):
    """A decoder without a model that makes greedy rows write what a script says, token by token."""

    vocab_size, context_length = 300, 100

    def __init__(self, *scripts: Sequence[int]) -> None:
        self._scripts = [iter(script) for script in scripts]
        self._rows: list[Iterator[int]] = []
        self.dropped: list[int] = []

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> Script:
        script = self._scripts.pop(0)
        return Script(len(tokens), self._next(script), script)

    def join(self, prefix: Prefix) -> None:
        assert isinstance(prefix, Script)
        self._rows.append(prefix.left)

    def step(self, tokens: Sequence[int]) -> Scores:
        assert len(tokens) == len(self._rows)
        return np.stack([self._next(row) for row in self._rows])

    def drop(self, row: int) -> None:
        self.dropped.append(row)
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def _next(self, script: Iterator[int]) -> np.ndarray:
        return np.eye(300, dtype=np.float32)[next(script)]


def written(tokenizer: Tokenizer, script: Sequence[int], **options: Any) -> tuple[Completion, list[str]]:
    """What a row becomes that writes `script`, and the same as it is streamed."""
    options = {"temperature": 0, "max_new_tokens": len(script), "overflow": "slide"} | options
    (result,) = complete(Scripted(script), tokenizer, ["p"], **options)
    pieces = list(stream(Scripted(script), tokenizer, "p", **options))
    return result, pieces


# ---- one result on every path ----------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 5}, {"attention": "explicit"}, {"tie_embeddings": True}])
def test_cached_is_naive_batched_is_alone_streamed_is_whole(
    tiny_model: Make, tiny_tokenizer: Tokenizer, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    model = tiny_model(vocab_size=260, context_length=CONTEXT, **changes)
    options = {**options, "max_new_tokens": 40, "overflow": "slide"}  # past the context, for every prompt
    batch = complete(model, tiny_tokenizer, PROMPTS, **options)
    assert batch == complete(NaiveDecoder(model), tiny_tokenizer, PROMPTS, **options)
    for prompt, row in zip(PROMPTS, batch, strict=True):
        assert complete(model, tiny_tokenizer, [prompt], **options) == [row]
        assert "".join(stream(model, tiny_tokenizer, prompt, **options)) == row.text
        assert generate(model, tiny_tokenizer, prompt, **options) == row.text
    assert generate(model, tiny_tokenizer, PROMPTS, **options) == [row.text for row in batch]
    assert [row.n_prompt_tokens for row in batch] == [len(p.encode()) for p in PROMPTS]
    assert any(row.finish_reason == "length" for row in batch)


def test_greedy_is_the_books_generation_also_past_the_context(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=256, context_length=16)  # no end of text
    tokenizer = Tokenizer.characters([chr(i) for i in range(255)])
    for prompt in ("a", "Hello", "x" * 16, "y" * 30):
        ids = tokenizer.encode(prompt)
        wanted = generate_text_simple(model, torch.tensor([ids]), 40, 16)[0, len(ids) :].tolist()
        wanted = list(itertools.takewhile(lambda i: i != tokenizer.eot_id, wanted))
        (row,) = complete(model, tokenizer, [prompt], temperature=0, max_new_tokens=40, overflow="slide")
        assert row.ids == wanted


@given(prompts=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=5), data=st.data())
def test_a_rows_text_depends_on_its_prompt_and_seed_alone(
    model: GPTModel, tiny_tokenizer: Tokenizer, prompts: list[str], data: st.DataObject
) -> None:
    seeds = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(prompts), max_size=len(prompts)))
    order = data.draw(st.permutations(range(len(prompts))))
    options = {"max_new_tokens": 10, "overflow": "slide", "temperature": 1.5}
    rows = complete(model, tiny_tokenizer, prompts, seeds=seeds, **options)
    shuffled = complete(model, tiny_tokenizer, [prompts[i] for i in order], seeds=[seeds[i] for i in order], **options)
    assert [rows[i] for i in order] == shuffled


def test_no_prompts_are_no_texts(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    assert complete(model, tiny_tokenizer, [], max_new_tokens=10 * CONTEXT) == []


def test_seeds(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    def texts(seed: Any) -> list[str]:
        seeds = {"seeds": seed} if isinstance(seed, list) else {"seed": seed}
        return [row.text for row in complete(model, tiny_tokenizer, ["a"] * 3, max_new_tokens=12, **seeds)]

    assert len(set(texts(1))) == 1  # the same prompt and seed
    assert len(set(texts([1, 2, 3]))) == 3
    assert texts([1, 2, 3])[0] == texts(1)[0]
    assert texts(None) != texts(None)  # a fresh one for each
    assert len(set(texts(None))) == 3
    everybodys = torch.get_rng_state()
    random_state = random.getstate()
    texts(None)
    texts(5)
    assert torch.equal(torch.get_rng_state(), everybodys)  # nobody else's random numbers are touched
    assert random.getstate() == random_state


def test_prompts_may_be_ids_and_may_be_empty(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 5}
    ids = tiny_tokenizer.encode("Hello")
    assert complete(model, tiny_tokenizer, [ids], **options) == complete(model, tiny_tokenizer, ["Hello"], **options)
    # GPT-2 begins from nothing with the end of text
    assert complete(model, tiny_tokenizer, [""], **options) == complete(model, tiny_tokenizer, [[EOT]], **options)
    assert complete(model, tiny_tokenizer, [], **options) == []
    assert generate(model, tiny_tokenizer, [], **options) == []
    (row,) = complete(model, tiny_tokenizer, ["a<|endoftext|>"], **options)
    assert row.n_prompt_tokens == 14  # a special token's name in a prompt is plain text


def test_ids_the_tokenizer_does_not_have_are_never_drawn(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    favoured = np.zeros(260, dtype=np.float32)
    favoured[257:] = 50.0
    row = Row([1], tiny_tokenizer, Generation(max_new_tokens=5, temperature=2.0, seed=0))
    assert max(row.choose(favoured) for _ in range(2000)) <= EOT
    # and a prompt that holds one does not break the penalty
    complete(model, tiny_tokenizer, [[259, 1]], max_new_tokens=3, repetition_penalty=1.3, seed=0)


# ---- the end of a row ----------------------------------------


def test_each_row_ends_at_its_own_end_of_text(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    scripts = [[*b"abc", EOT], [*b"defghij"], [EOT], [*b"kl", EOT]]
    decoder = Scripted(*scripts)
    rows = complete(decoder, tiny_tokenizer, ["p"] * 4, temperature=0, max_new_tokens=7, overflow="slide")
    assert [row.text for row in rows] == ["abc", "defghij", "", "kl"]
    assert [row.ids for row in rows] == [[*b"abc"], [*b"defghij"], [], [*b"kl"]]
    assert [row.finish_reason for row in rows] == ["end_of_text", "length", "end_of_text", "end_of_text"]
    # the third never joins; the last row takes the place of one that is dropped
    assert decoder.dropped == [2, 0, 0]


def test_an_early_end_changes_nothing_for_the_others(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 20, "overflow": "slide"}
    wanted = complete(model, tiny_tokenizer, PROMPTS, **options)
    middle = wanted[2].text[2:5]
    rows = complete(model, tiny_tokenizer, PROMPTS, stop=middle, **options)
    assert rows[2].finish_reason == "stop"
    for row, whole in zip(rows, wanted, strict=True):
        assert row.text == whole.text.split(middle)[0]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_max_new_tokens_is_exact(model: GPTModel, tiny_tokenizer: Tokenizer, n: int) -> None:
    result, _ = written(tiny_tokenizer, [*b"abcdefgh"][:n])
    assert (len(result.ids), result.text, result.finish_reason) == (n, "abcdefgh"[:n], "length")


def test_an_end_inside_a_character(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    for script, reason in (([*"a😀".encode()[:-1]], "length"), ([*"a😀".encode()[:-1], EOT], "end_of_text")):
        result, pieces = written(tiny_tokenizer, script)
        assert (result.text, result.finish_reason) == ("a\ufffd", reason)
        assert pieces == ["a", "\ufffd"]


# ---- stop strings ----------------------------------------


def stopped(tokenizer: Tokenizer, script: Sequence[int], stops: Sequence[str]) -> str:
    """The rule: after each token, look at all the text that is certain; cut at the first stop string."""
    decoder, text = StreamDecoder(tokenizer), ""
    for number, token in enumerate(script, start=1):
        text += decoder.push(token) + (decoder.finish() if number == len(script) else "")
        places = [text.index(stop) for stop in stops if stop in text]
        if places:
            return text[: min(places)]
    return text


@pytest.fixture(scope="module")
def writers() -> dict[str, tuple[Tokenizer, list[int]]]:
    """Tokenizers of a few letters, and ids that spell them: bytes, characters, several letters each."""
    several = Tokenizer.train_bpe(["aab abb aaab baab " * 9], 262)
    characters = Tokenizer.characters(["abép"])
    return {
        "bytes": (Tokenizer.bytes_(), [*"aabé".encode()]),
        "characters": (characters, characters.encode("aabé")),
        "several": (several, [*several.encode("a b"), *range(257, several.n_vocab)]),
    }


@pytest.mark.parametrize("kind", ["bytes", "characters", "several"])
@given(data=st.data())
def test_no_part_of_a_stop_string_leaks(
    model: GPTModel, writers: dict[str, tuple[Tokenizer, list[int]]], kind: str, data: st.DataObject
) -> None:
    """Few letters, so that stop strings begin, break off and begin again, within tokens and across them."""
    tokenizer, ids = writers[kind]
    script = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=25), "script")
    stops = data.draw(st.lists(st.text("abé\ufffd ", min_size=1, max_size=5), max_size=3), "stops")
    result, pieces = written(tokenizer, script, stop=stops)
    assert "".join(pieces) == result.text == stopped(tokenizer, script, stops)
    assert not any(stop in result.text for stop in stops)
    assert (result.finish_reason == "stop") == (result.text != tokenizer.decode(script))
    assert all(pieces)


def test_a_stop_string_across_tokens_is_held_back_and_released(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    _, pieces = written(tiny_tokenizer, [*b"xENyENDz"], stop="END")
    assert pieces == ["x", "ENy"]
    result, pieces = written(tiny_tokenizer, [*b"xEN"], stop=["END", "N!"])
    assert pieces == ["x", "EN"]  # the row is over: what might have become a stop string did not
    assert result.finish_reason == "length"
    result, pieces = written(tiny_tokenizer, [*b"END"], stop=["END"])
    assert (result.text, result.finish_reason, pieces) == ("", "stop", [])


def test_stop_is_a_text_or_several(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    for stop in ("cd", ["cd"], ("zz", "cd", "d")):
        assert written(tiny_tokenizer, [*b"abcdef"], stop=stop)[0].text == "ab"
    assert written(tiny_tokenizer, [*b"abcdef"], stop=())[0].text == "abcdef"


def test_a_stop_string_in_the_prompt_is_no_stop(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 2}
    assert generate(Scripted([*b"ab"]), tiny_tokenizer, "STOP", stop=["STOP", "Pa"], **options) == "ab"


# ---- past the context ----------------------------------------


def exploding(model: GPTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("computed something")

    monkeypatch.setattr(model, "forward", explode)


@pytest.mark.parametrize(("n_prompt", "n_new"), [(1, CONTEXT), (CONTEXT, 1), (CONTEXT + 1, 1), (20, 100)])
def test_error_raises_before_any_computation(
    model: GPTModel, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, n_prompt: int, n_new: int
) -> None:
    exploding(model, monkeypatch)
    error = f"^a prompt of {n_prompt} tokens and {n_new} new ones exceed the context length of {CONTEXT}: ask"
    for call in (
        lambda: complete(model, tiny_tokenizer, ["a", "x" * n_prompt], max_new_tokens=n_new),
        lambda: generate(model, tiny_tokenizer, "x" * n_prompt, max_new_tokens=n_new),
        lambda: stream(model, tiny_tokenizer, "x" * n_prompt, max_new_tokens=n_new),  # at the call
    ):
        with pytest.raises(ValueError, match=error):
            call()


def test_error_lets_through_what_just_fits(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    (row,) = complete(model, tiny_tokenizer, ["x" * 30], max_new_tokens=2, seed=0, top_k=3)
    assert len(row.ids) == 2 or row.finish_reason == "end_of_text"


@pytest.mark.parametrize("window", [None, 4])
def test_slide_reads_the_last_tokens_that_fit(tiny_model: Make, tiny_tokenizer: Tokenizer, window: int | None) -> None:
    model = tiny_model(vocab_size=256, context_length=16, sliding_window=window)
    tokenizer = Tokenizer.characters([chr(i) for i in range(255)])
    prompts = ["a", "hello world", "x" * 16, "y" * 23]
    rows = complete(model, tokenizer, prompts, max_new_tokens=40, temperature=0, overflow="slide")
    for prompt, row in zip(prompts, rows, strict=True):
        ids = tokenizer.encode(prompt)
        for token in row.ids:
            with torch.no_grad():
                assert token == int(model(torch.tensor([ids[-16:]]))[0, -1].argmax())
            ids.append(token)
    assert max(len(row.ids) for row in rows) == 40


def shift(model: GPTModel, ids: Sequence[int], n_new: int, context: int, eot: int | None) -> list[int]:
    """What overflow "shift" promises, by its story: one more does not fit, so the older half goes. No caches."""
    seen, new = [], []
    for token in [*ids, *[None] * n_new]:
        if token is None:
            token = int(generate_text_simple(model, torch.tensor([seen]), 1, context)[0, -1])
            if token == eot:
                break
            new.append(token)
        if len(seen) == context:
            seen = seen[(context + 1) // 2 :]
        seen = [*seen, token]
    return new


@pytest.mark.parametrize("context", [1, 2, 3, 8])
@pytest.mark.parametrize("make_decoder", [NaiveDecoder, CachedDecoder])
def test_shift_is_its_definition_computed_from_scratch(tiny_model: Make, make_decoder: Any, context: int) -> None:
    """Prompts below, at and far beyond the context, side by side, so that their rows are full at different steps."""
    tokenizer = Tokenizer.characters([chr(i) for i in range(60)])
    assert tokenizer.eot_id == tokenizer.n_vocab - 1
    for n_vocab, window in ((60, None), (60, 2), (61, None)):  # a model without end of text, and one with it
        model = tiny_model(vocab_size=n_vocab, context_length=context, sliding_window=window)
        prompts = [list(range(1, n + 1)) for n in (1, 2, 3, 5, 8, 9, 13, 30)]
        options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30, "overflow": "shift"}
        rows = complete(make_decoder(model), tokenizer, prompts, **options)
        for prompt, row in zip(prompts, rows, strict=True):
            assert row.ids == shift(model, prompt, 30, context, tokenizer.eot_id)
            assert complete(make_decoder(model), tokenizer, [prompt], **options) == [row]
            assert n_vocab == 61 or len(row.ids) == 30


def test_what_is_seen_does_not_depend_on_where_the_prompt_ended() -> None:
    for context in range(1, 12):
        for overflow, least in (("slide", context), ("shift", context // 2 + 1)):
            starts = [window_start(overflow, n, context) for n in range(100)]
            seen = [n - start for n, start in enumerate(starts)]
            assert seen[: context + 1] == list(range(context + 1))
            assert set(seen[context + 1 :]) == set(range(least, context + 1))
            assert {b - a for a, b in itertools.pairwise(starts)} == {0, context - least + 1}


@given(prompt=st.text("abc", min_size=1, max_size=40), cut=st.integers(1, 29))
def test_a_text_goes_on_where_it_was_left(model: GPTModel, tiny_tokenizer: Tokenizer, prompt: str, cut: int) -> None:
    options: dict[str, Any] = {"temperature": 0, "overflow": "shift", "ignore_eot": True}
    (whole,) = complete(model, tiny_tokenizer, [prompt], max_new_tokens=30, **options)
    ids = tiny_tokenizer.encode(prompt) + whole.ids[:cut]
    (rest,) = complete(model, tiny_tokenizer, [ids], max_new_tokens=30 - cut, **options)
    assert whole.ids == whole.ids[:cut] + rest.ids


def test_shift_reads_every_token_about_twice(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model, read = tiny_model(vocab_size=257, context_length=16), []
    model.tok_emb.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    options: dict[str, Any] = {"temperature": 0, "ignore_eot": True, "overflow": "shift"}
    complete(model, tiny_tokenizer, ["x"], max_new_tokens=16 + 3 * 8, **options)
    assert read == [1] * 16 + ([9] + [1] * 7) * 3


@pytest.mark.parametrize(
    ("n_script", "options", "text", "reason"),
    [
        (3, {"max_new_tokens": 3}, "abc", "length"),
        (3, {"stop": "c"}, "ab", "stop"),
        (2, {}, "ab", "end_of_text"),
    ],
)
def test_a_row_that_ends_when_it_is_full_is_not_read_again(
    tiny_tokenizer: Tokenizer, n_script: int, options: dict[str, Any], text: str, reason: str
) -> None:
    decoder = Scripted([*b"abc"[:n_script], EOT])
    decoder.context_length = 3  # the prompt and two of the script
    told: list[int] = []
    options = {"temperature": 0, "overflow": "shift", "on_overflow": told.append} | options
    result = complete(decoder, tiny_tokenizer, "p", **options)
    assert (result.text, result.finish_reason) == (text, reason)
    assert (told, decoder.dropped) == ([], [0])


@pytest.mark.parametrize("overflow", ["shift", "slide"])
def test_who_wants_to_know_is_told_once_when_a_text_outgrows_the_context(
    model: GPTModel, tiny_tokenizer: Tokenizer, overflow: str
) -> None:
    told: list[int] = []
    options: dict[str, Any] = {"overflow": overflow, "ignore_eot": True, "seed": 0, "on_overflow": told.append}
    complete(model, tiny_tokenizer, "x" * CONTEXT, max_new_tokens=1, **options)
    assert told == []  # the new token came from the whole text
    complete(model, tiny_tokenizer, "x" * CONTEXT, max_new_tokens=20, **options)
    assert told == [CONTEXT]
    complete(model, tiny_tokenizer, ["x" * (CONTEXT + 1), "y"], max_new_tokens=1, **options)
    assert told == [CONTEXT] * 2
    list(stream(model, tiny_tokenizer, "x", max_new_tokens=CONTEXT + 9, **options))
    assert told == [CONTEXT] * 3


# ---- penalties, biases, log-probabilities ----------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_logprobs_are_of_the_models_own_scores(
    model: GPTModel, tiny_tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    options = {**options, "logprobs": 3, "max_new_tokens": 12, "ignore_eot": True}
    (completion,) = complete(model, tiny_tokenizer, ["Hello"], **options)
    ids = [*b"Hello", *completion.ids]
    with torch.no_grad():
        wanted = model(torch.tensor([ids]))[0, :, : tiny_tokenizer.n_vocab].double().log_softmax(-1)
    assert completion.logprobs is not None and len(completion.logprobs) == 12
    for place, (token, found) in enumerate(zip(completion.ids, completion.logprobs, strict=True), 4):
        best, at = wanted[place].topk(3)
        assert found.token == token
        assert found.logprob == pytest.approx(float(wanted[place, token]), abs=1e-4)
        assert [i for i, _ in found.top] == at.tolist()
        assert [value for _, value in found.top] == pytest.approx(best.tolist(), abs=1e-4)


def test_logprobs_are_only_told_where_they_were_asked_for(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    assert complete(model, tiny_tokenizer, "ab", max_new_tokens=3, seed=0).logprobs is None
    found = complete(model, tiny_tokenizer, "ab", max_new_tokens=3, seed=0, logprobs=0, ignore_eot=True).logprobs
    assert found is not None and [entry.top for entry in found] == [[], [], []]


def test_the_end_of_text_has_no_logprob_as_it_is_no_token_of_the_text(tiny_tokenizer: Tokenizer) -> None:
    (completion,) = complete(Scripted([65, EOT]), tiny_tokenizer, ["x"], temperature=0, max_new_tokens=5, logprobs=1)
    assert completion.logprobs is not None and [entry.token for entry in completion.logprobs] == completion.ids == [65]


def test_penalties_count_what_was_drawn_and_not_the_prompt(tiny_tokenizer: Tokenizer) -> None:
    """Scores of 1 for A, and of 0 for the others: A comes until its penalty exceeds 1."""
    for options, n in (({"frequency_penalty": 0.4}, 3), ({"presence_penalty": 1.5}, 1), ({"presence_penalty": 0.5}, 9)):
        decoder = Scripted([65] * 10)
        (completion,) = complete(decoder, tiny_tokenizer, ["AAAA"], temperature=0, max_new_tokens=9, **options)
        assert completion.text.startswith("A" * n) and completion.text[n:].count("A") == 0


def test_a_bias_of_a_token_that_there_is_not(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^logit_bias names the token 257, the tokenizer has 0\.\.256$"):
        complete(model, tiny_tokenizer, "x", logit_bias={257: 1.0})


# ---- errors ----------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"top_pp": 0.9},
            r"unknown option 'top_pp': did you mean 'top_p'\?$",
        ),
        ({"beams": 2}, "unknown option 'beams': known are repetition_penalty, presence_penalty"),
        ({"max_tokens": 2}, r"unknown option 'max_tokens': did you mean 'max_new_tokens'\?"),
        ({"logit_bias": {1: 101}}, "logit_bias 1=101 must be a token id, and a number from -100 to 100$"),
        ({"logit_bias": ["1"]}, "logit_bias '1' must be a token id and a number, such as 50256=-100$"),
        ({"logit_bias": {-1: 0}}, "logit_bias -1=0 must be"),
        ({"logit_bias": {1: math.nan}}, "logit_bias 1=nan must be"),
        ({"presence_penalty": 2.5}, "presence_penalty 2.5 must be a number, at least -2 and at most 2$"),
        ({"logprobs": -1}, "logprobs -1 must be a whole number, at least 0, or None$"),
        ({"overflow": "wrap"}, "overflow 'wrap' must be one of error, shift, slide$"),
        ({"overflow": None}, "overflow None must be one of"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 must be a whole number, at least 1$"),
        ({"max_new_tokens": -1}, "max_new_tokens -1 must be"),
        ({"max_new_tokens": 2.5}, "max_new_tokens 2.5 must be"),
        ({"max_new_tokens": True}, "max_new_tokens True must be"),
        ({"stop": ""}, "stop '' must be a text"),
        ({"stop": ["a", ""]}, "stop '' must be a text"),
        ({"stop": ["a", 3]}, "stop 3 must be a text"),
        ({"stop": 3}, "stop 3 must be a text"),
        ({"temperature": -1}, "temperature -1 must be"),
        ({"top_k": 0}, "top_k 0 must be"),
        ({"top_p": 2}, "top_p 2 must be"),
    ],
)
def test_a_bad_option_is_named_before_any_computation(
    model: GPTModel,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: str,
) -> None:
    exploding(model, monkeypatch)
    options = {"max_new_tokens": 3, **options}
    for call in (
        lambda: complete(model, tiny_tokenizer, ["a"], **options),
        lambda: generate(model, tiny_tokenizer, "a", **options),
        lambda: stream(model, tiny_tokenizer, "a", **options),
    ):
        with pytest.raises(ValueError, match=f"^{error}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_one_text_gives_one_completion(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    options = dict(max_new_tokens=3, seed=1)
    one = complete(model, tiny_tokenizer, "abc", **options)
    assert [one] == complete(model, tiny_tokenizer, ["abc"], **options)
    assert one.text == generate(model, tiny_tokenizer, "abc", **options)


def test_bad_prompts(model: GPTModel, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    exploding(model, monkeypatch)
    with pytest.raises(ValueError, match=r"^token id 260 is outside the model's 0\.\.259$"):
        complete(model, tiny_tokenizer, [[1, 260]], max_new_tokens=1)
    with pytest.raises(ValueError, match="^token id -1 is outside"):
        complete(model, tiny_tokenizer, ["a", [-1]], max_new_tokens=1)
    with pytest.raises(ValueError, match="^prompt 7 must be a text or a list of token ids$"):
        complete(model, tiny_tokenizer, [7, 8], max_new_tokens=1)
    with pytest.raises(ValueError, match="^unknown option 'max_tokens': did you mean 'max_new_tokens'?"):
        complete(model, tiny_tokenizer, "abc", max_tokens=1)
    with pytest.raises(ValueError, match="^2 seeds for 1 prompts: give one for each$"):
        complete(model, tiny_tokenizer, ["a"], seeds=[1, 2], max_new_tokens=1)
    monkeypatch.setattr(tiny_tokenizer, "eot_id", None)
    with pytest.raises(ValueError, match="^the prompt is empty: give at least one token$"):
        complete(model, tiny_tokenizer, [""], max_new_tokens=1)


def test_broken_weights_are_an_error_not_a_text(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=257)
    with torch.no_grad():
        model.final_norm.shift[0] = torch.nan
    for options in ({}, {"temperature": 0}):
        with pytest.raises(ValueError, match="the model's scores are not finite"):
            generate(model, tiny_tokenizer, "a", max_new_tokens=2, **options)


@pytest.mark.parametrize(("options", "keywords"), [(Generation, GenerationKeywords), (Settings, SettingsKeywords)])
def test_the_keywords_for_type_checkers_are_the_fields(options: type[Options], keywords: Any) -> None:
    hints = get_type_hints(keywords)
    assert list(hints) == list(options.rules())
    for name, (kind, _) in options.rules().items():
        wider = {
            "batch_size": int | str,
            "stop": str | Sequence[str],
            "logit_bias": Mapping[int, float] | Sequence[tuple[int, float]] | Sequence[str],
        }
        assert hints[name] == wider.get(name, kind)


def test_text_from_a_decoder_needs_no_torch() -> None:
    code = "import sys, glassgpt.generation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_streams_side_by_side_leave_each_other_and_training_alone(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    """Two streams on one model in training mode: dropout stays off in both to the end, and on between their tokens."""
    model = tiny_model(vocab_size=257, drop_rate=0.5, context_length=CONTEXT)
    options: dict[str, Any] = {"temperature": 0, "ignore_eot": True}
    wanted = generate(model, tiny_tokenizer, "abc", max_new_tokens=20, **options)
    model.train()
    long = stream(model, tiny_tokenizer, "abc", max_new_tokens=20, **options)
    short = stream(model, tiny_tokenizer, "xy", max_new_tokens=4, **options)
    pieces = [next(long)]
    assert modes(model) == [True] * len(modes(model))
    list(short)
    assert "".join([*pieces, *long]) == wanted
    assert modes(model) == [True] * len(modes(model))


# ---- the model is left as it was ----------------------------------------


def modes(model: torch.nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("how", ["eval", "train", "partly"])
def test_training_mode_is_off_while_writing_and_back_afterwards(
    tiny_model: Make, tiny_tokenizer: Tokenizer, how: str
) -> None:
    model = tiny_model(vocab_size=257, drop_rate=0.5, context_length=CONTEXT)
    wanted = generate(model, tiny_tokenizer, "abc", max_new_tokens=20, temperature=0)
    model.train(how != "eval")
    if how == "partly":
        model.trf_blocks[0].eval()
    before = modes(model)
    assert generate(model, tiny_tokenizer, "abc", max_new_tokens=20, temperature=0) == wanted
    assert modes(model) == before
    pieces = stream(model, tiny_tokenizer, "abc", max_new_tokens=20, temperature=0)
    assert modes(model) == before  # nothing happens before the first piece is asked for
    assert "".join(pieces) == wanted
    assert modes(model) == before
    begun = stream(model, tiny_tokenizer, "abc", max_new_tokens=20, temperature=0)
    assert isinstance(begun, Iterator)
    next(begun)
    begun.close()  # type: ignore[attr-defined]
    assert modes(model) == before

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.trf_blocks[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        generate(model, tiny_tokenizer, "abc", max_new_tokens=20)
    hook.remove()
    assert modes(model) == before
    assert generate(model, tiny_tokenizer, "abc", max_new_tokens=20, temperature=0) == wanted


def test_weights_and_gradients_are_untouched(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=257)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generate(model, tiny_tokenizer, "abc", max_new_tokens=5)
    generate(CachedDecoder(model), tiny_tokenizer, "abc", max_new_tokens=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_inference() for parameter in model.parameters())
