"""Sampled speculation has the model's distribution, and a rule that accepts too much has not: Pearson's chi-square."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from glassgpt import GPTModel, Tokenizer, complete
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.decoder import Row as ScoreRow
from glassgpt.generation.decoder import Speculative
from glassgpt.generation.row import Row
from glassgpt.generation.speculation import DraftModel, PromptLookup, Tally
from glassgpt.generation.torch_decoder import CachedDecoder

Make = Callable[..., GPTModel]
LETTERS = Tokenizer.characters(["abc"])  # and an end of text, which is never drawn
PROMPT = "abcab"  # lookup finds what followed "ab"
N_ROWS, N_NEW = 4000, 4
CRITICAL = 125.0
"""Chi-square of 80 degrees of freedom is above it once in a thousand times. With fixed seeds it is, or it never is."""
DECODERS: dict[str, Callable[[GPTModel], Speculative]] = {
    "cached": CachedDecoder,
    "compiled": lambda model: CPUDecoder(pack_model(model)),
}


def probabilities(model: GPTModel) -> np.ndarray:
    """Of each text of `N_NEW` letters after the prompt, by the readable model alone."""
    ids, texts = LETTERS.encode(PROMPT), list(itertools.product(range(3), repeat=N_NEW))
    with torch.no_grad():
        scores = model(torch.tensor([[*ids, *text] for text in texts]))[:, len(ids) - 1 : -1, :3].double()
    each = torch.log_softmax(scores, -1).gather(2, torch.tensor(texts)[:, :, None])[:, :, 0]
    return each.sum(1).exp().numpy()


def statistic(model: GPTModel, texts: Sequence[str]) -> float:
    counts = Counter(texts)
    found = np.array([counts["".join(text)] for text in itertools.product("abc", repeat=N_NEW)])
    expected = probabilities(model) * len(texts)
    assert found.sum() == len(texts)
    assert expected.min() > 5, "a cell with less is not distributed as the statistic supposes"
    return float(((found - expected) ** 2 / expected).sum())


def written(decoder: Speculative, tally: Tally, **how: object) -> list[str]:
    options: dict[str, object] = {"max_new_tokens": N_NEW, "ignore_eot": True, "seeds": range(N_ROWS), "tally": tally}
    rows = complete(decoder, LETTERS, [PROMPT] * N_ROWS, **options, **how)  # type: ignore[call-overload]
    return [row.text for row in rows]


@pytest.fixture(scope="module")
def models(tiny_model: Make) -> tuple[GPTModel, GPTModel]:
    """A model, and a draft that is right and wrong by turns."""
    model, draft = (
        tiny_model(seed, vocab_size=LETTERS.n_vocab, n_layers=1, context_length=len(PROMPT) + N_NEW) for seed in (4, 5)
    )
    with torch.no_grad():
        for one in (model, draft):
            one.out_head.weight.mul_(0.3)  # no text is too seldom
    return model, draft


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("guesser", ["lookup", "draft"])
def test_speculation_has_the_models_distribution(models: tuple[GPTModel, GPTModel], name: str, guesser: str) -> None:
    model, draft = models
    how = {"speculate": "lookup"} if guesser == "lookup" else {"draft": DECODERS[name](draft)}
    tally = Tally()
    texts = written(DECODERS[name](model), tally, **how)
    assert statistic(model, texts) < CRITICAL
    assert 0.1 < tally.n_accepted / tally.n_proposed < 0.9, "guesses are right, and wrong"
    assert tally.n_proposed > N_ROWS
    assert statistic(draft, texts) > 2 * CRITICAL, "the draft's own distribution is another"


@pytest.mark.parametrize("guesser", [PromptLookup, DraftModel])
def test_a_rule_that_accepts_too_much_is_seen(
    models: tuple[GPTModel, GPTModel], monkeypatch: pytest.MonkeyPatch, guesser: type[PromptLookup | DraftModel]
) -> None:
    """A guess counts where the model finds it at least half as likely as its best token, whatever the row draws."""
    guessed: dict[tuple[Row, int], int] = {}
    propose, choose = guesser.propose, Row.choose

    def noted(self: DraftModel, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        guesses = propose(self, rows, most)
        for row, some in zip(rows, guesses, strict=True):
            guessed.update({(row, row.n_drawn + n): guess for n, guess in enumerate(some)})
        return guesses

    def lenient(self: Row, scores: ScoreRow) -> int:
        drawn, guess = choose(self, scores), guessed.get((self, self.n_drawn))
        return guess if guess is not None and scores[guess] > scores[:3].max() - np.log(2) else drawn

    monkeypatch.setattr(guesser, "propose", noted)
    monkeypatch.setattr(Row, "choose", lenient)
    model, draft = models
    how = {"speculate": "lookup"} if guesser is PromptLookup else {"draft": CPUDecoder(pack_model(draft))}
    assert statistic(model, written(CPUDecoder(pack_model(model)), Tally(), **how)) > 2 * CRITICAL
