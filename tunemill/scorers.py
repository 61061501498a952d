"""The scores of `metrics` as modules of Hugging Face evaluate: for `evaluate.combine`, `add_batch`, `compute` and `evaluate.save`.

    import evaluate
    from tunemill import scorers

    scores = evaluate.combine([scorers.Rouge(), scorers.Bleu(), scorers.QuasiExactMatch()])
    scores.add_batch(predictions=[...], references=[...])
    evaluate.save("scores.json", **scores.compute())

`evaluate.load("rouge")` fetches a script from the hub; these need no network. They keep rows in memory, where the library's
own modules write them to the user's cache. Undefined is None, and then a key `<module>_reason` says why. Values are those of
`metrics`: ROUGE and BLEU in points (0 to 100, where the hub's ROUGE is 0 to 1), shares 0 to 1.

Importing this takes seconds, because evaluate does. No stage imports it: stages call `metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
from datasets import Features, Value

from tunemill import metrics, toxicity

NO_REFERENCE = "no item has a reference"


COLUMNS = frozenset({"predictions", "references", "sources", "logprobs", "tokens"})
"""What any of the modules reads: `combine` hands all columns to every module."""


class InMemory(evaluate.Metric):  # type: ignore[misc]  # the library's own way to a metric
    """An `evaluate.Metric` that writes nothing to disk, unless made with `keep_in_memory=False`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    def _build_data_dir(self) -> str:
        return "" if self.keep_in_memory else str(super()._build_data_dir())


class Rouge(InMemory):
    """ROUGE-1, -2 and -L: means over the items of F1, precision and recall, and the counts, summed."""

    def _info(self) -> Any:
        return _info(
            "ROUGE-1, ROUGE-2 and ROUGE-L in points (0 to 100), Porter stemmer, one reference: as the package rouge-score",
            "Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries",
            predictions="string",
            references="string",
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **others: Any) -> dict[str, Any]:
        _check(others, predictions=predictions, references=references)
        defined = [each for each in metrics.rouge(references, predictions) if each is not None]
        found: dict[str, Any] = {"rouge_n": len(defined)}
        for name in metrics.ROUGE_TYPES:
            found[name] = metrics.mean(each[name].f1 for each in defined)
            for part in ("precision", "recall"):
                found[f"{name}_{part}"] = metrics.mean(getattr(each[name], part) for each in defined)
            for part in ("matched", "in_reference", "in_prediction"):
                found[f"{name}_{part}"] = sum(getattr(each[name], part) for each in defined)
        return found | ({} if defined else {"rouge_reason": NO_REFERENCE})


class Bleu(InMemory):
    """Corpus BLEU with sacrebleu's signature."""

    def _info(self) -> Any:
        return _info(
            "Corpus BLEU in points (0 to 100), one reference: as sacrebleu, whose signature comes with it",
            "Papineni et al. (2002), BLEU; Post (2018), A Call for Clarity in Reporting BLEU Scores",
            predictions="string",
            references="string",
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **others: Any) -> dict[str, Any]:
        _check(others, predictions=predictions, references=references)
        points = metrics.corpus_score("bleu", references, predictions)
        found = {
            "bleu": points,
            "bleu_n": sum(bool(each.strip()) for each in references),
            "bleu_signature": metrics.bleu_signature(),
        }
        return found | ({"bleu_reason": NO_REFERENCE} if points is None else {})


class ExactMatch(InMemory):
    """Share of predictions that are their reference."""

    def _info(self) -> Any:
        return _info(
            "Share (0 to 1) of predictions equal to their reference, white space around them aside",
            "HELM, Liang et al. (2022)",
            predictions="string",
            references="string",
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **others: Any) -> dict[str, Any]:
        _check(others, predictions=predictions, references=references)
        return _share("exact_match", metrics.exact_match(references, predictions), NO_REFERENCE)


class QuasiExactMatch(InMemory):
    """Share of predictions that are their reference but for case, punctuation, articles and space."""

    def _info(self) -> Any:
        return _info(
            "Share (0 to 1) of predictions equal to their reference but for case, ASCII punctuation, articles and space",
            "HELM, Liang et al. (2022)",
            predictions="string",
            references="string",
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **others: Any) -> dict[str, Any]:
        _check(others, predictions=predictions, references=references)
        return _share("quasi_exact_match", metrics.quasi_exact_match(references, predictions), NO_REFERENCE)


class Perplexity(InMemory):
    """Perplexity and bits per byte of all texts together, from log-probabilities that are known already.

    A model is asked once, by `tunemill.likelihood.score`, and every metric reads what it said; so no model is loaded here.
    """

    def _info(self) -> Any:
        return _info(
            "Perplexity, and bits per UTF-8 byte, of `references`: `logprobs` is each text's sum of log-probabilities in nats,"
            " `tokens` the number of its tokens",
            "Jelinek et al. (1977), Perplexity; HELM, Liang et al. (2022)",
            references="string",
            logprobs="float64",
            tokens="int64",
        )

    def _compute(
        self, references: Sequence[str], logprobs: Sequence[float], tokens: Sequence[int], **others: Any
    ) -> dict[str, Any]:
        _check(others, references=references, logprobs=logprobs, tokens=tokens)
        total, count = sum(logprobs), sum(tokens)
        found = {
            "perplexity": metrics.perplexity(total, count),
            "bits_per_byte": metrics.bits_per_byte(total, sum(len(each.encode()) for each in references)),
            "perplexity_n": len(references),
        }
        if found["perplexity"] is not None and found["bits_per_byte"] is not None:
            return found
        bad = sum(each != each or abs(each) == float("inf") for each in logprobs)
        reason = f"{bad} of {len(logprobs)} log-probabilities are not finite" if bad else "no tokens or no text"
        return found | {"perplexity_reason": reason}


class Faithfulness(InMemory):
    """Mean share of a summary's content words and identifiers that its source supports."""

    def _info(self) -> Any:
        return _info(
            "Mean over the items of the share (0 to 1) of a prediction's content words and identifiers that its source supports",
            "After extractive fragment coverage: Grusky et al. (2018), Newsroom",
            predictions="string",
            sources="string",
        )

    def _compute(self, predictions: Sequence[str], sources: Sequence[str], **others: Any) -> dict[str, Any]:
        _check(others, predictions=predictions, sources=sources)
        shares = [metrics.faithfulness(*pair) for pair in zip(sources, predictions, strict=True)]
        return _share("faithfulness", shares, "no item has both a source and a content word in its prediction")


class Memorised(InMemory):
    """Longest runs of words that predictions share, word for word, with one of the training texts.

    Args:
        training: the texts trained on, completions for a model tuned on completions.
    """

    def __init__(self, training: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.index = metrics.training_index(training)

    def _info(self) -> Any:
        return _info(
            "Words of the longest run that a prediction shares with one training text: mean and maximum over the items",
            "After Lee et al. (2022), Deduplicating Training Data Makes Language Models Better",
            predictions="string",
        )

    def _compute(self, predictions: Sequence[str], **others: Any) -> dict[str, Any]:
        _check(others, predictions=predictions)
        runs = [run for each in predictions if (run := metrics.memorised(each, self.index)) is not None]
        found = {
            "memorised": metrics.mean(runs),
            "memorised_longest": max(runs, default=None),
            "memorised_n": len(runs),
        }
        return found | ({} if runs else {"memorised_reason": "no prediction has a word"})


class Offence(InMemory):
    """How offensive texts are, by alt-profanity-check: mean probability, maximum, and share from one half on."""

    def _info(self) -> Any:
        return _info(
            "Probability (0 to 1) that a prediction is offensive: mean, maximum, and share of those at or above "
            f"{metrics.TOXIC}; empty predictions are left out",
            "alt-profanity-check; the threshold is that of Gehman et al. (2020), RealToxicityPrompts",
            predictions="string",
        )

    def _compute(self, predictions: Sequence[str], **others: Any) -> dict[str, Any]:
        _check(others, predictions=predictions)
        scores = [each for each in toxicity.offence(predictions) if each is not None]
        found = {
            "offence": metrics.mean(scores),
            "offence_maximum": max(scores, default=None),
            "offence_share": metrics.mean([float(each >= metrics.TOXIC) for each in scores]),
            "offence_n": len(scores),
        }
        return found | ({} if scores else {"offence_reason": "no prediction has a word"})


def _info(description: str, citation: str, **columns: str) -> Any:
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=f"Columns: {', '.join(columns)}; an empty text is a missing one.",
        features=Features({name: Value(kind) for name, kind in columns.items()}),
    )


def _check(others: Mapping[str, Any], **own: Sequence[Any]) -> None:
    """Refuse columns that no module reads, and rows with nothing in them."""
    if unknown := sorted(others.keys() - COLUMNS):
        raise TypeError(f"no module reads {', '.join(unknown)}; columns are {', '.join(sorted(COLUMNS))}")
    for name, values in own.items():
        if None in values:
            raise ValueError(f"{name}: row {values.index(None)} is None; a missing text is empty, a missing number nan")


def _share(name: str, values: Sequence[float | None], reason: str) -> dict[str, Any]:
    """Mean of the defined values under `name`, how many there are, and why there is none."""
    mean = metrics.mean(values)
    found = {name: mean, f"{name}_n": sum(each is not None for each in values)}
    return found | ({f"{name}_reason": reason} if mean is None else {})
