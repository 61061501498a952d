"""Texts as weighted counts of their words and pairs of words: TF-IDF (Spärck Jones 1972; Salton and Buckley 1988).

A text's term t counts (1 + ln n_t) · (ln((1 + N) / (1 + N_t)) + 1), where n_t is how often it stands there and N_t in how many of the N
known texts; a text's vector has length one. That is scikit-learn's TfidfVectorizer with `sublinear_tf`, without its pickles: a
vocabulary is a list of terms and their weights. Pure, no I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_WORD = re.compile(r"\b\w\w+\b")


class Vocabulary(NamedTuple):
    """What is counted."""

    terms: tuple[str, ...]
    """In alphabetical order: words, and runs of words with a space between them."""
    weights: np.ndarray
    """(d,) how much each term counts: more, the fewer texts have it."""
    longest: int
    """Words of the longest run."""


def runs(text: str, longest: int) -> list[str]:
    """The words of a text (two letters or more, lower case), and its runs of up to so many words."""
    words = _WORD.findall(text.lower())
    return [" ".join(words[at : at + size]) for size in range(1, longest + 1) for at in range(len(words) - size + 1)]


def learn(texts: Sequence[str], longest: int, least: int) -> Vocabulary:
    """The terms of some texts.

    Args:
        texts: N of them.
        longest: words of the longest run.
        least: texts that must have a term.
    """
    import numpy as np

    spread = Counter(term for text in texts for term in set(runs(text, longest)))
    terms = tuple(sorted(term for term, count in spread.items() if count >= least))
    counts = np.array([spread[term] for term in terms], dtype=float)
    return Vocabulary(terms, np.log((1.0 + len(texts)) / (1.0 + counts)) + 1.0, longest)


def vectors(vocabulary: Vocabulary, texts: Sequence[str]) -> Any:
    """Texts as vectors of length one; all zeros where a text has no known term.

    Args:
        vocabulary: the terms.
        texts: n of them.

    Returns:
        (n, d) sparse, of scipy, rows compressed.
    """
    import numpy as np
    import scipy.sparse

    places = {term: at for at, term in enumerate(vocabulary.terms)}
    ends, columns, values = [0], [], []
    for text in texts:
        counts = Counter(at for term in runs(text, vocabulary.longest) if (at := places.get(term)) is not None)
        own = np.array(sorted(counts), dtype=np.intp)
        weighted = (1.0 + np.log([counts[at] for at in own])) * vocabulary.weights[own]
        columns.append(own)
        values.append(weighted / (np.sqrt(weighted @ weighted) if len(own) else 1.0))
        ends.append(ends[-1] + len(own))
    return scipy.sparse.csr_matrix(
        (np.concatenate([*values, np.empty(0)]), np.concatenate([*columns, np.empty(0, dtype=np.intp)]), ends),
        shape=(len(texts), len(vocabulary.terms)),
    )
