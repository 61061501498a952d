"""Scores against their outside oracles: rouge-score for ROUGE, sacrebleu's corpus BLEU for BLEU."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tunemill import metrics

WORDS = [
    "return",
    "returns",
    "returned",
    "the",
    "a",
    "list",
    "of",
    "lists",
    "running",
    "run",
    "value",
    "values",
    "Compute_2",
    "naïve",
    "3.14",
    "it's",
    "Größe",
    "…",
]


def pairs(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 15))) for _ in range(2 * count)]
    return texts[:count], texts[count:]


def test_rouge_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    references, predictions = pairs(60)
    predictions[:3] = ["", "…", references[2]]
    oracle = RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True)
    for reference, prediction, found in zip(
        references, predictions, metrics.rouge(references, predictions), strict=True
    ):
        assert found is not None
        for name, score in oracle.score(reference, prediction).items():
            assert found[name] == pytest.approx(
                [100 * score.precision, 100 * score.recall, 100 * score.fmeasure], abs=1e-9
            )


def test_rouge_of_nothing() -> None:
    assert metrics.rouge([], []) == []
    assert metrics.rouge(["", " \n"], ["text", ""]) == [None, None]  # undefined, not zero
    (empty,) = metrics.rouge(["a reference"], [""])
    assert empty is not None and empty["rouge1"] == (0.0, 0.0, 0.0)


def test_rouge_by_hand() -> None:
    # Reference "the cat sat on the mat", prediction "the cat the cat the": 3 of 5 words count ("the" is clipped at 2).
    (found,) = metrics.rouge(["the cat sat on the mat"], ["the cat the cat the"])
    assert found is not None
    assert found["rouge1"] == pytest.approx((60.0, 50.0, 100 * 6 / 11))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 40])
def test_bleu_is_that_of_sacrebleu(seed: int, count: int) -> None:
    import sacrebleu

    references, predictions = pairs(count, seed)
    predictions[0] = references[0] if seed == 0 else predictions[0]
    statistics = metrics.bleu_statistics(references, predictions)
    oracle = sacrebleu.corpus_bleu(predictions, [references])
    assert metrics.bleu(statistics.sum(axis=0)) == pytest.approx(oracle.score, abs=1e-9)


def test_bleu_of_resamples_is_that_of_the_resampled_texts() -> None:
    import sacrebleu

    references, predictions = pairs(25, 3)
    predictions[::4] = references[::4]
    statistics = metrics.bleu_statistics(references, predictions)
    drawn = np.random.default_rng(0).integers(25, size=(4, 25))
    found = metrics.bleu(statistics[drawn].sum(axis=1))  # all four at once
    for points, indices in zip(found, drawn, strict=True):
        oracle = sacrebleu.corpus_bleu([predictions[i] for i in indices], [[references[i] for i in indices]])
        assert points == pytest.approx(oracle.score, abs=1e-9)


@pytest.mark.parametrize(
    ("references", "predictions"),
    [
        (["one two three four"], [""]),
        (["one two three four", "five six"], ["", ""]),
        (["one two three four"], ["one two three"]),  # no run of four words
        (["one two three four five"], ["six seven eight nine ten"]),
        (["one"], ["one"]),
    ],
)
def test_bleu_at_the_edges_is_that_of_sacrebleu(references: list[str], predictions: list[str]) -> None:
    import sacrebleu

    oracle = sacrebleu.corpus_bleu(predictions, [references]).score
    found = metrics.bleu(metrics.bleu_statistics(references, predictions).sum(axis=0))
    assert found == pytest.approx(oracle, abs=1e-9)


def test_bleu_without_references_is_undefined() -> None:
    assert np.isnan(metrics.bleu(metrics.bleu_statistics(["", ""], ["a", "b"]).sum(axis=0)))
    assert np.isnan(metrics.bleu(metrics.bleu_statistics([], []).sum(axis=0)))


def test_the_signature_names_what_bleu_depends_on() -> None:
    signature = metrics.bleu_signature()
    for part in ("nrefs:1", "case:mixed", "eff:no", "tok:13a", "smooth:exp", "version:"):
        assert part in signature


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the sum. Then stop.", "Return the sum."),
        ("Wraps at\nthe margin and\ngoes on. Next.", "Wraps at the margin and goes on."),
        ("Use e.g. a list, i.e. many things. Next.", "Use e.g. a list, i.e. many things."),
        ("See numpy.array for more. Next.", "See numpy.array for more."),
        ("Named after J. Smith et al. in 1990. Next.", "Named after J. Smith et al. in 1990."),
        ('He said "stop." And went.', 'He said "stop."'),
        ("A heading\n\nand a body. More.", "A heading"),
        ("What is it? A test!", "What is it?"),
        ("no end at all", "no end at all"),
        ("  \n\n  Leading space. x", "Leading space."),
        ("", ""),
        ("...", "..."),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert metrics.first_sentence(text) == sentence


def test_lead_words() -> None:
    assert metrics.lead_words("a b\nc  d e f g h i j k l") == "a b c d e f g h i j"
    assert metrics.lead_words("one two", 10) == "one two"
    assert metrics.lead_words("") == ""


def test_one_line() -> None:
    assert metrics.one_line("  a\n\tb\u00a0 c ") == "a b c"


def test_means_and_shares() -> None:
    assert metrics.mean([1.0, None, 3.0]) == 2.0
    assert metrics.mean([None]) is None and metrics.mean([]) is None
    assert metrics.share([True, False, False, True]) == 0.5
    assert metrics.share([]) is None
