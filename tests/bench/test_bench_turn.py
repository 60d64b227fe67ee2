"""One measurement: it does the work that it is asked for, and its figures mean what they say."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glassgpt import GPTModel, Tokenizer, complete, save_model
from glassgpt.bench import prepare, turn
from glassgpt.bench.plan import ROW_COUNTS, Sizes
from glassgpt.bench.prepare import prompt_tokens, short_text
from glassgpt.bench.turn import agreement, costs, measure, read_rate
from glassgpt.cores import peak_memory
from glassgpt.generation.decoder import Decoder, Prefix, Scores
from glassgpt.generation.torch_decoder import CachedDecoder

CONTEXT = 16
SIZES = dataclasses.asdict(Sizes.of(CONTEXT))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., GPTModel]) -> GPTModel:
    return tiny_model(vocab_size=257, context_length=CONTEXT)


@pytest.fixture(scope="module")
def saved(model: GPTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    save_model(model, Tokenizer.bytes_(), directory)
    return directory


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "_READ_NUMBERS", 10**5)
    monkeypatch.setattr(turn, "_LEAST_SECONDS", 1e-9)


@pytest.fixture
def request_for(saved: Path, tmp_path: Path) -> Callable[..., turn.Request]:
    ids = list(range(40, 40 + Sizes.of(CONTEXT).n_ids))

    def make(contender: str, work: str, **more: Any) -> turn.Request:
        return turn.Request(contender, work, str(saved), str(tmp_path), 1, SIZES, ids, CONTEXT, **more)

    return make


@pytest.mark.parametrize("contender", ["naive", "cached", "compiled float32"])
def test_decoding_gives_rates_memory_and_the_models_own_tokens(
    contender: str, request_for: Callable[..., turn.Request], model: GPTModel
) -> None:
    figures = measure(request_for(contender, "decode"))
    (expected,) = complete(
        model, Tokenizer.bytes_(), [[40, 41, 42, 43]], max_new_tokens=12, temperature=0, ignore_eot=True
    )
    assert figures["tokens"] == expected.ids
    assert figures["rate"] > 0 and figures["cold_rate"] > 0
    if contender == "naive":
        assert figures.keys() == {"rate", "cold_rate", "tokens", "peak_bytes"}
        return
    assert figures["read_rate"] > 0
    n_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    n_cache = 4 * 2 * 2 * 16 * 12  # keys and values of 16 tokens in 2 layers, 12 wide
    if contender == "cached":
        assert (figures["weight_bytes"], figures["cache_bytes"]) == (n_bytes, n_cache)
    else:  # the kernels fill up rows
        assert figures["weight_bytes"] >= n_bytes and figures["cache_bytes"] >= n_cache
    assert figures["peak_bytes"] > figures["weight_bytes"] + figures["cache_bytes"]


def test_a_rounded_decoder_counts_its_choices_on_the_float32_text(request_for: Callable[..., turn.Request]) -> None:
    text = measure(request_for("compiled float32", "decode"))["tokens"]
    figures = measure(request_for("compiled bfloat16", "decode", reference=text))
    assert 0 <= figures["agreement"] <= 1
    assert "agreement" not in measure(request_for("compiled bfloat16", "decode"))


def test_agreement_is_of_the_choices_after_the_given_text(model: GPTModel) -> None:
    decoder = CachedDecoder(model, CONTEXT)
    (row,) = complete(
        CachedDecoder(model), Tokenizer.bytes_(), [[1, 2]], max_new_tokens=8, temperature=0, ignore_eot=True
    )
    text = list(row.ids)
    assert agreement(decoder, [1, 2], text) == 1
    wrong = [*text[:7], (text[7] + 1) % 257]
    assert agreement(decoder, [1, 2], wrong) == 7 / 8  # and no row is left over from the first


def test_rows_are_timed_in_batches_of_each_size(
    request_for: Callable[..., turn.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    real = CachedDecoder.step
    monkeypatch.setattr(CachedDecoder, "step", lambda self, tokens: steps.append(len(tokens)) or real(self, tokens))
    rates = measure(request_for("cached", "rows"))["rates"]
    assert list(rates) == [str(n) for n in ROW_COUNTS]
    assert set(steps) == set(ROW_COUNTS)
    assert all(rate > 0 for rate in rates.values())


def test_the_long_prompt_is_read_and_one_token_asked(request_for: Callable[..., turn.Request]) -> None:
    assert measure(request_for("cached", "prompt"))["rate"] > 0


class Slow(Decoder):
    """Each step costs as many ticks of a clock as the row has tokens."""

    vocab_size, context_length = 9, 32

    def __init__(self) -> None:
        self.now = 0.0
        self.lengths: list[int] = []

    def read(self, tokens: Any, after: Prefix | None = None) -> Any:
        self.now += 1000
        return len(tokens)

    def join(self, prefix: Any) -> None:
        self.lengths.append(prefix)

    def step(self, tokens: Any) -> Scores:
        assert len(tokens) == len(self.lengths) == 1
        self.lengths[0] += 1
        self.now += self.lengths[0]
        return np.zeros((1, 9), np.float32)

    def drop(self, row: int) -> None:
        del self.lengths[row]


def test_the_cost_of_a_token_is_that_of_its_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Slow()
    monkeypatch.setattr(turn.time, "perf_counter", lambda: decoder.now)
    assert costs(decoder, [1, 2, 3], (1, 10, 20), 3) == {"1": 3, "10": 12, "20": 22}
    assert decoder.lengths == []


def test_context_is_measured_to_its_end(request_for: Callable[..., turn.Request]) -> None:
    figures = measure(request_for("compiled float32", "context"))
    assert list(figures["seconds"]) == [str(n) for n in Sizes.of(CONTEXT).positions]


def test_memory_and_reading_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = peak_memory()
    assert before is not None and before > 10**7
    held = np.ones(40_000_000)  # 320 MB
    after = peak_memory()
    assert after is not None and after >= held.nbytes
    assert (read_rate(1) or 0) > 1e6
    monkeypatch.setitem(turn.sys.modules, "glassgpt.generation.cpu.panels", None)  # as where Numba is missing
    assert read_rate(1) is None


def test_facts_are_the_models(saved: Path, model: GPTModel) -> None:
    facts = prepare.facts_of(saved, "mine")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = {"context_length": CONTEXT, "vocab_size": 257, "n_parameters": n_parameters}
    assert facts.model == {"name": "mine", **sizes}
    assert facts.sizes == Sizes.of(CONTEXT) and len(facts.ids) == facts.sizes.n_ids
    assert facts.text == "Hello, I am"


def test_prompts_are_the_manuals_or_any_known_tokens(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    gpt2 = tokenizers_by_kind["gpt2"]
    assert gpt2.decode(prompt_tokens(gpt2, 40)).isascii()
    few = Tokenizer.characters(["xyz\n"])
    ids = prompt_tokens(few, 300)
    assert len(ids) == 300 and set(ids) <= set(range(few.n_vocab)) - few.special_ids
    assert ids == prompt_tokens(few, 300)
    assert short_text(few) == "x"


@pytest.mark.slow
def test_peers_write_the_same_text(saved: Path, request_for: Callable[..., turn.Request], tmp_path: Path) -> None:
    """Those that are installed, each with files that the project's own exporters wrote."""
    text = measure(request_for("cached", "decode"))["tokens"]
    for module, contender in (("transformers", "transformers"), ("ctranslate2", "ctranslate2 float32")):
        pytest.importorskip(module)
        prepare.prepare(prepare.Request(str(saved), contender, str(tmp_path)))
        assert measure(request_for(contender, "decode"))["tokens"] == text
        assert measure(request_for(contender, "prompt"))["rate"] > 0
        assert len(measure(request_for(contender, "rows"))["rates"]) == len(ROW_COUNTS)


@pytest.mark.slow
def test_llama_cpp_writes_the_same_text(saved: Path, request_for: Callable[..., turn.Request], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install -e '.[oracles]'")
    text = measure(request_for("cached", "decode"))["tokens"]
    for number_type in ("f32", "q4_0"):
        contender = f"llama.cpp {number_type}"
        prepare.prepare(prepare.Request(str(saved), contender, str(tmp_path)))
        figures = measure(request_for(contender, "decode"))
        assert len(figures["tokens"]) == len(text)
        assert number_type != "f32" or figures["tokens"] == text
