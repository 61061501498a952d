"""ROUGE: this project's against the package rouge-score, the same texts.

    python benchmarks/rouge.py artifacts/evaluate/*/instances.jsonl

Both score every reference and prediction of the files (ROUGE-1, -2 and -L, Porter stemmer), in one process, in turns (A, B,
A, B, …); the first round warms up. A turn calls a variant again and again for a tenth of a second, without garbage collection;
what counts is processor time, as both use one core. Ours remembers the stem of a word for as long as the process lives:
"first" is what a call costs that meets every word for the first time. With `--column text`, `artifacts/validate/test.jsonl` can be
scored, longer texts: each row's text against the next row's.

Printed are median microseconds a pair, the ratio (median of the rounds' ratios), and the largest difference between any two
scores, in points. Above 1e-9, and the command fails: speeds of different numbers are not compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TURN = 0.1
"""Seconds that a variant is called for, at least."""

Score = Callable[[Sequence[str], Sequence[str]], list[Any]]


def pairs(paths: Sequence[Path], column: str | None) -> tuple[list[str], list[str]]:
    """References and predictions: those of the rows, or one column against itself, a row further on."""
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    if column is None:
        return [row["reference"] for row in rows], [row["prediction"] for row in rows]
    texts = [row[column] for row in rows if row[column]]
    return texts, texts[1:] + texts[:1]


def peer() -> Score:
    """rouge-score's own scorer, made once."""
    from rouge_score.rouge_scorer import RougeScorer

    from tunemill import metrics

    scorer = RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True)
    return lambda references, predictions: [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]


def ours_first(references: Sequence[str], predictions: Sequence[str]) -> list[Any]:
    """Ours, with no stem remembered."""
    from tunemill import metrics

    metrics.forget_stems()
    return metrics.rouge(references, predictions)


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Largest difference of any precision, recall or F1, in points; of an item without a reference there is none."""
    return max(
        abs(mine - 100.0 * other)
        for scores, oracle in zip(ours, theirs, strict=True)
        if scores is not None
        for name, expected in oracle.items()
        for mine, other in zip(scores[name], expected, strict=False)  # ours has counts too
    )


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", type=Path, nargs="+", help="JSONL with reference and prediction")
    parser.add_argument("--column", help="score this column against itself, a row further on")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()

    from tunemill import metrics

    references, predictions = pairs(arguments.rows, arguments.column)
    variants: dict[str, Score] = {"ours": metrics.rouge, "ours, first": ours_first, "rouge-score": peer()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, list[Any]] = {}
    gc.disable()
    for turn in range(1 + arguments.rounds):
        for name, score in variants.items():
            calls, began = 0, time.process_time()
            while (took := time.process_time() - began) < TURN or not calls:
                found[name] = score(references, predictions)
                calls += 1
            if turn:
                seconds[name].append(took / calls)
        gc.collect()
    words = statistics.mean(len(text.split()) for text in (*references, *predictions))
    print(f"{len(references)} pairs of {words:.0f} words on average, {arguments.rounds} rounds")
    print(f"{'':<12} {'µs a pair':>10} {'times as fast':>14}")
    for name, took in seconds.items():
        ratio = statistics.median(other / own for own, other in zip(took, seconds["rouge-score"], strict=True))
        print(f"{name:<12} {statistics.median(took) / len(references) * 1e6:>10.1f} {ratio:>14.1f}")
    worst = difference(found["ours"], found["rouge-score"])
    print(f"largest difference: {worst:.1e} points")
    return 1 if worst > 1e-9 else 0


if __name__ == "__main__":
    sys.exit(main())
