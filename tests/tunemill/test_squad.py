"""SQuAD's scores: by hand, and as lm-eval has them in its other wording of ReCoRD."""

from __future__ import annotations

import importlib
import random
import sys

import pytest

from tunemill import squad


@pytest.mark.parametrize(
    ("gold", "prediction", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel  tower", 1, 1.0),
        ("Barack Obama", "Obama", 0, 2 / 3),  # precision 1, recall a half
        ("a b b c", "b b b", 0, 2 * (2 / 3) * (2 / 3) / (4 / 3)),  # "a" is an article
        ("yes", "no", 0, 0.0),
        ("the", "", 1, 1.0),  # nothing is left of either
        ("the", "no", 0, 0.0),
    ],
)
def test_by_hand(gold: str, prediction: str, exact: int, f1: float) -> None:
    assert squad.compute_exact(gold, prediction) == exact
    assert squad.compute_f1(gold, prediction) == pytest.approx(f1)


def test_as_lm_eval_has_them_elsewhere() -> None:
    theirs = importlib.import_module("lm_eval.tasks.super_glue.record.t5_utils")
    rng = random.Random(5)
    words = ["The", "an", "U.S.", "u.s", "Mary-Ann", "mary", "(Paris)", "paris,", "Ü", "a"]
    for _ in range(200):
        gold, prediction = (" ".join(rng.choices(words, k=rng.randrange(2, 6))) for _ in range(2))
        if not squad.normalize_answer(gold) or not squad.normalize_answer(prediction):
            continue  # where nothing is left, theirs divides by it
        assert squad.compute_exact(gold, prediction) == theirs.squad_em_agg([(prediction, f"q_{gold}")])
        assert squad.compute_f1(gold, prediction) == pytest.approx(theirs.squad_f1_agg([(prediction, f"q_{gold}")]))


def test_it_stands_in_for_a_time() -> None:
    with squad.standing_in():
        import transformers.data.metrics.squad_metrics as found

        assert found is squad
    assert squad.GONE not in sys.modules
