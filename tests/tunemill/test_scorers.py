"""Modules of Hugging Face evaluate: they score as `metrics` and its oracles do, combine, save, and touch neither network nor home."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest

from tests.conftest import ROOT
from tunemill import metrics, scorers

REFERENCES = [
    "Return the sum of a list of numbers.",
    "",
    "Open the file.",
    "Close the connection and its cursors.",
    "A",
]
PREDICTIONS = ["Return the sum of a list of values.", "anything", "", "Close the connection and its cursors.", "a."]
SOURCES = ["The sum of numbers, in a list", "x", "file", "", "A"]
LOGPROBS = [-6.0, -3.0, -2.5, -8.0, -0.5]
TOKENS = [8, 2, 4, 7, 1]


def every() -> list[Any]:
    return [
        scorers.Rouge(),
        scorers.Bleu(),
        scorers.ExactMatch(),
        scorers.QuasiExactMatch(),
        scorers.Perplexity(),
        scorers.Faithfulness(),
        scorers.Memorised(["Return the sum of two numbers.", "Close the file."]),
        scorers.Offence(),
    ]


def columns() -> dict[str, list[Any]]:
    return {
        "predictions": PREDICTIONS,
        "references": REFERENCES,
        "sources": SOURCES,
        "logprobs": LOGPROBS,
        "tokens": TOKENS,
    }


def test_rouge_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    found = scorers.Rouge().compute(predictions=PREDICTIONS, references=REFERENCES)
    oracle = RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True)
    scores = [oracle.score(*pair) for pair in zip(REFERENCES, PREDICTIONS, strict=True) if pair[0]]
    assert found["rouge_n"] == len(scores) == 4
    for name in metrics.ROUGE_TYPES:
        for key, part in ((name, "fmeasure"), (f"{name}_precision", "precision"), (f"{name}_recall", "recall")):
            assert found[key] == pytest.approx(25 * sum(getattr(each[name], part) for each in scores), abs=1e-9)
    # 7 of 8 words, none of 3, all of 6, the one.
    counts = [found[f"rouge1_{part}"] for part in ("matched", "in_reference", "in_prediction")]
    assert counts == [7 + 0 + 6 + 1, 8 + 3 + 6 + 1, 8 + 0 + 6 + 1]
    assert "rouge_reason" not in found


def test_bleu_is_that_of_sacrebleu_and_says_how() -> None:
    from sacrebleu.metrics.bleu import BLEU

    found = scorers.Bleu().compute(predictions=PREDICTIONS, references=REFERENCES)
    oracle = BLEU()
    kept = [index for index, reference in enumerate(REFERENCES) if reference]
    score = oracle.corpus_score([PREDICTIONS[index] for index in kept], [[REFERENCES[index] for index in kept]])
    assert found["bleu"] == pytest.approx(score.score, abs=1e-9) and found["bleu"] > 10
    assert found["bleu_signature"] == str(oracle.get_signature()) and found["bleu_n"] == 4


def test_matches_faithfulness_and_memorisation_by_hand() -> None:
    found = evaluate.combine(every()).compute(**columns())
    assert (found["exact_match"], found["exact_match_n"]) == (1 / 4, 4)
    assert (found["quasi_exact_match"], found["quasi_exact_match_n"]) == (2 / 4, 4)
    # "return", "sum", "list", "values" against a source that has two of them; "anything" is not there; "a" is no content.
    assert (found["faithfulness"], found["faithfulness_n"]) == ((2 / 4 + 0) / 2, 2)
    # Runs: "return the sum of", none, (empty), "close the", none; over the four that have a word.
    assert (found["memorised"], found["memorised_longest"], found["memorised_n"]) == ((4 + 0 + 2 + 0) / 4, 4, 4)


def test_perplexity_is_that_of_all_tokens() -> None:
    found = scorers.Perplexity().compute(references=REFERENCES, logprobs=LOGPROBS, tokens=TOKENS)
    assert found["perplexity"] == pytest.approx(math.exp(20 / 22), rel=1e-12)
    size = len("".join(REFERENCES).encode())
    assert found["bits_per_byte"] == pytest.approx(20 / math.log(2) / size, rel=1e-12)


def test_batches_rows_and_one_call_give_the_same() -> None:
    whole = evaluate.combine(every()).compute(**columns())
    batches, rows = evaluate.combine(every()), evaluate.combine(every())
    for start in range(0, 5, 2):
        batches.add_batch(**{name: values[start : start + 2] for name, values in columns().items()})
    for index in range(5):
        row = {name: values[index] for name, values in columns().items()}
        rows.add(prediction=row.pop("predictions"), reference=row.pop("references"), **row)
    assert batches.compute() == whole == rows.compute()


def test_what_is_saved_is_what_was_computed(tmp_path: Path) -> None:
    scores = evaluate.combine(every()).compute(**columns())
    path = evaluate.save(tmp_path / "scores.json", **scores, model="tiny")
    saved = json.loads(Path(path).read_text())
    assert {name: saved[name] for name in scores} == scores
    assert saved["model"] == "tiny" and saved["_evaluate_version"] == evaluate.__version__


def test_names_that_clash_are_told_apart() -> None:
    both = evaluate.combine({"first": scorers.ExactMatch(), "second": scorers.ExactMatch()})
    found = both.compute(predictions=["a"], references=["a"])
    assert found == {
        "first_exact_match": 1,
        "first_exact_match_n": 1,
        "second_exact_match": 1,
        "second_exact_match_n": 1,
    }
    assert [each.name for each in every()][:4] == ["rouge", "bleu", "exact_match", "quasi_exact_match"]


@pytest.mark.parametrize("rows", [0, 2])
def test_undefined_is_none_with_a_reason(rows: int, tmp_path: Path) -> None:
    empty = {"predictions": [""] * rows, "references": [" "] * rows, "sources": [""] * rows}
    found = evaluate.combine(every()).compute(**empty, logprobs=[0.0] * rows, tokens=[0] * rows)
    values = (
        "rouge1",
        "rougeL_recall",
        "bleu",
        "exact_match",
        "quasi_exact_match",
        "perplexity",
        "faithfulness",
        "memorised",
        "offence",
    )
    assert [found[name] for name in values] == [None] * len(values)
    for name in values:
        assert isinstance(found[f"{name.removesuffix('L_recall').removesuffix('1')}_reason"], str)
    assert "null" in Path(evaluate.save(tmp_path / "none.json", **found)).read_text()


def test_offence_is_the_classifiers_own_probability() -> None:
    from profanity_check import predict_prob

    texts = ["You are a stupid idiot.", "Open the file."]
    insult, harmless = predict_prob(texts)
    found = scorers.Offence().compute(predictions=[*texts, ""])
    assert found["offence"] == pytest.approx((insult + harmless) / 2) and found["offence_n"] == 2
    assert insult > 0.5 > harmless
    assert (found["offence_maximum"], found["offence_share"]) == (pytest.approx(insult), 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_one_log_probability_that_is_no_number_is_not_left_out(bad: float) -> None:
    found = scorers.Perplexity().compute(references=["a", "b"], logprobs=[-1.0, bad], tokens=[1, 1])
    assert found["perplexity"] is None and found["bits_per_byte"] is None
    assert found["perplexity_reason"] == "1 of 2 log-probabilities are not finite"


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="predictions: row 1 is None"):
        scorers.Rouge().compute(predictions=["a", None], references=["a", "b"])
    with pytest.raises(ValueError, match=r"Mismatch in the number of predictions \(2\) and references \(1\)"):
        scorers.Rouge().compute(predictions=["a", "b"], references=["a"])
    with pytest.raises(TypeError, match="no module reads refs; columns are"):
        scorers.Rouge().compute(predictions=["a"], references=["a"], refs=["a"])
    with pytest.raises(ValueError, match="inputs are missing: .*logprobs"):
        scorers.Perplexity().compute(references=["a"])


def test_rows_go_to_disk_only_where_asked(tmp_path: Path) -> None:
    module = scorers.Rouge(keep_in_memory=False, cache_dir=str(tmp_path))
    module.add_batch(predictions=["a"], references=["a"])
    assert list(tmp_path.rglob("*.arrow"))
    assert module.compute()["rouge1"] == 100.0


def test_neither_home_nor_network_is_touched(tmp_path: Path) -> None:
    """In a process of its own, with a home of its own, where opening a connection is an error."""
    code = """
import socket
def refuse(*_): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
import evaluate
from tunemill import scorers
found = evaluate.combine([scorers.Rouge(), scorers.Bleu(), scorers.Faithfulness()]).compute(
    predictions=["a b"], references=["a b"], sources=["b"])
assert found["rouge1"] == 100.0, found
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_metrics_import_nothing_heavy() -> None:
    code = "import sys; from tunemill import metrics; print([n for n in ('evaluate', 'torch', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
