"""Scores of generated text: ROUGE, BLEU, extractive baselines, toxicity. Pure: texts in, numbers out.

ROUGE (Lin 2004) and BLEU (Papineni et al. 2002) are in points, 0 to 100. A text is scored against one reference; where that
is missing (empty) the score is None, which is undefined and never zero. An empty output has a reference it fails to
meet: it scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
BLEU_ORDER = 4
BLEU_COLUMNS = 2 + 2 * BLEU_ORDER

# A sentence ends at . ! or ? (and closing quotes or brackets) before white space, or at an empty line.
_SENTENCE_END = re.compile(r"[.!?][\"'`)\]]*(?=\s)|\n[ \t]*\n")
# These end in a full stop and no sentence does; a single letter before it is an initial ("J. Smith").
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|approx|resp|fig|eq|no|dr|mr|mrs|st)|(?:^|\s)[A-Za-z])\.$", re.IGNORECASE
)


class Rouge(NamedTuple):
    """One ROUGE score, in points."""

    precision: float
    recall: float
    f1: float


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, as one space: what is scored."""
    return " ".join(text.split())


def rouge(references: Sequence[str], predictions: Sequence[str]) -> list[dict[str, Rouge] | None]:
    """ROUGE-1, -2 and -L of each prediction: clipped n-gram counts, longest common subsequence; Porter stemmer.

    Equal to the package rouge-score with `use_stemmer=True`, a hundred times as fast.

    Returns:
        For each item, type → score; None where there is no reference.
    """
    from rouge_score_rs.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    found: list[dict[str, Rouge] | None] = []
    for reference, prediction in zip(references, predictions, strict=True):
        if not reference.strip():
            found.append(None)
            continue
        scores = scorer.score(reference, prediction)
        found.append(
            {
                name: Rouge(100.0 * scores[name].precision, 100.0 * scores[name].recall, 100.0 * scores[name].fmeasure)
                for name in ROUGE_TYPES
            }
        )
    return found


def rouge_name() -> str:
    """What computed ROUGE, for whoever reads the scores."""
    from importlib.metadata import version

    return f"rouge-score-rs {version('rouge-score-rs')}: F1, Porter stemmer, one reference"


def corpus_score(metric: str, references: Sequence[str], predictions: Sequence[str]) -> float | None:
    """One number for a set of items: the mean of ROUGE's F1, or corpus BLEU; None where no item has a reference."""
    if metric == "bleu":
        found = float(bleu(bleu_statistics(references, predictions).sum(axis=0)))
        return None if found != found else found
    scored = [each[metric].f1 for each in rouge(references, predictions) if each is not None]
    return sum(scored) / len(scored) if scored else None


def bleu_statistics(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """What corpus BLEU is computed from, for each item: sums over any set of items give that set's BLEU.

    Returns:
        (n, 10) float64: output length, reference length, matched n-grams (1 to 4), n-grams of the output (1 to 4); zeros
        for an item without a reference.
    """
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    # Sentence BLEU is asked for its counts only; the effective order changes its score, which is not used.
    scorer = BLEU(effective_order=True)
    rows = np.zeros((len(references), BLEU_COLUMNS))
    for index, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        if reference.strip():
            score = scorer.sentence_score(prediction, [reference])
            rows[index] = [score.sys_len, score.ref_len, *score.counts, *score.totals]
    return rows


def bleu(statistics: np.ndarray) -> np.ndarray:
    """Corpus BLEU from summed statistics, as sacrebleu computes it (exponential smoothing, brevity penalty).

    Args:
        statistics: (…, 10), sums over items of the rows of `bleu_statistics`.

    Returns:
        (…) points, 0 to 100; nan where there was no reference at all.
    """
    import numpy as np

    length, reference = statistics[..., 0], statistics[..., 1]
    matched, total = statistics[..., 2 : 2 + BLEU_ORDER], statistics[..., 2 + BLEU_ORDER :]
    # The k-th order without any match counts as 1/2^k of a match (Chen and Cherry 2014, method 3).
    zeros = np.cumsum(matched == 0, axis=-1)
    counts = np.where(matched == 0, 0.5**zeros, matched)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(counts / total).mean(axis=-1)
        brevity = np.where(length < reference, np.exp(1.0 - reference / length), 1.0)
        points = 100.0 * brevity * np.exp(log_precision)
    # No match at all, or not one run of four words: BLEU is 0, however it is smoothed.
    points = np.where((matched.sum(axis=-1) == 0) | (total == 0).any(axis=-1), 0.0, points)
    found: np.ndarray = np.where(reference == 0, np.nan, points)
    return found


def bleu_signature() -> str:
    """Sacrebleu's signature: everything the number depends on."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU()
    scorer.corpus_score(["a"], [["a"]])  # the number of references is known only afterwards
    return str(scorer.get_signature())


def lead_words(text: str, count: int = 10) -> str:
    """The extractive baseline: the first `count` words."""
    return " ".join(text.split()[:count])


def first_sentence(text: str) -> str:
    """The extractive baseline: everything up to the end of the first sentence, on one line.

    A sentence ends at . ! or ? before white space, abbreviations and initials excepted, or at an empty line.
    """
    text = text.strip()
    for end in _SENTENCE_END.finditer(text):
        head = text[: end.end()]
        if head.strip() and not _ABBREVIATION.search(head):
            return one_line(head)
    return one_line(text)


def share(flags: Iterable[bool]) -> float | None:
    """Share of true values, 0 to 1; None of nothing."""
    return mean([float(flag) for flag in flags])


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the defined values; None where there is none."""
    import math

    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
