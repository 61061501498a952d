"""TF-IDF against scikit-learn's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from tunemill import tfidf

WORDS = [
    "water",
    "Bread",
    "house",
    "a",
    "I'm",
    "don't",
    "naïve",
    "日本語",
    "x2",
    "under_score",
    "garden",
    "river",
    "—",
    "stop.",
]


def texts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randrange(0, 30))) for _ in range(count)]


@pytest.mark.parametrize(("longest", "least"), [(1, 1), (2, 1), (2, 2), (3, 4)])
def test_it_is_that_of_scikit_learn(longest: int, least: int) -> None:
    known, unknown = texts(40, 0), [*texts(30, 1), "", "nothing that is known", "a a a"]
    oracle = TfidfVectorizer(ngram_range=(1, longest), min_df=least, sublinear_tf=True)
    expected = oracle.fit_transform(known).toarray()
    found = tfidf.learn(known, longest, least)
    assert list(found.terms) == list(oracle.get_feature_names_out())
    assert found.weights == pytest.approx(oracle.idf_, abs=1e-12)
    assert tfidf.vectors(found, known).toarray() == pytest.approx(expected, abs=1e-12)
    assert tfidf.vectors(found, unknown).toarray() == pytest.approx(oracle.transform(unknown).toarray(), abs=1e-12)


def test_a_text_has_the_same_vector_whatever_it_stands_beside() -> None:
    some = texts(50, 2)
    found = tfidf.learn(some, 2, 2)
    together = tfidf.vectors(found, some)
    assert isinstance(together, scipy.sparse.csr_matrix)
    weight = np.random.default_rng(0).normal(size=len(found.terms))
    alone = [float((tfidf.vectors(found, [each]) @ weight)[0]) for each in some]
    assert alone == (together @ weight).tolist()


def test_of_nothing_there_is_nothing() -> None:
    empty = tfidf.learn([], 2, 1)
    assert empty.terms == () and tfidf.vectors(empty, ["a text"]).shape == (1, 0)
    assert tfidf.vectors(tfidf.learn(["one text"], 1, 1), []).shape == (0, 2)
    assert not tfidf.vectors(tfidf.learn(["one text"], 1, 1), ["other words"]).toarray().any()
