"""Speculation changes the number of passes, and no token."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTModel, Tokenizer, complete, stream
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.decoder import Decoder, Scores, Speculative
from glassgpt.generation.options import Generation
from glassgpt.generation.row import Row
from glassgpt.generation.sampling import UniformStream
from glassgpt.generation.scheduler import Scheduler
from glassgpt.generation.speculation import MOST_GUESSES, DraftModel, Pace, PromptLookup, Proposer, Tally
from glassgpt.generation.torch_decoder import CachedDecoder, NaiveDecoder

Make = Callable[..., GPTModel]
CONTEXT = 48
DECODERS: dict[str, Callable[[GPTModel], Speculative]] = {
    "naive": NaiveDecoder,
    "cached": CachedDecoder,
    "compiled": lambda model: CPUDecoder(pack_model(model)),
}
SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": True, "qkv_bias": True, "emb_dim": 40, "n_heads": 5},
    {"attention": "explicit", "n_layers": 1},
]
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"seed": 3, "temperature": 0.4},
    {"seed": 4, "temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2},
    {"seed": 5, "presence_penalty": 0.7, "frequency_penalty": 0.3, "logit_bias": {97: 2.5, 10: -100}},
    {"temperature": 0, "stop": "a"},
]
PROMPTS = ["ab" * 5, "To be, or not to be", "x", "y" * 40, "naïve 😀"]


def model_of(tiny_model: Make, seed: int = 0, **changes: Any) -> GPTModel:
    return tiny_model(seed, vocab_size=260, **{"context_length": CONTEXT, **changes})


class Oracle:
    """A proposer that knows the text, and errs on purpose at every token whose index `errs` accepts."""

    def __init__(self, known: Sequence[int], errs: Callable[[int], bool] = lambda _: False) -> None:
        self.known, self.errs = [*known, *[0] * 40], errs
        self.asked: list[int] = []
        self.forgotten: list[Row] = []

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        self.asked += most
        guesses = []
        for row, n in zip(rows, most, strict=True):
            at = range(len(row.ids), len(row.ids) + n)
            guesses.append([self.known[i] + 1 if self.errs(i) else self.known[i] for i in at])
        return guesses

    def forget(self, row: Row) -> None:
        self.forgotten.append(row)


class Passes(NaiveDecoder):
    """Counts the passes of the live rows."""

    n_passes = 0

    def step(self, tokens: Sequence[int]) -> Scores:
        self.n_passes += 1
        return super().step(tokens)

    def extend(self, tokens: Sequence[Sequence[int]]) -> Scores:
        self.n_passes += 1
        return super().extend(tokens)


# ---- decoders ----------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
def test_extend_and_cut_give_the_scores_of_steps(tiny_model: Make, name: str, data: st.DataObject) -> None:
    """Within 1e-4; equal bits where the decoder promises them."""
    model = model_of(tiny_model)
    decoder, alone = DECODERS[name](model), NaiveDecoder(model)
    rows: list[list[int]] = []
    ids = st.lists(st.integers(0, 259), min_size=0, max_size=7)
    for _ in range(data.draw(st.integers(1, 4))):
        rows.append([1, *data.draw(ids)])
        decoder.add([rows[-1]])
    for _ in range(5):
        new = [data.draw(ids)[: CONTEXT - len(row)] for row in rows]
        if any(new):
            scores = iter(decoder.extend(new))
            for row, tokens in zip(rows, new, strict=True):
                for token in tokens:
                    row.append(token)
                    np.testing.assert_allclose(next(scores), alone.read(row).scores, atol=1e-4, rtol=0)
            assert next(scores, None) is None
        row = data.draw(st.integers(0, len(rows) - 1))
        del rows[row][data.draw(st.integers(0, len(rows[row]))) :]
        decoder.cut(row, len(rows[row]))


@pytest.mark.parametrize("name", DECODERS)
def test_a_row_near_its_end_beside_one_that_is_not(tiny_model: Make, name: str) -> None:
    model = model_of(tiny_model)
    decoder = DECODERS[name](model)
    long, short = [5] * (CONTEXT - 1), [7, 8]
    decoder.add([long, short])
    scores = decoder.extend([[9], [1, 2, 3, 4]])
    expected = [NaiveDecoder(model).read(ids).scores for ids in ([*long, 9], [*short, 1], [*short, 1, 2, 3, 4])]
    np.testing.assert_allclose(scores[[0, 1, 4]], expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="49"):
        decoder.extend([[1], [1]])


def test_pieces_are_equal_bit_for_bit_on_the_compiled_decoder(tiny_model: Make) -> None:
    packed = pack_model(model_of(tiny_model))
    whole, steps = CPUDecoder(packed), CPUDecoder(packed)
    for decoder in (whole, steps):
        decoder.add([[1, 2], [3]])
    found = whole.extend([[4, 5, 6, 7, 8, 9, 10, 11], []])
    whole.cut(0, 5)
    for n, token in enumerate([4, 5, 6]):
        np.testing.assert_array_equal(steps.extend([[token], []])[0], found[n])
    np.testing.assert_array_equal(whole.step([20, 21]), steps.step([20, 21]))


# ---- the same text ----------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DECODERS)
def test_no_token_changes(
    tiny_model: Make, tiny_tokenizer: Tokenizer, name: str, shape: dict[str, Any], options: dict[str, Any]
) -> None:
    model, draft = model_of(tiny_model, **shape), model_of(tiny_model, seed=1, context_length=20)
    options = {**options, "max_new_tokens": 70, "overflow": "shift"}  # past the context
    expected = complete(DECODERS[name](model), tiny_tokenizer, PROMPTS, **options)
    assert complete(DECODERS[name](model), tiny_tokenizer, PROMPTS, speculate="lookup", **options) == expected
    for guesser in (model, draft, DECODERS[name](draft)):
        assert complete(DECODERS[name](model), tiny_tokenizer, PROMPTS, draft=guesser, **options) == expected
    alone = ["".join(stream(DECODERS[name](model), tiny_tokenizer, p, speculate="lookup", **options)) for p in PROMPTS]
    assert alone == [completion.text for completion in expected]


@pytest.mark.parametrize("overflow", ["shift", "slide"])
@given(data=st.data())
def test_rows_that_speculate_beside_others_in_any_order(
    tiny_model: Make, tiny_tokenizer: Tokenizer, overflow: str, data: st.DataObject
) -> None:
    model = model_of(tiny_model)
    lookup, draft = PromptLookup(), DraftModel(CachedDecoder(model_of(tiny_model, context_length=9)))
    scheduler = Scheduler(CachedDecoder(model), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 30)))
    asked = {}
    for number in range(data.draw(st.integers(1, 5))):
        prompt = data.draw(st.lists(st.sampled_from(b"ab"), min_size=1, max_size=60))
        proposer: Proposer | None = data.draw(st.sampled_from([None, lookup, draft]))
        options: dict[str, Any] = {
            "max_new_tokens": data.draw(st.integers(1, 25)),
            "seed": number,
            "overflow": overflow,
        }
        options["temperature"] = data.draw(st.sampled_from([0.0, 0.5]))
        asked[scheduler.submit(Row(prompt, tiny_tokenizer, Generation(**options)), proposer)] = (prompt, options)
        if data.draw(st.booleans()):
            scheduler.step()
        if data.draw(st.integers(0, 4)) == 0:
            scheduler.cancel(data.draw(st.sampled_from(list(asked))))
    written = dict.fromkeys(asked, "")
    while scheduler.busy:
        events = scheduler.step()
        assert len(dict(events)) == len(events)
        for request, text in events:
            written[request] += text
    for request, (prompt, options) in asked.items():
        (whole,) = complete(NaiveDecoder(model), tiny_tokenizer, [prompt], **options)
        if request.row.finish_reason == "cancelled":
            assert whole.text.startswith(request.row.text)
        else:
            assert request.row.completion() == whole
        assert request.row.text.endswith(written[request])
    assert (lookup._known, draft._rows, draft._held) == ({}, [], {})


# ---- proposals ----------------------------------------


def run(model: Decoder, tokenizer: Tokenizer, oracle: Proposer, options: dict[str, Any]) -> tuple[Row, Tally]:
    tally = Tally()
    scheduler = Scheduler(model, tally=tally)
    row = Row(list(b"ab"), tokenizer, Generation(**options))
    scheduler.submit(row, oracle)
    for _ in scheduler.run():
        pass
    return row, tally


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_right_wrong_and_partly_right_guesses(
    tiny_model: Make, tiny_tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    model = model_of(tiny_model)
    options = {**options, "max_new_tokens": 40, "ignore_eot": True}
    (plain,) = complete(model, tiny_tokenizer, ["ab"], **options)
    known = [*b"ab", *plain.ids]
    passes = {}
    for name, errs in {"right": lambda i: False, "wrong": lambda i: True, "third": lambda i: i % 3 == 0}.items():
        decoder, oracle = Passes(model), Oracle(known, errs)
        row, tally = run(decoder, tiny_tokenizer, oracle, options)
        assert row.completion() == plain
        assert tally.n_drawn == 39  # the first comes from reading the prompt
        assert max(oracle.asked) <= MOST_GUESSES
        assert oracle.forgotten == [row]
        passes[name] = decoder.n_passes
        if name == "right":
            assert tally.n_accepted == tally.n_proposed == 39 - decoder.n_passes
        if name == "wrong":
            assert tally.n_accepted == 0
            assert tally.n_proposed <= 4 + 2 + 5  # then single ones, after rests of 1, 2, 4, 8, 16
    assert passes["right"] == 4  # 5 + 9 + 17 tokens, and the 8 that are left
    assert passes["wrong"] == 39
    assert 13 <= passes["third"] < 30


def test_guesses_end_where_the_text_and_the_context_do(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = model_of(tiny_model, context_length=12)
    for n_new in (1, 2, 3, 6, 10):
        options = {"temperature": 0, "max_new_tokens": n_new, "ignore_eot": True}
        (plain,) = complete(model, tiny_tokenizer, ["ab"], **options)
        oracle = Oracle([*b"ab", *plain.ids])
        row, tally = run(CPUDecoder(pack_model(model)), tiny_tokenizer, oracle, options)
        assert row.completion() == plain
        assert tally.n_accepted == tally.n_proposed
        assert all(n >= 0 for n in oracle.asked)


def test_a_stop_text_ends_a_row_within_its_guesses(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = model_of(tiny_model)
    options = {"temperature": 0, "max_new_tokens": 30, "ignore_eot": True}
    (plain,) = complete(model, tiny_tokenizer, ["ab"], **options)
    readable = next(i for i in range(2, 29) if plain.ids[i] < 128 and plain.ids[i] not in plain.ids[:i])
    options["stop"] = chr(plain.ids[readable])
    row, _ = run(CachedDecoder(model), tiny_tokenizer, Oracle([*b"ab", *plain.ids]), options)
    assert row.finish_reason == "stop"
    assert row.completion().ids == plain.ids[: readable + 1]


def test_the_pace_grows_shrinks_and_rests() -> None:
    pace = Pace()
    for _ in range(5):
        pace.heard(pace.wanted(), pace.wanted())
    assert pace.wanted() == MOST_GUESSES
    pace.heard(16, 2)
    assert pace.wanted() == 3
    asked = []
    for _ in range(100):
        asked.append(pace.wanted())
        if asked[-1]:
            pace.heard(asked[-1], 0)
    assert asked[:10] == [3, 1, 0, 1, 0, 0, 1, 0, 0, 0]
    assert sum(map(bool, asked)) <= 9
    while not (n := pace.wanted()):
        pass
    pace.heard(n, n)
    assert pace.wanted() == 2


def test_lookup_finds_the_longest_and_latest_and_goes_on_in_circles(tiny_tokenizer: Tokenizer) -> None:
    def guessed(text: bytes, most: int) -> bytes:
        row = Row(list(text), tiny_tokenizer, Generation())
        return bytes(PromptLookup().propose([row], [most])[0])

    assert guessed(b"the cat and the c", 5) == b"at an"
    assert guessed(b"xyab1 xyab2 zyab", 1) == b"2"  # yab: the latest
    assert guessed(b"xyab1 zyab2 xyab", 1) == b"1"  # xyab: the longest
    assert guessed(b"ababab", 7) == b"abababa"
    assert guessed(b"abcdefg", 3) == guessed(b"ababab", 0) == guessed(b"a", 3) == b""


def test_a_text_that_repeats_itself_takes_few_passes(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    """A model that was trained for a moment on one line repeats it, and lookup sees that."""
    model = model_of(tiny_model)
    ids = torch.tensor([list(b"to be or not. " * 3)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder, tally = Passes(model), Tally()
    options: dict[str, Any] = {"max_new_tokens": 28, "temperature": 0.2, "seed": 0}
    written = complete(decoder, tiny_tokenizer, "to be or not. t", speculate="lookup", tally=tally, **options)
    assert written == complete(model, tiny_tokenizer, "to be or not. t", **options)
    assert decoder.n_passes <= 10
    assert str(tally).startswith(f"speculation: {tally.n_accepted} of {tally.n_proposed} proposed tokens accepted (")


def test_a_draft_that_is_the_model_is_always_right_also_where_it_is_sampled(
    tiny_model: Make, tiny_tokenizer: Tokenizer
) -> None:
    packed, tally = pack_model(model_of(tiny_model)), Tally()
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 40, "ignore_eot": True}
    complete(CPUDecoder(packed), tiny_tokenizer, ["a", "b"], draft=CPUDecoder(packed), tally=tally, **options)
    assert tally.n_accepted == tally.n_proposed > 50


def test_a_draft_is_left_without_rows_wherever_a_text_is_broken_off(
    tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack_model(model_of(tiny_model))
    model, draft = CPUDecoder(packed), CPUDecoder(packed)
    options: dict[str, Any] = {"max_new_tokens": 80, "ignore_eot": True, "overflow": "shift", "temperature": 0}
    wanted = "".join(stream(model, tiny_tokenizer, "hello there", draft=draft, **options))
    real = Scheduler._draw

    def broken_off(self: Scheduler, request: Any, scores: Any) -> Any:
        if request.row.n_drawn:  # a full row that was read again
            raise KeyboardInterrupt
        return real(self, request, scores)

    monkeypatch.setattr(Scheduler, "_draw", broken_off)
    with pytest.raises(KeyboardInterrupt):
        "".join(stream(model, tiny_tokenizer, "hello there", draft=draft, **options))
    assert (len(model._lengths), len(draft._lengths)) == (0, 0)
    monkeypatch.undo()
    assert "".join(stream(model, tiny_tokenizer, "hello there", draft=draft, **options)) == wanted


def test_a_number_can_be_seen_before_it_is_drawn() -> None:
    plain, peeked = UniformStream(1), UniformStream(1)
    numbers = [plain.draw() for _ in range(6)]
    assert [peeked.peek(3), peeked.peek(0), peeked.draw(), peeked.peek(0)] == [numbers[i] for i in (3, 0, 0, 1)]
    assert [peeked.draw() for _ in range(5)] == numbers[1:]


# ---- refused ----------------------------------------


def test_who_cannot_take_tokens_back_is_refused(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    windowed, model = model_of(tiny_model, sliding_window=5), model_of(tiny_model)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 20}
    with pytest.raises(ValueError, match=r"^the model cannot speculate: .* sliding window"):
        stream(windowed, tiny_tokenizer, "ab", speculate="lookup", **options)
    with pytest.raises(ValueError, match=r"^the draft model cannot speculate"):
        complete(model, tiny_tokenizer, "ab", draft=windowed, **options)
    plain = complete(windowed, tiny_tokenizer, "ababab", **options)
    compiled = CPUDecoder(pack_model(windowed))  # keeps what is outside the window
    assert complete(compiled, tiny_tokenizer, "ababab", speculate="lookup", **options) == plain


def test_a_draft_without_all_tokens_is_refused(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    model = model_of(tiny_model)
    with pytest.raises(ValueError, match="the draft model has 97 tokens, the tokenizer 257"):
        complete(model, tiny_tokenizer, "ab", draft=tiny_model(), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"token id 259 is outside the model's 0\.\.256"):
        complete(model, tiny_tokenizer, [[259]], draft=tiny_model(vocab_size=257), max_new_tokens=3)
