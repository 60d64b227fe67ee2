"""What a loss means: how well three models without any attention predict the same text.

A GPT's first loss is near `uniform`; below `unigram` it has learned which tokens are common, below `bigram`
that the token before matters, and more.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.data.mixture import Mixture, Tokens, first_tokens

_MAX_TOKENS = 10_000_000  # enough for the statistics of pairs, and bounds the memory


@dataclass(frozen=True)
class Baselines:
    """Cross-entropies on the validation tokens, in nats per token."""

    uniform: float
    unigram: float
    bigram: float

    def labelled(self) -> dict[str, float]:
        """By what people call them, the highest first."""
        return {"ln V": self.uniform, "unigram": self.unigram, "bigram": self.bigram}


def corpus_baselines(train_tokens: Tokens | Mixture, validation_tokens: Tokens | Mixture, n_vocab: int) -> Baselines:
    """Fit the baselines on the training tokens, measure them on the validation tokens (both 1-D).

    - uniform: every token is as likely, ln(n_vocab).
    - unigram: the training counts plus one.
    - bigram: interpolated with its lower order by Witten and Bell's weights (1991, method C),

          P(w | v) = (n(v w) + T(v) P(w)) / (n(v) + T(v))

      where n counts in the training tokens, T(v) is the number of different tokens seen after v, and P(w), as
      in Kneser and Ney (1995), does not count how often w occurs but after how many different tokens, itself
      interpolated with the uniform distribution in the same way. On English text in BPE tokens this predicts
      as well as modified Kneser-Ney (Chen and Goodman 1999), and has nothing to tune.

    All validation tokens but the first are predicted. Of an array of more than 10 million tokens the first 10
    million are used.

    Raises ValueError for arrays of fewer than two tokens, or a token outside 0..n_vocab-1.
    """
    train, validation = (first_tokens(tokens, _MAX_TOKENS) for tokens in (train_tokens, validation_tokens))
    for name, tokens in (("training", train), ("validation", validation)):
        if len(tokens) < 2:
            raise ValueError(f"the {name} text is {len(tokens)} tokens; its baselines need 2: add text")
        if not 0 <= tokens.min() <= tokens.max() < n_vocab:
            found = f"tokens from {tokens.min()} to {tokens.max()}"
            raise ValueError(f"the {name} text has {found}, but the vocabulary has {n_vocab}: encode it again")
    context, target = validation[:-1], validation[1:]

    counts = np.bincount(train, minlength=n_vocab)
    unigram = (counts[target] + 1) / (len(train) + n_vocab)

    pairs, n_pair = np.unique(_pairs(train, n_vocab), return_counts=True)
    before, after = np.divmod(pairs, np.uint64(n_vocab))
    n_context = np.bincount(train[:-1], minlength=n_vocab)  # n(v)
    n_followers = np.bincount(before.astype(np.intp), minlength=n_vocab)  # T(v)
    n_preceders = np.bincount(after.astype(np.intp), minlength=n_vocab)
    n_seen = np.count_nonzero(n_preceders)
    lower = (n_preceders + n_seen / n_vocab) / (len(pairs) + n_seen)

    wanted = _pairs(validation, n_vocab)
    index = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    n_wanted = np.where(pairs[index] == wanted, n_pair[index], 0)
    # A context never followed by anything in training says nothing: its weight is 1 for the lower order.
    weight = np.maximum(n_followers, n_context == 0)[context]
    bigram = (n_wanted + weight * lower[target]) / (n_context[context] + weight)

    return Baselines(math.log(n_vocab), -float(np.log(unigram).mean()), -float(np.log(bigram).mean()))


def _pairs(tokens: npt.NDArray[Any], n_vocab: int) -> npt.NDArray[np.uint64]:
    """Each two neighbouring tokens as one number."""
    pairs = tokens[:-1].astype(np.uint64)
    pairs *= np.uint64(n_vocab)
    pairs += tokens[1:].astype(np.uint64)
    return pairs
