"""SQuAD's two scores of a short answer (Rajpurkar et al. 2016): exact match, and F1 over words.

Some tasks of lm-eval (SuperGLUE's ReCoRD, CoQA) read them from `transformers.data.metrics.squad_metrics`, which transformers 5 has no
more: `standing_in` puts this module there. Equal to the official script (evaluate-v2.0.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

from tunemill import metrics

GONE = "transformers.data.metrics"


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and extra white space."""
    return metrics.plain(text, articles=False)


def compute_exact(gold: str, prediction: str) -> int:
    """1 where both are the same answer, else 0."""
    return int(normalize_answer(gold) == normalize_answer(prediction))


def compute_f1(gold: str, prediction: str) -> float:
    """F1 of the words that both have; of an answer of no words, whether both have none."""
    wanted, found = normalize_answer(gold).split(), normalize_answer(prediction).split()
    if not wanted or not found:
        return float(wanted == found)
    return 2 * (Counter(wanted) & Counter(found)).total() / (len(wanted) + len(found))


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    """Let modules that are imported meanwhile find these functions where transformers had them."""
    if importlib.util.find_spec(GONE) is not None:
        yield
        return
    package = ModuleType(GONE)
    package.squad_metrics = sys.modules[__name__]  # type: ignore[attr-defined]
    sys.modules |= {GONE: package, f"{GONE}.squad_metrics": sys.modules[__name__]}
    try:
        yield
    finally:
        del sys.modules[GONE], sys.modules[f"{GONE}.squad_metrics"]
