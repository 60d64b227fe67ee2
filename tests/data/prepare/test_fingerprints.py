import hashlib
import random
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.data.prepare.fingerprints import Joined, bands_of, digests, is_validation, signatures

TEXTS = st.lists(st.text(alphabet="aB1 \n\té漢.", max_size=60), min_size=1, max_size=6)


def joined(texts: list[str]) -> Joined:
    return Joined([text.encode("utf-8") for text in texts])


@given(TEXTS)
def test_a_digest_is_of_the_text_without_its_white_space(texts: list[str]) -> None:
    expected = [
        hashlib.blake2b(b" ".join(text.encode("utf-8").split(b" ")), digest_size=16).digest()
        for text in (re.sub(r"[ \n\t]+", " ", text).strip(" ") for text in texts)
    ]
    assert digests(joined(texts)).tobytes() == b"".join(expected)


@given(TEXTS)
def test_neighbours_change_nothing(texts: list[str]) -> None:
    together, known = signatures(joined(texts))
    for i, text in enumerate(texts):
        alone, known_alone = signatures(joined([text]))
        assert np.array_equal(alone[0], together[i]) or not known[i]
        assert known_alone[0] == known[i]


def test_a_text_of_few_words_has_no_signature() -> None:
    assert signatures(joined(["", "a b c d", "a b c d e", " . "]))[1].tolist() == [False, False, True, False]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_signatures_estimate_the_jaccard_similarity() -> None:
    """Of 64 places: a standard deviation of at most 1/16."""
    random_words = random.Random(0)
    words = [f"w{random_words.randrange(5000)}" for _ in range(3000)]
    errors = []
    for changed in (0.0, 0.01, 0.02, 0.05, 0.1, 0.3):
        other = [w if random_words.random() > changed else f"x{random_words.randrange(10**6)}" for w in words]
        a, b = " ".join(words), ", ".join(other).upper()
        found = signatures(joined([a, b]))[0]
        exact = len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
        errors.append((found[0] == found[1]).mean() - exact)
    assert errors[0] == 0
    assert np.abs(errors).max() < 0.2
    assert abs(np.mean(errors)) < 0.06


def test_short_texts_fill_all_places() -> None:
    found, _ = signatures(joined(["one two three four five six", "one two three four five six", "a b c d e f"]))
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).mean() < 0.1
    assert len(set(found[0].tolist())) > 48, "borrowed values are mixed with the distance"
    assert bands_of(found).shape == (3, 16)


def test_the_share_of_validation_is_what_was_asked_for() -> None:
    digest = digests(joined([f"text {i}" for i in range(20_000)]))[:, 1]
    for fraction in (0.001, 0.1, 0.5):
        share = is_validation(digest, fraction).mean()
        assert abs(share - fraction) < 4 * (fraction / 20_000) ** 0.5
    small, large = is_validation(digest, 0.1), is_validation(digest, 0.2)
    assert not (small & ~large).any(), "a larger part holds the smaller one"
